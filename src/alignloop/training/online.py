"""Prompts → rollouts → experience → updates → weight sync: the driver of every method that learns from its own samples.

One step is one rollout batch and all optimizer steps on it, in the order of algorithms.md §20. Checkpoints fall between
steps, so no rollout is ever in hand when one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from alignloop.core.batch import Experience
from alignloop.core.protocols import Engine, Method
from alignloop.core.types import Prompt, Sample, SamplingParams
from alignloop.models.reference import Reference
from alignloop.training.experience import Minibatches, check_sampler, drop_unscorable, gather_experience
from alignloop.training.learner import Part
from alignloop.training.loader import Stream, chunks, my_share, permutation
from alignloop.training.scoring import ScoreSamples
from alignloop.training.settings import Rollout
from alignloop.training.state import TrainState
from alignloop.training.world import AnyWorld


@dataclass(frozen=True)
class Online:
    """What an online run consists of besides its moving state.

    prompts: prompts of each step over all processes; micro: sequences of one forward pass; keep: called with the
    samples of every step, once each (rollout shards).
    """

    method: Method
    config: Any
    rollout: Rollout
    prompts: Stream[Prompt]
    engine: Engine
    score: ScoreSamples
    reference: Reference | None
    micro: int
    seed: int
    keep: Callable[[Sequence[Sample]], object] = lambda samples: None

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of one rollout batch, if none is stopped early."""
        return int(self.config.num_ppo_epochs * self.config.num_mini_batches)

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
        batches, metrics = _collect(state, run)
        metrics |= _learn(state, run, batches)
        state.step += 1
        state.version += 1
        state.num_tokens += metrics["step_tokens"]
        run.engine.load(None, state.version)  # the engine samples from the live module
        yield state.step, metrics


def _collect(state: TrainState, run: Online) -> tuple[Minibatches, dict[str, float]]:
    """Sample, score, re-score with the trainer, prepare. Nothing here changes a weight."""
    learner = state.learner
    prompts = my_share(run.prompts.at(state.step), learner.world)
    samples = _draw(run, prompts, state.step)
    run.keep(samples)
    by_id = {p.id: p for p in prompts}
    scores, parts = run.score([by_id[s.prompt_id] for s in samples], samples)
    kept, values, dropped = drop_unscorable(samples, scores)
    values_from = state.critic.policy if state.critic else _shared_critic(state, run)
    experience, items = gather_experience(kept, values, learner.policy, run.reference, values_from, run.micro)
    metrics = check_sampler(experience)
    assert run.method.prepare is not None
    experience, state.prepared, prepared = run.method.prepare(experience, run.config, state.prepared, learner.world)
    metrics |= {**prepared, **parts, **_sample_metrics(samples, dropped, learner.world)}
    return Minibatches.of(experience, items), metrics


def _shared_critic(state: TrainState, run: Online) -> Any:
    return state.learner.policy if "value" in run.method.needs else None


def _draw(run: Online, prompts: Sequence[Prompt], step: int) -> list[Sample]:
    """All samples of the step, in the order of prompts and indices, whatever order the engine finished them in."""
    place = {p.id: i for i, p in enumerate(prompts)}
    samples = run.engine.generate(prompts, run.rollout.num_generations, run.sampling(step))
    return sorted(samples, key=lambda s: (place[s.prompt_id], s.index))


def _learn(state: TrainState, run: Online, batches: Minibatches) -> dict[str, float]:
    """Epochs of minibatches in fresh order; the critic learns from the same minibatches as the policy."""
    sums: dict[str, list[float]] = {}
    cfg = run.config
    learn_policy = state.step >= run.rollout.value_pretraining_steps
    for epoch in range(cfg.num_ppo_epochs):
        order = [batches.usable[i] for i in permutation(len(batches.usable), run.seed, state.step, epoch)]
        metrics: dict[str, float] = {}
        for index in np.array_split(np.array(order), min(cfg.num_mini_batches, len(order))):
            micro = [batches.pack(piece) for piece in chunks(index.tolist(), run.micro)]
            metrics = _update(state, run, micro, learn_policy)
            for name, value in metrics.items():
                sums.setdefault(name, []).append(value)
        if run.method.stop_early is not None and learn_policy and run.method.stop_early(metrics, cfg):
            break
    last = ("learning_rate", "skipped_updates")
    out = {name: values[-1] if name in last else float(np.mean(values)) for name, values in sums.items()}
    first = next(iter(sums.values()))
    return {**out, "updates": float(len(first)), "step_tokens": out["step_tokens"] * len(first)}


def _update(state: TrainState, run: Online, micro: Sequence[Experience], learn_policy: bool) -> dict[str, float]:
    metrics: dict[str, float] = {}
    if state.critic is not None:
        assert run.method.critic is not None
        state.critic.policy.train()
        critic = state.critic.update([Part(run.method.critic, micro, run.config)])
        metrics |= {f"critic/{n}" if n in ("loss", "grad_norm", "learning_rate") else n: v for n, v in critic.items()}
    if learn_policy:
        state.learner.policy.train()
        metrics |= state.learner.update([Part(run.method.objective, micro, run.config)])
    return metrics


def _sample_metrics(samples: Sequence[Sample], unscorable: int, world: AnyWorld) -> dict[str, float]:
    """Lengths in tokens over all processes, under TRL's names."""
    lengths = [float(len(s.response)) for s in samples]
    ended = [float(len(s.response)) for s in samples if not s.truncated]
    sums = torch.tensor([sum(lengths), len(lengths), sum(ended), len(ended), unscorable], dtype=torch.float64)
    ends = torch.zeros(world.size, 2, dtype=torch.float64)  # a place for each process: `sum` is the only collective
    ends[world.rank] = torch.tensor([min(lengths), max(lengths)])
    total, n, total_ended, n_ended, dropped = world.sum(sums).tolist()
    ends = world.sum(ends)
    return {
        "completions/mean_length": total / n,
        "completions/min_length": float(ends[:, 0].min()),
        "completions/max_length": float(ends[:, 1].max()),
        "completions/mean_terminated_length": total_ended / n_ended if n_ended else 0.0,
        "completions/clipped_ratio": 1.0 - n_ended / n,
        "unscorable": dropped,
    }
