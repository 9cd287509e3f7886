"""Sentences marked by kind: a tint, a letter and a legend, so that no kind is told by colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from gettext import gettext as _

Marked = Mapping[str, Mapping[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True)
class Mark:
    """How a kind of sentence looks: `letter` stands before it, `tint` names a style, `bad` underlines it."""

    kind: str
    letter: str
    label: str
    tint: str
    bad: bool = False


_KNOWN: dict[str, Mark] = {
    m.kind: m
    for m in (
        Mark("greeting", "H", _("greeting"), "amber"),
        Mark("opener", "O", _("opening words"), "grey"),
        Mark("simple", "S", _("simple fact"), "green"),
        Mark("analogy", "A", _("analogy"), "violet"),
        Mark("exclamation", "!", _("exclamation"), "pink"),
        Mark("question", "Q", _("question to the child"), "blue"),
        Mark("check", "C", _("check of understanding"), "cyan"),
        Mark("technical", "T", _("technical, too hard"), "red"),
        Mark("filler", "F", _("filler"), "grey", bad=True),
        Mark("wrong-topic", "W", _("wrong topic"), "red", bad=True),
        Mark("garbled", "G", _("garbled"), "red", bad=True),
    )
}
_TINTS = ("green", "blue", "violet", "amber", "cyan", "pink", "red", "grey")


def legend(marked: Marked) -> dict[str, Mark]:
    """The mark of every kind that occurs: known ones in a fixed order, others with letters that are still free."""
    kinds = dict.fromkeys(kind for models in marked.values() for rows in models.values() for _s, kind in rows)
    marks = {k: m for k, m in _KNOWN.items() if k in kinds}
    used = {m.letter for m in marks.values()}
    for kind in (k for k in kinds if k not in _KNOWN):
        letters = [c for c in kind.upper() if c.isalnum()] + [str(i) for i in range(1, 100)]
        letter = next(c for c in letters if c not in used)
        used.add(letter)
        marks[kind] = Mark(kind, letter, kind.replace("_", " "), _TINTS[len(marks) % len(_TINTS)])
    return marks
