"""What a step costs when one thing grows: log-log slopes, seconds and memory. 1 is linear, 0 is flat.

    python benchmarks/scaling.py --axes sequences,length,vocabulary,group,lora_rank,dataset --json

Axis by axis, every point in a process of its own, through `alignloop.train`:

sequences    SFT, rows of 128 tokens, 4 to 64 rows a step          expected: seconds linear
length       SFT, 4,096 tokens a step, rows of 64 to 1,024 tokens  reported: attention grows with length
vocabulary   SFT, 32,000 to 256,000 words                          seconds and memory of the head
group        GRPO, 4 prompts, 2 to 16 answers each                 linear in answers; the prompt is paid once
lora_rank    SFT with an adapter of rank 2 to 128                  nearly flat
dataset      SFT, 256 to 16,384 rows in the file, the same steps   memory flat

Rows are windows of ids from the benchmark's corpus; the model is a random Llama of hidden size 128 with 4 layers. Each
point is the median over its measured steps; points of a results file are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measure import assets, workload
from measure.runs import LAUNCHER, RESULTS, Notebook, Record, Side, hardware

VOCABULARY = 32_000


@dataclass(frozen=True)
class Point:
    """One setting of one axis: x, and what is trained there. rows: (how many, their tokens each)."""

    x: int
    rows: tuple[int, int]
    batch: int
    method: str = "sft"
    vocabulary: int = VOCABULARY
    settings: Mapping[str, Any] = field(default_factory=dict)


def sequences(steps: int) -> Iterator[Point]:
    for n in (4, 8, 16, 32, 64):
        yield Point(n, (n * steps, 128), n)


def length(steps: int) -> Iterator[Point]:
    for n in (64, 128, 256, 512, 1024):
        yield Point(n, (4096 // n * steps, n), 4096 // n)


def vocabulary(steps: int) -> Iterator[Point]:
    for n in (32_000, 64_000, 128_000, 256_000):
        yield Point(n, (8 * steps, 128), 8, vocabulary=n)


def group(steps: int) -> Iterator[Point]:
    for n in (2, 4, 8, 16):
        own = {"kl": {"beta": 0.0}, "num_generations": n, "rollout_batch_size": 4, "max_completion_length": 64,
               "measure": False}  # fmt: skip
        yield Point(n, (4 * steps, 64), 4 * n, "grpo", settings=own)


def lora_rank(steps: int) -> Iterator[Point]:
    for n in (2, 8, 32, 128):
        yield Point(n, (8 * steps, 128), 8, settings={"lora": {"r": n, "alpha": 2 * n}})


def dataset(steps: int) -> Iterator[Point]:
    for n in (256, 1024, 4096, 16_384):
        yield Point(n, (n, 64), 8)


AXES: Mapping[str, Callable[[int], Iterator[Point]]] = {
    "sequences": sequences, "length": length, "vocabulary": vocabulary, "group": group, "lora_rank": lora_rank,
    "dataset": dataset,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    folder = assets.ensure(Path(given.assets))
    reports = [measure(axis, given, folder) for axis in given.axes.split(",")]
    print(json.dumps(reports, indent=1) if given.json else table(reports))
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", default=",".join(AXES))
    parser.add_argument("--points", type=int, help="only the first so many points of an axis (at least 2 for a slope)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a point, after one to warm up")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--assets", default=str(assets.default_folder()))
    parser.add_argument("--results", type=Path, default=RESULTS / "scaling.jsonl")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    unknown = set(given.axes.split(",")) - set(AXES)
    if unknown:
        parser.error(f"--axes: {', '.join(sorted(unknown))} unknown; known: {', '.join(AXES)}")
    return given


def measure(axis: str, given: argparse.Namespace, folder: Path) -> Record:
    """All points of one axis, and the slopes through them."""
    points = list(AXES[axis](given.steps + 1))[: given.points]
    notebook = Notebook(given.results, "scaling", given.device, given.threads)
    corpus = words(folder)
    found = []
    for point in points:
        setup = {"axis": axis, "x": point.x, "steps": given.steps, "dtype": given.dtype}
        with tempfile.TemporaryDirectory(prefix="alignloop-rows-") as place:
            side = Side("ours", "ours", job(point, given, folder, corpus, Path(place)), LAUNCHER)
            [record] = notebook.rounds(setup, [side], 1)
        memory = record["peak_gpu_mb"] if given.device == "cuda" else record["peak_rss_mb"]
        found.append({"x": point.x, "seconds": statistics.median(record["seconds"]), "memory_mb": memory})
    return {
        "axis": axis,
        "points": found,
        "slope_seconds": slope([(p["x"], p["seconds"]) for p in found]),
        "slope_memory": slope([(p["x"], p["memory_mb"]) for p in found]),
        "hardware": hardware(),
    }


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Least-squares slope of log y against log x; None for fewer than two points.

    >>> slope([(1, 3.0), (2, 6.0), (4, 12.0)])
    1.0
    """
    if len(points) < 2:
        return None
    xs, ys = ([math.log(p[k]) for p in points] for k in (0, 1))
    mx, my = statistics.fmean(xs), statistics.fmean(ys)
    return round(sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs), 3)


