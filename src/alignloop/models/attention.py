"""One attention function for training and generation: packed rows, shared prompts, slot decoding, plain padding.

Models are loaded with ``attn_implementation=ATTENTION`` and called in one of three ways:

    backbone(input_ids=…, position_ids=tokens.positions, attention_mask=NO_MASK, plan=packed_plan(tokens),
             use_cache=False)                                                         training, prefill
    backbone(input_ids=…, position_ids=…, attention_mask=NO_MASK, plan=SlotPlan(…), past_key_values=slots)  decoding
    model(input_ids=…, attention_mask=…) or model.generate(…)              no plan: transformers' SDPA, masks included

The plan travels as a keyword argument of ``forward`` down to every attention layer; nothing is global. NO_MASK is a
4-D mask, which transformers hands on as it is, so that no mask is built. A family that drops the plan on the way meets
NO_MASK alone and raises; `supports_packing` finds such families beforehand.

A packed row gives each segment the numbers of its own unpadded forward. There are no variable-length kernels for GPUs
here: there, too, it is one SDPA call per segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignloop.core.batch import TokenBatch
from alignloop.core.errors import ModelError, TrainingError

ATTENTION = "alignloop"
NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)

HARMLESS = {"position_ids", "cache_position", "use_cache", "return_dict", "num_items_in_batch", "logits_to_keep"}
HARMLESS |= {"output_attentions", "output_hidden_states"}
"""Keywords that families hand on and that cannot change what an attention layer answers."""

Span = tuple[int, int]


class How(NamedTuple):
    """What a layer asks of its attention besides the tensors. `twice`: operations that can be differentiated twice."""

    scaling: float | None
    dropout: float
    softcap: float | None
    window: int | None
    twice: bool = False


def register() -> None:
    """Make ATTENTION known to transformers, with its mask function. Calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # without it no mask is passed: padding and generate leak


@dataclass(frozen=True)
class Piece:
    """One attention call: places [start, end) of a row, causal, after the keys of `prefix`.

    count > 1: the places are `count` unrelated segments of equal length side by side, a call batched over them.
    """

    start: int
    end: int
    prefix: tuple[Span, ...] = ()
    count: int = 1


@dataclass(frozen=True)
class Band:
    """Rows [first, last) of one layout; their calls are batched over the rows."""

    first: int
    last: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """Who attends to whom, as plain integers. `windows` notes the sliding window of every layer that used the plan."""

    rows: int
    length: int
    bands: tuple[Band, ...]
    twice: bool = False
    masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)
    windows: list[int | None] | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class SlotPlan:
    """Decoding: one new token per row against a slot cache, row b reading the keys at places 0 … last[b].

    last i64[B] place of the token just written; keys: how many places of the cache are read (≥ max(last) + 1).
    """

    last: Tensor
    keys: int
    masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None) -> Tensor:
        """bool[B,1,1,K]: places that row b may read; with a sliding window only the last `window` of them."""
        window = window if window is not None and window < self.keys else None
        if window not in self.masks:
            place = torch.arange(self.keys, device=self.last.device)
            mask = place <= self.last[:, None]
            if window is not None:
                mask &= place > self.last[:, None] - window
            self.masks[window] = mask[:, None, None, :]
        return self.masks[window]


def packed_plan(tokens: TokenBatch, *, twice: bool = False) -> PackedPlan:
    """The plan of a batch. `twice`: use plain operations that can be differentiated twice (TRPO, exact Hessians)."""
    rows, length = tokens.tokens.shape
    return plan_of(tokens.spans, tokens.parent.tolist(), rows, length, twice=twice)


