"""alignloop and TRL on the same machine in the same run: tokens per second, peak memory, and proof of equal work.

    python benchmarks/versus_trl.py --methods sft,reward,dpo --model small --json
    python benchmarks/versus_trl.py --methods sft,reward,dpo,kto,grpo,rloo,ppo --rounds 2

Every side runs in a process of its own, in turn: ours (with the allocator setting of `alignloop train`), TRL as
installed, TRL with the tuned allocator, and for SFT and DPO the frozen packed prototype. All get the same rows in the
same order, dtype and rows of a micro-batch; figures are totals over the steps after the warm-up. Losses are compared,
and a comparison of unequal work ends with an error instead of a ratio. Rounds are appended to a results file and
continued: what is there of these settings and this code is not measured again.

PPO left TRL with 1.13: ours runs alone, unless --trl-python names the Python of an environment of ppo_opponent.txt.
On CUDA (--device cuda --model qwen) times are synchronised and peak GPU memory is reported. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measure import assets, equal_work, workload
from measure.runs import (
    LAUNCHER,
    PLAIN,
    RESULTS,
    TUNED,
    Notebook,
    Record,
    Side,
    SideError,
    hardware,
    largest,
    rate,
    ratio,
)

STEPS: Mapping[str, int] = {"reward": 6, "grpo": 2, "rloo": 2, "ppo": 2}
"""Measured steps of a round where --steps does not say; 4 for the other methods."""
LIMITED = ("sft", "dpo")
"""Methods that the packed prototype has."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    folder = assets.ensure(Path(given.assets))
    assets.shared()
    reports, bad = [], False
    for method in given.methods:
        try:
            records = measure(method, given, folder)
            reports.append(report(method, given, records))
        except (SideError, equal_work.UnequalWorkError) as error:
            bad = True
            reports.append({"method": method, "model": given.model, "error": str(error)})
            print(f"{method}: {error}", file=sys.stderr, flush=True)
    print(json.dumps(reports, indent=1) if given.json else table(reports))
    return int(bad)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="sft,reward,dpo", help=f"of {','.join(workload.METHODS)}")
    parser.add_argument("--model", default="small", choices=list(assets.MODELS))
    parser.add_argument("--steps", type=int, help="measured steps of a round (default: 4; 6 reward, 2 online methods)")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them that are not counted")
    parser.add_argument("--rounds", type=int, default=2, help="rounds that the results file is to hold")
    parser.add_argument(
        "--batch", type=int, default=8, help="rows of a step, one micro-batch (grpo, rloo: 64; ppo: 32)"
    )
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"], help="bf16: autocast, float32 weights")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=0, help="OMP_NUM_THREADS of every side; 0 leaves it alone")
    parser.add_argument("--sides", default="ours,trl,trl_tuned,packed", help="contestants, in this order")
    parser.add_argument("--trl-python", help="PPO's opponent: the Python of an environment of ppo_opponent.txt")
    parser.add_argument("--assets", default=str(assets.default_folder()), help="models and rows; made where absent")
    parser.add_argument("--results", type=Path, default=RESULTS / "versus_trl.jsonl")
    parser.add_argument("--json", action="store_true", help="print one list, one object per method")
    given = parser.parse_args(arguments)
    given.methods = given.methods.split(",")
    given.sides = given.sides.split(",")
    unknown = set(given.methods) - set(workload.METHODS)
    if unknown:
        parser.error(f"--methods: {', '.join(sorted(unknown))} unknown; known: {', '.join(workload.METHODS)}")
    if given.warmup < 1:
        parser.error("--warmup: the first step also pays for allocation; at least 1")
    return given


def measure(method: str, given: argparse.Namespace, folder: Path) -> list[Record]:
    """All rounds of one method, measured where the results file does not hold them."""
    from transformers import AutoTokenizer

    model = assets.model(folder, given.model)
    steps = given.steps or STEPS.get(method, 4)
    setup = {
        "method": method, "model": given.model, "steps": steps, "warmup": given.warmup, "batch": given.batch,
        "dtype": given.dtype, "trl_python": "of its own" if method == "ppo" and given.trl_python else None,
    }  # fmt: skip
    work = workload.make(method, folder, AutoTokenizer.from_pretrained(model), given.warmup + steps, given.batch)
    with tempfile.TemporaryDirectory(prefix="alignloop-rows-") as place:
        files = work.write(Path(place))
        sides = contestants(method, given, work, files, model, steps)
        return Notebook(given.results, "versus_trl", given.device, given.threads).rounds(setup, sides, given.rounds)


