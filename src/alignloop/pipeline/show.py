"""What people see of a plan and of a run: tables and progress lines. Nothing here changes a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from alignloop.pipeline.plan import Plan, Planned
from alignloop.pipeline.preflight import human_seconds
from alignloop.pipeline.state import RunStatus, StageRow, StageState

COLOURS = {"done": "green", "running": "cyan", "waiting": "yellow", "failed": "red", "interrupted": "yellow"}


TELLING = ("eval_loss", "eval_reward", "objective/scores", "objective/kl", "loss", "accuracy", "rewards/accuracies")
"""Metrics that come first where a line has room for a few."""


class RichDisplay:
    """Progress bars on a terminal; one line per event elsewhere."""

    def __init__(self, console: Console, stages: int):
        self._console, self._stages, self._seen = console, stages, 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = 0.0

    def started(self, planned: Planned, attempt: int) -> None:
        self._seen += 1
        again = " (continued)" if attempt > 1 else ""
        self._console.print(
            f"[{self._seen}/{self._stages}] {planned.name}: {what(planned)}{again}", markup=False, soft_wrap=True
        )

    def cached(self, planned: Planned, state: StageState) -> None:
        self._seen += 1
        self._console.print(
            f"[{self._seen}/{self._stages}] {planned.name}: done before ({human_seconds(state.seconds)})", markup=False
        )

    def progress(self, planned: Planned, done: float, total: float, note: str) -> None:
        if not self._console.is_terminal:
            if time.monotonic() - self._last > 10:
                self._last = time.monotonic()
                self._console.print(f"    {done:g} of {total:g} {note}", markup=False, highlight=False, soft_wrap=True)
            return
        if self._bar is None:
            columns = (
                TextColumn("    "),
                BarColumn(),
                TextColumn("{task.completed:g}/{task.total:g} {task.description}"),
            )
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console, transient=True
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total)
        assert self._task is not None
        self._bar.update(self._task, completed=done, total=total, description=note)

    def finished(self, planned: Planned, state: StageState) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
        if state.status == "done":
            self._console.print(
                f"    done in {human_seconds(state.seconds)}{numbers(state.metrics)}", markup=False, soft_wrap=True
            )
        else:
            self._console.print(f"    {state.status}: {state.message}", markup=False, soft_wrap=True)


def what(planned: Planned) -> str:
    """One phrase for what a stage does: ``train dpo from sft``.

    >>> from alignloop.pipeline.spec import Train
    >>> what(Planned("d", Train(do="train", method="dpo", model="sft"), ("sft",)))
    'train dpo from sft'
    """
    stage = planned.stage
    if stage.do == "train":
        return f"train {stage.method} from {stage.model}"
    if stage.do == "generate":
        return f"generate {stage.n} completions a prompt with {stage.model}"
    if stage.do == "annotate":
        people = ", ".join(a if isinstance(a, str) else _people(a) for a in stage.annotators)
        return f"annotate {_joined(stage.samples)} by {people}"
    return f"evaluate {_joined(stage.models)}"


def _people(annotators: Mapping[str, Any]) -> str:
    """``{simulated: 20}`` as "20 simulated"."""
    name, value = next(iter(annotators.items()), ("annotators", 0))
    return f"{value} {name}" if isinstance(value, int) else name


def numbers(metrics: Mapping[str, Any], most: int = 4) -> str:
    """The most telling numbers of a stage's metrics, as ``: loss 0.31, accuracy 0.9``."""
    named = sorted(metrics, key=lambda k: TELLING.index(k) if k in TELLING else len(TELLING))
    values = [(k, v) for k in named if isinstance(v := metrics[k], int | float) and not isinstance(v, bool)]
    found = [f"{k} {v:.4g}" for k, v in values]
    return ": " + ", ".join(found[:most]) if found else ""


def plan_table(plan: Plan) -> Table:
    """The stages in the order in which they will run."""
    table = Table(title=f"{plan.recipe.name}: {len(plan.stages)} stages", title_justify="left", show_edge=False)
    for name in ("stage", "does", "needs"):
        table.add_column(name, overflow="fold")
    for planned in plan.stages:
        table.add_row(planned.name, what(planned), ", ".join(planned.needs))
    return table


def status_table(status: RunStatus) -> Table:
    """A run, stage by stage."""
    title = f"{status.name} in {status.folder}: {status.status}"
    table = Table(title=title, title_justify="left", show_edge=False)
    for name in ("stage", "status", "progress", "time", "result"):
        table.add_column(name, overflow="fold")
    for row in status.stages:
        colour = COLOURS.get(row.state.status, "dim")
        seconds = row.state.seconds or (time.time() - row.state.started if row.state.status == "running" else 0)
        shown = human_seconds(seconds) if seconds else ""
        result = row.state.message or numbers(row.state.metrics)[2:]
        table.add_row(row.name, f"[{colour}]{row.state.status}[/]", _progress(row), shown, result)
    return table


def _progress(row: StageRow) -> str:
    if row.state.status in ("done", "pending") or not row.total:
        return ""
    return f"{row.done:g}/{row.total:g} {row.note}".strip()


def status_json(status: RunStatus) -> dict[str, Any]:
    """A run as plain values, for other programs."""
    stages = [
        {
            "name": r.name, "do": r.do, "round": r.round, "status": r.state.status, "seconds": r.state.seconds,
            "done": r.done, "total": r.total, "note": r.note, "metrics": r.state.metrics,
            "outputs": r.state.outputs, "message": r.state.message,
        }
        for r in status.stages
    ]  # fmt: skip
    return {"name": status.name, "folder": str(status.folder), "status": status.status, "store": status.store,
            "pid": status.pid, "started": status.started, "updated": status.updated, "stages": stages}  # fmt: skip


def _joined(names: str | list[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)
