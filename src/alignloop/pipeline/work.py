"""Before a recipe starts: models and rewards are looked at and every source is read once, so that a bad row stops the
run here and not hours later; and for every train stage the models it will hold and its batch arithmetic are shown.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.text import Text

from alignloop.core.errors import DataError
from alignloop.core.types import Prompt, prompt_hash
from alignloop.pipeline.checks import check_lengths, check_plan, root_model
from alignloop.pipeline.inputs import chosen_prompts, records, stage_share
from alignloop.pipeline.leaks import Leaks
from alignloop.pipeline.plan import Plan, Planned
from alignloop.pipeline.preflight import Batching, HeldModel, parameters_on_disk, render_models, render_work, work_rows
from alignloop.pipeline.runner import StageContext
from alignloop.pipeline.spec import Annotate, Evaluate, Generate, Train

if TYPE_CHECKING:
    from alignloop.core.protocols import Method
    from alignloop.training.settings import TrainSettings

UTILISATION = 0.25
"""Share of the matrix-product rate that a whole training step reaches, roughly, on a CPU."""


def preflight(plan: Plan) -> Iterator[RenderableType]:
    """Tables for every train stage, in order, and what was left out of a source. Raises the readers' errors."""
    check_plan(plan)
    rate = UTILISATION * matmul_rate()
    sources = _Sources(plan)
    for planned in plan.stages:
        stage = planned.stage
        if isinstance(stage, Train):
            yield from _train_tables(sources, planned, stage, rate)
        else:
            sources.look_at(planned)
        yield from map(Text, sources.told())
    sources.check_leaks()


def _train_tables(sources: _Sources, planned: Planned, stage: Train, rate: float) -> Iterator[RenderableType]:
    from alignloop.core.protocols import Procedure
    from alignloop.training.settings import parse_settings
    from alignloop.training.train import find_method

    method = find_method(stage.method)
    settings = parse_settings(method, stage.settings, f"stages.{planned.name}")
    if isinstance(method, Procedure):  # its work depends on what it selects
        kinds = {"prompts": "prompts", "eval_prompts": "prompts", "data": method.reads}
        given = {field: kind for field, kind in kinds.items() if getattr(stage, field) is not None}
        counts = {
            field: sources.count(
                planned, getattr(stage, field), kind, held=field == "eval_prompts", learnt=field != "eval_prompts"
            )
            for field, kind in given.items()
        }
        sources.hand_on(planned, counts.get("prompts", 0) if method.makes == "answers" else 0)
        return
    rows = sources.count(planned, stage.prompts if method.data == "prompts" else stage.data, method.data, learnt=True)
    extras = (stage.eval_data, method.data), (stage.eval_prompts, "prompts"), (stage.pretrain_data, "demonstrations")
    for extra, kind in extras:
        if extra is not None:
            learnt = extra is stage.pretrain_data
            sources.count(planned, extra, kind, held=extra is stage.eval_prompts, learnt=learnt)
    held = _models_held(sources.plan, stage, method, settings)
    if held:
        work = work_rows(_batching(method, settings, max(1, rows)), held[0].parameters, rate, len(held) - 1)
        yield render_models(held, f"{planned.name}: models held")
        yield render_work(work, f"{planned.name}: work (lengths assumed)")


def _models_held(plan: Plan, stage: Train, method: Method, settings: TrainSettings) -> list[HeldModel]:
    """The models of a train stage; none where the weights are not on this disk."""
    model, lora = stage.model or "", settings.model.lora is not None
    parameters = _parameters(plan, model)
    if not parameters:
        return []
    held = [HeldModel(method.role, model, parameters, 0 if lora else parameters)]
    reference = stage.reference or model
    needed = method.needed(settings.method)
    if "ref" in needed and (not lora or reference != model):
        held.append(HeldModel("reference", reference, _parameters(plan, reference) or parameters))
    learned = stage.reward if isinstance(stage.reward, str) and _parameters(plan, stage.reward) else None
    if learned:
        held.append(HeldModel("reward", learned, _parameters(plan, learned)))
    if "value" in needed and not method.shares_trunk(settings.method):
        size = _parameters(plan, learned or model)
        held.append(HeldModel("critic", learned or model, size, size))
    return held


def _batching(method: Method, settings: TrainSettings, rows: int) -> Batching:
    """The numbers of a train stage on `rows` records; a limit of steps counts as the passes it comes to."""
    loop, rollout = settings.loop, settings.rollout
    world = int(os.environ.get("WORLD_SIZE", "1"))
    online = method.data == "prompts"
    answers = rollout.num_generations if online else 2 if method.data == "pairs" else 1
    step = loop.per_device_train_batch_size * loop.gradient_accumulation_steps * world
    per_step = rollout.rollout_batch_size if online else step
    epochs, mini_batches = method.passes(settings.method)
    return Batching(
        prompts=rows,
        samples=answers,
        prompts_per_rollout=rollout.rollout_batch_size if online else 0,
        micro_batch=loop.per_device_train_batch_size * (1 if online else answers),
        accumulation=loop.gradient_accumulation_steps,
        world=world,
        epochs=loop.max_steps * per_step / rows if loop.max_steps > 0 else loop.num_train_epochs,
        update_epochs=epochs if online else 1,
        mini_batches=mini_batches if online else 0,
        prompt_tokens=32,
        answer_tokens=rollout.max_completion_length if online else 64,
        online=online,
    )


