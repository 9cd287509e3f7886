"""Who attends to whom in a packed row, as plain integers: the plan that `attention` follows and generation shares.

A segment attends to its ancestors' tokens and causally to its own. Neighbouring segments of equal length without
parents, and rows of one layout, are batched into one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignloop.core.batch import TokenBatch
from alignloop.core.errors import TrainingError

Span = tuple[int, int]


class How(NamedTuple):
    """What a layer asks of its attention besides the tensors. `twice`: operations that can be differentiated twice."""

    scaling: float | None
    dropout: float
    softcap: float | None
    window: int | None
    twice: bool = False


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

    def edges(self, *, prefixes: bool) -> set[int]:
        """Where the row is cut: at the ends of every piece and, for keys and values, of every prefix."""
        spans = [(p.start, p.end) for p in self.pieces]
        spans += [span for p in self.pieces for span in p.prefix] if prefixes else []
        return {edge for span in spans for edge in span}


@dataclass(frozen=True, eq=False)
class PackedPlan:
    """Who attends to whom, as plain integers: the tree of segments (row, start, end), and the calls that follow it.

    masks: what layers made of it, each once. windows: notes the sliding window of every layer that used the plan.
    """

    rows: int
    length: int
    spans: tuple[tuple[int, int, int], ...]
    parent: tuple[int, ...]
    bands: tuple[Band, ...]
    twice: bool = False
    masks: dict[tuple[Any, ...], Any] = field(default_factory=dict, repr=False)
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
    return PackedPlan(rows, length, tuple(spans), tuple(parent), tuple(bands), twice)


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
