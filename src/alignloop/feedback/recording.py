"""Writing judgement rows: one path for one answer or many, in time or late, first or revised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session, aliased

from alignloop import __version__
from alignloop.core.errors import StoreError
from alignloop.feedback.judgements import Card, Verdict
from alignloop.feedback.tasks import seat_row
from alignloop.store import tables as t
from alignloop.store.ids import uuid7
from alignloop.store.records import chunks


@dataclass(frozen=True, slots=True)
class Entry:
    """A judgement to be written."""

    card: Card
    outcome: str  # answer, skip, flag
    judgement_id: str
    ui: str
    verdict: Verdict
    skip_reason: str | None = None


def record(session: Session, entries: Sequence[Entry], now: int) -> list[str]:
    """Write judgements and settle their seats and tasks; returns the judgement ids, in order.

    What was written before under the same id is left alone.
    """
    known = _known(session, entries)
    todo = [e for e in entries if e.judgement_id not in known]
    if todo:
        seats = _settle(session, todo)
        last = _last_revisions(session, [s.id for s in seats])
        session.execute(insert(t.Judgement), [_row(e, s, last.get(s.id), now) for e, s in zip(todo, seats)])
        _write_ratings(session, todo)
        for entry, seat in zip(todo, seats):
            if entry.outcome != "answer":
                _pass_on(session, entry, seat)
        _close_tasks(session, {s.task_id for s in seats})
    return [e.judgement_id for e in entries]


def resume(session: Session, project: t.Project, seat: t.Seat, last: t.Judgement, ui: str, now: int) -> None:
    """Take the judgement `last` back: a revision "undo", the seat leased again, a task that had moved on reopened."""
    taken_back: dict[str, Any] = {
        "strength": None,
        "both_bad": False,
        "both_good": False,
        "ranking": None,
        "comment": "",
    }
    taken_back |= {"active_ms": None, "wall_ms": None, "n_focus_loss": 0, "skip_reason": None, "ui": ui}
    facts: dict[str, Any] = {
        "id": uuid7(),
        "created_at": now,
        "seat_id": seat.id,
        "task_id": seat.task_id,
        "revision": last.revision + 1,
        "supersedes_id": last.id,
        "annotator_id": last.annotator_id,
        "outcome": "undo",
        "shown_order": last.shown_order,
        "app_version": __version__,
        "guideline_id": last.guideline_id,
    }
    session.execute(insert(t.Judgement), [taken_back | facts])
    if last.outcome != "answer":  # the seat that the skip had opened for another is wanted no more
        fresh = select(t.Seat).where(t.Seat.task_id == seat.task_id, t.Seat.state == "open").limit(1)
        extra = session.scalar(fresh.with_for_update(skip_locked=True))
        if extra is not None:
            extra.state = "released"
    seat.state, seat.lease_token, seat.batch = "leased", uuid7(), 1
    seat.leased_at, seat.lease_until = now, now + 1000 * project.lease_s
    session.execute(update(t.Task).where(t.Task.id == seat.task_id, t.Task.state != "void").values(state="open"))
    session.flush()


def _known(session: Session, entries: Sequence[Entry]) -> set[str]:
    """Judgement ids that are stored; an id that another person used is refused."""
    found: dict[str, str] = {}
    for part in chunks([e.judgement_id for e in entries]):
        query = select(t.Judgement.id, t.Judgement.annotator_id).where(t.Judgement.id.in_(part))
        found |= {row[0]: row[1] for row in session.execute(query)}
    for entry in entries:
        if found.get(entry.judgement_id, entry.card.annotator_id) != entry.card.annotator_id:
            raise StoreError(f"judgement '{entry.judgement_id}': the id is in use; make a new UUID for each answer")
    return set(found)


def _settle(session: Session, entries: Sequence[Entry]) -> list[t.Seat]:
    """The seat each judgement belongs to, marked done (released for a skip)."""
    rows: dict[str, t.Seat] = {}
    for part in chunks([e.card.seat_id for e in entries]):
        query = select(t.Seat).where(t.Seat.id.in_(part)).with_for_update()
        rows |= {seat.id: seat for seat in session.scalars(query)}
    settled = []
    for entry in entries:
        card = entry.card
        if card.seat_id not in rows:
            raise StoreError(f"seat '{card.seat_id}': not in this store; submit the card to the store it came from")
        seat = rows[card.seat_id]
        late = not (seat.state == "leased" and seat.lease_token == card.token)
        seat = _late_seat(session, card, seat) if late else seat
        if entry.outcome != "answer":
            seat.state = "released"
        elif seat.state != "late":
            seat.state = "done"
        seat.lease_token, seat.lease_until, seat.batch = None, None, 0
        settled.append(seat)
    session.flush()
    if len({s.id for s in settled}) < len(settled):
        raise StoreError("answers: two of them are for one card; send one answer a card, edits in a second call")
    return settled


def _late_seat(session: Session, card: Card, seat: t.Seat) -> t.Seat:
    """A seat for an answer whose lease is over: one's own of this task, the old one if free, else one more."""
    own = select(t.Seat).where(t.Seat.task_id == card.task_id, t.Seat.annotator_id == card.annotator_id)
    mine = session.scalar(own)
    if mine is not None:
        if mine.state == "released":
            mine.state = "late"
        return mine
    if seat.state == "open":
        seat.annotator_id = card.annotator_id
        return seat
    facts = seat_row(seat.project_id, seat.task_id, seat.place, seat.order_key)
    extra = t.Seat(**facts | {"state": "late", "annotator_id": card.annotator_id})
    session.add(extra)
    session.flush()
    return extra


