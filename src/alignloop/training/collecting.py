"""What one step samples, scores and keeps: from prompts to an experience, before any weight moves.

A step draws prompts at places 0, 1, 2, ... that are counted over all processes; process r of P has the places r, r + P,
... The random numbers of an answer depend on its prompt AND its place. So a prompt that a step meets twice is answered
by different dice, in one process or in two, and two processes draw what one would draw.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alignloop.core.batch import Experience
from alignloop.core.errors import TrainingError
from alignloop.core.types import Prompt, Sample, SamplingParams
from alignloop.rewards.weighing import NOTHING, Sums, sums_of
from alignloop.rollout.apart import Ask
from alignloop.training.experience import Deck, Minibatches, check_lag, check_sampler, gather_experience
from alignloop.training.learner import Learner
from alignloop.training.scoring import part_metrics
from alignloop.training.state import TrainState
from alignloop.training.world import AnyWorld, by_process

if TYPE_CHECKING:
    from alignloop.training.online import Online


@dataclass(frozen=True)
class Drawn:
    """An answer, the prompt it is to, the place of that prompt in the step, its score (None: unscorable), and the parts
    of that."""

    sample: Sample
    prompt: Prompt
    place: int
    score: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attempt:
    """One draw of a step: this process's answers."""

    answers: list[Drawn]
    prompts: int  # of all processes


def collect(
    state: TrainState, run: Online, cfg: Any, policy_learns: bool = True
) -> tuple[Minibatches, Deck, dict[str, float]]:
    """Sample, score, re-score with the trainer, prepare; no weight changes here. `cfg`: the method's settings."""
    learner, world = state.learner, state.learner.world
    needed = run.method.needed(cfg)
    kept, attempts, metrics = _draw_step(state, run, cfg)
    greedy = _greedy(state, run, kept) if "greedy" in needed else {}
    metrics |= _of_parts(state, run, attempts, policy_learns)
    run.keep(state.step, [d.sample for d in [*(d for a in attempts for d in a.answers), *greedy.values()]])
    if "greedy" in needed:
        kept = [d for d in kept if greedy[d.place].score is not None]
    if not by_process(torch.tensor([len(kept)], device=learner.policy.device), world).any():
        raise TrainingError("the reward could score none of the completions of this step")
    samples = [d.sample for d in kept]
    check_lag(samples, state.version, run.rollout.max_lag)
    critic = state.critic.policy if state.critic else learner.policy if "value" in needed else None
    scores = [d.score for d in kept if d.score is not None]
    places = [d.place for d in kept]
    experience, items = gather_experience(samples, scores, learner.policy, run.reference, critic, places)
    metrics |= check_sampler(experience, state.version, world)
    if "greedy" in needed:
        experience = _with_baseline(experience, [greedy[d.place] for d in kept])
    assert run.method.prepare is not None
    experience, state.prepared, prepared = run.method.prepare(experience, cfg, state.prepared, world)
    batches = Minibatches.of(experience, items)
    deck = Deck.of(batches, run.prompts.batch * len(attempts), run.method.whole_groups, world)
    return batches, deck, {**metrics, **prepared}


