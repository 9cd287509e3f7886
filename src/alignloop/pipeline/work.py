"""Before a recipe starts: models and rewards are looked at and every source is read once, so that a bad row stops the
run here and not hours later; and for every train stage the models it will hold and its batch arithmetic are shown.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from alignloop.pipeline.checks import check_lengths, check_plan, root_model
from alignloop.pipeline.inputs import chosen_prompts, records
from alignloop.pipeline.plan import Plan, Planned
from alignloop.pipeline.preflight import Batching, HeldModel, parameters_on_disk, render_models, render_work, work_rows
from alignloop.pipeline.runner import StageContext
from alignloop.pipeline.spec import Annotate, Evaluate, Generate, Train

UTILISATION = 0.25
"""Share of the matrix-product rate that a whole training step reaches, roughly, on a CPU."""


def preflight(plan: Plan) -> Iterator[RenderableType]:
    """Tables for every train stage, in order. Raises the readers' errors for a bad source."""
    check_plan(plan)
    rate = UTILISATION * matmul_rate()
    counts: dict[str, int] = {}
    for planned in plan.stages:
        stage = planned.stage
        if isinstance(stage, Generate):
            counts[planned.name] = _prompts_of(plan, planned, stage, counts)
        elif isinstance(stage, Annotate):
            counts[planned.name] = _pairs_of(plan, stage, counts)
        elif isinstance(stage, Evaluate):
            for field, kind in (("prompts", "prompts"), ("data", "demonstrations"), ("votes", "pairs")):
                if getattr(stage, field) is not None:
                    _count(plan, planned, getattr(stage, field), kind, counts)
        elif isinstance(stage, Train):
            yield from _train_tables(plan, planned, stage, counts, rate)


def _train_tables(
    plan: Plan, planned: Planned, stage: Train, counts: Mapping[str, int], rate: float
) -> Iterator[RenderableType]:
    from alignloop.training.settings import parse_settings
    from alignloop.training.train import find_method

    method = find_method(stage.method)
    settings = parse_settings(method, stage.settings, f"stages.{planned.name}")
    online = method.data == "prompts"
    rows = _count(plan, planned, stage.prompts if online else stage.data, method.data, counts)
    for extra, kind in ((stage.eval_data, method.data), (stage.eval_prompts, "prompts")):
        if extra is not None:
            _count(plan, planned, extra, kind, counts)
    parameters = _parameters(plan, stage.model or "")
    if not parameters:
        return
    trained = parameters if settings.model.lora is None else 0
    held = [HeldModel("policy" if stage.method != "reward" else "reward", stage.model or "", parameters, trained)]
    if "ref" in method.needs and settings.model.lora is None:
        held.append(HeldModel("reference", stage.reference or stage.model or "", parameters))
    if isinstance(stage.reward, str):
        held.append(HeldModel("reward", stage.reward, parameters))
    if "value" in method.needs and settings.method.critic.layout == "separate":
        held.append(HeldModel("critic", str(stage.reward), parameters, parameters))
    yield render_models(held, f"{planned.name}: models held")
    loop, rollout = settings.loop, settings.rollout
    answers = 2 if method.data == "pairs" else 1
    batching = Batching(
        prompts=rollout.rollout_batch_size * loop.max_steps if online and loop.max_steps > 0 else max(1, rows),
        samples=rollout.num_generations if online else answers,
        prompts_per_rollout=rollout.rollout_batch_size if online else 0,
        micro_batch=loop.per_device_train_batch_size * (1 if online else answers),
        accumulation=loop.gradient_accumulation_steps,
        world=int(os.environ.get("WORLD_SIZE", "1")),
        epochs=1.0 if online and loop.max_steps > 0 else loop.num_train_epochs,
        update_epochs=settings.method.num_ppo_epochs if online else 1,
        mini_batches=settings.method.num_mini_batches if online else 0,
        prompt_tokens=32,
        answer_tokens=rollout.max_completion_length if online else 64,
        online=online,
    )
    references = len(held) - 1
    yield render_work(work_rows(batching, parameters, rate, references), f"{planned.name}: work (lengths assumed)")


def _count(plan: Plan, planned: Planned, data: Any, kind: str, counts: Mapping[str, int]) -> int:
    """Records of some data: read now where it is a source, known from the plan where it is a stage."""
    sources = data if isinstance(data, list | tuple) else [data]
    stages = [s for s in sources if isinstance(s, str) and s in counts]
    others = [s for s in sources if not (isinstance(s, str) and s in counts)]
    known = sum(counts[s] for s in stages)
    if not others:
        return known
    found = records(_reading(plan, planned), others, kind)
    if kind == "prompts":
        check_lengths(plan, planned, found)
    return known + len(found)


def _prompts_of(plan: Plan, planned: Planned, stage: Generate, counts: Mapping[str, int]) -> int:
    """Prompts of a generate stage, read now and checked unless another stage gives them."""
    if isinstance(stage.prompts, str) and stage.prompts in counts:
        return min(counts[stage.prompts], stage.limit or counts[stage.prompts])
    prompts = chosen_prompts(_reading(plan, planned), stage)
    check_lengths(plan, planned, prompts)
    return len(prompts)


def _pairs_of(plan: Plan, stage: Annotate, counts: Mapping[str, int]) -> int:
    """Comparisons that an annotate stage will hand on for training, if every answer is another one."""
    pairs = 0
    for name in [stage.samples] if isinstance(stage.samples, str) else stage.samples:
        drawn = plan[name].stage
        possible = math.comb(drawn.n, 2) if isinstance(drawn, Generate) else 1
        pairs += counts[name] * (possible if stage.pairs == "all" else min(stage.pairs, possible))
    return round((1 - stage.held_out) * pairs)


def _reading(plan: Plan, planned: Planned) -> StageContext:
    """A context that can read sources and nothing else; rows that a source leaves out are told on stderr."""
    nowhere = Path(os.devnull)
    return StageContext(
        name=f"stages.{planned.name}",
        stage=planned.stage,
        recipe=plan.recipe,
        inputs={},
        folder=nowhere,
        run_dir=nowhere,
        seed=plan.recipe.seed,
        store="",
        round=planned.round,
        log=logging.getLogger("alignloop.preflight"),
        progress=lambda *_: None,
    )


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
