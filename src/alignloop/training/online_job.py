"""A run of a method that learns from its own samples. All that can be wrong with its inputs is found here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.algorithms import sft
from alignloop.core.errors import ConfigError
from alignloop.core.protocols import Method
from alignloop.data.chat import ChatFormat
from alignloop.data.collate import collate_tokens, demonstration_rows
from alignloop.models.load import init_scalar, load_reward, load_tokenizer
from alignloop.models.policy import Policy
from alignloop.rollout.apart import Ask
from alignloop.rollout.local import LocalEngine
from alignloop.rollout.shards import ShardWriter, forget_from
from alignloop.training.ahead import Ahead, engine_maker
from alignloop.training.build import (
    Job,
    context,
    local_engine,
    open_reference,
    read_records,
    score_function,
    trained_policy,
)
from alignloop.training.collecting import first_ask
from alignloop.training.fit import Watch
from alignloop.training.learner import Learner
from alignloop.training.loader import Cut, Stream
from alignloop.training.machine import settle
from alignloop.training.offline import Source
from alignloop.training.online import Online, online
from alignloop.training.scoring import open_chat
from alignloop.training.settings import TrainSettings
from alignloop.training.state import TrainState
from alignloop.training.validation import check_prompts, mean_reward
from alignloop.training.world import AnyWorld

if TYPE_CHECKING:
    from alignloop.training.train import Inputs

log = logging.getLogger(__name__)


def online_job(method: Method, settings: TrainSettings, inputs: Inputs, folder: Path, world: AnyWorld) -> Job:
    tokenizer = load_tokenizer(inputs.model)
    chat = open_chat(inputs.model, tokenizer, append_eos=settings.model.append_eos)
    prompts, notes = read_records("prompts", inputs.prompts, inputs.read)
    if not chat.plain and all(p.messages[-1].role == "text" for p in prompts):
        log.warning("the model has a chat template and the prompts are plain text; strings: chat makes them user turns")
    needed = method.needed(settings.method)
    shared = method.shares_trunk(settings.method)
    policy = trained_policy(method, settings, inputs, value_head=shared)
    policy.detach_values = shared and settings.method.critic.detach_trunk
    if method.check_policy is not None:
        method.check_policy(policy, settings.method)
    check_prompts(prompts, chat, context(policy))
    rollout = settings.rollout
    stream = Stream(
        prompts, rollout.rollout_batch_size, settings.loop.num_train_epochs, settings.loop.seed, settings.loop.max_steps
    )
    engine = local_engine(policy, chat, inputs.model, slots=rollout.slots)
    settle(engine, prompts, settings, folder, world)
    shards = ShardWriter(folder / "rollouts" / f"rank-{world.rank}")
    run = Online(
        method=method,
        config=settings.method,
        rollout=rollout,
        prompts=stream,
        engine=engine,
        score=score_function(inputs.reward, settings, chat, "reward", moving=True),
        reference=open_reference(policy, settings, inputs) if "ref" in needed else None,
        cut=Cut.of(settings.loop),
        seed=settings.loop.seed,
        keep=lambda step, samples: shards.write(samples, step) if samples else None,
        pretraining=settings.value_pretraining,
        mix=_mix(settings, inputs, chat, context(policy), stream.steps, world, notes),
    )
    learner = Learner(policy, settings.optim, stream.steps * run.updates_per_step, world)
    state = TrainState(learner, _critic_learner(run, settings, inputs, world) if "value" in needed else None)
    state.prepared = method.init_state(settings.method) if method.init_state else None
    ahead = _ahead(run, engine, settings, inputs, folder, world) if rollout.draw_ahead else None
    if ahead is not None:
        run, state.ahead = replace(run, engine=ahead), ahead
    watch = None if inputs.eval_prompts is None else _online_watch(settings, inputs, chat, engine, context(policy))
    notes |= {"prompts": len(prompts), "slots": engine.slots}

    def steps() -> Iterator[tuple[int, dict[str, float]]]:
        with ahead or nullcontext():
            yield from online(state, run, stream.steps)

    def begin() -> None:
        engine.load(None, state.version)
        forget_from(shards.folder, state.step)
        if ahead is not None:
            ahead.begin(state.step)

    return Job(state, stream.steps, steps, tokenizer, chat, stream.epochs_a_step, watch, notes, begin=begin)


def _ahead(
    run: Online, engine: LocalEngine, settings: TrainSettings, inputs: Inputs, folder: Path, world: AnyWorld
) -> Ahead:
    """The engine of a run that draws and learns at once."""

    def foresee(step: int) -> Ask | None:
        return first_ask(run, world, step) if step < run.prompts.steps else None

    make = engine_maker(inputs.model, settings.model, engine.slots)
    return Ahead(engine, foresee, make, folder)


def _critic_learner(run: Online, settings: TrainSettings, inputs: Inputs, world: AnyWorld) -> Learner | None:
    """A separate critic with its own optimizer; None where the policy's own trunk holds the values."""
    if run.method.shares_trunk(run.config):
        return None
    epochs, mini_batches = run.critic_passes
    updates = run.prompts.steps * epochs * mini_batches
    return Learner(_critic(settings, inputs), settings.optim, updates, world, settings.optim.critic_learning_rate)