def plan_of(
    spans: Sequence[tuple[int, int, int]], parent: Sequence[int], rows: int, length: int, *, twice: bool = False
) -> PackedPlan:
    """The plan of segments (row, start, end) with their parents (-1 = none) in rows of `length` places."""
    _check(spans, parent, rows, length)
    layouts: list[list[Piece]] = [[] for _ in range(rows)]
    for s in sorted(range(len(spans)), key=lambda i: spans[i]):
        row, start, end = spans[s]
        above, layout = _ancestors(s, spans, parent), layouts[row]
        if start == end:
            continue
        if above and layout and layout[-1].end == start == above[-1][1]:
            layout[-1] = Piece(layout[-1].start, end, layout[-1].prefix)  # the first child follows its parent: one call
        else:
            layout.append(Piece(start, end, above))
    bands, at = [], 0
    for pieces, run in groupby(tuple(_side_by_side(layout)) for layout in layouts):
        n = len(list(run))
        bands.append(Band(at, at + n, pieces))
        at += n
    return PackedPlan(rows, length, tuple(bands), twice)


def _check(spans: Sequence[tuple[int, int, int]], parent: Sequence[int], rows: int, length: int) -> None:
    if len(spans) != len(parent):
        raise TrainingError(f"packed batch: {len(spans)} spans but {len(parent)} parents; build both in one place")
    for s, (row, start, end) in enumerate(spans):
        if not (0 <= row < rows and 0 <= start <= end <= length):
            raise TrainingError(
                f"packed batch: segment {s} at {(row, start, end)} lies outside {rows} rows of {length}"
            )
        p = parent[s]
        if p >= 0 and (p >= len(spans) or spans[p][0] != row or spans[p][2] > start):
            raise TrainingError(f"packed batch: segment {s} must stand after its parent {p} in the same row")
    taken = sorted(span for span in spans if span[1] < span[2])
    for a, b in pairwise(taken):
        if a[0] == b[0] and b[1] < a[2]:
            raise TrainingError(f"packed batch: segments {a} and {b} (row, start, end) overlap")


def _ancestors(s: int, spans: Sequence[tuple[int, int, int]], parent: Sequence[int]) -> tuple[Span, ...]:
    """Spans of what segment s also attends to, oldest first, neighbours joined: fewer slices to concatenate."""
    above: list[Span] = []
    s = parent[s]
    while s >= 0:
        _, start, end = spans[s]
        if above and above[0][0] == end:
            above[0] = (start, above[0][1])
        elif start < end:
            above.insert(0, (start, end))
        s = parent[s]
    return tuple(above)


def _side_by_side(layout: Sequence[Piece]) -> list[Piece]:
    """Unrelated segments of equal length without a gap between them become one batched call."""
    out: list[Piece] = []
    for piece in layout:
        last = out[-1] if out else piece
        alike = last.end - last.start == (piece.end - piece.start) * last.count and not (piece.prefix or last.prefix)
        if out and alike and last.end == piece.start:
            out[-1] = Piece(last.start, piece.end, (), last.count + 1)
        else:
            out.append(piece)
    return out


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    plan: PackedPlan | SlotPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: query [B,H,T,D], key and value [B,Hkv,K,D] -> [B,T,H,D].

    Raises ModelError on a keyword that it does not know and that could change the result, and where NO_MASK arrives
    without the plan that should come with it.
    """
    unknown = [name for name, given in kwargs.items() if given is not None and name not in HARMLESS]
    if unknown:
        raise ModelError(
            f"{type(module).__name__}: attention argument '{unknown[0]}' is not supported by '{ATTENTION}' attention; "
            "load this model with attn_implementation='sdpa' or 'eager' (its batches are then padded)"
        )
    rate = dropout if module.training else 0.0
    if plan is None:
        how = How(scaling, rate, softcap, None)
        return _plain(module, query, key, value, attention_mask, is_causal, how), None
    if is_causal is False or not getattr(module, "is_causal", True):
        raise ModelError(f"{type(module).__name__}: packed rows need causal attention; this layer looks both ways")
    if isinstance(plan, SlotPlan):
        how = How(scaling, 0.0, softcap, sliding_window)
        return _attend(query, key, value, plan.mask(sliding_window), False, how).transpose(1, 2), None
    return _packed(plan, query, key, value, How(scaling, rate, softcap, sliding_window, plan.twice)), None


def _plain(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool | None, how: How
) -> Tensor:
    """No plan: what transformers' own SDPA gives, and the same with a soft-cap, which SDPA lacks."""
    if mask is not None and mask.numel() == 1 and query.shape[2] * key.shape[2] > 1:
        raise ModelError(
            f"{type(module).__name__}: the packing plan was lost on the way to the attention layer; "
            "this family cannot pack (see supports_packing), pad its batches instead"
        )
    if how.softcap is None:
        out: Tensor = sdpa_attention_forward(
            module, query, key, value, mask, dropout=how.dropout, scaling=how.scaling, is_causal=is_causal
        )[0]
        return out
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    if mask is None and causal and query.shape[2] > 1:
        n = query.shape[2]
        key, value = key[:, :, :n], value[:, :, :n]  # an empty static cache is longer than the prompt
        mask = _causal(n, 0, None, query.device)
    return _eager(query, key, value, mask, how).transpose(1, 2)


