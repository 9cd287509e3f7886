"""Generalised advantage estimation over the tokens that the policy emitted.

Schulman et al. 2016, arXiv:1506.02438, eq. 11-16.
Differs from the paper: a response is one episode, token t + 1 is the next token that the policy emitted (tool output
and other observations are skipped), and the value past the last one is 0 unless a cut response is bootstrapped.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignloop.algorithms.masked import moments, rows
from alignloop.core.batch import TokenBatch
from alignloop.core.config import Config as Base
from alignloop.core.protocols import World

PAPER = "1506.02438"


class GAE(Base):
    """Discount, trace, and what a response that was cut at the length limit is worth past its end."""

    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token. 1: the answer counts as a whole."""
    lam: float = Field(0.95, ge=0, le=1)
    """Trace λ. 1: unbiased returns, more variance; 0: one-step errors of the critic."""
    truncation: Literal["terminal", "bootstrap", "mask"] = "terminal"
    """A cut response ends with value 0 | with the critic's value of the state after it | is left out of the update."""
    whiten: bool = True
    """Advantages to mean 0 and variance 1 over the tokens of the whole rollout batch."""


def gae(
    reward: Tensor,
    value: Tensor,
    tokens: TokenBatch,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 0.95,
    last: Tensor | None = None,
) -> Tensor:
    """A_t = δ_t + γλ A_{t+1},  δ_t = r_t + γ V_{t+1} - V_t, over each sequence's masked tokens.

    reward, value [B,T] in the layout of `tokens` (anything outside the mask); lam one number, or [N] for one per
    sequence; last [N] = value of the state after a sequence's last token (none: 0). Returns [B,T], zero outside the
    mask. The critic's target is A + V.
    """
    r = rows(tokens)
    rewards, values = r.dense(reward), r.dense(value)
    n, width = rewards.shape
    end = torch.zeros(n, dtype=values.dtype, device=values.device) if last is None else last.to(values.dtype)
    lam = torch.as_tensor(lam, dtype=values.dtype, device=values.device)
    advantages = torch.zeros_like(values)
    running, following = torch.zeros_like(end), end
    for t in reversed(range(width)):
        here = r.valid[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        running = torch.where(here, delta + gamma * lam * running, running)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, running, 0.0)
    return r.back(advantages)


def explained_variance(value: Tensor, target: Tensor, mask: Tensor, world: World | None = None) -> float:
    """1 - Var(G - V) / Var(G) over the mask: 1 perfect, 0 as good as a constant, below 0 worse. 0 if G is constant."""
    total = moments(target, mask, world).var
    left = moments(target - value, mask, world).var
    return float(1.0 - left / total) if float(total) > 0 else 0.0
