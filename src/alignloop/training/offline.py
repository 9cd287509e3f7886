"""Records → fit: the driver of every method that learns from a fixed dataset (SFT, reward models, DPO and family)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from alignloop.core.batch import Batch, LabelBatch, PairBatch, per_sequence, tokens_of
from alignloop.core.protocols import Method
from alignloop.data.collate import Row
from alignloop.models.reference import Reference
from alignloop.training.learner import Part
from alignloop.training.loader import Stream, chunks, my_share
from alignloop.training.state import TrainState

Collate = Callable[[Sequence[Row]], Batch]


@dataclass(frozen=True)
class Source:
    """One objective of an offline run: a method, its settings, its rows and its weight in the sum."""

    method: Method
    config: Any
    stream: Stream[Row]
    collate: Collate
    micro: int
    coef: float = 1.0
    reference: ReferenceSums | None = None

    def part(self, step: int, state: TrainState) -> Part:
        """This process's micro-batches of `step`, with reference sums where the method needs them."""
        rows = my_share(self.stream.at(step), state.learner.world)
        batches = [self.batch(piece, state.learner.policy.device) for piece in chunks(rows, self.micro)]
        return Part(self.method.objective, batches, self.config, self.coef)

    def batch(self, rows: Sequence[Row], device: torch.device) -> Batch:
        """Collated rows on the device, the reference's log-probabilities filled in."""
        batch = self.collate(rows).to(device)
        return batch if self.reference is None else self.reference.fill(batch, rows)


@dataclass(frozen=True)
class ReferenceSums:
    """Summed reference log-probabilities: computed on the fly, or once for all rows (`cache`: row id -> sums)."""

    reference: Reference | None
    cache: dict[str, tuple[float, ...]] | None = None

    def fill(self, batch: Batch, rows: Sequence[Row]) -> Batch:
        if not isinstance(batch, (PairBatch, LabelBatch)):
            return batch
        if self.cache is not None:
            sums = torch.tensor([x for row in rows for x in self.cache[row.id]])
            return replace(batch, ref=sums.to(tokens_of(batch).tokens.device))
        return replace(batch, ref=self.sums(batch))

    def sums(self, batch: Batch) -> Tensor:
        """f[N]: log-probability of each whole answer under the reference."""
        assert self.reference is not None
        tokens = tokens_of(batch)
        logp = self.reference(tokens, {"logp"}).logp
        assert logp is not None
        return per_sequence(logp, tokens)


def precompute(
    reference: Reference, rows: Sequence[Row], collate: Collate, micro: int, device: torch.device
) -> ReferenceSums:
    """Run the reference once over all rows; it can then be freed."""
    live = ReferenceSums(reference)
    cache: dict[str, tuple[float, ...]] = {}
    for piece in chunks(rows, micro):
        sums = live.sums(collate(piece).to(device)).tolist()
        for row in piece:
            cache[row.id] = tuple(sums[: len(row.items)])
            del sums[: len(row.items)]
    return ReferenceSums(None, cache)


def offline(state: TrainState, sources: Sequence[Source], total: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Steps `state.step` to `total`; yields (step, metrics) after each. The caller saves, evaluates, stops."""
    learner = state.learner
    while state.step < total:
        learner.policy.train()
        metrics = learner.update([source.part(state.step, state) for source in sources])
        state.step += 1
        state.num_tokens += metrics["step_tokens"]
        yield state.step, metrics


def evaluate_offline(state: TrainState, source: Source, rows: Sequence[Row]) -> dict[str, float]:
    """Loss and metrics of held-out rows, without gradients; every process computes the same."""
    learner = state.learner
    learner.policy.eval()
    sums: dict[str, list[float]] = {}
    with torch.no_grad():
        for piece in chunks(rows, source.micro):
            batch = source.batch(piece, learner.policy.device)
            for i, term in enumerate(source.method.objective(learner.policy, batch, source.config)):
                counts = {"token": float(tokens_of(batch).mask.sum()), "sequence": float(tokens_of(batch).n)}
                counts["pair"] = float(batch.weight.sum()) if isinstance(batch, PairBatch) else 0.0
                _add(sums, f"{i} term", term.coef * float(term.total), counts[term.per])
                for name, (total, count) in term.metrics.items():
                    _add(sums, name, float(total), float(count))
    loss = sum(s / max(c, 1e-12) for name, (s, c) in sums.items() if name.endswith(" term"))
    named = {f"eval_{n}": s / c for n, (s, c) in sums.items() if not n.endswith(" term") and c}
    return {"eval_loss": loss, **named}


def _add(sums: dict[str, list[float]], name: str, total: float, count: float) -> None:
    entry = sums.setdefault(name, [0.0, 0.0])
    entry[0] += total
    entry[1] += count
