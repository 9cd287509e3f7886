"""Where the time of a training step goes, by kind of work, beside the bound that its matrix products set.

    python benchmarks/step_profile.py --methods sft,dpo --json

Steps of `alignloop.train` under PyTorch's profiler, on one thread, so that the milliseconds of all kinds add up to the
step's. The bound: 2 · N · tokens forward and twice that backward, for the N parameters of the body, and the same for
those of the head at the places that a loss reads, at the rate of one large product in this very process.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import assets, workload
from measure.ours_side import gemm_rate
from measure.runs import RESULTS, Record, append, code, machine, now

from alignloop.core import allocator

METHODS = ("sft", "reward", "dpo", "kto")
KINDS = (
    ("attention", ("_Blocks", "scaled_dot_product", "aten::bmm", "aten::baddbmm")),
    ("head: softmax and its gradient", ("_LogpOfLogits",)),
    ("optimizer, clipping", ("Optimizer.step", "_fused_adamw", "linalg_vector_norm", "_foreach")),
    ("embeddings", ("EmbeddingBackward", "aten::embedding")),
    ("copies and casts", ("aten::copy_", "aten::cat", "aten::contiguous")),
)
"""Kinds of work, by the names of an operation and of those that called it; the first that fits."""
PRODUCTS = ("aten::mm", "aten::addmm")
REST = "element by element, and the rest"
BODY, HEAD = "matrix products of the body", "matrix products of the head"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="sft,dpo", help=f"of {','.join(METHODS)}")
    parser.add_argument("--model", default="small", choices=list(assets.MODELS))
    parser.add_argument("--steps", type=int, default=6, help="profiled steps")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them, in which memory is laid out")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--assets", default=str(assets.default_folder()))
    parser.add_argument("--results", type=Path, default=RESULTS / "step_profile.jsonl")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    if unknown := set(given.methods.split(",")) - set(METHODS):
        parser.error(f"--methods: {', '.join(sorted(unknown))} unknown; known: {', '.join(METHODS)}")
    folder = assets.ensure(Path(given.assets))
    found = [profiled(method, given, folder) for method in given.methods.split(",")]
    for record in found:
        append(given.results, record)
    print(json.dumps(found, indent=1) if given.json else "\n\n".join(map(table, found)))
    return 0


def profiled(method: str, given: argparse.Namespace, folder: Path) -> Record:
    """Milliseconds of a step by kind, and its bound."""
    from transformers import AutoTokenizer

    start = (
        assets.classifier(assets.model(folder, given.model))
        if method == "reward"
        else assets.model(folder, given.model)
    )
    work = workload.make(method, folder, AutoTokenizer.from_pretrained(start), given.warmup + given.steps, given.batch)
    events, read = _events(method, given, start, work)
    vocabulary = int(json.loads((start / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    kinds: Counter[str] = Counter()
    for event in events:
        kinds[kind_of(event, vocabulary)] += event.self_cpu_time_total
    body, head = assets.parameters(start)
    passes = 6 + 2 * (method in ("dpo", "kto"))  # forward and backward, and the reference's forward
    asked = sum(work.asked[given.warmup :])
    rate = on_one_thread(given.dtype)
    return {
        "benchmark": "step_profile",
        "setup": {
            "method": method, "model": given.model, "steps": given.steps, "batch": given.batch, "dtype": given.dtype,
            "code": code(),
        },
        "at": now(),
        "ms": {name: round(us / given.steps / 1e3, 2) for name, us in kinds.most_common()},
        "bound_ms": round(passes * (body * asked + head * read) / rate / given.steps * 1e3, 2),
        "machine": machine(),
    }  # fmt: skip


def _events(
    method: str, given: argparse.Namespace, start: Path, work: workload.Workload
) -> tuple[Sequence[Any], float]:
    """The profiled operations of the steps after the warm-up, and the tokens that their losses read."""
    import torch

    import alignloop
    from alignloop.training.learner import Learner

    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True)
    update, read = Learner.update, []

    def watched(learner: Learner, parts: Any) -> dict[str, float]:
        if len(read) == given.warmup:
            profiler.start()
        metrics = update(learner, parts)
        read.append(metrics["step_tokens"])
        if len(read) == given.warmup + given.steps:
            profiler.stop()
        return metrics

    with tempfile.TemporaryDirectory(prefix="alignloop-profile-") as place:
        data = work.write(Path(place))["ours"]
        Learner.update = watched  # type: ignore[method-assign]
        try:
            alignloop.train(
                method, model=str(start), data=data, output_dir=Path(place) / "run", show=False, threads=1,
                dtype={"bf16": "bfloat16", "fp32": "float32"}[given.dtype], max_steps=given.warmup + given.steps,
                **work.settings,
            )  # fmt: skip
        finally:
            Learner.update = update  # type: ignore[method-assign]
    return profiler.events(), sum(read[given.warmup :])


def on_one_thread(dtype: str) -> float:
    """Floating-point operations per second of a large product on one thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return gemm_rate(dtype, "cpu")
    finally:
        torch.set_num_threads(before)


def kind_of(event: Any, vocabulary: int) -> str:
    """What kind of work an operation is."""
    names, at = [event.name], event.cpu_parent
    while at is not None:
        names.append(at.name)
        at = at.cpu_parent
    if event.name in PRODUCTS:
        return HEAD if any(vocabulary in shape for shape in event.input_shapes if shape) else BODY
    return next((kind for kind, signs in KINDS if any(s in name for s in signs for name in names)), REST)


def table(found: Mapping[str, Any]) -> str:
    """For a terminal."""
    whole = sum(found["ms"].values())
    lines = [f"{found['setup']['method']}, {found['setup']['model']}: {whole:.0f} ms a step on one thread"]
    lines += [f"  {ms:8.1f} ms  {100 * ms / whole:4.1f} %  {name}" for name, ms in found["ms"].items()]
    return "\n".join([*lines, f"  {found['bound_ms']:8.1f} ms  the bound of its matrix products"])


if __name__ == "__main__":
    allocator.restart()
    sys.exit(main())
