"""From a leased seat to the card that is shown, and back from what a page sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session, aliased

from alignloop.core.errors import StoreError
from alignloop.core.types import Completion, Prompt
from alignloop.feedback.desk import Desk, Handed, handed
from alignloop.feedback.judgements import Card, shown_order
from alignloop.feedback.leases import genuine
from alignloop.feedback.projects import annotator_row
from alignloop.feedback.revisions import STANDS
from alignloop.store import tables as t
from alignloop.store.memo import Memo
from alignloop.store.records import chunks, completion_record, prompt_record

_ORIGINAL = aliased(t.Task, name="original")
_SHOWN = (
    select(t.Task, _ORIGINAL.key, t.Completion, t.Prompt)
    .join(t.TaskItem, t.TaskItem.task_id == t.Task.id)
    .join(t.Completion, t.Completion.id == t.TaskItem.completion_id)
    .join(t.Prompt, t.Prompt.id == t.Task.prompt_id)
    .outerjoin(_ORIGINAL, _ORIGINAL.id == t.Task.repeat_of)
    .where(t.Task.id.in_(bindparam("tasks", expanding=True)))
    .order_by(t.Task.id, t.TaskItem.slot)
)


class _Contents(NamedTuple):
    """What a task shows: rows that never change. origin: the key of the task that it repeats, else its own."""

    key: str
    kind: str
    origin: str
    prompt: Prompt
    completions: dict[str, Completion]  # by row id, in slot order


def cards_of(session: Session, desk: Desk, seats: Sequence[t.Seat]) -> list[Card]:
    """The cards of seats that this person holds or held, in order."""
    project, person = desk.project, desk.person
    memo: Memo[_Contents] = session.info["memo"]
    contents = memo.get([s.task_id for s in seats], lambda missing: _contents(session, missing))
    notes = _notes(session, [s.id for s in seats if s.batch])
    cards = []
    for seat in seats:
        shown = contents[seat.task_id]
        n = len(shown.completions)
        order = shown_order(project.seed, project.slug, shown.origin, person.handle, n)
        cards.append(
            Card(
                seat_id=seat.id,
                token=seat.lease_token or "",
                project=project.slug,
                task_id=seat.task_id,
                task=shown.key,
                annotator_id=person.id,
                annotator=person.handle,
                prompt=shown.prompt,
                completions=tuple(shown.completions.values()),
                completion_ids=tuple(shown.completions),
                shown_order=order[::-1] if shown.kind == "repeat" else order,
                lease_until=seat.lease_until or 0,
                guideline_id=desk.guideline,
                work=work_of(project, n),
                note=notes.get(seat.id, ""),
            )
        )
    return cards


def sent_card(
    session: Session,
    seat_id: str,
    token: str,
    annotator: str,
    *,
    guideline: str = "",
    judgement_id: str = "",
    lock: bool = False,
) -> tuple[Handed, Card]:
    """The card that a page names by seat and token, in time or late, with the guideline that the page was made under.

    Errors: StoreError unless it was this person's.
    """
    found = handed(session, seat_id, annotator, judgement_id=judgement_id, lock=lock)
    if found is None or not genuine(found.desk.project, seat_id, found.desk.person.id, token):
        person = annotator_row(session, annotator)
        raise StoreError(f"card '{seat_id}': was not given to '{person.handle}'; open the project's page again")
    seat, person = found.seat, found.desk.person
    [card] = cards_of(session, found.desk, [seat])
    mine = seat.annotator_id == person.id and seat.lease_token == token
    shown = _guideline_shown(session, found.desk, guideline)
    return found, replace(card, token=token, lease_until=card.lease_until if mine else 0, guideline_id=shown)


def _guideline_shown(session: Session, desk: Desk, named: str) -> str | None:
    """The version that a page names, as another may be in force by now. Where there is no such one, that in force."""
    if not named or named == desk.guideline:
        return desk.guideline
    version = session.get(t.Guideline, named)
    return named if version is not None and version.project_id == desk.project.id else desk.guideline


def work_of(project: t.Project, n_items: int) -> str:
    """What a task of this many completions asks for in this project (one of `judgements.WORKS`)."""
    if project.kind != "mixed":
        return project.kind
    if n_items == 1:
        return str(project.config.get("single", "rate"))
    return "pairwise" if n_items == 2 else "rank"


def _contents(session: Session, task_ids: Sequence[str]) -> dict[str, _Contents]:
    found: dict[str, _Contents] = {}
    for part in chunks(task_ids):
        rows: Any = session.execute(_SHOWN, {"tasks": part})
        for task, origin, completion, prompt in rows:
            if task.id not in found:
                repeated = origin if task.kind == "repeat" else task.key
                found[task.id] = _Contents(task.key, task.kind, repeated, prompt_record(prompt), {})
            found[task.id].completions[completion.id] = completion_record(completion, prompt.key)
    return found


def _notes(session: Session, seat_ids: Sequence[str]) -> dict[str, str]:
    """What curators wrote when they sent answers back, by seat: the comment of the revision that took one away."""
    j = t.Judgement
    notes: dict[str, str] = {}
    for part in chunks(seat_ids):
        query = select(j.seat_id, j.comment).where(j.seat_id.in_(part), j.outcome == "undo", j.comment != "", STANDS)
        notes |= dict(session.execute(query).tuples().all())
    return notes
