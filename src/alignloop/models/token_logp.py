"""From logits to token log-probabilities and entropies, a few rows at a time.

Log-probabilities are float32 (float64 for float64 models) whatever the model computes in: a bfloat16 log-softmax is
wrong by 0.05 nats a token. Only the logits themselves and their gradient exist whole, in the type of the model; all
that is float32 is made for a few rows that stay in the cache, and made again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LOGITS_BYTES = 2**29
"""Logits that may be kept for the backward pass; above it they are made in pieces, and again backward."""

AT_ONCE = {"cpu": 2**20}
"""Logits (rows x vocabulary) in float32 at once: on a CPU as many as its cache holds, else what fills a GPU."""

LOWEST = -1e4
"""Below it p is 0 in any type, and p log p is: a logit of -inf must make neither the entropy nor its gradient NaN."""

Project = Callable[[Tensor], Tensor]


def token_logp(
    hidden: Tensor, targets: Tensor, temperature: Tensor, project: Project, vocabulary: int, *, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """log softmax(z / τ)[target] and, if asked, the exact entropy of softmax(z / τ), z = project(hidden).

    hidden f[K,D], targets i64[K], temperature f32[K] -> f[K], f[K] | None, in nats.
    """

    def piece(h: Tensor, t: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _LogpOfLogits.apply(project(h), t, tau, entropy)  # type: ignore[no-untyped-call]
        return found

    size = max(1, LOGITS_BYTES // (vocabulary * hidden.element_size()))
    if len(targets) <= size or not torch.is_grad_enabled():
        parts = [piece(*some) for some in zip(*(torch.split(x, size) for x in (hidden, targets, temperature)))]
    else:
        parts = [
            checkpoint(piece, h, t, tau, use_reentrant=False)
            for h, t, tau in zip(torch.split(hidden, size), torch.split(targets, size), torch.split(temperature, size))
        ]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if entropy else None


class _LogpOfLogits(torch.autograd.Function):
    """log p[target] and the entropy H = -Σ p log p, with log p = z - lse(z) and z the logits over τ.

    Backward: ∂ log p[target] / ∂z = 1[target] - p and ∂H / ∂z = -p (log p + H). The gradient is written over the
    logits: a second block of that size would be fresh memory at every step. So the graph can be walked once, and
    PyTorch refuses a second time.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
        tau = temperature.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)[:, None]
        heated = bool((tau != 1).any())
        chosen, spread = (tau.new_empty(n) for n in (len(logits), len(logits) if entropy else 0))
        for rows in _few(logits):
            logp = torch.log_softmax(_over(logits[rows], tau[rows], heated), -1)
            chosen[rows] = logp.gather(-1, targets[rows, None]).squeeze(-1)
            if entropy:
                spread[rows] = -torch.exp(logp).mul_(logp.clamp_min_(LOWEST)).sum(-1)
        ctx.save_for_backward(logits, targets, tau, spread)
        ctx.heated = heated
        ctx.set_materialize_grads(False)
        return chosen, spread

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_chosen: Tensor | None, of_spread: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, tau, spread = ctx.saved_tensors
        pull = torch.zeros_like(tau) if of_chosen is None else of_chosen[:, None] / tau
        push = of_spread[:, None] / tau if of_spread is not None and len(spread) else None
        for rows in _few(logits):
            z = _over(logits[rows], tau[rows], ctx.heated)
            if push is None:
                slope = torch.softmax(z, -1).mul_(-pull[rows])
            else:
                logp = torch.log_softmax(z, -1)
                slope = torch.exp(logp).neg_()
                slope *= logp.clamp_min_(LOWEST).add_(spread[rows, None]).mul_(push[rows]).add_(pull[rows])
            logits[rows] = slope.scatter_add_(-1, targets[rows, None], pull[rows])
        return logits, None, None, None


def _over(logits: Tensor, tau: Tensor, heated: bool) -> Tensor:
    """Some rows of logits over their temperature, in the type of the temperature."""
    return logits / tau if heated else logits.to(tau.dtype)


def _few(logits: Tensor) -> Iterator[slice]:
    """Slices of rows, of AT_ONCE logits each."""
    step = max(1, AT_ONCE.get(logits.device.type, 2**27) // logits.shape[-1])
    return (slice(start, start + step) for start in range(0, len(logits), step))
