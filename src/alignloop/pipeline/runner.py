"""Runs a plan: in order, each stage once, from where it was when the last process died.

A stage is `stage(ctx) -> StageResult | Waiting`. It owns `ctx.folder`, finds its own checkpoints there when it is
entered again, and reads what came before through `ctx.inputs`. The runner knows nothing of training or of the store.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from alignloop.core.errors import AlignloopError, ConfigError, TrainingError
from alignloop.core.types import content_id
from alignloop.pipeline.fingerprint import FileHashes, stage_key, stage_seed
from alignloop.pipeline.plan import Plan, Planned, missing_files
from alignloop.pipeline.spec import AnyStage, Recipe
from alignloop.pipeline.state import (
    StageState,
    now,
    read_stage,
    run_lock,
    stage_folder,
    store_url,
    write_json,
    write_stage,
    write_text,
)


@dataclass(frozen=True)
class StageResult:
    """What a stage made: outputs (name -> path) and metrics.

    fingerprint: the hash of what came out, where the inputs do not decide it (people's votes, say); what follows is run
    again when it differs.
    """

    outputs: Mapping[str, Path] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class Waiting:
    """The stage cannot go on by itself; `reason` says who has to do what."""

    reason: str


Progress = Callable[[float, float, str], None]
"""(done, total, note)."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage is given."""

    name: str
    stage: AnyStage
    recipe: Recipe
    inputs: Mapping[str, StageResult]
    folder: Path
    run_dir: Path
    seed: int
    store: str
    round: int
    log: logging.Logger
    progress: Progress


StageFunction = Callable[[StageContext], StageResult | Waiting]


class Display(Protocol):
    """Who is told what happens, while it happens."""

    def started(self, planned: Planned, attempt: int) -> None: ...

    def cached(self, planned: Planned, state: StageState) -> None: ...

    def progress(self, planned: Planned, done: float, total: float, note: str) -> None: ...

    def finished(self, planned: Planned, state: StageState) -> None: ...


class Silent:
    """A display that shows nothing."""

    def started(self, planned: Planned, attempt: int) -> None: ...

    def cached(self, planned: Planned, state: StageState) -> None: ...

    def progress(self, planned: Planned, done: float, total: float, note: str) -> None: ...

    def finished(self, planned: Planned, state: StageState) -> None: ...


@dataclass(frozen=True)
class RunResult:
    """How a run ended: "done", "partial" (only some stages were asked for), or "waiting" with the reason."""

    status: str
    results: Mapping[str, StageResult]
    waiting: str = ""


class Runner:
    """Runs `plan` in `run_dir` with one function per kind of stage.

    `given` is the recipe's text as the user wrote it, kept beside the resolved one.
    """

    def __init__(
        self,
        plan: Plan,
        run_dir: Path,
        stages: Mapping[str, StageFunction],
        *,
        display: Display | None = None,
        given: str = "",
    ):
        missing = sorted({p.stage.do for p in plan.stages} - set(stages))
        if missing:
            raise ConfigError(f"no function for the stage kind '{missing[0]}'; known: {', '.join(sorted(stages))}")
        self.plan, self.run_dir, self.stages, self.given = plan, Path(run_dir), stages, given
        self.display: Display = display or Silent()
        self._keys: dict[str, str] = {}
        self._started = now()

    @property
    def store(self) -> str:
        """The database URL of this run."""
        return store_url(self.run_dir, self.plan.recipe.store)

    def run(self, until: Sequence[str] = (), force: Sequence[str] = ()) -> RunResult:
        """Run what is not done yet; `until`: only these and what they need; `force`: these again, from nothing.

        A stage's AlignloopError is raised as it is, after it was written to the stage's state; so is any other error.
        """
        wanted = self.plan.needed_for(tuple(until)) if until else {p.name for p in self.plan.stages}
        for name in force:
            _ = self.plan[name]
        if lines := missing_files(self.plan):
            raise ConfigError("; ".join(lines))
        with run_lock(self.run_dir):
            self._write_recipe()
            hashes = FileHashes(self.run_dir / "hashes.json")
            try:
                result = self._run([p for p in self.plan.stages if p.name in wanted], set(force), hashes)
            except KeyboardInterrupt:
                self._write_run("interrupted")
                raise
            except BaseException:
                self._write_run("failed")
                raise
            self._write_run(result.status)
            return result

    def _run(self, stages: Sequence[Planned], force: set[str], hashes: FileHashes) -> RunResult:
        results: dict[str, StageResult] = {}
        upstream: dict[str, str] = {}
        waiting: dict[str, str] = {}
        for planned in stages:
            blocked = [need for need in planned.needs if need in waiting]
            if blocked:
                waiting[planned.name] = waiting[blocked[0]]
                continue
            key = stage_key(planned, self.plan.recipe, upstream, hashes)
            hashes.save()
            self._keys[planned.name] = key
            self._write_run("running")
            if planned.name in force:
                shutil.rmtree(stage_folder(self.run_dir, planned.name, key), ignore_errors=True)
            state = self._one(planned, key, results)
            if state.status == "waiting":
                waiting[planned.name] = f"{planned.name}: {state.message}"
                continue
            results[planned.name] = self._result(state)
            upstream[planned.name] = content_id(key, state.fingerprint)
        reasons = "; ".join(dict.fromkeys(waiting.values()))
        whole = len(results) == len(self.plan.stages)
        return RunResult("waiting" if waiting else "done" if whole else "partial", results, reasons)

    def _one(self, planned: Planned, key: str, results: Mapping[str, StageResult]) -> StageState:
        """One stage: from the cache, or run, its state written before and after."""
        before = read_stage(self.run_dir, planned.name, key)
        if before.status == "done" and all(p.exists() for p in self._result(before).outputs.values()):
            self.display.cached(planned, before)
            return before
        running = replace(before, status="running", key=key, started=now(), attempts=before.attempts + 1, message="")
        write_stage(self.run_dir, planned.name, running)
        self.display.started(planned, running.attempts)
        clock = time.monotonic()

        def ended(**changes: Any) -> StageState:
            seconds = before.seconds + time.monotonic() - clock
            state = replace(running, finished=now(), seconds=round(seconds, 3), **changes)
            write_stage(self.run_dir, planned.name, state)
            self.display.finished(planned, state)
            return state

        with self._log(planned, key) as log:
            try:
                outcome = self.stages[planned.stage.do](self._context(planned, key, results, log))
                changes = self._changes(planned, outcome)
            except KeyboardInterrupt:
                ended(status="interrupted", message="stopped by the user")
                raise
            except Exception as error:
                log.error("%s", traceback.format_exc())
                text = str(error) if isinstance(error, AlignloopError) else f"{type(error).__name__}: {error}"
                with contextlib.suppress(OSError):  # a full disk must not hide what happened
                    ended(status="failed", message=" ".join(text.split()))
                raise
        return ended(**changes)

    def _context(
        self, planned: Planned, key: str, results: Mapping[str, StageResult], log: logging.Logger
    ) -> StageContext:
        base = stage_folder(self.run_dir, planned.name, key)
        folder = base / "files"
        folder.mkdir(parents=True, exist_ok=True)
        last = [0.0]

        def progress(done: float, total: float, note: str = "") -> None:
            self.display.progress(planned, done, total, note)
            if done >= total or time.monotonic() - last[0] > 1:  # once a second is enough for a reader
                last[0] = time.monotonic()
                write_json(base / "progress.json", {"done": done, "total": total, "note": note, "at": now()})

        return StageContext(
            name=planned.name,
            stage=planned.stage,
            recipe=self.plan.recipe,
            inputs={need: results[need] for need in planned.needs},
            folder=folder,
            run_dir=self.run_dir,
            seed=stage_seed(self.plan.recipe.seed, planned.name),
            store=self.store,
            round=planned.round,
            log=log,
            progress=progress,
        )

    def _changes(self, planned: Planned, outcome: StageResult | Waiting) -> dict[str, Any]:
        """What a stage returned, as fields of its state. TrainingError where an output is not there."""
        if isinstance(outcome, Waiting):
            return {"status": "waiting", "message": outcome.reason}
        outputs = {}
        for name, path in outcome.outputs.items():
            if not path.exists():
                raise TrainingError(f"stage '{planned.name}': its output {name} was not written ({path})")
            inside = path.resolve().is_relative_to(self.run_dir.resolve())
            outputs[name] = str(path.resolve().relative_to(self.run_dir.resolve()) if inside else path.resolve())
        return {
            "status": "done",
            "outputs": outputs,
            "metrics": dict(outcome.metrics),
            "fingerprint": outcome.fingerprint,
        }

    def _result(self, state: StageState) -> StageResult:
        outputs = {name: self.run_dir / path for name, path in state.outputs.items()}
        return StageResult(outputs, state.metrics, state.fingerprint)

    def _write_recipe(self) -> None:
        text = yaml.safe_dump(self.plan.resolved(), sort_keys=False, allow_unicode=True)
        write_text(self.run_dir / "recipe.yaml", text)
        if self.given:
            write_text(self.run_dir / "recipe.given.yaml", self.given)

    def _write_run(self, status: str) -> None:
        stages = [
            {"name": p.name, "do": p.stage.do, "round": p.round, "needs": list(p.needs), "key": self._keys.get(p.name)}
            for p in self.plan.stages
        ]
        head = {"name": self.plan.recipe.name, "status": status, "pid": os.getpid()}
        with contextlib.suppress(OSError) if status == "failed" else contextlib.nullcontext():
            write_json(
                self.run_dir / "run.json",
                {**head, "started": self._started, "updated": now(), "store": self.plan.recipe.store, "stages": stages},
            )

    @contextlib.contextmanager
    def _log(self, planned: Planned, key: str) -> Iterator[logging.Logger]:
        """A logger that writes to the stage's own file, and through the usual "alignloop" tree."""
        log = logging.getLogger(f"alignloop.run.{self.plan.recipe.name}.{planned.name}")
        log.setLevel(logging.INFO)
        path = stage_folder(self.run_dir, planned.name, key) / "log.txt"
        handler = logging.FileHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        try:
            yield log
        finally:
            log.removeHandler(handler)
            handler.close()