def contestants(
    method: str, given: argparse.Namespace, work: workload.Workload, files: Mapping[str, str], model: Path, steps: int
) -> list[Side]:
    """The sides of one method, in turn."""
    starts = {"reward": assets.classifier, "ppo": assets.one_end}
    start = starts[method](model) if method in starts else model
    common: dict[str, Any] = {
        "method": method, "model": str(start), "steps": steps, "warmup": given.warmup, "batch": work.batch,
        "dtype": given.dtype, "asked": work.asked,
    }  # fmt: skip
    online = method in workload.ONLINE
    ours = {**common, "data": files["ours"], "settings": dict(work.settings), "answers": work.batch if online else 0}
    theirs = {**common, "data": files["trl"], "opponent": str(assets.shared() / "trl_baseline.py")}
    theirs["options"] = {"lr": workload.LEARNING_RATE, "gradient-checkpointing": 0}
    if online:
        theirs["options"] |= {"num-generations": workload.GROUP, "max-completion": workload.NEW_TOKENS}
    if method == "ppo":
        ours["reward"] = theirs["options"]["reward-model"] = str(assets.classifier(model))
    limit = {**common, "encoded": files["encoded"], "learning_rate": workload.LEARNING_RATE}
    limit["prototype"] = str(assets.shared() / "packed_prototype.py")
    python = given.trl_python if method == "ppo" and given.trl_python else sys.executable
    all_sides = {
        "ours": Side("ours", "ours", ours, LAUNCHER),
        "trl": Side("trl", "trl", theirs, PLAIN, python),
        "trl_tuned": Side("trl_tuned", "trl", theirs, TUNED, python),
        "packed": Side("packed", "packed", limit, LAUNCHER),
    }
    if method not in LIMITED or given.device != "cpu":
        del all_sides["packed"]
    if method == "ppo" and not given.trl_python:
        del all_sides["trl"], all_sides["trl_tuned"]
    return [all_sides[name] for name in given.sides if name in all_sides]


def report(method: str, given: argparse.Namespace, records: Sequence[Record]) -> Record:
    """One method: ratios over all rounds, both sides' figures, the setting. UnequalWorkError where the sides differ."""
    checked = equal_work.check(method, records)
    rates = {name: rate(records, name) for name in ("ours", "trl", "trl_tuned", "packed")}
    memory = "peak_gpu_mb" if given.device == "cuda" else "peak_rss_mb"
    peaks = {name: largest(records, name, memory) for name in rates}
    ours = [r for r in records if r["side"] == "ours"]
    return {
        "method": method,
        "model": given.model,
        "ratio_tokens_per_s": ratio(rates["ours"], rates["trl"]),
        "ratio_tokens_per_s_tuned": ratio(rates["ours"], rates["trl_tuned"]),
        "ratio_peak_rss": ratio(peaks["ours"], peaks["trl_tuned"]),
        "ratio_peak_rss_as_installed": ratio(peaks["ours"], peaks["trl"]),
        "fraction_of_packed_limit": ratio(rates["ours"], rates["packed"]),
        "share_of_matmul_peak": share_of_peak(method, given, ours),
        **{name: figures(name, records, memory) for name in rates if rates[name] is not None},
        "equal_work": checked,
        "rounds": max((r["round"] for r in records), default=-1) + 1,
        "setup": records[0]["setup"] if records else None,
        "versions": {k: v for r in records for k, v in r.get("versions", {}).items()},
        "threads": {r["side"]: r["threads"] for r in records},
        "hardware": hardware(),
    }


def figures(side: str, records: Sequence[Record], memory: str) -> Record:
    """What one side did over all its rounds."""
    mine = [r for r in records if r["side"] == side]
    seconds = [s for r in mine for s in r["seconds"]]
    return {
        "tokens_per_s": round(rate(records, side) or 0.0, 1),
        "tokens_per_s_by_round": [round(r["tokens"] / sum(r["seconds"]), 1) for r in mine],
        "step_s": round(sum(seconds) / len(seconds), 4),
        "steps": len(seconds),
        "tokens": sum(r["tokens"] for r in mine),
        memory: largest(mine, side, memory),
        "load": [r["machine"]["load"][0] for r in mine],
    }


def share_of_peak(method: str, given: argparse.Namespace, ours: Sequence[Record]) -> float | None:
    """What our steps make of the rate of a large matrix product, counting 2 operations a weight and useful token."""
    if method not in LIMITED or not ours:
        return None
    body, head = assets.parameters(assets.model(Path(given.assets), given.model))
    passes = 8 if method == "dpo" else 6  # forward 2, backward 4, the reference's forward 2
    answers = sum(sum(r["trained_tokens"][r["setup"]["warmup"] :]) for r in ours)
    flops = passes * (body * sum(r["tokens"] for r in ours) + head * answers)
    seconds = sum(sum(r["seconds"]) for r in ours)
    return round(flops / seconds / max(r["gemm_flops"] for r in ours), 3)


def table(reports: Sequence[Record]) -> str:
    """The ratios as a table for a terminal."""
    names = ("ratio_tokens_per_s", "ratio_tokens_per_s_tuned", "ratio_peak_rss", "fraction_of_packed_limit")
    lines = [f"{'method':8} {'ours tok/s':>11} " + " ".join(f"{n.removeprefix('ratio_'):>22}" for n in names)]
    for one in reports:
        if "error" in one:
            lines.append(f"{one['method']:8} failed (see above)")
            continue
        speed = one.get("ours", {}).get("tokens_per_s", "-")
        shown = ("-" if one[n] is None else f"{one[n]:.2f}" for n in names)
        lines.append(f"{one['method']:8} {speed:>11} " + " ".join(f"{x:>22}" for x in shown))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
