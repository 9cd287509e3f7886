"""One attention function for training and generation: packed rows, shared prompts, slot decoding, plain padding.

Models are loaded with ``attn_implementation=ATTENTION`` and called in one of three ways:

    backbone(input_ids=…, position_ids=tokens.positions, attention_mask=NO_MASK, plan=packed_plan(tokens),
             use_cache=False)                                                         training, prefill
    backbone(input_ids=…, position_ids=…, attention_mask=NO_MASK, plan=SlotPlan(…), past_key_values=slots)  decoding
    model(input_ids=…, attention_mask=…) or model.generate(…)              no plan: transformers' SDPA, masks included

The plan travels as a keyword argument of ``forward`` down to every attention layer; nothing is global. NO_MASK is a
4-D mask, which transformers hands on as it is, so that no mask is built. A family that drops the plan on the way meets
NO_MASK alone and raises; `supports_packing` finds such families beforehand.

A packed row gives each segment the numbers of its own unpadded forward: by one SDPA call per segment, or on a GPU by
one FlexAttention call a layer (`flex`).
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignloop.core.errors import ModelError
from alignloop.models.causal import half_causal, is_slow
from alignloop.models.flex import packed_attention, packed_kernel
from alignloop.models.packing import How, PackedPlan, Piece, SlotPlan, Span, plan_of

ATTENTION = "alignloop"
NO_MASK = torch.ones(1, 1, 1, 1, dtype=torch.bool)

HARMLESS = {"position_ids", "cache_position", "use_cache", "return_dict", "num_items_in_batch", "logits_to_keep"}
HARMLESS |= {"output_attentions", "output_hidden_states", "output_router_logits"}
"""Keywords that families hand on and that cannot change what an attention layer answers."""


def register() -> None:
    """Make ATTENTION known to transformers, with its mask function. Calling it again changes nothing."""
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # without it no mask is passed: padding and generate leak


class Cut:
    """A tensor [b,H,T,D] cut once along T. One split has one backward; a slice for every piece would each add a zero
    tensor of the whole row (a quarter of a training step, measured)."""

    def __init__(self, x: Tensor, edges: set[int]):
        inner = sorted(edges | {0, x.shape[2]})
        self.place = {edge: i for i, edge in enumerate(inner)}
        self.parts = torch.split(x, [b - a for a, b in pairwise(inner)], 2)

    def spans(self, *spans: Span) -> Tensor:
        """The places of some spans, one after the other."""
        parts = [part for a, b in spans for part in self.parts[self.place[a] : self.place[b]]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


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
    """[B,T,H,D] by the device's kernel, zeros on padding."""
    rows, _, length, _ = query.shape
    if (rows, length) != (plan.rows, plan.length) or key.shape[2] != length:
        raise ModelError(
            f"packed plan of {plan.rows} x {plan.length} places met {rows} x {length} queries and {key.shape[2]} keys; "
            "call the model with use_cache=False and the batch that the plan was made of"
        )
    if plan.windows is not None:
        plan.windows.append(how.window)
    kernel = packed_kernel(query, key, value, how, _by_segment)
    if kernel is not None:
        return packed_attention(kernel, plan, query, key, value, how)
    return _by_segment(plan, query, key, value, how)


def _by_segment(plan: PackedPlan, query: Tensor, key: Tensor, value: Tensor, how: How) -> Tensor:
    """[B,T,H,D]: one call per piece, zeros on padding."""
    heads, length = query.shape[1:3]
    bands = []
    for band in plan.bands:
        q, k, v = (x if len(plan.bands) == 1 else x[band.first : band.last] for x in (query, key, value))
        queries = Cut(q, band.edges(prefixes=False))
        keys, values = (Cut(x, band.edges(prefixes=True)) for x in (k, v))
        outs, at = [], 0
        for piece in band.pieces:
            if piece.start > at:
                outs.append(q.new_zeros(q.shape[0], piece.start - at, heads, v.shape[-1]))
            outs.append(_piece(plan, piece, queries, keys, values, how))
            at = piece.end
        if at < length:
            outs.append(q.new_zeros(q.shape[0], length - at, heads, v.shape[-1]))
        bands.append(outs[0] if len(outs) == 1 else torch.cat(outs, 1))
    return bands[0] if len(bands) == 1 else torch.cat(bands)


def _piece(plan: PackedPlan, piece: Piece, queries: Cut, keys: Cut, values: Cut, how: How) -> Tensor:
    """[b,n,H,D] for one piece of rows of one layout."""
    start, end, count = piece.start, piece.end, piece.count
    n = (end - start) // count
    q, before = queries.spans((start, end)), sum(b - a for a, b in piece.prefix)
    k, v = (x.spans(*piece.prefix, (start, end)) for x in (keys, values))
    rows = q.shape[0]
    if count > 1:
        q, k, v = (_fold(x, count) for x in (q, k, v))
    window = how.window if how.window is not None and how.window < before + n else None
    mask, causal = None, n > 1
    if before + n > 1 and (how.twice or how.softcap is not None or before or window is not None):
        name = (n, before, window, q.device)
        if name not in plan.masks:
            plan.masks[name] = _causal(n, before, window, q.device)
        mask, causal = plan.masks[name], False
    plain = how.softcap is None and window is None and not (how.twice or how.dropout)
    if plain and is_slow(q, n):
        out = half_causal(q, k, v, how.scaling).transpose(1, 2)
    else:
        out = _attend(q, k, v, mask, causal, how).transpose(1, 2)
    return out.reshape(rows, end - start, *out.shape[2:]) if count > 1 else out


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
    plan = replace(plan_of(PROBE_SPANS, PROBE_PARENT, 1, 12), windows=[])
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


def use_own_attention(model: Any) -> None:
    """Give a family that has our attention and cannot pack its own back: SDPA where there is a choice.

    Such a family need not call ours at all, and would then read masks that were made for ours.
    """
    if model.config._attn_implementation != ATTENTION:
        return
    with contextlib.suppress(ValueError):  # it has no SDPA
        model.set_attn_implementation("sdpa")
    if model.config._attn_implementation == ATTENTION:
        model.config._attn_implementation = "eager"
