"""Prompts → rollouts → experience → updates → weight sync: the driver of every method that learns from its own samples.

One step is one rollout batch and all optimizer steps on it, in the order of algorithms.md §20. Checkpoints fall between
steps, so no rollout is ever in hand when one is written. `collecting` draws and prepares a batch, `learning` goes over
it. An engine may have begun before it is asked (`ahead`); this loop need not know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alignloop.core.protocols import Engine, Method
from alignloop.core.types import Prompt, Sample, SamplingParams
from alignloop.models.reference import Reference
from alignloop.training.collecting import collect
from alignloop.training.learning import learn
from alignloop.training.loader import Cut, Stream
from alignloop.training.offline import Source
from alignloop.training.scoring import SampleScorer
from alignloop.training.settings import Rollout, ValuePretraining
from alignloop.training.state import Pretraining, TrainState


@dataclass(frozen=True)
class Online:
    """What an online run consists of besides its moving state.

    prompts: prompts of each step over all processes; cut: how they become micro-batches; keep: called with the number
    of every step and all that this process drew in it (rollout shards); mix: pretraining data that the policy imitates
    in every update (PPO-ptx), its coefficient included.
    """

    method: Method
    config: Any
    rollout: Rollout
    prompts: Stream[Prompt]
    engine: Engine
    score: SampleScorer
    reference: Reference | None
    cut: Cut
    seed: int
    keep: Callable[[int, Sequence[Sample]], object] = lambda step, samples: None
    pretraining: ValuePretraining = field(default_factory=ValuePretraining)
    mix: Source | None = None

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of the policy on one rollout batch, if none is stopped early."""
        epochs, mini_batches = self.method.passes(self.config)
        return epochs * mini_batches

    @property
    def critic_passes(self) -> tuple[int, int]:
        """Passes of a separate critic over one rollout batch: (epochs, mini-batches)."""
        return (self.method.critic_passes or self.method.passes)(self.config)

    def sampling(self, step: int) -> SamplingParams:
        """The sampling settings of one step; its seed is a function of the run's seed and the step."""
        r = self.rollout
        return SamplingParams(
            temperature=r.temperature,
            top_k=r.top_k,
            top_p=r.top_p,
            min_new_tokens=r.min_new_tokens,
            max_new_tokens=r.max_completion_length,
            seed=int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0]),
        )


def online(state: TrainState, run: Online, total: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Rollout steps `state.step` to `total`; yields (step, metrics) after each. The caller saves, evaluates, stops."""
    while state.step < total:
        pretrains = state.critic is not None and _pretrains(state, run)
        cfg = run.method.pretraining(run.config) if pretrains and run.method.pretraining else run.config
        state.learner.total_steps = max(1, total - _policy_starts(state, run)) * run.updates_per_step
        batches, deck, metrics = collect(state, run, cfg, not pretrains)
        metrics |= learn(state, run, batches, deck, policy=not pretrains, critic_config=cfg)
        state.step += 1
        if pretrains:
            explained = metrics["val/explained_variance"]
            state.pretraining = pretrained(state.pretraining, explained, state.step, run.pretraining)
        state.version += 1
        state.num_tokens += metrics["step_tokens"]
        run.engine.load(None, state.version)  # the engine samples from the live module
        yield state.step, metrics


def _pretrains(state: TrainState, run: Online) -> bool:
    """Whether the critic still learns alone."""
    return state.step < run.pretraining.value_pretraining_steps and state.pretraining.ended is None


def _policy_starts(state: TrainState, run: Online) -> int:
    """The step at which the policy starts to learn, as far as is known: its schedule covers the steps from there."""
    most = run.pretraining.value_pretraining_steps
    return most if state.pretraining.ended is None else min(most, state.pretraining.ended)


def pretrained(before: Pretraining, explained: float, step: int, how: ValuePretraining) -> Pretraining:
    """Value pretraining after `step` steps. `explained` is of returns that the critic had not seen when it foretold
    them. It ends where that is enough, or has not grown for as long as the settings allow."""
    gained = explained > before.best
    stale = 0 if gained else before.stale + 1
    over = explained >= how.value_pretraining_ev or stale >= how.value_pretraining_patience
    return Pretraining(max(before.best, explained), stale, step if over else None)
