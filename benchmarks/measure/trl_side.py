"""TRL's side: the frozen opponent `trl_baseline.py`, unchanged, with its rows in the order given and every log kept.

    python trl_side.py JOB.json

Three things are set around it, none of which costs it time: rows are read in order instead of shuffled (transformers'
own `train_sampling_strategy`), every step is logged, so that losses can be compared, and `use_cpu` follows the device.
It imports nothing of alignloop: another environment runs it for PPO (../ppo_opponent.txt), whose trainer has a
constructor, a shuffled loader and a log of its own, and reads its dtype from accelerate's environment alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ONLINE = ("grpo", "rloo", "ppo")


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the opponent printed, with its logs, in the terms of the results file."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "" if job["device"] == "cpu" else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    if job["method"] == "ppo" and job["dtype"] == "bf16":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
    import torch
    import transformers

    set_order(transformers, job["device"])
    logs = keep_logs(transformers, ppo_in_order() if job["method"] == "ppo" else transformers.Trainer)
    options = {
        "method": job["method"], "model": job["model"], "data": job["data"], "steps": job["steps"],
        "warmup": job["warmup"], "batch-size": job["batch"], "dtype": job["dtype"], **job["options"],
    }  # fmt: skip
    sys.argv = [job["opponent"], *(str(x) for name, value in options.items() for x in (f"--{name}", value))]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(job["opponent"], run_name="__main__")
    found = json.loads([line for line in said.getvalue().splitlines() if line.startswith("{")][-1])
    if "error" in found:
        return {"error": found["error"]}
    own = found["tokens_per_step"] * found["steps"]
    return {
        "seconds": found["steps_s"],
        "cpu_s": [found["cpu_s_per_step"]] * found["steps"],
        "tokens": round(own if job["method"] in ONLINE else sum(job["asked"][job["warmup"] :])),
        "own_tokens": round(own),
        "metrics": metrics(job, found, logs),
        "setup_s": found["setup_s"],
        "peak_rss_mb": found["peak_rss_mb"],
        "peak_gpu_mb": torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else None,
        "allocator": "tuned" if "MALLOC_MMAP_MAX_" in os.environ else "as installed",
        "threads": torch.get_num_threads(),
        "versions": found["versions"],
        "opponent": found,
    }


def metrics(job: Mapping[str, Any], found: Mapping[str, Any], logs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was logged, a list over the steps. PPO logs no lengths: their mean over the measured steps is filled in;
    it calls the mean score what we call it."""
    steps = [entry for entry in logs if "loss" in entry or "objective/scores" in entry]
    kept: dict[str, Any] = {name: [entry.get(name) for entry in steps] for name in (steps[-1] if steps else {})}
    if job["method"] == "ppo":
        kept["completions/mean_length"] = [found["resp_per_step"] / job["batch"]]
        kept["reward"] = kept["objective/scores"]
    return kept


def keep_logs(transformers: Any, trainer: Any) -> list[dict[str, Any]]:
    """Every `trainer` made from now on logs every step; the list that its logs go to."""
    logs: list[dict[str, Any]] = []

    class Keep(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
            if torch_cuda():
                import torch

                torch.cuda.synchronize()
            control.should_log = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            kept.append({k: v for k, v in (logs or {}).items() if isinstance(v, int | float)})

    kept = logs
    made = trainer.__init__

    def begin(self: Any, *given: Any, **named: Any) -> None:
        named["callbacks"] = [Keep(), *(named.get("callbacks") or [])]  # first: the device is idle when time is read
        made(self, *given, **named)

    trainer.__init__ = begin
    return logs


def ppo_in_order() -> Any:
    """TRL's PPO trainer, with a loader that takes rows in their order."""
    import trl.experimental.ppo.ppo_trainer as ppo

    loader = ppo.DataLoader

    def in_order(*given: Any, **named: Any) -> Any:
        return loader(*given, **{**named, "shuffle": False})

    ppo.DataLoader = in_order
    return ppo.PPOTrainer


def torch_cuda() -> bool:
    """Whether this process computes on a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def set_order(transformers: Any, device: str) -> None:
    """Rows in the order of the file; the device of the job."""
    parse = transformers.TrainingArguments.__post_init__

    def settle(self: Any) -> None:
        self.train_sampling_strategy = "sequential"
        self.shuffle_dataset = False  # the group samplers of GRPO and RLOO read this instead
        self.use_cpu = device == "cpu"
        parse(self)

    transformers.TrainingArguments.__post_init__ = settle


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(run(given)))