class _Sources:
    """The data of a plan, read once before it starts: how many records each stage will have, and what was left out."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self._counts: dict[str, int] = {}
        self._prompts_of: dict[bool, dict[str, tuple[str, str]]] = {False: {}, True: {}}
        self._notes = _Notes(logging.WARNING)
        self._log = logging.Logger("alignloop.preflight")
        self._log.addHandler(self._notes)
        self._leaks = Leaks(plan, self._measured, self._log)

    def told(self) -> list[str]:
        """What the readers had to say since the last call: rows that were left out."""
        lines, self._notes.lines = self._notes.lines, []
        return lines

    def look_at(self, planned: Planned) -> None:
        """Read what a stage reads, and remember how many records it hands on."""
        stage = planned.stage
        if isinstance(stage, Generate):
            self._counts[planned.name] = self._prompts(planned, stage)
        elif isinstance(stage, Annotate):
            self._counts[planned.name] = self._pairs(stage)
        elif isinstance(stage, Evaluate):
            for field, kind in (("prompts", "prompts"), ("data", "demonstrations"), ("votes", "pairs")):
                if getattr(stage, field) is not None:
                    self.count(planned, getattr(stage, field), kind, held=True)

    def hand_on(self, planned: Planned, records: int) -> None:
        """Remember how many records the stages after `planned` will read of it."""
        self._counts[planned.name] = records

    def count(self, planned: Planned, data: Any, kind: str, *, held: bool = False, learnt: bool = False) -> int:
        """Records of some data: read now where it is a source, known from the plan where it is a stage."""
        known, found = self._read(planned, data, kind)
        if learnt:
            self._leaks.look_at(planned, found)
        if kind == "prompts" and found:
            check_lengths(self.plan, planned, found)
            self._note(planned, found, held)
        return known + len(found)

    def _read(self, planned: Planned, data: Any, kind: str) -> tuple[int, list[Any]]:
        """How many records come of stages, and the records of sources."""
        known, others = 0, []
        for source in data if isinstance(data, list | tuple) else [data]:
            name, share = stage_share(source, planned.name) if _is_share(source) else (source, 1.0)
            if isinstance(name, str) and name in self._counts:
                known += round(share * self._counts[name])
            else:
                others.append(source)
        return known, records(self._context(planned), others, kind) if others else []

    def _measured(self, planned: Planned, data: Any, kind: str) -> list[Any]:
        """The records of those sources that are no stages, without a word: they are told of when it is their turn."""
        stages, told = {p.name for p in self.plan.stages}, list(self._notes.lines)
        listed = data if isinstance(data, list | tuple) else [data]
        sources = [s for s in listed if not _is_share(s) and not (isinstance(s, str) and s in stages)]
        found = records(self._context(planned), sources, kind) if sources else []
        self._notes.lines = told
        return found

    def _prompts(self, planned: Planned, stage: Generate) -> int:
        if isinstance(stage.prompts, str) and stage.prompts in self._counts:
            known = self._counts[stage.prompts]
            return min(known, stage.limit or known)
        prompts = chosen_prompts(self._context(planned), stage)
        check_lengths(self.plan, planned, prompts)
        self._note(planned, prompts, held=False)
        return len(prompts)

    def _note(self, planned: Planned, prompts: Sequence[Prompt], held: bool) -> None:
        """Remember what the rounds learn from and what they are measured on."""
        if planned.round:
            known = self._prompts_of[held]
            known.update({prompt_hash(p.messages): (planned.name, p.text) for p in prompts} | known)

    def check_leaks(self) -> None:
        """DataError for a prompt that a round learns from and any round is measured on: its reward would be flattered
        by what was learnt by heart, and more so every round."""
        learnt, held = self._prompts_of[False], self._prompts_of[True]
        for leak in sorted(learnt.keys() & held.keys()):
            (learns, words), (measures, _) = learnt[leak], held[leak]
            raise DataError(
                f"stages.{measures}: the prompt {words[:60]!r} is learnt from in stages.{learns}; give held-out ones "
                "(another file, or another split of this one)"
            )

    def _pairs(self, stage: Annotate) -> int:
        """Comparisons that an annotate stage will hand on for training, if every answer is another one."""
        pairs = 0
        for name in [stage.samples] if isinstance(stage.samples, str) else stage.samples:
            drawn = self.plan[name].stage
            possible = math.comb(drawn.n, 2) if isinstance(drawn, Generate) else 1
            pairs += self._counts[name] * (possible if stage.pairs == "all" else min(stage.pairs, possible))
        return round((1 - stage.held_out) * pairs)

    def _context(self, planned: Planned) -> StageContext:
        """A context that can read sources and nothing else."""
        nowhere = Path(os.devnull)
        return StageContext(
            name=f"stages.{planned.name}",
            stage=planned.stage,
            recipe=self.plan.recipe,
            inputs={},
            folder=nowhere,
            run_dir=nowhere,
            seed=self.plan.recipe.seed,
            store="",
            round=planned.round,
            log=self._log,
            progress=lambda *_: None,
        )


def _is_share(source: Any) -> bool:
    return isinstance(source, Mapping) and "stage" in source


class _Notes(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int):
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _parameters(plan: Plan, model: str) -> int:
    """Parameters of a model folder, following train stages to what they start from; 0 where it is not on this disk."""
    root = Path(root_model(plan, model))
    return parameters_on_disk(root)[0] if root.is_dir() else 0


def matmul_rate(size: int = 512, seconds: float = 0.05) -> float:
    """Floating-point operations a second of a square float32 matrix product on this machine, now."""
    import torch

    a = torch.ones(size, size)
    start, rounds = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a = (a @ a).clamp_(-1, 1)
        rounds += 1
    return rounds * 2 * size**3 / (time.perf_counter() - start)
