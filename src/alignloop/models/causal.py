"""Causal attention in half precision on a CPU, whose fused kernel is slow backward there.

In float32 PyTorch's fused kernel is as fast as anything here. In bfloat16 its backward pass takes 4 times as long for
32 places and 2.5 times for 200, so short pieces are computed in float32, and longer ones in blocks of queries, each
with the keys up to its end: scores and softmax in float32, the other products in half as in the fused kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT, LONG = 64, 1024
"""Queries up to which float32 is fastest; above LONG the weights that are kept cost more than the blocks save."""

BLOCK = 128


def computes_in(query: Tensor) -> torch.dtype:
    """The type in which attention is to be computed: autocast's where it is on, else that of the query."""
    kind = query.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype


def is_slow(query: Tensor, n: int) -> bool:
    """Whether PyTorch's kernel would be the slow one, for n queries: half precision on a CPU."""
    return query.device.type == "cpu" and n <= LONG and computes_in(query) in (torch.bfloat16, torch.float16)


def half_causal(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """query [b,H,n,D], key and value [b,Hkv,m,D] -> [b,H,n,D] in half: query i reads the keys up to place m - n + i.

    As `scaled_dot_product_attention` with a causal mask that ends in the lower right corner; without dropout.
    """
    half, n, before = computes_in(query), query.shape[2], key.shape[2] - query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    with torch.autocast("cpu", enabled=False):
        if n > SHORT:
            out: Tensor = _Blocks.apply(query, key, value.to(half), scale)  # type: ignore[no-untyped-call]
            return out
        mask = None if before == 0 else torch.ones(n, before + n, dtype=torch.bool).tril_(before)
        q, k, v = query.float(), key.float(), value.float()
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale).to(half)


class _Blocks(torch.autograd.Function):
    """O = P V with P = softmax(s Q Kᵀ), a block of queries at a time. The type of V is that of O and of all products.

    Backward: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - Σ P dP), dQ = s dS K, dK = dSᵀ (s Q).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        scaled, keys, half = query.float() * scale, key.float().transpose(-1, -2), value.dtype
        weights, outs = [], []
        for start, end, seen in _blocks(query, key):
            scores = scaled[:, :, start:end] @ keys[..., :seen]
            scores[..., seen - (end - start) :] += _ahead(BLOCK)[: end - start, : end - start]
            weights.append(torch.softmax(scores, -1).to(half))
            outs.append(weights[-1] @ value[:, :, :seen])
        ctx.save_for_backward(scaled.to(half), key.to(half), value, *weights)
        ctx.scale, ctx.types = scale, (query.dtype, key.dtype)
        return torch.cat(outs, 2)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_out: Tensor) -> tuple[Tensor | None, ...]:
        scaled, key, value, *weights = ctx.saved_tensors
        of_key, of_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        of_query = []
        for p, (start, end, seen) in zip(weights, _blocks(scaled, key)):
            slope = of_out[:, :, start:end]
            of_p = slope @ value[:, :, :seen].transpose(-1, -2)
            of_scores = torch._softmax_backward_data(of_p, p, -1, p.dtype)  # one pass, in float32 inside
            of_query.append(of_scores @ key[:, :, :seen])
            of_key[:, :, :seen] += of_scores.transpose(-1, -2) @ scaled[:, :, start:end]
            of_value[:, :, :seen] += p.transpose(-1, -2) @ slope
        kinds = ctx.types
        return torch.cat(of_query, 2).to(kinds[0]) * ctx.scale, of_key.to(kinds[1]), of_value.to(value.dtype), None


@cache
def _ahead(size: int) -> Tensor:
    """f32[size,size]: -inf on what lies ahead of a query, else 0."""
    return torch.full((size, size), -torch.inf).triu_(1)


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[int, int, int]]:
    """First and last query of every block, blocks of about one size, and the keys that it reads."""
    n, before = query.shape[2], key.shape[2] - query.shape[2]
    size = ceil(n / ceil(n / BLOCK))
    return ((a, min(a + size, n), before + min(a + size, n)) for a in range(0, n, size))
