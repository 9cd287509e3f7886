"""Arithmetic over masked tokens: sums, means, whitening, reductions, ratios, and the layout "one row per sequence".

Nothing here reads a value outside the mask: `x * mask` would turn an infinite or undefined filler into NaN, so values
are selected, never multiplied (0 x inf = NaN). Statistics are summed in float64 and, given a `world`, over every
process, so they depend neither on how a batch is cut nor on how it is laid out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from alignloop.core.batch import TokenBatch, Unit
from alignloop.core.errors import TrainingError
from alignloop.core.protocols import World

LOG_RATIO_LIMIT = 20.0
Reduction = Literal["token_mean", "seq_mean_token_mean", "seq_mean_token_sum", "seq_mean_token_sum_norm"]


def msum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum of x over the mask; what stands outside may be anything, NaN included.

    >>> msum(torch.tensor([1.0, float("nan"), 2.0]), torch.tensor([True, False, True]))
    tensor(3.)
    """
    return x[mask].sum()


def safe_exp(log_ratio: Tensor) -> Tensor:
    """exp(clamp(log_ratio, -20, 20)). The clamp is inside exp only: a clamped difference would be a biased one."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


@dataclass(frozen=True)
class Moments:
    """Count, mean and Bessel variance of masked values, as 0-d float64 tensors."""

    count: Tensor
    mean: Tensor
    var: Tensor


def moments(x: Tensor, mask: Tensor, world: World | None = None) -> Moments:
    """Count, mean and variance (divided by n-1) over the mask, of this process or of the whole `world`.

    Two passes: deviations are taken from the global mean, because a difference of sums of squares cancels.
    Raises TrainingError with fewer than two values.
    """
    values = x[mask].double()
    first = _all(torch.stack([values.sum(), values.new_tensor(float(values.numel()))]), world)
    count = first[1]
    if count < 2:
        raise TrainingError(f"statistics need at least 2 masked tokens, got {int(count)}: use a larger rollout batch")
    mean = first[0] / count
    squares = _all((values - mean).square().sum(), world)
    return Moments(count, mean, squares / (count - 1))


def masked_mean(x: Tensor, mask: Tensor, world: World | None = None) -> Tensor:
    """Mean of x over the mask, f64[]. Raises TrainingError on an empty mask."""
    values = x[mask].double()
    both = _all(torch.stack([values.sum(), values.new_tensor(float(values.numel()))]), world)
    if both[1] < 1:
        raise TrainingError("mean over an empty mask: no token of this batch was emitted by the policy")
    return both[0] / both[1]


def masked_var(x: Tensor, mask: Tensor, world: World | None = None) -> Tensor:
    """Variance of x over the mask with Bessel's correction (n - 1), f64[].

    >>> masked_var(torch.tensor([1.0, 2.0, 3.0, 99.0]), torch.tensor([True, True, True, False]))
    tensor(1., dtype=torch.float64)
    """
    return moments(x, mask, world).var


def whiten(
    x: Tensor, mask: Tensor, *, keep_mean: bool = False, eps: float = 1e-8, world: World | None = None
) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the mask, zero outside; `keep_mean` adds the mean back (reward whitening).

    Bessel variance, as TRL and verl. A spread below 1e-6 of the mean's size is float noise, not a signal: it becomes 0
    instead of being blown up. Whiten over the whole rollout batch, never over a micro-batch.
    """
    m = moments(x, mask, world)
    noise = m.var.sqrt() <= 1e-6 * m.mean.abs().clamp(min=1.0)
    white = torch.where(noise, 0.0, (x[mask].double() - m.mean) / (m.var + eps).sqrt())
    out = torch.zeros_like(x)
    out[mask] = (white + m.mean if keep_mean else white).to(x.dtype)
    return out


