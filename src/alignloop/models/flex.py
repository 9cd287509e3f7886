"""Packed rows on a GPU: one FlexAttention call a layer, under a mask made of the plan's tree of segments.

Place q reads place k iff k ≤ q and the segment of k is that of q or an ancestor of it: with the segments numbered
depth first, `enter` a segment's number and `leave` the first number behind its descendants,

    k ≤ q,   enter[k] ≤ enter[q] < leave[k],   position[k] > position[q] - window.

Padding has enter = leave = -1: it reads nothing, nothing reads it, and its output is zero. The numbers are tensors, so
one compiled kernel serves every batch, with a window or without.

The kernel has to earn its use. Before the first call for a kind of layer (device, type, heads, width, scale, soft-cap)
it is compiled and must give the values and the gradients of plain attention on a small tree; where it does not, or
does not compile, the rows keep one SDPA call per segment, and a warning says so once. They keep it silently on other
devices (FlexAttention has no backward pass on a CPU), in float64, for heads narrower than 16 or wider than 256, for
attention dropout and for second derivatives.

This has not been run on a GPU yet; tests/models/test_flex.py holds the comparison, skipped where there is none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from alignloop.models.causal import computes_in
from alignloop.models.packing import How, PackedPlan, plan_of

log = logging.getLogger(__name__)

Kernel = Callable[..., Tensor]
Packed = Callable[[PackedPlan, Tensor, Tensor, Tensor, How], Tensor]
Reads = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
"""What the kernel's outcomes may differ from float64, relative to their size (float32 may be computed in TF32)."""

NARROWEST, WIDEST = 16, 256
"""Head widths that the kernel takes: below, the GPU's matrix units do not; above, a block does not fit in its cache."""

BLOCK = 128
"""Queries, and keys, of a block: the kernel passes over blocks in which nobody reads anything."""

PAIRS = 2**28
"""Pairs of places that are looked at together to find the blocks."""

DYNAMO = {"specialize_float": True, "cache_size_limit": 64}
"""Scales and caps are constants of the kernel, and a process may hold several models: each kind has its own code."""


class Kind(NamedTuple):
    """What a kernel is compiled for."""

    device: torch.device
    dtype: torch.dtype
    heads: int
    shared: int
    width: int
    value_width: int
    how: How


def packed_kernel(query: Tensor, key: Tensor, value: Tensor, how: How, plain: Packed) -> Kernel | None:
    """The kernel for such rows, query [B,H,T,D], key and value [B,Hkv,T,D]; None: they stay with `plain`."""
    dtype, widths = computes_in(query), (query.shape[-1], value.shape[-1])
    if query.device.type != "cuda" or dtype not in TOLERANCE or min(widths) < NARROWEST or max(widths) > WIDEST:
        return None
    if how.dropout or how.twice:
        return None
    kind = Kind(query.device, dtype, query.shape[1], key.shape[1], *widths, how._replace(window=None))
    return compiled if proven(kind, compiled, plain) else None


