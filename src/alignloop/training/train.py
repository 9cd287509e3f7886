"""`train(method, ...)`: from names of models and data to a trained model in a folder. The facade over the two drivers
and over the procedures, which call it in turn.

    output_dir/model/          the result, a Hugging Face folder
    output_dir/metrics.jsonl   one line a step
    output_dir/checkpoints/    what a killed run continues from
    output_dir/rollouts/       what an online method sampled, a shard a step
    output_dir/machine.json    CPU threads and slots, and who chose them (training/machine.py)
    output_dir/train.json      settings as resolved, data, parents, versions, how it ended

Killed and called again, it continues to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import alignloop
from alignloop.algorithms import METHODS
from alignloop.core.allocator import keep_memory
from alignloop.core.errors import ConfigError, nearest
from alignloop.core.files import write_json
from alignloop.core.protocols import Method, Procedure, Tracker
from alignloop.core.tracking import JsonlTracker, TensorBoardTracker
from alignloop.core.types import content_id
from alignloop.models.load import save_policy, save_reward
from alignloop.training.assemble import assemble
from alignloop.training.build import Job
from alignloop.training.fit import FitResult, fit
from alignloop.training.machine import threads_of
from alignloop.training.procedures import PROCEDURES, carry_out
from alignloop.training.settings import TrainSettings, parse_settings
from alignloop.training.state import resume
from alignloop.training.world import AnyWorld, join_world

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """Where the model is (the answers, of a procedure that makes answers) and how its training ended."""

    path: Path
    method: str
    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None


@dataclass(frozen=True)
class Inputs:
    """What a run is made from. data, prompts, *_data, eval_prompts: a path, a hub id, or records; reward: any form of
    rewards.load.

    pretrain_data: texts or demonstrations that an online method imitates besides (ptx_coef). reference: a model folder;
    None freezes the starting policy. eval_reward scores eval_prompts' answers by reward models other than the one
    optimised. read: keyword arguments of the data readers (format, columns, on_bad_row, ...).
    """

    model: str
    data: Any = None
    prompts: Any = None
    reward: Any = None
    reference: str | None = None
    pretrain_data: Any = None
    eval_data: Any = None
    eval_prompts: Any = None
    eval_reward: Any = None
    read: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """JSON-able: files as their path and content hash, records as their count and hash, functions as their code."""
        return {name: _describe(getattr(self, name)) for name in self.__dataclass_fields__}


def train(
    method: str,
    *,
    model: str | Path,
    output_dir: str | Path,
    data: Any = None,
    prompts: Any = None,
    reward: Any = None,
    pretrain_data: Any = None,
    reference: str | Path | None = None,
    eval_data: Any = None,
    eval_prompts: Any = None,
    eval_reward: Any = None,
    read: Mapping[str, Any] | None = None,
    show: bool = True,
    **settings: Any,
) -> TrainResult:
    """Train `model` by `method` and save it under `output_dir`; continue if an earlier call was killed there.

    `settings` are flat: the method's own (``beta=0.1``) and the shared ones of training/settings.py
    (``learning_rate=1e-5``). Raises ConfigError, DataError or ModelError before any compute is spent.

    >>> train("dpo", model="runs/sft/model", data="pairs.jsonl", output_dir="runs/dpo", beta=0.1)  # doctest: +SKIP
    """
    chosen = find_method(method)
    parsed = parse_settings(chosen, settings, f"train {method}")
    inputs = Inputs(
        str(model), data, prompts, reward, str(reference) if reference else None, pretrain_data, eval_data,
        eval_prompts, eval_reward, read or {},
    )  # fmt: skip
    world = join_world()
    folder = Path(output_dir)
    done = _finished(folder, chosen, parsed, inputs)
    if done is not None:
        return done
    if isinstance(chosen, Procedure):
        return _procedure(chosen, parsed, inputs, folder, show)
    keep_memory()
    with threads_of(parsed, inputs.model, folder, world):
        torch.manual_seed(parsed.loop.seed + world.rank)
        job = assemble(chosen, parsed, inputs, folder, world)
        if resume(job.state, folder / "checkpoints"):
            log.info("continuing %s at step %d of %d", folder, job.state.step, job.total)
        job.begin()
        return _run(job, chosen, parsed, inputs, folder, world, show)


def find_method(name: str) -> Method | Procedure:
    """The method or procedure of that name; a ConfigError names the nearest one."""
    known: dict[str, Method | Procedure] = {**METHODS, **PROCEDURES}
    if name not in known:
        raise ConfigError(f"unknown method '{name}', {nearest(name, known)}")
    return known[name]


def _procedure(chosen: Procedure, settings: TrainSettings, inputs: Inputs, folder: Path, show: bool) -> TrainResult:
    start = time.perf_counter()
    with threads_of(settings, inputs.model, folder, join_world()):
        found = carry_out(chosen, settings, inputs, folder, show=show)
    seconds = round(time.perf_counter() - start, 3)
    record = {
        "method": chosen.name,
        "settings": settings.as_dict(),
        "inputs": inputs.describe(),
        "key": _key(chosen.name, settings, inputs),
        "path": found.path.name,
        "steps": found.steps,
        "seconds": seconds,
        "metrics": dict(found.metrics),
        "best_step": found.best_step,
        "notes": dict(found.notes),
        "versions": _versions(),
    }
    if join_world().rank == 0:
        write_json(folder / "train.json", record)
    return TrainResult(found.path, chosen.name, found.steps, seconds, dict(found.metrics), found.best_step)


def _run(
    job: Job, method: Method, settings: TrainSettings, inputs: Inputs, folder: Path, world: AnyWorld, show: bool
) -> TrainResult:
    trackers: list[Tracker] = []
    if world.rank == 0:
        trackers.append(JsonlTracker(folder / "metrics.jsonl", job.state.step))
        if settings.loop.report_to == "tensorboard":
            trackers.append(TensorBoardTracker(folder / "tensorboard"))
    try:
        ended = fit(
            job.steps(),
            job.state,
            job.total,
            folder=folder / "checkpoints",
            loop=settings.loop,
            trackers=trackers,
            epochs_a_step=job.epochs_a_step,
            watch=job.watch,
            label=method.name,
            show=show,
        )
    finally:
        for tracker in trackers:
            tracker.close()
    result = TrainResult(
        folder / "model", method.name, ended.steps, ended.seconds, ended.metrics, ended.best_step
    )  # fmt: skip
    if world.rank == 0:
        _save_model(job, method, inputs, folder)
        write_json(folder / "train.json", _record(job, method, settings, inputs, ended))
    world.barrier()
    return result


def _save_model(job: Job, method: Method, inputs: Inputs, folder: Path) -> None:
    card = model_card(method, inputs, job)
    if method.role == "reward":
        job.normalise()
        facts = {"chat": job.chat.fingerprint, **job.facts()}
        save_reward(job.state.learner.policy, job.tokenizer, folder / "model", card=card, **facts)
    else:
        save_policy(job.state.learner.policy, job.tokenizer, folder / "model", card=card)


def model_card(method: Method, inputs: Inputs, job: Job) -> str:
    """A README for the saved folder: what it is, from what, by which paper."""
    given = "\n".join(f"- {name}: {value}" for name, value in inputs.describe().items() if value)
    return (
        f"# {method.name} of {Path(inputs.model).name}\n\n{method.summary}\n\n"
        f"Trained by alignloop {alignloop.__version__} with arXiv:{method.paper}, {job.total} steps.\n\n{given}\n"
    )


def _record(job: Job, method: Method, settings: TrainSettings, inputs: Inputs, ended: FitResult) -> dict[str, Any]:
    return {
        "method": method.name,
        "settings": settings.as_dict(),
        "inputs": inputs.describe(),
        "key": _key(method.name, settings, inputs),
        "steps": ended.steps,
        "seconds": round(ended.seconds, 3),
        "metrics": ended.metrics,
        "best_step": ended.best_step,
        "stopped_early": ended.stopped_early,
        "notes": job.notes,
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {
        "alignloop": alignloop.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _finished(folder: Path, method: Method | Procedure, settings: TrainSettings, inputs: Inputs) -> TrainResult | None:
    """The result of an earlier call with the very same settings and inputs, if it ran to its end."""
    file = folder / "train.json"
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    path = folder / record.get("path", "model")
    if not path.exists():
        return None
    if record.get("key") != _key(method.name, settings, inputs):
        raise ConfigError(f"{folder} holds a finished run with other settings; choose another output_dir or delete it")
    return TrainResult(path, method.name, record["steps"], record["seconds"], record["metrics"], record["best_step"])


def _key(method: str, settings: TrainSettings, inputs: Inputs) -> str:
    return content_id(method, settings.as_dict(), inputs.describe())


def _describe(value: Any) -> Any:
    if value is None or isinstance(value, int | float | bool):
        return value
    if isinstance(value, str | Path):
        file = Path(value)
        return f"{value} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}" if file.is_file() else str(value)
    if isinstance(value, Mapping):
        return {str(k): _describe(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        items = [getattr(v, "id", None) or _describe(v) for v in value]
        return items if len(items) <= 8 and not hasattr(value[0] if value else None, "id") else {
            "records": len(items), "hash": content_id(items)
        }  # fmt: skip
    code = getattr(value, "__code__", None)
    name = getattr(value, "__name__", type(value).__name__)
    return name if code is None else f"{name} sha256:{hashlib.sha256(code.co_code).hexdigest()[:16]}"
