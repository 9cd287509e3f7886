"""What an annotator sees and what comes back: the card and the verdict. The judgement row keeps both for ever."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignloop.core.errors import DataError
from alignloop.core.types import Completion, Prompt

STRENGTHS = (-2, -1, 0, 1, 2)
SKIP_REASONS = ("cannot judge", "not my language", "not my subject", "offensive", "broken", "other")


@dataclass(frozen=True, slots=True)
class Card:
    """A task leased to one annotator. Kept by the server: a page is sent only the prompt and the two texts.

    `completions` are in slot order, the frame in which answers are stored; `shown_order` lists slots from left to
    right. `token` proves the lease. Every id is opaque to the annotator; who wrote a completion is never shown.
    """

    seat_id: str
    token: str
    project: str
    task_id: str
    task: str
    annotator_id: str
    annotator: str
    prompt: Prompt
    completions: tuple[Completion, ...]
    completion_ids: tuple[str, ...]
    shown_order: tuple[int, ...]
    lease_until: int
    guideline_id: str | None = None

    @property
    def shown(self) -> tuple[Completion, ...]:
        """The completions from left to right."""
        return tuple(self.completions[slot] for slot in self.shown_order)

    def item_frame(self, left: int) -> int:
        """A strength as shown (> 0: the left one is better) in the frame of the slots (> 0: slot 0 is better)."""
        return left if self.shown_order[0] == 0 else -left


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer. strength -2 .. +2 in the item's frame: +2 slot 0 much better, 0 a tie, -2 slot 1 much better.

    both_bad, both_good: said beside the strength, never instead of it. ranking: tiers of slots, best first, for
    tasks of more than two. ratings: criterion row id -> value, or (criterion row id, slot) -> value.
    active_ms: time with the page visible and in use; wall_ms: from shown to submitted.
    """

    strength: int | None = None
    both_bad: bool = False
    both_good: bool = False
    ranking: tuple[tuple[int, ...], ...] | None = None
    comment: str = ""
    active_ms: int | None = None
    wall_ms: int | None = None
    n_focus_loss: int = 0
    ratings: Mapping[str | tuple[str, int], int] = field(default_factory=dict, hash=False)

    def check(self, n_items: int) -> None:
        """Refuse an answer that does not fit a task of `n_items` completions. Errors: DataError naming the field."""
        if self.ranking is not None:
            if sorted(slot for tier in self.ranking for slot in tier) != list(range(n_items)):
                raise DataError(f"must hold each slot 0..{n_items - 1} once (got {self.ranking})", field="ranking")
        elif self.strength is None:
            raise DataError("missing; give -2, -1, 0, 1 or 2, or a ranking", field="strength")
        if self.strength is not None and (n_items != 2 or self.strength not in STRENGTHS):
            raise DataError(f"must be -2..2, on a task of two completions (got {self.strength!r})", field="strength")
        if self.both_bad and self.both_good:
            raise DataError("both_bad and both_good exclude each other; send one", field="both_bad")
        for name in ("active_ms", "wall_ms", "n_focus_loss"):
            if (getattr(self, name) or 0) < 0:
                raise DataError(f"must not be negative (got {getattr(self, name)})", field=name)

    def columns(self) -> dict[str, Any]:
        """The columns of the judgement row that come from the answer."""
        return {
            "strength": self.strength,
            "both_bad": self.both_bad,
            "both_good": self.both_good,
            "ranking": [list(tier) for tier in self.ranking] if self.ranking is not None else None,
            "comment": self.comment,
            "active_ms": self.active_ms,
            "wall_ms": self.wall_ms,
            "n_focus_loss": self.n_focus_loss,
        }


def shown_order(seed: int, project: str, task: str, annotator: str, n_items: int) -> tuple[int, ...]:
    """The slots from left to right: a random order drawn from (project, task, annotator), so the same on every view.

    Nothing has to be remembered for a second tab, and a simulated campaign is the same in every run.
    """

    def place(slot: int) -> bytes:
        return hashlib.sha256(f"sides|{seed}|{project}|{task}|{annotator}|{slot}".encode()).digest()

    return tuple(sorted(range(n_items), key=place))
