"""Records to rows of token ids, and rows to batches. Tokens are made once, here; nothing is re-derived from text later.

A row is one record: a demonstration, a comparison (two sequences), a thumb, a prompt. This module imports torch and is
therefore not imported by `alignloop.data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from alignloop.core.batch import LabelBatch, PairBatch, TokenBatch
from alignloop.core.errors import DataError
from alignloop.core.layout import Item, Layout, build
from alignloop.core.types import Completion, Demonstration, Label, Message, Preference, Prompt


class Chat(Protocol):
    """What this module needs of `data.chat.ChatFormat`."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...

    def completion_ids(
        self, prompt: Sequence[Message], completion: Sequence[Message]
    ) -> tuple[list[int], list[bool]]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """One record as token ids. items: one sequence, or (chosen, rejected). `cut`: tokens lost to max_length."""

    id: str
    items: tuple[Item, ...]
    weight: float = 1.0
    p: float = 1.0
    margin: float = 0.0
    good: bool = True
    group: str = ""
    cut: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(item) for item in self.items)


Collate = Callable[[Sequence[Row]], TokenBatch | PairBatch | LabelBatch]


def encode_item(chat: Chat, prompt: Prompt, completion: Completion) -> Item:
    """One prompt and answer as ids; the mask is True on what an assistant turn emits, end tokens included."""
    ids = chat.prompt_ids(prompt.messages)
    response, mask = chat.completion_ids(prompt.messages, completion.messages)
    return Item(tuple(ids), tuple(response), tuple(mask))


def fit(items: Sequence[Item], max_length: int | None, name: str) -> tuple[tuple[Item, ...], int]:
    """Cut sequences of one prompt to `max_length` tokens: the prompt's left first, the same for all, then each answer's
    right. The first prompt token (a BOS) stays. Returns the sequences and how many tokens were lost.

    Raises DataError where an answer would lose every token that a loss reads.
    """
    longest = max(len(item) for item in items)
    if max_length is None or longest <= max_length:
        return tuple(items), 0
    prompt = items[0].prompt
    keep = max(len(prompt) - (longest - max_length), min(len(prompt), 2))
    shorter = prompt if keep >= len(prompt) else prompt[:1] + prompt[len(prompt) - keep + 1 :]
    room = max_length - len(shorter)
    out = [replace(i, prompt=shorter, response=i.response[:room], mask=i.mask[:room]) for i in items]
    if not all(any(i.mask) for i in out):
        raise DataError(
            f"{name}: nothing of the answer fits max_length {max_length}; raise it or drop the row"
        )
    return tuple(out), sum(len(item) for item in items) - sum(len(item) for item in out)


def demonstration_rows(records: Sequence[Demonstration], chat: Chat, max_length: int | None = None) -> list[Row]:
    """SFT rows."""
    rows = []
    for r in records:
        items, cut = fit([encode_item(chat, r.prompt, r.completion)], max_length, f"demonstration {r.id}")
        rows.append(Row(r.id, items, weight=r.weight, cut=cut))
    return rows


def pair_rows(records: Sequence[Preference], chat: Chat, max_length: int | None = None) -> list[Row]:
    """Comparison rows; both answers see the same (equally cut) prompt.

    Raises DataError where both answers became the same ids (unless the row is a tie): nothing could be learned.
    """
    rows = []
    for r in records:
        both = [encode_item(chat, r.prompt, r.chosen), encode_item(chat, r.prompt, r.rejected)]
        items, cut = fit(both, max_length, f"preference {r.id}")
        if items[0].response == items[1].response and r.p != 0.5:
            raise DataError(f"preference {r.id}: chosen and rejected are the same {len(items[0].response)} tokens")
        rows.append(Row(r.id, items, weight=r.weight, p=r.p, margin=r.margin, group=r.group or r.prompt.id, cut=cut))
    return rows


def label_rows(records: Sequence[Label], chat: Chat, max_length: int | None = None) -> list[Row]:
    """Thumb rows."""
    rows = []
    for r in records:
        items, cut = fit([encode_item(chat, r.prompt, r.completion)], max_length, f"label {r.id}")
        rows.append(Row(r.id, items, weight=r.weight, good=r.good, group=r.prompt.id, cut=cut))
    return rows


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