def _last_revisions(session: Session, seat_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Per seat, the judgement that nothing supersedes yet: (id, revision)."""
    later = aliased(t.Judgement)
    found: dict[str, tuple[str, int]] = {}
    for part in chunks(seat_ids):
        query = (
            select(t.Judgement.seat_id, t.Judgement.id, t.Judgement.revision)
            .where(t.Judgement.seat_id.in_(part))
            .where(~select(later.id).where(later.supersedes_id == t.Judgement.id).exists())
        )
        found |= {seat: (key, revision) for seat, key, revision in session.execute(query)}
    return found


def _row(entry: Entry, seat: t.Seat, last: tuple[str, int] | None, now: int) -> dict[str, Any]:
    card = entry.card
    return {
        **entry.verdict.columns(),
        "id": entry.judgement_id,
        "created_at": now,
        "seat_id": seat.id,
        "task_id": seat.task_id,
        "revision": last[1] + 1 if last is not None else 1,
        "supersedes_id": last[0] if last is not None else None,
        "annotator_id": card.annotator_id,
        "outcome": entry.outcome,
        "shown_order": list(card.shown_order),
        "skip_reason": entry.skip_reason,
        "ui": entry.ui,
        "app_version": __version__,
        "guideline_id": card.guideline_id,
    }


def _write_ratings(session: Session, entries: Sequence[Entry]) -> None:
    rows = []
    for entry in entries:
        for key, value in entry.verdict.ratings.items():
            criterion, slot = key if isinstance(key, tuple) else (key, -1)
            rows.append({"judgement_id": entry.judgement_id, "criterion_id": criterion, "slot": slot, "value": value})
    if rows:
        session.execute(insert(t.Rating), rows)


def _pass_on(session: Session, entry: Entry, seat: t.Seat) -> None:
    """After a skip: a fresh seat for someone else, or the curator after too many skips or a flag."""
    task = session.get_one(t.Task, seat.task_id)
    project = session.get_one(t.Project, seat.project_id)
    later = aliased(t.Judgement)
    skips = select(func.count(t.Judgement.id)).where(
        t.Judgement.task_id == task.id,
        t.Judgement.outcome == "skip",
        ~select(later.id).where(later.supersedes_id == t.Judgement.id).exists(),
    )
    session.execute(insert(t.Seat), [seat_row(seat.project_id, seat.task_id, seat.place, seat.order_key)])
    if entry.outcome == "flag" or (session.scalar(skips) or 0) >= int(project.config["max_skips"]):
        task.state = "review"
    session.flush()


def _close_tasks(session: Session, task_ids: set[str]) -> None:
    """Mark tasks done that want no more votes."""
    waiting = select(t.Seat.id).where(t.Seat.task_id == t.Task.id, t.Seat.state.in_(("open", "leased"))).exists()
    for part in chunks(task_ids):
        done = update(t.Task).where(t.Task.id.in_(part), t.Task.state == "open", ~waiting).values(state="done")
        session.execute(done.execution_options(synchronize_session=False))
