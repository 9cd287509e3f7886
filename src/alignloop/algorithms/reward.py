"""Reward model from comparisons: Bradley-Terry.

Christiano et al. 2017, arXiv:1706.03741, section 2.2.3; margin from Touvron et al. 2023, arXiv:2307.09288, eq. 2;
centring from Eisenstein et al. 2023, arXiv:2312.09244.
    Δ = r(chosen) - r(rejected)      L = p · softplus(-(Δ - m)) + (1 - p) · softplus(Δ + m)  [+ η (r_c + r_r)²]
Differs from the papers: p may be any probability (soft labels; a tie is 1/2), and p and m are never both in force.

The loss does not change when a constant is added to every answer's reward of a prompt: the level of r is arbitrary
unless centred. With a margin, σ(Δ) is no longer a probability.
"""

from __future__ import annotations

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from alignloop.algorithms.labels import Labels, agreement, in_force, weighted
from alignloop.core.batch import PairBatch, PolicyFn, Term
from alignloop.core.config import Config as Base
from alignloop.core.protocols import Method

PAPER = "1706.03741"


class Config(Base):
    """Settings of the reward model."""

    labels: Labels = "auto"
    """auto: soft where a row has p < 1, else hard | soft | hard | margin. The strength of a vote counts once."""
    center_rewards_coefficient: float = Field(0.0, ge=0)
    """η of the penalty η (r_c + r_r)², which holds the level of rewards at 0; .01 is usual, 0 is off."""


def bradley_terry(delta: Tensor, p: Tensor, margin: Tensor) -> Tensor:
    """p · softplus(-(Δ - m)) + (1 - p) · softplus(Δ + m), f32[P], unreduced; smallest at Δ = logit p when m = 0.

    >>> import torch
    >>> bradley_terry(torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0]))
    tensor([0.3133])
    """
    return p * F.softplus(-(delta - margin)) + (1.0 - p) * F.softplus(delta + margin)


def centring(chosen: Tensor, rejected: Tensor) -> Tensor:
    """(r_c + r_r)², f32[P], unreduced."""
    return (chosen + rejected).square()


def objective(policy: PolicyFn, batch: PairBatch, cfg: Config) -> list[Term]:
    """Bradley-Terry loss of the pairs (weighted), and the centring penalty.

    Metrics, over pairs: accuracy (a tie counts 1/2), margin (mean Δ), mean_reward, and longer_preferred beside
    longer_chosen: how often the model, and the labels, favour the longer answer. A smallest and a largest reward would
    depend on how the batch is cut, and are left to the evaluation.
    """
    scores = policy(batch.tokens, want={"scores"}).scores
    assert scores is not None
    chosen, rejected = scores[batch.chosen], scores[batch.rejected]
    delta = chosen - rejected
    p, margin = in_force(batch, cfg.labels)
    loss = bradley_terry(delta, p, margin)
    length = batch.tokens.count()
    longer = length[batch.chosen] - length[batch.rejected]
    preferred = 0.5 * (1.0 + delta.detach().sign())
    metrics = {
        "accuracy": weighted(agreement(delta, p), batch.weight),
        "margin": weighted(delta, batch.weight),
        "mean_reward": weighted(0.5 * (chosen + rejected), batch.weight),
        "longer_preferred": weighted(agreement(longer, preferred), batch.weight),
        "longer_chosen": weighted(agreement(longer, p), batch.weight),
    }
    terms = [Term((loss * batch.weight).sum(), "pair", metrics=metrics)]
    if cfg.center_rewards_coefficient > 0:
        penalty = (centring(chosen, rejected) * batch.weight).sum()
        terms.append(Term(penalty, "pair", coef=cfg.center_rewards_coefficient))
    return terms


METHOD = Method(
    name="reward",
    paper=PAPER,
    config=Config,
    data="pairs",
    objective=objective,
    summary="Learn a number for every answer, so that the preferred of two answers scores higher.",
    when="You have comparisons and want to score new answers: for PPO, best-of-n, ReST, or evaluation.",
)