def _draw_step(state: TrainState, run: Online, cfg: Any) -> tuple[list[Drawn], list[Attempt], dict[str, float]]:
    """The answers that the step learns from, everything it drew, and what there is to say of all of it.

    Where the method selects, prompts are drawn until enough of them are kept or the attempts are used up; of too many
    the latest are left out. Where none is worth keeping, the first draw is taken: no signal, rather than no batch.
    """
    world, device, step = state.learner.world, state.learner.policy.device, state.step
    selects = run.method.select is not None and cfg.dynamic_sampling is not None
    most = cfg.dynamic_sampling.max_attempts if selects else 1
    wanted = len(run.prompts.at(step))
    chosen: list[int] = []
    attempts: list[Attempt] = []
    while len(attempts) < most and len(chosen) < wanted:
        first = len(attempts) * run.prompts.batch
        prompts = _prompts(run, step, len(attempts))
        answers = answers_to(run, _mine(prompts, first, world), run.rollout.num_generations, run.sampling(step))
        attempts.append(Attempt(_scored(state, run, answers, learn=True), len(prompts)))
        good = torch.zeros(first + len(prompts), dtype=torch.int64, device=device)
        good[_worth_keeping(run, cfg, attempts[-1].answers, selects=selects)] = 1
        chosen += world.sum(good).nonzero()[:, 0].tolist()
    metrics = _sample_metrics(attempts, device, world)
    if selects:
        metrics["sampling/attempts"] = float(len(attempts))
        metrics["sampling/acceptance"] = len(chosen) / sum(a.prompts for a in attempts)
    else:
        metrics.pop("sampling/reward")  # it is objective/scores
    places = set(chosen[:wanted]) or set(range(wanted))
    kept = [d for a in attempts for d in a.answers if d.place in places and d.score is not None]
    return kept, attempts, metrics


def _prompts(run: Online, step: int, attempt: int) -> list[Prompt]:
    """The prompts of one draw, over all processes. Further draws of a step walk the prompts in orders of their own, so
    that the step stays the only cursor."""
    if attempt == 0:
        return run.prompts.at(step)
    seed = int(np.random.SeedSequence([run.seed, attempt]).generate_state(1)[0])
    return replace(run.prompts, seed=seed).at(step)


def first_ask(run: Online, world: AnyWorld, step: int) -> Ask:
    """What this process will ask its engine for first in that step: known before the step is reached."""
    mine = _mine(run.prompts.at(step), 0, world)
    return Ask(tuple(_asked(mine)), run.rollout.num_generations, run.sampling(step))


def _mine(prompts: Sequence[Prompt], first: int, world: AnyWorld) -> list[tuple[int, Prompt]]:
    """This process's share of prompts that stand at the places first, first + 1, ..., by place."""
    return [(first + i, prompts[i]) for i in range(world.rank, len(prompts), world.size)]


def _asked(prompts: Iterable[tuple[int, Prompt]]) -> list[Prompt]:
    """The prompts as an engine gets them: their names, on which dice depend, hold their places."""
    return [replace(prompt, id=f"{prompt.id}@{place}") for place, prompt in prompts]


def answers_to(run: Online, prompts: Iterable[tuple[int, Prompt]], n: int, sampling: SamplingParams) -> list[Drawn]:
    """n answers to the prompt at each place, in the order of places and indices, whatever order the engine finished
    them in."""
    prompts = list(prompts)
    asked = _asked(prompts)
    named = {a.id: at for a, at in zip(asked, prompts, strict=True)}
    drawn = []
    for sample in run.engine.generate(asked, n, sampling):
        place, prompt = named[sample.prompt_id]
        drawn.append(Drawn(replace(sample, prompt_id=prompt.id, group=str(place)), prompt, place))
    return sorted(drawn, key=lambda d: (d.place, d.sample.index))


def _scored(state: TrainState, run: Online, drawn: list[Drawn], *, learn: bool) -> list[Drawn]:
    """Answers with their scores. A reward that moves weighs their parts by what it has learnt; with `learn` it has seen
    these answers too."""
    rows = run.score.rows([d.prompt for d in drawn], [d.sample for d in drawn]) if drawn else []
    scored = [replace(d, score=row.value, parts=row.components) for d, row in zip(drawn, rows, strict=True)]
    weighing = run.score.weighing
    if not weighing.moves:
        return scored
    if learn:
        state.reward = weighing.seen(state.reward, _part_sums(scored, sorted(weighing.shares), state.learner))
    return [replace(d, score=weighing.value(d.parts, state.reward)) for d in scored]


