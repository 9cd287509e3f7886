"""A card as a page shows it, and a page's form as the verdict it means. Pure: no store, no request.

Pages know answers by their place from the left (0, 1, ...: A, B, ...) and nothing else; verdicts know them by slot.
Between the two stands `Card.shown_order`, which no page ever sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from markupsafe import Markup

from alignloop.core.types import Message
from alignloop.feedback.judgements import SKIP_REASONS, Card, Verdict
from alignloop.feedback.projects import Criterion, ProjectView
from alignloop.store.ids import uuid7
from alignloop.web.text import raw_text, render_text

LETTERS = "ABCDEFGHI"
LONGEST_MS = 24 * 3_600_000
NOTE_LENGTH = 4_000
_VALUES = {str(value): value for value in range(-2, 6)}  # of all scales; which belong to a criterion is checked later
DECISIONS = (2, 1, 0, -1, -2)  # of the five options, from left to right: how much better the left answer is


class IncompleteError(Exception):
    """An answer that lacks something. `code` is a line of the template notice.html."""

    def __init__(self, code: str):
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class Turn:
    """A message: rendered, and as it was written."""

    role: str
    html: Markup
    raw: Markup


@dataclass(frozen=True)
class AnswerView:
    """An answer in its place from the left. words: only where the project shows lengths."""

    place: int
    letter: str
    turns: tuple[Turn, ...]
    source: str
    words: int | None


@dataclass(frozen=True)
class Option:
    """One of the five, with the action whose key chooses it."""

    value: int
    words: str
    short: str
    action: str


@dataclass(frozen=True)
class CriterionView:
    """A question beside the overall one. `field` names its form field: about all answers, or about one place."""

    key: str
    label: str
    help: Markup
    scale: str
    required: bool

    def field(self, place: int | None) -> str:
        return f"rate.{'all' if place is None else place}.{self.key}"


@dataclass(frozen=True)
class CardView:
    """All that a page may know of a card. criteria compare the answers, `each` are asked of every one."""

    work: str
    seat: str
    token: str
    guideline: str
    judgement_id: str
    question: str
    note: str
    earlier: tuple[Turn, ...]
    asked: tuple[Turn, ...]
    answers: tuple[AnswerView, ...]
    options: tuple[Option, ...]
    criteria: tuple[CriterionView, ...]
    each: tuple[CriterionView, ...]

    @property
    def criteria_open(self) -> bool:
        """Whether the criteria stand unfolded: one of them is needed."""
        return any(c.required for c in self.criteria)


def card_view(card: Card, project: ProjectView) -> CardView:
    """What a page shows of a card; nothing else of the card leaves the server."""
    earlier, asked = split_turns(card.prompt.messages)
    wording = project.config.wording
    words = zip(DECISIONS, wording.options, wording.short)
    compared = [c for c in project.criteria if compares(c, card)]
    return CardView(
        work=card.work,
        seat=card.seat_id,
        token=card.token,
        guideline=card.guideline_id or "",
        judgement_id=uuid7(),
        question=wording.question,
        note=card.note,
        earlier=tuple(_turn(m) for m in earlier),
        asked=tuple(_turn(m) for m in asked),
        answers=tuple(_answer(place, card, project.config.show_length) for place in range(len(card.completions))),
        options=tuple(Option(v, w, s, f"option_{k}") for k, (v, w, s) in enumerate(words, start=1)),
        criteria=tuple(criterion_view(c) for c in compared),
        each=tuple(criterion_view(c) for c in project.criteria if c not in compared),
    )


def criterion_view(c: Criterion) -> CriterionView:
    """What a page shows of a criterion."""
    return CriterionView(c.key, c.label, render_text(c.help_md) if c.help_md else Markup(""), c.scale, c.required)


def compares(criterion: Criterion, card: Card) -> bool:
    """Whether a criterion is asked of the two answers together: the five-point ones of a comparison are."""
    return card.work == "pairwise" and criterion.scale == "5pt"


def split_turns(messages: Sequence[Message]) -> tuple[Sequence[Message], Sequence[Message]]:
    """A conversation as what came before and what is to be answered: the last turn of a person and what follows it."""
    last = max((k for k, m in enumerate(messages) if m.role in ("user", "text")), default=len(messages) - 1)
    return messages[:last], messages[last:]


def judgement_id(sent: str) -> str:
    """The id that the page made before it sent, so that an answer sent twice is stored once."""
    try:
        return str(UUID(sent))
    except ValueError:
        return uuid7()


def verdict(form: Mapping[str, str], card: Card, project: ProjectView) -> Verdict:
    """What a form says of a card, in the frame of its slots. Errors: IncompleteError, with what is missing."""
    comment = form.get("comment", "").strip()[:NOTE_LENGTH]
    if project.config.comment_required and not comment:
        raise IncompleteError("comment")
    strength, ranking, thumb = None, None, None
    if card.work == "pairwise":
        strength = card.item_frame(_number(form, "strength", DECISIONS, "choose"))
    elif card.work == "rank":
        ranking = _ranking(form, card)
    elif card.work == "thumbs":
        thumb = bool(_number(form, "thumb", (0, 1), "choose"))
    if "both_good" in form and "both_bad" in form:
        raise IncompleteError("both")
    rewritten = _rewrite(form, card)
    if card.work == "edit" and rewritten is None:
        raise IncompleteError("unchanged")
    ratings = _ratings(form, card, project)
    if card.work == "rate" and not ratings:
        raise IncompleteError("nothing")
    return Verdict(
        strength=strength,
        both_bad="both_bad" in form,
        both_good="both_good" in form,
        ranking=ranking,
        comment=comment,
        ratings=ratings,
        thumb=thumb,
        rewrite=rewritten[1] if rewritten is not None else None,
        rewrite_of=rewritten[0] if rewritten is not None else None,
        **spent(form),
    )


def spent(form: Mapping[str, str]) -> dict[str, int]:
    """The times that the page measured, in ms; nothing where it did not (without JavaScript)."""
    times = {name: form.get(name, "") for name in ("active_ms", "wall_ms", "n_focus_loss")}
    return {name: min(int(value), LONGEST_MS) for name, value in times.items() if value.isascii() and value.isdigit()}


def passing(form: Mapping[str, str]) -> tuple[str, bool]:
    """The reason of a skip or a flag, and whether it is a flag."""
    flag = "flag" in form
    reason = form.get("flag" if flag else "skip", "")
    return (reason if reason in SKIP_REASONS else "other"), flag


def _turn(message: Message) -> Turn:
    return Turn(message.role, render_text(message.content), raw_text(message.content))


def _answer(place: int, card: Card, show_length: bool) -> AnswerView:
    completion = card.shown[place]
    letter = LETTERS[place] if len(card.completions) > 1 else ""
    words = len(completion.text.split()) if show_length else None
    return AnswerView(place, letter, tuple(_turn(m) for m in completion.messages), _lines(completion.text), words)


def _number(form: Mapping[str, str], name: str, allowed: Sequence[int], code: str) -> int:
    for value in allowed:
        if form.get(name) == str(value):
            return value
    raise IncompleteError(code)


def _ranking(form: Mapping[str, str], card: Card) -> tuple[tuple[int, ...], ...]:
    """Tiers of slots from the place that each answer was given; equal places are a tie."""
    n = len(card.completions)
    given = [_number(form, f"place-{place}", range(1, n + 1), "order") for place in range(n)]
    if form.get("touched") != "1" and "order_right" not in form:
        raise IncompleteError("untouched")
    return tuple(tuple(card.shown_order[p] for p in range(n) if given[p] == tier) for tier in sorted(set(given)))


def _ratings(form: Mapping[str, str], card: Card, project: ProjectView) -> dict[str | tuple[str, int], int]:
    """Ratings by criterion; those that compare are turned into the slots' frame, like the strength."""
    ratings: dict[str | tuple[str, int], int] = {}
    for c in project.criteria:
        view, both = criterion_view(c), compares(c, card)
        places = [None] if both else list(range(len(card.completions)))
        for place in places:
            value = _VALUES.get(form.get(view.field(place), ""))
            if value is not None:
                ratings[c.id if place is None else (c.id, card.shown_order[place])] = (
                    card.item_frame(value) if place is None else value
                )
            elif c.required:
                raise IncompleteError("criteria")
    return ratings


def _rewrite(form: Mapping[str, str], card: Card) -> tuple[int, str] | None:
    """(slot, new text) of the answer that was changed. Line ends are compared as browsers send them."""
    changed = []
    for place, completion in enumerate(card.shown):
        text = _lines(form.get(f"rewrite-{place}", completion.text)).strip()
        if text and text != _lines(completion.text).strip():
            changed.append((card.shown_order[place], text))
    if len(changed) > 1:
        raise IncompleteError("two")
    return changed[0] if changed else None


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")