def words(folder: Path) -> str:
    """The benchmark's texts in one."""
    return "\n".join(row[name] for row in assets.rows(folder) for name in ("prompt", "chosen", "rejected"))


def job(point: Point, given: argparse.Namespace, folder: Path, corpus: str, place: Path) -> dict[str, Any]:
    """What `ours_side.py` is told; its model and rows are written to `place`."""
    model = make_model(point.vocabulary, folder, place / "model")
    n, tokens = point.rows
    data = place / "rows.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for row in windows(corpus, n, tokens, model):
            kept = {"prompt": row["prompt"]} if point.method == "grpo" else row
            file.write(json.dumps(kept) + "\n")
    settings = {**workload.COMMON, "per_device_train_batch_size": point.batch, **point.settings}
    asked = [point.batch * tokens] * (given.steps + 1)
    return {
        "method": point.method, "model": str(model), "data": str(data), "settings": settings, "dtype": given.dtype,
        "warmup": 1, "steps": given.steps, "asked": asked, "answers": point.batch, "batch": point.batch,
    }  # fmt: skip


def make_model(size: int, folder: Path, place: Path) -> Path:
    """A random Llama with a vocabulary of `size` words and the small model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(assets.model(folder, "small"))
    config = LlamaConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=344, tie_word_embeddings=True,
        vocab_size=max(size, len(tokenizer)), max_position_embeddings=2048, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return assets.save(LlamaForCausalLM(config), tokenizer, place)


def windows(corpus: str, n: int, tokens: int, model: Path) -> list[dict[str, str]]:
    """n rows of about `tokens` ids (an eighth of them prompt, at least 4), cut out of the corpus at random places."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(corpus, add_special_tokens=False)["input_ids"]
    while len(ids) <= tokens:
        ids = ids + ids
    rng, first = random.Random(0), max(4, tokens // 8)
    starts = [rng.randrange(len(ids) - tokens) for _ in range(n)]
    prompts = tokenizer.batch_decode([ids[s : s + first] for s in starts])
    answers = tokenizer.batch_decode([ids[s + first : s + tokens - 1] for s in starts])
    return [{"prompt": p, "completion": a} for p, a in zip(prompts, answers)]


def table(reports: Sequence[Record]) -> str:
    """For a terminal."""
    lines = [f"{'axis':12} {'slope s':>8} {'slope MB':>9}   seconds a step (MB)"]
    for one in reports:
        points = ", ".join(f"{p['x']}: {p['seconds']:.3f} ({p['memory_mb']})" for p in one["points"])
        lines.append(f"{one['axis']:12} {one['slope_seconds']!s:>8} {one['slope_memory']!s:>9}   {points}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