def packed_attention(kernel: Kernel, plan: PackedPlan, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """query [B,H,T,D], key and value [B,Hkv,T,D] -> [B,T,H,D], zeros on padding.

    All three in one type, as the kernel wants: autocast's where it is on (rotary embeddings leave queries and keys in
    float32 beside values in half).
    """
    dtype = computes_in(query)
    out = kernel(
        query.to(dtype),
        key.to(dtype),
        value.to(dtype),
        score_mod=None if how.softcap is None else capped(how.softcap),
        block_mask=block_mask(plan, how.window, query.device),
        scale=how.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2)


def compiled(*tensors: Tensor, **how: Any) -> Tensor:
    """`flex_attention`, compiled once per process for rows of any number and length.

    Never its uncompiled self, which would hold all T² scores: more kinds than DYNAMO allows are an error.
    """
    with torch._dynamo.config.patch(DYNAMO):
        out: Tensor = _compiled()(*tensors, **how)
        return out


@cache
def _compiled() -> Kernel:
    made: Kernel = torch.compile(flex_attention, dynamic=True, fullgraph=True)
    return made


@cache
def capped(cap: float) -> Callable[..., Tensor]:
    """cap · tanh(score / cap)."""

    def soft(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return soft


def block_mask(plan: PackedPlan, window: int | None, device: torch.device) -> BlockMask:
    """The mask of a plan, made once per window and device."""
    window = window if window is not None and window < plan.length else None
    name = ("blocks", window, device)
    if name not in plan.masks:
        if ("places", device) not in plan.masks:
            plan.masks["places", device] = tuple(x.to(device) for x in places(plan))
        enter, leave, position = plan.masks["places", device]
        plan.masks[name] = _in_bands(reads(enter, leave, position, window), plan.rows, plan.length, device)
    made: BlockMask = plan.masks[name]
    return made


def _in_bands(read: Reads, rows: int, length: int, device: torch.device) -> BlockMask:
    """`create_block_mask` for a band of queries at a time: it looks at every pair of places, some bytes for each."""
    size = max(1, PAIRS // (rows * length * BLOCK)) * BLOCK

    def band(start: int) -> BlockMask:
        def shifted(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return read(row, head, query + start, key)

        return create_block_mask(shifted, rows, None, min(size, length - start), length, device, BLOCK)

    bands = [band(start) for start in range(0, length, size)]
    names = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")
    number, which, full, which_full = (torch.cat([getattr(one, name) for one in bands], 2) for name in names)
    return BlockMask.from_kv_blocks(number, which, full, which_full, BLOCK, read, (length, length))


def places(plan: PackedPlan) -> tuple[Tensor, Tensor, Tensor]:
    """Three i32[B,T]: for every place the `enter` and `leave` of its segment and its position; -1 on padding.

    Tensors of their own: Dynamo would take the 3 of one tensor for a number of blocks, and compile again without.
    """
    children: dict[int, list[int]] = {}
    for s, parent in enumerate(plan.parent):
        children.setdefault(parent, []).append(s)
    order: list[int] = []  # depth first
    waiting = children.get(-1, [])
    while waiting:
        order.append(waiting.pop())
        waiting += children.get(order[-1], [])
    size, depth = [1] * len(plan.spans), [0] * len(plan.spans)
    for s in reversed(order):
        if plan.parent[s] >= 0:
            size[plan.parent[s]] += size[s]
    enter, leave, position = (torch.full((plan.rows, plan.length), -1, dtype=torch.int32) for _ in range(3))
    for number, s in enumerate(order):
        (row, start, end), parent = plan.spans[s], plan.parent[s]
        if parent >= 0:
            depth[s] = depth[parent] + plan.spans[parent][2] - plan.spans[parent][1]
        enter[row, start:end] = number
        leave[row, start:end] = number + size[s]
        position[row, start:end] = torch.arange(depth[s], depth[s] + end - start, dtype=torch.int32)
    return enter, leave, position


def reads(enter: Tensor, leave: Tensor, position: Tensor, window: int | None) -> Reads:
    """Whether place `query` of a row reads place `key`, from the `places` of a plan."""
    oldest = torch.full_like(position, -1) if window is None else position - window

    def read(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        above = (enter[row, key] <= enter[row, query]) & (enter[row, query] < leave[row, key])
        return above & (key <= query) & (position[row, key] > oldest[row, query])

    return read


@cache
def proven(kind: Kind, kernel: Kernel, plain: Packed) -> bool:
    """Whether the kernel has just given, for this kind of layer, the values and gradients of `plain`."""
    with ThreadPoolExecutor(1) as own:  # a thread of its own: no autocast, gradient mode or checkpoint of the caller
        try:
            worst = own.submit(_trial, kind, kernel, plain).result()
            wrong = "" if worst <= TOLERANCE[kind.dtype] else f"its numbers are off by {worst:.1e} of their size"
        except Exception as error:  # whatever a compiler, a driver or a full GPU may raise
            wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    if wrong:
        kept = "packed rows keep one attention call per segment"
        log.warning("FlexAttention is not used for %s and heads of %s: %s; %s", kind.dtype, kind.width, wrong, kept)
    return not wrong


TRIAL = ((0, 0, 150), (0, 150, 200), (0, 200, 290), (0, 300, 310)), (-1, 0, 0, -1)
"""A prompt with two answers and, behind ten places of padding, a stranger: three blocks of the kernel."""


def _trial(kind: Kind, kernel: Kernel, plain: Packed) -> float:
    """How far the kernel's output and gradients are from those of `plain` in float64: the worst, relative."""
    if kind.device.type == "cuda":
        torch.cuda.set_device(kind.device)  # a thread begins at the first
    plan, how, draw = plan_of(*TRIAL, 1, 310), kind.how._replace(window=170), torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(kind.device, kind.dtype)

    inputs = [drawn(1, heads, 310, kind.width) for heads in (kind.heads, kind.shared)]
    inputs.append(drawn(1, kind.shared, 310, kind.value_width))
    slope = drawn(1, 310, kind.heads, kind.value_width)

    def outcome(run: Packed, dtype: torch.dtype) -> list[Tensor]:
        query, key, value = given = [x.detach().to(dtype).requires_grad_() for x in inputs]
        out = run(plan, query, key, value, how)
        return [x.double() for x in (out.detach(), *torch.autograd.grad(out, given, slope.to(dtype)))]

    pairs = zip(outcome(partial(packed_attention, kernel), kind.dtype), outcome(plain, torch.float64), strict=True)
    return float(torch.stack([(found - exact).norm() / exact.norm() for found, exact in pairs]).max())