def _mix(
    settings: TrainSettings,
    inputs: Inputs,
    chat: ChatFormat,
    longest: int | None,
    steps: int,
    world: AnyWorld,
    notes: dict[str, Any],
) -> Source | None:
    """Pretraining data beside the policy's loss, where the settings ask for it."""
    mix = settings.mix
    if mix.ptx_coef == 0:
        return None
    if inputs.pretrain_data is None:
        raise ConfigError(f"ptx_coef: {mix.ptx_coef} weighs pretraining data and there is none; give pretrain_data")
    if mix.ptx_batch_size < world.size:
        raise ConfigError(
            f"ptx_batch_size: {mix.ptx_batch_size} is less than one row for each of {world.size} processes"
        )
    records, read = read_records("demonstrations", inputs.pretrain_data, {})  # inputs.read is about the prompts
    limit = settings.model.max_length or longest
    rows = demonstration_rows(records, chat, limit)
    notes |= {"pretraining": {**read, "rows": len(rows), "rows_cut": sum(r.cut for r in rows)}}
    stream = Stream(rows, mix.ptx_batch_size, 1, settings.loop.seed, max_steps=steps)  # read by update, without end
    return Source(sft.METHOD, sft.Config(), stream, collate_tokens, Cut.of(settings.loop), coef=mix.ptx_coef)


def _online_watch(
    settings: TrainSettings, inputs: Inputs, chat: ChatFormat, engine: LocalEngine, longest: int | None
) -> Watch:
    """The evaluation of an online run: the mean reward of answers to prompts that it does not train on."""
    held, _ = read_records("prompts", inputs.eval_prompts, inputs.read)
    check_prompts(held, chat, longest)
    judge = score_function(inputs.eval_reward or inputs.reward, settings, chat, "eval_reward")  # one that stands still
    return Watch(
        lambda: mean_reward(engine, held, judge, settings.rollout, settings.loop.seed),
        "eval_reward",
        larger_is_better=True,
        every=settings.loop.eval_steps,
        keep_best=settings.rollout.stop_at_validation,
        patience=settings.loop.early_stopping_patience,
    )


def _critic(settings: TrainSettings, inputs: Inputs) -> Policy:
    """A separate critic starts from the reward model where there is one, else from the policy with a zero head."""
    m = settings.model
    if isinstance(inputs.reward, str | Path) and Path(inputs.reward).is_dir():
        critic = load_reward(inputs.reward, dtype=m.dtype, device=m.device)
        critic.offset = 0.0
        return critic.without_dropout()
    return init_scalar(inputs.model, zero_head=True, dtype=m.dtype, device=m.device).without_dropout()
