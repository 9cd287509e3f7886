"""Rollouts become experience: the trainer's own log-probabilities, reference, values; then minibatches of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from alignloop.core.batch import Experience, TokenBatch
from alignloop.core.errors import TrainingError
from alignloop.core.layout import Item, build, gather, place
from alignloop.core.types import Sample
from alignloop.models.policy import Policy
from alignloop.models.reference import Reference
from alignloop.training.loader import chunks
from alignloop.training.scoring import sample_item

PER_TOKEN = ("reward", "logp_sampler", "logp_old", "logp_ref", "advantage", "value", "target")
PER_SEQUENCE = ("score", "truncated", "group", "version", "bootstrap")


def gather_experience(
    samples: Sequence[Sample],
    scores: Sequence[float],
    policy: Policy,
    reference: Reference | None,
    critic: Policy | None,
    micro: int,
) -> tuple[Experience, list[Item]]:
    """Score every rollout with the trainer BEFORE any update: logp_old, logp_ref, values.

    The same forward pass, in eval mode, that the update will use: at its first minibatch the ratio is 1. `critic` is
    the model that holds values: a separate one, the policy itself (shared trunk), or None.
    """
    items = [sample_item(s) for s in samples]
    names = ["logp_old"] + ["logp_ref"] * (reference is not None) + ["value"] * (critic is not None)
    columns: dict[str, list[Tensor]] = {name: [] for name in names}
    last: list[Tensor] = []
    shared = critic is policy
    policy.eval()
    if critic is not None:
        critic.eval()
    with torch.no_grad():
        for piece in chunks(items, micro):
            tokens = build(piece).to(policy.device)
            out = policy(tokens, {"logp", "values", "scores"} if shared else {"logp"})
            columns["logp_old"] += gather(_present(out.logp), tokens)
            if reference is not None:
                columns["logp_ref"] += gather(_present(reference(tokens, {"logp"}).logp), tokens)
            if critic is not None:
                values = out if shared else critic(tokens, {"values", "scores"})
                columns["value"] += gather(_present(values.values), tokens)
                last.append(_present(values.scores))
    grid = build(items, "right").to(policy.device)
    placed = {name: place(values, grid) for name, values in columns.items()}
    nothing = torch.zeros_like(placed["logp_old"])
    logp_sampler = place(
        [torch.tensor([x for x, m in zip(s.logp, s.mask) if m], dtype=nothing.dtype) for s in samples], grid
    )
    groups = {name: i for i, name in enumerate(dict.fromkeys(s.group or s.prompt_id for s in samples))}
    device = policy.device
    experience = Experience(
        tokens=grid,
        reward=nothing,
        logp_sampler=logp_sampler.to(device),
        logp_old=placed["logp_old"],
        logp_ref=placed.get("logp_ref", placed["logp_old"]),
        advantage=nothing,
        score=torch.tensor(list(scores), dtype=nothing.dtype).to(device),
        truncated=torch.tensor([s.truncated for s in samples]).to(device),
        group=torch.tensor([groups[s.group or s.prompt_id] for s in samples]).to(device),
        version=torch.tensor([s.version for s in samples]).to(device),
        value=placed.get("value"),
        bootstrap=torch.cat(last) if last else None,
    )
    return experience, items


def _present(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


@dataclass(frozen=True)
class Minibatches:
    """An experience cut loose from its layout, so that any choice of sequences can be packed afresh.

    usable: the sequences that `prepare` left a token in (it may have masked cut answers out).
    """

    items: Sequence[Item]
    usable: list[int]
    per_token: dict[str, list[Tensor]]
    per_sequence: dict[str, Tensor]
    device: torch.device

    @classmethod
    def of(cls, experience: Experience, items: Sequence[Item]) -> Minibatches:
        tokens = experience.tokens
        present = {f.name: getattr(experience, f.name) for f in fields(experience)}
        return cls(
            items=items,
            usable=[i for i, n in enumerate(tokens.count().tolist()) if n > 0],
            per_token={n: gather(present[n], tokens) for n in PER_TOKEN if present[n] is not None},
            per_sequence={n: present[n] for n in PER_SEQUENCE if present[n] is not None},
            device=tokens.tokens.device,
        )

    def pack(self, index: Sequence[int]) -> Experience:
        """The chosen sequences as one packed micro-batch (prompts of a group computed once)."""
        tokens: TokenBatch = build([self.items[i] for i in index]).to(self.device)
        values: dict[str, Any] = {
            name: place([rows[i] for i in index], tokens) for name, rows in self.per_token.items()
        }
        chosen = torch.as_tensor(list(index), device=self.device)
        values |= {name: x[chosen] for name, x in self.per_sequence.items()}
        return Experience(tokens=tokens, **values)


def check_sampler(experience: Experience, limit: float = 0.5) -> dict[str, float]:
    """How far the engine's log-probabilities are from the trainer's. More than `limit` nats a token on average is a
    broken contract (temperature, positions, another model): TrainingError. Usual: under 1e-4 in float32."""
    tokens = experience.tokens
    gap = (experience.logp_old - experience.logp_sampler)[tokens.mask].abs()
    mean, most = float(gap.mean()), float(gap.max())
    if not mean <= limit:
        raise TrainingError(
            f"the engine's log-probabilities differ from the trainer's by {mean:.3g} nats a token; "
            "engine and trainer do not run the same model, temperature or tokens"
        )
    return {"sampling/sampling_logp_difference/mean": mean, "sampling/sampling_logp_difference/max": most}


def drop_unscorable(samples: Sequence[Sample], scores: Sequence[float | None]) -> tuple[list[Sample], list[float], int]:
    """Samples that have a score, their scores, and how many were dropped. All dropped is an error."""
    kept = [(s, v) for s, v in zip(samples, scores) if v is not None]
    if not kept:
        raise TrainingError("the reward could score none of the completions of this step")
    return [s for s, _ in kept], [v for _, v in kept], len(samples) - len(kept)
