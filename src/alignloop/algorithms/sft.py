"""Supervised fine-tuning: the likelihood of demonstrated answers.

Ouyang et al. 2022, arXiv:2203.02155, section 3.5.   L = -Σ log π(y_t | x, y_<t) / tokens
Differs from the paper: none. Only tokens of the answers (their end token included) are trained on: `batch.mask`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from alignloop.algorithms.masked import reduce_tokens
from alignloop.core.batch import PolicyFn, Term, TokenBatch
from alignloop.core.config import Config as Base
from alignloop.core.protocols import Method

PAPER = "2203.02155"


class Config(Base):
    """Settings of supervised fine-tuning."""

    reduction: Literal["token_mean", "seq_mean_token_mean"] = "token_mean"
    """Every token weighs the same | every answer weighs the same, however long."""
    log_entropy: bool = False
    """Also report the exact entropy of the predictions (reads every logit once more)."""


def nll(logp: Tensor) -> Tensor:
    """-log π of each token, in nats, unreduced."""
    return -logp


def objective(policy: PolicyFn, batch: TokenBatch, cfg: Config) -> list[Term]:
    """Negative log-likelihood of the masked tokens. Metrics: nll (nats per token), entropy if asked."""
    want = {"logp", "entropy"} if cfg.log_entropy else {"logp"}
    out = policy(batch, want=want)
    assert out.logp is not None
    loss = nll(out.logp[batch.mask])
    total, unit = reduce_tokens(loss, batch, cfg.reduction)
    metrics: dict[str, tuple[Tensor, Tensor | float]] = {"nll": (loss.detach().sum(), float(loss.numel()))}
    if out.entropy is not None:
        metrics["entropy"] = (out.entropy[batch.mask].detach().sum(), float(loss.numel()))
    return [Term(total, unit, metrics=metrics)]


METHOD = Method(
    name="sft",
    paper=PAPER,
    config=Config,
    data="demonstrations",
    objective=objective,
    summary="Imitate demonstrations: raise the likelihood of every token of the answers.",
    when="First, whenever you have good answers to imitate; every other method starts from its result.",
)
