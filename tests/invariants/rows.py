"""The rows of the bench: ragged answers, a prompt that two rows share, a cut answer, an observation inside one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alignloop.core.layout import Item

EOS = 2


@dataclass(frozen=True)
class Pair:
    """A row of the bench: two answers to one prompt. Single-answer methods take both, one after the other."""

    chosen: Item
    rejected: Item
    p: float = 1.0
    margin: float = 0.0
    weight: float = 1.0
    scores: tuple[float, float] = (0.0, 0.0)

    @property
    def items(self) -> tuple[Item, Item]:
        return self.chosen, self.rejected


def _item(prompt: Sequence[int], length: int, seed: int, *, ended: bool = True, hole: bool = False) -> Item:
    words = torch.randint(3, 64, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    mask = [True] * length
    if ended:
        words[-1] = EOS
    if hole:  # a tool's words, which the policy read and did not write
        mask[2:4] = [False, False]
    return Item(tuple(prompt), tuple(words), tuple(mask))


def rows() -> list[Pair]:
    """Five comparisons, ragged; two of one prompt (apart, so that packing changes the order), one answer cut at the
    limit, one with an observation inside."""
    a, b, c, d = (7, 9, 11), (5, 6, 7, 8, 9), (33,), (3, 1, 4, 1, 5, 9, 26, 5)
    return [
        Pair(_item(a, 4, 1), _item(a, 7, 2), 1.0, 0.5, 1.0, (1.0, -1.0)),
        Pair(_item(b, 2, 3), _item(b, 6, 4, ended=False), 0.75, 0.2, 2.0, (0.3, 0.2)),
        Pair(_item(c, 1, 7), _item(c, 5, 8), 0.9, 0.0, 0.5, (2.0, 0.0)),
        Pair(_item(b, 9, 5), _item(b, 3, 6), 0.5, 0.3, 1.0, (-0.4, 0.9)),
        Pair(_item(d, 7, 9, hole=True), _item(d, 3, 10), 1.0, 1.0, 1.0, (0.7, 0.1)),
    ]


def items_of_rows(pairs: Sequence[Pair]) -> list[Item]:
    return [item for pair in pairs for item in pair.items]
