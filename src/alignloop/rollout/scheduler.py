"""Which samples are drawn when: prompts sorted by length, samples of one prompt together, free slots refilled.

Plain bookkeeping without torch. Longest prompts first: rows of similar length share a batch (little of the cache is
read in vain), and the slowest work does not start last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from alignloop.core.errors import DataError
from alignloop.core.types import Prompt


@dataclass(frozen=True)
class Group:
    """A prompt and the samples wanted of it: indices [first, first + n), at most `limit` new tokens each."""

    order: int
    prompt: Prompt
    ids: tuple[int, ...]
    first: int
    n: int
    limit: int


def groups(
    prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], n: int, max_new_tokens: int, context: int | None
) -> list[Group]:
    """The work of one call, checked. A prompt id that occurs again continues its sample indices.

    Raises DataError, naming the prompt, where a prompt is empty or leaves no room for a new token in the context.
    """
    seen: Counter[str] = Counter()
    out = []
    for order, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        if not ids:
            raise DataError(f"prompt '{prompt.id}' has no tokens; a model needs at least one to start from", row=order)
        if context is not None and len(ids) > context - 1:
            raise DataError(
                f"prompt '{prompt.id}' has {len(ids)} tokens, more than the model's context of {context} minus 1; "
                "shorten or drop it",
                row=order,
            )
        limit = max_new_tokens if context is None else min(max_new_tokens, context - len(ids))
        out.append(Group(order, prompt, tuple(int(t) for t in ids), seen[prompt.id], n, limit))
        seen[prompt.id] += n
    return out


class Backlog:
    """What still waits for a slot."""

    def __init__(self, work: Sequence[Group]) -> None:
        # Ties by order of input, so that the schedule (and float32 rounding with it) is the same on every run.
        self._waiting = sorted(work, key=lambda g: (len(g.ids), -g.order))
        self._taken = 0

    def __len__(self) -> int:
        """Samples that wait."""
        return sum(g.n for g in self._waiting) - self._taken

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, free: int, budget: int) -> list[tuple[Group, int, int]]:
        """The next (group, first sample, count), at most `free` samples and, after the first, `budget` prompt tokens.

        A group may be cut; its rest comes first in the next admission.
        """
        out: list[tuple[Group, int, int]] = []
        while self._waiting and free > 0:
            group = self._waiting[-1]
            if out and budget < len(group.ids):
                break
            count = min(free, group.n - self._taken)
            out.append((group, group.first + self._taken, count))
            free -= count
            budget -= len(group.ids)
            self._taken += count
            if self._taken == group.n:
                self._waiting.pop()
                self._taken = 0
        return out