def reduce_tokens(x: Tensor, tokens: TokenBatch, how: Reduction, constant: float = 1.0) -> tuple[Tensor, Unit]:
    """A token loss as a SUM and the unit whose step-wide count divides it. x [K]: the masked tokens in row-major order.

    token_mean               sum l / tokens
    seq_mean_token_mean      sum over sequences of (sum l / own length) / sequences
    seq_mean_token_sum       sum l / sequences
    seq_mean_token_sum_norm  sum l / (sequences x constant)
    """
    if how == "token_mean":
        return x.sum(), "token"
    if how == "seq_mean_token_mean":
        sequence = tokens.sequence_of_token()[tokens.mask]
        length = torch.bincount(sequence, minlength=tokens.n)
        return (x / length[sequence]).sum(), "sequence"
    if how == "seq_mean_token_sum":
        return x.sum(), "sequence"
    if constant <= 0:
        raise TrainingError(f"seq_mean_token_sum_norm: the constant must be above 0, got {constant}")
    return x.sum() / constant, "sequence"


@dataclass(frozen=True)
class Rows:
    """The masked tokens of a batch as one row per sequence: A = the longest sequence, in the order of its tokens.

    sequence, rank i64[K]: where masked token k goes. valid bool[N,A]. count i64[N].
    """

    sequence: Tensor
    rank: Tensor
    valid: Tensor
    count: Tensor
    mask: Tensor

    def dense(self, x: Tensor) -> Tensor:
        """[B,T] -> [N,A], zero past the end of a sequence."""
        out = torch.zeros(self.valid.shape, dtype=x.dtype, device=x.device)
        out[self.sequence, self.rank] = x[self.mask]
        return out

    def back(self, x: Tensor) -> Tensor:
        """[N,A] -> [B,T], zero outside the mask."""
        out = torch.zeros(self.mask.shape, dtype=x.dtype, device=x.device)
        out[self.mask] = x[self.sequence, self.rank]
        return out


def rows(tokens: TokenBatch) -> Rows:
    """Find each masked token's sequence and rank, in any layout: padded on either side, packed, with observations.

    Raises TrainingError where a masked token belongs to no sequence (padding, or a segment that several share).
    """
    sequence = tokens.sequence_of_token()[tokens.mask]
    if (sequence < 0).any():
        row, column = tokens.mask.nonzero()[(sequence < 0).nonzero()[0, 0]].tolist()
        raise TrainingError(f"row {row}, token {column}: the mask covers padding or a prompt shared by sequences")
    count = torch.bincount(sequence, minlength=tokens.n)
    order = torch.argsort(sequence, stable=True)
    start = count.cumsum(0) - count
    rank = torch.empty_like(sequence)
    rank[order] = torch.arange(len(sequence), device=sequence.device) - start[sequence[order]]
    longest = int(count.max()) if tokens.n else 0
    valid = torch.arange(longest, device=sequence.device)[None, :] < count[:, None]
    return Rows(sequence, rank, valid, count, tokens.mask)


def check_finite(name: str, x: Tensor, tokens: TokenBatch) -> None:
    """Raise TrainingError, naming row and token, where a masked entry of x [B,T] is NaN or infinite."""
    if x.shape != tokens.mask.shape:
        raise TrainingError(f"{name} has shape {tuple(x.shape)}, the batch has {tuple(tokens.mask.shape)}")
    bad = tokens.mask & ~torch.isfinite(x)
    if bad.any():
        row, column = bad.nonzero()[0].tolist()
        raise TrainingError(f"{name} is {x[row, column].item()} at row {row}, token {column}: it must be finite")


def check_nonempty(tokens: TokenBatch) -> None:
    """Raise TrainingError, naming the sequence, where one has no masked token: nothing of it can be trained on."""
    empty = rows(tokens).count == 0
    if empty.any():
        raise TrainingError(f"sequence {int(empty.nonzero()[0])} has no token that the policy emitted: drop the row")


def _all(x: Tensor, world: World | None) -> Tensor:
    return x if world is None else world.sum(x)
