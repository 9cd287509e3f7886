"""Drawing and learning in turn, and at once (`draw_ahead`): seconds of a step, and the reward that each reaches.

    python benchmarks/overlap.py --json                        # ppo and grpo on the demo's base model (minutes)
    python benchmarks/overlap.py --methods grpo --steps 30

Both sides of a round run one after the other, each in a process of its own. A step is timed from one call of the reward
to the next; the first two are left out (the second process starts, memory is laid out). `cpu_s` are the CPU seconds of
the process that learns: where other programs use the cores, seconds favour the side with two processes, and these tell
what drawing elsewhere takes off it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

from measure.runs import RESULTS, Record, SideError, append, code, machine, now

from alignloop.core.tracking import read_jsonl

SIDES: dict[str, dict[str, Any]] = {
    "in turn": {},
    "at once": {"draw_ahead": True, "max_lag": 1, "importance": {"mode": "tis"}},
}
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"num_ppo_epochs": 1, "num_mini_batches": 3, "kl": {"beta": 0.15}},
    "grpo": {"num_generations": 4},
}
LEFT_OUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=16, help="rollout steps of a run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--answers", type=int, default=96, help="answers of a step")
    parser.add_argument("--new-tokens", type=int, default=140)
    parser.add_argument("--model", help="model folder (default: the demo's base model)")
    parser.add_argument("--threads", type=int, default=0, help="OMP_NUM_THREADS of every run; 0 leaves it alone")
    parser.add_argument("--results", type=Path, default=RESULTS / "overlap.jsonl")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.steps < LEFT_OUT + 2:
        parser.error(f"--steps: {LEFT_OUT} steps are left out; give {LEFT_OUT + 2} or more")
    if given.side is not None:
        print(json.dumps(side(json.loads(given.side))))
        return 0
    found = [measured(method, given) for method in given.methods.split(",")]
    for record in found:
        append(given.results, record)
    print(json.dumps(found, indent=1) if given.json else "\n".join(map(line, found)))
    return 0


def measured(method: str, given: argparse.Namespace) -> Record:
    """Both sides of one method, in turn, as often as asked; medians over the steps of all rounds."""
    setup = {
        "method": method, "steps": given.steps, "answers": given.answers, "new_tokens": given.new_tokens,
        "model": given.model or "demo base", "threads": given.threads,
    }  # fmt: skip
    runs: dict[str, list[Record]] = {name: [] for name in SIDES}
    for number in range(given.rounds):
        for name in SIDES:
            job = {**setup, "model": given.model, "side": name, "seed": number}
            runs[name].append(in_a_process(job, given.threads))
    sides = {
        name: {
            "step_s": round(median(s for run in rows for s in run["steps_s"]), 3),
            "cpu_s": round(median(s for run in rows for s in run["cpu_s"]), 3),
            "whole_s": round(mean(run["whole_s"] for run in rows), 2),
            "first_reward": round(mean(run["rewards"][0] for run in rows), 4),
            "last_reward": round(mean(r for run in rows for r in run["rewards"][-4:]), 4),
            "drift": round(mean(run["drift"] for run in rows), 4),
        }
        for name, rows in runs.items()
    }  # fmt: skip
    ratio = sides["in turn"]["step_s"] / sides["at once"]["step_s"]
    return {
        "benchmark": "overlap", "setup": {**setup, "code": code()}, "at": now(), "rounds": given.rounds,
        "sides": sides, "times_as_fast": round(ratio, 3), "runs": runs, "machine": machine(),
    }  # fmt: skip


def in_a_process(job: Record, threads: int) -> Record:
    """One run in a process of its own; SideError if it fails."""
    command = [sys.executable, __file__, "--side", json.dumps(job)]
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SideError(job["side"], f"exit code {done.returncode}\n{(done.stderr or done.stdout)[-3000:]}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def side(job: Record) -> Record:
    """One run, here: seconds of its steps, the mean score of each, and how far the policy moved meanwhile."""
    from alignloop import train
    from alignloop.demo.world import BASE_MODEL, gold_scorer, prompts

    start, calls = time.perf_counter(), []

    def timed(*args: Any, **columns: Any) -> list[float | None]:
        calls.append((time.perf_counter(), time.process_time()))
        return gold_scorer(*args, **columns)

    how = METHODS[job["method"]]
    each = how.get("num_generations", 1)
    with tempfile.TemporaryDirectory(prefix="alignloop-overlap-") as folder:
        train(
            job["method"], model=job["model"] or BASE_MODEL, prompts=prompts(split="train"), reward=timed,
            output_dir=folder, max_steps=job["steps"], rollout_batch_size=max(1, job["answers"] // each),
            max_completion_length=job["new_tokens"], per_device_train_batch_size=32, learning_rate=1.5e-4,
            seed=job["seed"], save_every=0, measure=False, show=False, **how, **SIDES[job["side"]],
        )  # fmt: skip
        lines = read_jsonl(Path(folder) / "metrics.jsonl")
    seconds, cpu = zip(*((b[0] - a[0], b[1] - a[1]) for a, b in list(pairwise(calls))[LEFT_OUT:]), strict=True)
    drift = [line.get("sampling/policy_drift/mean", 0.0) for line in lines[1:]]
    return {
        "steps_s": [round(s, 3) for s in seconds],
        "cpu_s": [round(s, 3) for s in cpu],
        "whole_s": round(time.perf_counter() - start, 2),
        "rewards": [line["objective/scores"] for line in lines],
        "drift": mean(drift),
    }


def line(found: Record) -> str:
    """For a terminal."""
    words = [f"{found['setup']['method']}, {found['times_as_fast']:.2f} times as fast"]
    for name, x in found["sides"].items():
        words.append(
            f"{name}: {x['step_s']:.2f} s a step (CPU {x['cpu_s']:.2f} s where it learns), "
            f"reward {x['first_reward']:.2f} → {x['last_reward']:.2f}"
        )
    return "\n  ".join(words)


if __name__ == "__main__":
    sys.exit(main())
