"""The parts of an answer that need the store: criteria it must rate, rows of ratings, the text written instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from alignloop.core.errors import DataError
from alignloop.core.types import Completion, Message, content_id
from alignloop.feedback.judgements import SCALES, Card, Verdict
from alignloop.feedback.projects import Criterion, settings_of
from alignloop.store import tables as t
from alignloop.store.records import answer_role, completion_row

COMPARED = -1  # the slot of a rating that compares the two completions


@dataclass(frozen=True, slots=True)
class Entry:
    """A judgement to be written."""

    card: Card
    outcome: str  # answer, skip, flag
    judgement_id: str
    ui: str
    verdict: Verdict
    skip_reason: str | None = None


def check_answers(project: t.Project, criteria: Sequence[Criterion], entries: Sequence[Entry]) -> None:
    """Refuse answers that do not fit what the project asks. Errors: DataError naming row and field."""
    comments = settings_of(project).comment_required
    for row, entry in enumerate(entries):
        if entry.outcome != "answer":
            continue
        if comments and not entry.verdict.comment.strip():
            raise DataError("missing; this project asks for a comment with every answer", row=row, field="comment")
        try:
            check_ratings(entry.verdict, len(entry.card.completions), criteria)
        except DataError as error:
            raise DataError(error.reason, row=row, field=error.field) from None


def check_ratings(verdict: Verdict, n_items: int, criteria: Sequence[Criterion]) -> None:
    """Refuse ratings off their scale, of other criteria, or incomplete. Errors: DataError naming the criterion.

    A required criterion is answered by a comparison of the two, or by a value for every completion.
    """
    by_id = {c.id: c for c in criteria}
    given: dict[str, set[int]] = {}
    for key, value in verdict.ratings.items():
        criterion_id, slot = _placed(key)
        if criterion_id not in by_id:
            raise DataError(f"criterion '{criterion_id}' is not asked in this project", field="ratings")
        criterion = by_id[criterion_id]
        low, high = SCALES[criterion.scale]
        if not low <= value <= high:
            raise DataError(f"must be {low}..{high} (got {value})", field=f"ratings.{criterion.key}")
        if slot not in range(COMPARED, n_items) or (slot == COMPARED and n_items != 2):
            raise DataError(f"there is no slot {slot} on this card", field=f"ratings.{criterion.key}")
        given.setdefault(criterion_id, set()).add(slot)
    for criterion in criteria:
        slots = given.get(criterion.id, set())
        if criterion.required and COMPARED not in slots and len(slots) < n_items:
            raise DataError("missing; this criterion is required", field=f"ratings.{criterion.key}")


def write_ratings(session: Session, entries: Sequence[Entry]) -> None:
    """The rows of the entries' ratings."""
    rows = []
    for entry in entries:
        for key, value in entry.verdict.ratings.items():
            criterion, slot = _placed(key)
            rows.append({"judgement_id": entry.judgement_id, "criterion_id": criterion, "slot": slot, "value": value})
    if rows:
        session.execute(insert(t.Rating), rows)


def write_rewrites(session: Session, entries: Sequence[Entry]) -> None:
    """Texts that people wrote instead become completions by "human"; the same text to one prompt is stored once."""
    for entry in entries:
        if entry.verdict.rewrite is not None:
            completion = _rewritten(session, entry, entry.verdict.rewrite.strip())
            session.execute(insert(t.Rewrite), [{"judgement_id": entry.judgement_id, "completion_id": completion}])


def _rewritten(session: Session, entry: Entry, text: str) -> str:
    card = entry.card
    parent = session.get_one(t.Completion, card.completion_ids[entry.verdict.rewritten_slot])
    prompt = session.get_one(t.Prompt, parent.prompt_id)
    record = Completion(
        content_id("rewrite", prompt.key, text), prompt.id, (Message(answer_role(prompt.messages), text),), "human"
    )
    row = completion_row(record, prompt.id, None, None, None, None)
    found = session.scalar(select(t.Completion.id).where(t.Completion.key == record.id))
    if found is not None:
        return found
    facts = {"parent_completion_id": parent.id, "author_id": card.annotator_id, "finish_reason": "stop"}
    session.execute(insert(t.Completion), [row | facts])
    return str(row["id"])


def _placed(key: str | tuple[str, int]) -> tuple[str, int]:
    return key if isinstance(key, tuple) else (key, COMPARED)
