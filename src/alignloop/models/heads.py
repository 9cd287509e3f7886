"""From hidden states to numbers: token log-probabilities, entropies, scalar heads.

Log-probabilities are float32 (float64 for float64 models) whatever the model computes in: a bfloat16 log-softmax is
wrong by 0.05 nats a token. Logits exist for a chunk of tokens at a time when all of them would exceed the budget.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

LOGITS_BUDGET = 2**26
"""Logits (tokens x vocabulary) that may be alive at once; above it they are made in chunks and recomputed backward."""

Project = Callable[[Tensor], Tensor]


def token_logp(
    hidden: Tensor, targets: Tensor, temperature: Tensor, project: Project, vocabulary: int, *, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log softmax(z / τ)[target] and, if asked, the exact entropy of softmax(z / τ), z = project(hidden).

    hidden f[K,D], targets i64[K], temperature f32[K] -> f[K], f[K] | None, in nats.
    """

    def piece(h: Tensor, t: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        logits = project(h)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        logp = torch.log_softmax(logits / tau[:, None].to(logits.dtype), dim=-1)
        chosen = logp.gather(-1, t[:, None]).squeeze(-1)
        if not entropy:
            return chosen, chosen.new_zeros(0)
        # p log p -> 0 where p = 0: a logit of -inf must make neither the entropy nor its gradient NaN
        finite = torch.where(logp > -torch.inf, logp, 0.0)
        return chosen, -(logp.exp() * finite).sum(-1)

    size = max(1, LOGITS_BUDGET // vocabulary)
    if len(targets) <= size:
        parts = [piece(hidden, targets, temperature)]
    else:
        parts = [
            checkpoint(piece, h, t, tau, use_reentrant=False)
            for h, t, tau in zip(torch.split(hidden, size), torch.split(targets, size), torch.split(temperature, size))
        ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if entropy else None


def scalar_head(width: int, *, zero: bool = False, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear map to one number, without bias: N(0, 1/sqrt(d+1)) (Stiennon et al., 2009.01325) or zero.

    Hugging Face's head has no bias, and Bradley-Terry could not identify one: an additive constant cancels in Δ.
    """
    head = nn.Linear(width, 1, bias=False)
    with torch.no_grad():
        if zero:
            head.weight.zero_()
        else:
            head.weight.normal_(0.0, (width + 1) ** -0.5, generator=generator)
    return head
