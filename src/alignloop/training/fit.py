"""The caller of a driver: logs, evaluates, saves, stops. Notebook and pipeline use this same loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from alignloop.core.errors import TrainingError
from alignloop.core.protocols import Tracker
from alignloop.training.settings import Loop
from alignloop.training.state import TrainState, save_state

Evaluate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class Watch:
    """An evaluation to repeat, and the metric by which one model is better than another.

    every: steps between evaluations (0: at the end only). keep_best: end with the weights of the best evaluation.
    patience: stop after so many evaluations without a better one (0: never).
    """

    evaluate: Evaluate
    metric: str
    larger_is_better: bool
    every: int = 0
    keep_best: bool = False
    patience: int = 0


@dataclass
class FitResult:
    """How a run ended."""

    steps: int
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    stopped_early: bool = False
    best_step: int | None = None


def fit(
    steps: Iterable[tuple[int, dict[str, float]]],
    state: TrainState,
    total: int,
    *,
    folder: Path,
    loop: Loop,
    trackers: list[Tracker],
    epochs_a_step: float = 0.0,
    watch: Watch | None = None,
    label: str = "train",
    show: bool = True,
) -> FitResult:
    """Consume a driver to its end or to an early stop.

    Continuing after a crash needs no special case: `state` was loaded, and the driver starts at its step.
    """
    world = state.learner.world
    start, before = time.perf_counter(), state.num_tokens
    save_every = max(1, total // 10) if loop.save_every < 0 else loop.save_every
    result = FitResult(state.step, 0.0)
    with _progress(show and world.rank == 0) as bar:
        task = bar.add_task(label, total=total, completed=state.step, speed="")
        for step, metrics in steps:
            seconds = time.perf_counter() - start
            metrics = {**metrics, "num_tokens": state.num_tokens, "epoch": step * epochs_a_step}
            stop = False
            if watch is not None and (step == total or (watch.every and step % watch.every == 0)):
                stop = _look(state, step, metrics, watch)
            result.metrics = metrics
            if world.rank == 0:
                for tracker in trackers:
                    tracker.log(step, metrics)
                if save_every and step % save_every == 0 and step < total:
                    save_state(state, folder, loop.save_total_limit)
            world.barrier()
            speed = (state.num_tokens - before) / max(seconds, 1e-9)
            bar.update(task, completed=step, speed=f"{speed:,.0f} tokens/s")
            if stop:
                result.stopped_early = True
                break
    result.steps, result.seconds = state.step, time.perf_counter() - start
    result.best_step = _restore_best(state, watch)
    return result


def _look(state: TrainState, step: int, metrics: dict[str, float], watch: Watch) -> bool:
    """Evaluate, remember the best; True if patience has run out."""
    found = watch.evaluate()
    metrics.update(found)
    if watch.metric not in found:
        raise TrainingError(f"the evaluation returned no {watch.metric}; it returned {', '.join(found)}")
    value = found[watch.metric] if watch.larger_is_better else -found[watch.metric]
    best = state.best
    if best is None or value > best["value"]:
        weights = _trained_weights(state) if watch.keep_best else None
        state.best = {"value": value, "step": step, "stale": 0, "weights": weights}
        return False
    state.best = {**best, "stale": best["stale"] + 1}
    return bool(watch.patience) and state.best["stale"] >= watch.patience


def _trained_weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.learner.policy.named_parameters() if p.requires_grad}


def _restore_best(state: TrainState, watch: Watch | None) -> int | None:
    """Put the best weights back where they were asked for; the step they are of."""
    best: dict[str, Any] | None = state.best
    if watch is None or not watch.keep_best or best is None or best["weights"] is None:
        return None
    with torch.no_grad():
        for name, parameter in state.learner.policy.named_parameters():
            if name in best["weights"]:
                parameter.copy_(best["weights"][name])
    return int(best["step"])


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[speed]}"),
        disable=not show,
        transient=False,
    )
