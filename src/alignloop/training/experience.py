"""Rollouts become experience: the trainer's own log-probabilities, reference, values; then minibatches of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignloop.core.batch import Experience, spread
from alignloop.core.errors import TrainingError
from alignloop.core.layout import Item, build, empty, gather, place
from alignloop.core.types import Sample
from alignloop.models.policy import Policy
from alignloop.models.reference import Reference
from alignloop.training.loader import FROZEN, Cut, permutation
from alignloop.training.scoring import sample_item
from alignloop.training.world import AnyWorld, by_process

PER_TOKEN = ("reward", "logp_sampler", "logp_old", "logp_ref", "advantage", "value", "target", "weight")
PER_SEQUENCE = (
    *("score", "truncated", "group", "version", "bootstrap", "positive"),
    *("baseline", "baseline_truncated", "baseline_length"),
)


def gather_experience(
    samples: Sequence[Sample],
    scores: Sequence[float],
    policy: Policy,
    reference: Reference | None,
    critic: Policy | None,
    groups: Sequence[int] | None = None,
) -> tuple[Experience, list[Item]]:
    """Score every rollout with the trainer BEFORE any update: logp_old, logp_ref, values.

    The same forward pass, in eval mode, that the update will use: at its first minibatch the ratio is 1. `critic` is
    the model that holds values: a separate one, the policy itself (shared trunk), or None. `groups`: the number, over
    all processes, of the group that each sample belongs to (None: the samples' own groups, counted here). Without a
    reference logp_ref is logp_old; without a sample the batch is `layout.empty`.
    """
    items = [sample_item(s) for s in samples]
    columns, last = _scored_by_models(items, policy, reference, critic)
    device = policy.device
    grid = (build(items, "right") if items else empty()).to(device)
    nothing = torch.zeros(grid.tokens.shape, dtype=_float_type(policy), device=device)
    placed = {name: place(values, grid) if items else nothing for name, values in columns.items()}
    sampled = [torch.tensor([x for x, m in zip(s.logp, s.mask) if m], dtype=nothing.dtype) for s in samples]
    names = {name: i for i, name in enumerate(dict.fromkeys(s.group or s.prompt_id for s in samples))}
    numbers = [names[s.group or s.prompt_id] for s in samples] if groups is None else list(groups)
    experience = Experience(
        tokens=grid,
        reward=nothing,
        logp_sampler=place(sampled, grid) if items else nothing,
        logp_old=placed["logp_old"],
        logp_ref=placed.get("logp_ref", placed["logp_old"]),
        advantage=nothing,
        score=torch.tensor(list(scores), dtype=nothing.dtype, device=device),
        truncated=torch.tensor([s.truncated for s in samples], dtype=torch.bool, device=device),
        group=torch.tensor(numbers, dtype=torch.int64, device=device),
        version=torch.tensor([s.version for s in samples], dtype=torch.int64, device=device),
        value=placed.get("value"),
        bootstrap=None if critic is None else torch.cat(last) if last else nothing.new_zeros(0),
    )
    return experience, items


def _scored_by_models(
    items: Sequence[Item], policy: Policy, reference: Reference | None, critic: Policy | None
) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """What the models say of every item: columns of per-token tensors, and the value past each last token."""
    found: dict[int, dict[str, Tensor]] = {}
    shared = critic is policy
    policy.eval()
    if critic is not None:
        critic.eval()
    with torch.no_grad():
        for piece in FROZEN(range(len(items)), lambda i: len(items[i])):
            tokens = build([items[i] for i in piece]).to(policy.device)
            out = policy(tokens, {"logp", "values", "scores"} if shared else {"logp"})
            said = {"logp_old": gather(_present(out.logp), tokens)}
            if reference is not None:
                said["logp_ref"] = gather(_present(reference(tokens, {"logp"}).logp), tokens)
            if critic is not None:
                values = out if shared else critic(tokens, {"values", "scores"})
                said["value"] = gather(_present(values.values), tokens)
                said["last"] = list(_present(values.scores)[:, None])
            found |= {i: {name: of[k] for name, of in said.items()} for k, i in enumerate(piece)}
    names = ["logp_old"] + ["logp_ref"] * (reference is not None) + ["value"] * (critic is not None)
    columns = {name: [found[i][name] for i in range(len(items))] for name in names}
    return columns, [found[i]["last"] for i in range(len(items))] if critic is not None else []


def _float_type(policy: Policy) -> torch.dtype:
    """Log-probabilities are float64 for float64 models, else float32."""
    return torch.float64 if next(policy.parameters()).dtype == torch.float64 else torch.float32


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@dataclass(frozen=True)
class Minibatches:
    """An experience cut loose from its layout, so that any choice of sequences can be packed afresh.

    usable: the sequences that `prepare` left a token in (it may have masked cut answers out).
    like: a tensor of no entry, of the type and on the device of the per-token ones.
    """

    items: Sequence[Item]
    usable: list[int]
    per_token: dict[str, list[Tensor]]
    per_sequence: dict[str, Tensor]
    like: Tensor

    @classmethod
    def of(cls, experience: Experience, items: Sequence[Item]) -> Minibatches:
        tokens = experience.tokens
        present = {f.name: x for f in fields(experience) if isinstance(x := getattr(experience, f.name), Tensor)}
        return cls(
            items=items,
            usable=[i for i, n in enumerate(tokens.count().tolist()) if n > 0],
            per_token={n: gather(x, tokens) for n, x in present.items() if n in PER_TOKEN},
            per_sequence={n: x for n, x in present.items() if n in PER_SEQUENCE},
            like=experience.logp_old.new_zeros(0),
        )

    def pack(self, index: Sequence[int]) -> Experience:
        """The chosen sequences as one packed micro-batch (prompts of a group computed once); none: an empty one."""
        device = self.like.device
        tokens = (build([self.items[i] for i in index]) if len(index) else empty()).to(device)
        values: dict[str, Any] = {
            name: place([self.like, *(rows[i] for i in index)], tokens) for name, rows in self.per_token.items()
        }
        chosen = torch.as_tensor(list(index), dtype=torch.int64, device=device)
        values |= {name: x[chosen] for name, x in self.per_sequence.items()}
        return Experience(tokens=tokens, **values)


@dataclass(frozen=True)
class Deck:
    """The usable answers of a step over ALL processes, as units that are dealt to mini-batches: an answer, or a group.

    size: units there are. mine: a unit's number -> this process's answers of it. A deal depends on the answers alone,
    never on how they are spread over processes.
    """

    size: int
    mine: dict[int, list[int]]

    @classmethod
    def of(cls, batches: Minibatches, groups: int, whole: bool, world: AnyWorld) -> Deck:
        """Units in the order of groups, and within one of answers. groups: more than any group's number; whole: groups
        stay together. All answers of a group are on one process."""
        owner = batches.per_sequence["group"].tolist()
        members: dict[int, list[int]] = {}
        for i in batches.usable:
            members.setdefault(owner[i], []).append(i)
        units = torch.zeros(groups, dtype=torch.int64, device=batches.like.device)
        for group, sequences in members.items():
            units[group] = 1 if whole else len(sequences)
        units = world.sum(units)
        first = (units.cumsum(0) - units).tolist()
        mine: dict[int, list[int]] = {}
        for group, sequences in members.items():
            pieces = [sequences] if whole else [[i] for i in sequences]
            mine |= {first[group] + k: piece for k, piece in enumerate(pieces)}
        return cls(int(units.sum()), mine)

    def deal(self, into: int, *key: int) -> list[list[list[int]]]:
        """A fresh order fixed by `key`, cut into `into` mini-batches: for each, this process's units. A mini-batch that
        holds nothing of this process is an empty list; none holds nothing at all."""
        order = permutation(self.size, *key)
        return [
            [self.mine[unit] for unit in piece.tolist() if unit in self.mine]
            for piece in np.array_split(order, min(into, self.size))
        ]


def micro_batches(units: Sequence[Sequence[int]], cut: Cut, items: Sequence[Item]) -> list[list[int]]:
    """A mini-batch of units in micro-batches, in which units stay whole; at least one, which may be empty."""
    pieces = cut(units, lambda unit: sum(len(items[i]) for i in unit), len)
    return [[i for unit in piece for i in unit] for piece in pieces] or [[]]


def check_sampler(experience: Experience, version: int, world: AnyWorld, limit: float = 0.5) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's, which is at `version`, over all processes.

    Of answers of that version more than `limit` nats a token on average is a broken contract (temperature, positions,
    another model): TrainingError. Usual: under 1e-4 in float32. Answers of earlier versions tell how far the policy
    has moved since, which is no fault: they have figures of their own, and no limit.
    """
    tokens = experience.tokens
    gap = (experience.logp_old - experience.logp_sampler)[tokens.mask].abs().double()
    behind = spread(version - experience.version, tokens)[tokens.mask]
    metrics: dict[str, float] = {}
    for average, largest, own in (
        ("sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max", behind == 0),
        ("sampling/policy_drift/mean", "sampling/policy_drift/max", behind > 0),
    ):
        of = gap[own]
        here = torch.stack([of.sum(), of.new_tensor(float(of.numel())), of.max() if of.numel() else of.sum()])
        total, count, most = by_process(here, world).T
        if count.sum():
            metrics |= {average: float(total.sum() / count.sum()), largest: float(most.max())}
    mean = metrics.get("sampling/sampling_logp_difference/mean", 0.0)
    if not mean <= limit:
        raise TrainingError(
            f"the engine's log-probabilities differ from the trainer's by {mean:.3g} nats a token; "
            "engine and trainer do not run the same model, temperature or tokens"
        )
    return metrics


def check_lag(samples: Sequence[Sample], version: int, most: int) -> None:
    """TrainingError where an answer is of a policy more than `most` versions behind the one that is to learn of it."""
    old = [s for s in samples if version - s.version > most]
    if old:
        raise TrainingError(
            f"{len(old)} of {len(samples)} answers are of policy version {min(s.version for s in old)}, and the policy "
            f"is at {version}: older than max_lag {most} allows; load the engine with new weights, or raise max_lag"
        )