def _packed(plan: PackedPlan, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """[B,T,H,D]: one call per piece, zeros on padding."""
    rows, heads, length, _ = query.shape
    if (rows, length) != (plan.rows, plan.length) or key.shape[2] != length:
        raise ModelError(
            f"packed plan of {plan.rows} x {plan.length} places met {rows} x {length} queries and {key.shape[2]} keys; "
            "call the model with use_cache=False and the batch that the plan was made of"
        )
    if plan.windows is not None:
        plan.windows.append(how.window)
    bands = []
    for band in plan.bands:
        q, k, v = (x if len(plan.bands) == 1 else x[band.first : band.last] for x in (query, key, value))
        outs, at = [], 0
        for piece in band.pieces:
            if piece.start > at:
                outs.append(q.new_zeros(q.shape[0], piece.start - at, heads, v.shape[-1]))
            outs.append(_piece(plan, piece, q, k, v, how))
            at = piece.end
        if at < length:
            outs.append(q.new_zeros(q.shape[0], length - at, heads, v.shape[-1]))
        bands.append(outs[0] if len(outs) == 1 else torch.cat(outs, 1))
    return bands[0] if len(bands) == 1 else torch.cat(bands)


def _piece(plan: PackedPlan, piece: Piece, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """[b,n,H,D] for one piece of rows of one layout."""
    start, end, count = piece.start, piece.end, piece.count
    n = (end - start) // count
    q = query[:, :, start:end]
    before = sum(b - a for a, b in piece.prefix)
    if piece.prefix:
        spans = (*piece.prefix, (start, end))
        k, v = (torch.cat([x[:, :, a:b] for a, b in spans], 2) for x in (key, value))
    else:
        k, v = key[:, :, start:end], value[:, :, start:end]
    if count > 1:
        q, k, v = (_fold(x, count) for x in (q, k, v))
    window = how.window if how.window is not None and how.window < before + n else None
    mask, causal = None, n > 1
    if before + n > 1 and (how.twice or how.softcap is not None or before or window is not None):
        name = (n, before, window, query.device)
        if name not in plan.masks:
            plan.masks[name] = _causal(n, before, window, query.device)
        mask, causal = plan.masks[name], False
    out = _attend(q, k, v, mask, causal, how).transpose(1, 2)
    return out.reshape(query.shape[0], end - start, *out.shape[2:]) if count > 1 else out


def _fold(x: Tensor, count: int) -> Tensor:
    """[b,H,count·n,D] -> [b·count,H,n,D]."""
    rows, heads, length, dim = x.shape
    return x.transpose(1, 2).reshape(rows * count, length // count, heads, dim).transpose(1, 2)


def _causal(n: int, before: int, window: int | None, device: torch.device) -> Tensor:
    """bool[n, before+n]: query i (place before+i) reads places up to its own, the last `window` of them."""
    place = torch.arange(before + n, device=device)
    query = place[before:, None]
    mask = place <= query
    return mask if window is None else mask & (place > query - window)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool, how: How) -> Tensor:
    """[b,H,n,D] by SDPA where it can, by plain operations for a soft-cap or a second derivative."""
    if how.twice or how.softcap is not None:
        return _eager(query, key, value, mask, how)
    grouped = query.shape[1] != key.shape[1]
    if grouped and mask is not None and query.device.type != "cpu":  # masked GQA leaves the fast kernels there
        times = query.shape[1] // key.shape[1]
        key, value, grouped = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1), False
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=how.dropout,
        is_causal=causal,
        scale=how.scaling,
        enable_gqa=grouped,
    )


