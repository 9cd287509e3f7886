"""Records to rows of token ids, and rows to batches. Tokens are made once, here; nothing is re-derived from text later.

A row is one record: a demonstration, a comparison (two sequences), a thumb, a prompt. This module imports torch and is
therefore not imported by `alignloop.data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alignloop.core.batch import LabelBatch, PairBatch, TokenBatch
from alignloop.core.errors import DataError
from alignloop.core.layout import Item, Layout, build
from alignloop.core.types import Demonstration, Label, Preference
from alignloop.data.chat import ChatFormat, Encoded


@dataclass(frozen=True, slots=True)
class Row:
    """One record as token ids. items: one sequence, or (chosen, rejected). `cut`: max_length took something of it."""

    id: str
    items: tuple[Item, ...]
    weight: float = 1.0
    p: float = 1.0
    margin: float = 0.0
    good: bool = True
    group: str = ""
    cut: bool = False

    @property
    def tokens(self) -> int:
        return sum(len(item) for item in self.items)


Collate = Callable[[Sequence[Row]], TokenBatch | PairBatch | LabelBatch]


def demonstration_rows(records: Sequence[Demonstration], chat: ChatFormat, max_length: int | None = None) -> list[Row]:
    """SFT rows."""
    return [_row(r.id, _fit([chat.encode(r)], chat, max_length), weight=r.weight) for r in records]


def pair_rows(records: Sequence[Preference], chat: ChatFormat, max_length: int | None = None) -> list[Row]:
    """Comparison rows; both answers see the same (equally cut) prompt.

    Raises DataError where both answers became the same ids (unless the row is a tie): nothing could be learned.
    """
    rows = []
    for r in records:
        both = _fit(list(chat.encode_pair(r)), chat, max_length)
        if both[0].response == both[1].response and r.p != 0.5:
            raise DataError(f"preference {r.id}: chosen and rejected are the same {len(both[0].response)} tokens")
        rows.append(_row(r.id, both, weight=r.weight, p=r.p, margin=r.margin, group=r.group or r.prompt.id))
    return rows


def label_rows(records: Sequence[Label], chat: ChatFormat, max_length: int | None = None) -> list[Row]:
    """Thumb rows."""
    return [
        _row(r.id, _fit([chat.encode(r)], chat, max_length), weight=r.weight, good=r.good, group=r.prompt.id)
        for r in records
    ]


def _fit(several: list[Encoded], chat: ChatFormat, max_length: int | None) -> list[Encoded]:
    return several if max_length is None else chat.fit_together(several, max_length)


def _row(identity: str, several: Sequence[Encoded], **facts: Any) -> Row:
    items = tuple(Item(tuple(e.prompt), tuple(e.response), tuple(e.mask)) for e in several)
    return Row(identity, items, cut=any(e.truncated or e.prompt_cut for e in several), **facts)


def collate_tokens(rows: Sequence[Row], layout: Layout = "packed", *, share: bool = True) -> TokenBatch:
    """Demonstrations to a batch; sequence i is rows[i]."""
    return build([row.items[0] for row in rows], layout, share=share)


def collate_pairs(rows: Sequence[Row], layout: Layout = "packed", *, share: bool = True) -> PairBatch:
    """Comparisons to a batch; sequences 2i and 2i+1 are chosen and rejected of rows[i]."""
    items = [item for row in rows for item in row.items]
    groups = {name: k for k, name in enumerate(dict.fromkeys(row.group for row in rows))}
    index = torch.arange(len(rows))
    return PairBatch(
        tokens=build(items, layout, share=share),
        chosen=2 * index,
        rejected=2 * index + 1,
        p=torch.tensor([row.p for row in rows], dtype=torch.float32),
        margin=torch.tensor([row.margin for row in rows], dtype=torch.float32),
        weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
        group=torch.tensor([groups[row.group] for row in rows]),
    )


def collate_labels(rows: Sequence[Row], layout: Layout = "packed", *, share: bool = True) -> LabelBatch:
    """Thumbs to a batch; sequence i is rows[i]."""
    return LabelBatch(
        tokens=build([row.items[0] for row in rows], layout, share=share),
        good=torch.tensor([row.good for row in rows]),
        weight=torch.tensor([row.weight for row in rows], dtype=torch.float32),
    )
