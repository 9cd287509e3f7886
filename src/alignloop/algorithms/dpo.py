"""Direct Preference Optimization.

Rafailov et al. 2023, arXiv:2305.18290, eq. 7; label smoothing from Mitchell 2023 (cDPO).
    h = (log π(y_w) - log ref(y_w)) - (log π(y_l) - log ref(y_l))
    L = p' · softplus(-β h) + (1 - p') · softplus(β h),   p' = p (1 - ε) + (1 - p) ε
Differs from the paper: p may be any probability (soft labels; a tie is 1/2); the paper has p = 1.
Log-probabilities are SUMMED over the answer's tokens, end token included: the mean is a different method.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from alignloop.algorithms.labels import agreement, in_force, smooth, weighted
from alignloop.core.batch import PairBatch, PolicyFn, Term, per_sequence
from alignloop.core.config import Config as Base
from alignloop.core.errors import TrainingError
from alignloop.core.protocols import Method

PAPER = "2305.18290"


class Config(Base):
    """Settings of DPO."""

    beta: float = Field(0.1, gt=0)
    """Pull towards the reference: lower moves further from it; usual .01-.5."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share ε of flipped labels (cDPO); 0 is plain DPO."""
    labels: Literal["auto", "soft", "hard"] = "auto"
    """auto: soft where a row has p < 1, else hard | soft | hard."""


def dpo_loss(h: Tensor, p: Tensor, beta: float) -> Tensor:
    """p · softplus(-β h) + (1 - p) · softplus(β h), f32[P], unreduced; ln 2 at h = 0, smallest at β h = logit p.

    >>> import torch
    >>> dpo_loss(torch.tensor([10.0]), torch.tensor([1.0]), beta=0.1)  # log(1 + 1/e)
    tensor([0.3133])
    """
    return p * F.softplus(-beta * h) + (1.0 - p) * F.softplus(beta * h)


def objective(policy: PolicyFn, batch: PairBatch, cfg: Config) -> list[Term]:
    """DPO over pairs (weighted). Metrics under TRL's names: implicit rewards β log(π/ref), their margin and accuracy
    (a tie counts 1/2), and the summed log-probabilities. Watch logps/chosen: it may fall while the margin grows.
    """
    ref = _reference(batch)
    out = policy(batch.tokens, want={"logp"})
    assert out.logp is not None
    logp = per_sequence(out.logp, batch.tokens)
    gain = logp - ref
    h = gain[batch.chosen] - gain[batch.rejected]
    p, _ = in_force(batch, cfg.labels)
    loss = dpo_loss(h, smooth(p, cfg.label_smoothing), cfg.beta)
    metrics = {
        "rewards/chosen": weighted(cfg.beta * gain[batch.chosen], batch.weight),
        "rewards/rejected": weighted(cfg.beta * gain[batch.rejected], batch.weight),
        "rewards/margins": weighted(cfg.beta * h, batch.weight),
        "rewards/accuracies": weighted(agreement(h, p), batch.weight),
        "logps/chosen": weighted(logp[batch.chosen], batch.weight),
        "logps/rejected": weighted(logp[batch.rejected], batch.weight),
    }
    return [Term((loss * batch.weight).sum(), "pair", metrics=metrics)]


def _reference(batch: PairBatch) -> Tensor:
    if batch.ref is None:
        raise TrainingError("dpo needs the reference's log-probabilities: give a reference model")
    if batch.ref.requires_grad:
        raise TrainingError("dpo: the reference carries a gradient; score it without one (it must stay frozen)")
    bad = ~batch.ref.isfinite()
    if bad.any():
        i = int(bad.nonzero()[0])
        raise TrainingError(f"dpo: the reference's log-probability of sequence {i} is {batch.ref[i].item()}")
    return batch.ref


METHOD = Method(
    name="dpo",
    paper=PAPER,
    config=Config,
    data="pairs",
    objective=objective,
    summary="Raise preferred answers over rejected ones, relative to a frozen reference; no reward model, no sampling.",
    when="You have comparisons of answers near what your model writes, and want the simplest stable optimisation.",
    needs=frozenset({"ref"}),
)