def _eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: How) -> Tensor:
    """softmax(cap · tanh(s·qk / cap) + mask) v in plain operations, the softmax in at least float32."""
    times = query.shape[1] // key.shape[1]
    if times > 1:
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scale = query.shape[-1] ** -0.5 if how.scaling is None else how.scaling
    weights = query @ key.transpose(-1, -2) * scale
    if how.softcap is not None:
        weights = torch.tanh(weights / how.softcap) * how.softcap
    if mask is not None:
        low = torch.finfo(weights.dtype).min  # not -inf: rows of pure padding must stay finite
        weights = weights.masked_fill(~mask, low) if mask.dtype == torch.bool else weights + mask
    wide = torch.float64 if weights.dtype == torch.float64 else torch.float32
    weights = torch.softmax(weights, -1, dtype=wide).to(value.dtype)
    return F.dropout(weights, how.dropout) @ value if how.dropout > 0 else weights @ value


PROBE_SPANS = ((0, 0, 3), (0, 3, 5), (0, 5, 7), (0, 8, 12))
PROBE_PARENT = (-1, 0, 0, -1)
PROBE_ALONE = ([0, 1, 2, 3, 4], [0, 1, 2, 5, 6], [8, 9, 10, 11])


def supports_packing(model: Any) -> bool:
    """Does this model give packed rows the numbers of separate rows? A trial on twelve tokens, without gradients.

    False where the plan does not reach every layer, where position ids or a sliding window are not honoured, or where
    the family keeps other state between tokens (recurrent layers): such a model must pad. The model's mode is restored.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    backbone = getattr(inner, "base_model", inner)  # the transformer below adapters and heads
    config = backbone.config
    if getattr(config, "_attn_implementation", None) != ATTENTION:
        return False
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        return False
    device = next(model.parameters()).device
    words = int(getattr(config, "vocab_size", 12))
    ids = ((torch.arange(12, device=device) * 7 + 3) % words)[None]
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 0, 0, 1, 2, 3]], device=device)
    base = plan_of(PROBE_SPANS, PROBE_PARENT, 1, 12)
    plan = PackedPlan(base.rows, base.length, base.bands, windows=[])
    modes = [(m, m.training) for m in backbone.modules()]
    backbone.eval()
    call = partial(backbone, use_cache=False)
    try:
        with torch.no_grad():
            packed = call(input_ids=ids, position_ids=positions, attention_mask=NO_MASK, plan=plan).last_hidden_state
            alone = [call(input_ids=ids[:, at], position_ids=positions[:, at]).last_hidden_state for at in PROBE_ALONE]
    except (ModelError, TypeError, ValueError, RuntimeError):
        return False
    finally:
        for module, training in modes:
            module.training = training
    windows = plan.windows or []
    if len(windows) != config.num_hidden_layers:
        return False
    windowed = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    if windowed and not any(w is not None for w in windows):
        return False  # the family leaves its window to the mask, which a packed row does not build
    tolerance = 0.03 if packed.dtype in (torch.bfloat16, torch.float16) else 1e-3
    close = [
        (packed[:, at] - h).abs().max() <= tolerance * h.abs().max() for at, h in zip(PROBE_ALONE, alone, strict=True)
    ]
    return all(bool(c) for c in close)