def _worth_keeping(run: Online, cfg: Any, drawn: Sequence[Drawn], *, selects: bool) -> list[int]:
    """Places on this process of which something can be learned."""
    known = [d for d in drawn if d.score is not None]
    if not selects or not known:
        return [d.place for d in known]
    assert run.method.select is not None
    group = torch.tensor([d.place for d in known])
    keep = run.method.select(torch.tensor([d.score for d in known], dtype=torch.float64), group, cfg)
    return [int(place) for place in group[keep]]


def _greedy(state: TrainState, run: Online, kept: Sequence[Drawn]) -> dict[int, Drawn]:
    """The most probable answer to every prompt that is learned from, by place, scored like the others."""
    prompts = {d.place: d.prompt for d in kept}
    drawn = answers_to(run, prompts.items(), 1, replace(run.sampling(state.step), temperature=0.0))
    return {d.place: d for d in _scored(state, run, drawn, learn=False)}


def _with_baseline(experience: Experience, greedy: Sequence[Drawn]) -> Experience:
    like = experience.score

    def column(values: Iterable[float]) -> torch.Tensor:
        return torch.tensor(list(values), dtype=like.dtype, device=like.device)

    return replace(
        experience,
        baseline=column(d.score for d in greedy if d.score is not None),
        baseline_truncated=column(d.sample.truncated for d in greedy).bool(),
        baseline_length=column(sum(d.sample.mask) for d in greedy),
    )


def _sample_metrics(attempts: Sequence[Attempt], device: torch.device, world: AnyWorld) -> dict[str, float]:
    """Of ALL answers of the step, kept or not, over all processes: lengths in tokens under TRL's names, and the mean
    score."""
    answers = [d for a in attempts for d in a.answers]
    lengths = [len(d.sample.response) for d in answers]
    ended = [len(d.sample.response) for d in answers if not d.sample.truncated]
    known = [d.score for d in answers if d.score is not None]
    sums = (sum(lengths), len(lengths), sum(ended), len(ended), sum(known), len(known))
    ends = (min(lengths, default=math.inf), max(lengths, default=-math.inf))
    table = by_process(torch.tensor([*sums, *ends], dtype=torch.float64, device=device), world)
    total, n, total_ended, n_ended, score, scored = table[:, :6].sum(0).tolist()
    return {
        "completions/mean_length": total / n,
        "completions/min_length": float(table[:, 6].min()),
        "completions/max_length": float(table[:, 7].max()),
        "completions/mean_terminated_length": total_ended / n_ended if n_ended else 0.0,
        "completions/clipped_ratio": 1.0 - n_ended / n,
        "unscorable": n - scored,
        "sampling/reward": score / scored if scored else 0.0,
    }


def _of_parts(state: TrainState, run: Online, attempts: Sequence[Attempt], policy_learns: bool) -> dict[str, float]:
    """Mean and deviation of the reward's parts over all answers of the step, and the multipliers that it was weighed
    with; those of the next step follow from the means, where the policy learns in this one."""
    answers = [d for a in attempts for d in a.answers]
    names = state.learner.world.union(name for d in answers for name in d.parts)
    sums = _part_sums(answers, names, state.learner)
    multipliers = run.score.weighing.multipliers(state.reward)
    if policy_learns and multipliers:
        state.reward = run.score.weighing.ascended(state.reward, sums)
    return part_metrics(sums) | {f"rewards/{name}/multiplier": value for name, value in multipliers.items()}


def _part_sums(answers: Sequence[Drawn], names: Sequence[str], learner: Learner) -> dict[str, Sums]:
    """The sums of the parts of these names over the answers of all processes; without a part that scored none."""
    here = sums_of(d.parts for d in answers)
    table = torch.tensor([here.get(name, NOTHING) for name in names], dtype=torch.float64).view(len(names), 3)
    rows = learner.world.sum(table.to(learner.policy.device)).tolist()
    return {name: (row[0], row[1], row[2]) for name, row in zip(names, rows, strict=True) if row[0]}
