"""Writing judgement rows: one path for one answer or many, in time or late, first or revised.

The seats of a task that are open, done, or leased (not as EXTRA) are as many as the votes it wants, after every
transaction: a skip opens a seat for the one it gives up; an answer that comes back after its seat was given up takes a
free one in exchange. Where another person has it already, the answer's seat is `late`: a vote more than was wanted.

Whoever changes a task's votes first locks its row (`lock`, `desk.handed`), so that of two last answers one sees the
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import BigInteger, Table, bindparam, case, func, insert, select
from sqlalchemy.orm import Session

from alignloop import __version__
from alignloop.core.errors import StoreError
from alignloop.feedback.answers import Entry, write_ratings, write_rewrites
from alignloop.feedback.checks import grade_answers
from alignloop.feedback.judgements import Card, Verdict
from alignloop.feedback.leases import EXTRA, free_seat, new_token
from alignloop.feedback.revisions import STANDS, J
from alignloop.feedback.settling import adjudicate, pass_on, reopen, settle, unsettle
from alignloop.feedback.tasks import PERSONAL, seat_row
from alignloop.store import tables as t
from alignloop.store.ids import uuid7
from alignloop.store.records import chunks

Locked = Mapping[str, tuple[t.Seat, t.Task]]
"""Seats with their tasks, by seat id, as `lock` gives them."""

_STORED = select(J.id, J.annotator_id).where(J.id.in_(bindparam("ids", expanding=True)))
_LAST = select(J.seat_id, J.id, J.revision).where(J.seat_id.in_(bindparam("seats", expanding=True)), STANDS)
_LATEST = select(func.max(J.created_at)).where(J.annotator_id == bindparam("who")).scalar_subquery()
_NOW = bindparam("now", type_=BigInteger)
_INSERT = insert(cast(Table, t.Judgement.__table__)).values(  # where the clock was put back, their order is kept
    created_at=case((_LATEST > _NOW, _LATEST + 1), else_=_NOW)
)
_LOCKED = (
    select(t.Seat, t.Task)
    .join(t.Task, t.Task.id == t.Seat.task_id)
    .where(t.Seat.id.in_(bindparam("seats", expanding=True)))
    .order_by(t.Task.id, t.Seat.id)
    .with_for_update(key_share=True)
)


def record(session: Session, entries: Sequence[Entry], locked: Locked, now: int) -> None:
    """Write judgements that are checked and not stored yet, and settle their seats and tasks, which are locked."""
    if not entries:
        return
    tasks = {task.id: task for _, task in locked.values()}
    first = {s.id for s, _ in locked.values() if s.state == "leased" and s.batch == 0}  # nothing was said on these
    seats = _settle_seats(session, entries, locked)
    last = _last_revisions(session, [s.id for s in seats if s.id not in first])
    session.execute(_INSERT, [_row(e, s, last.get(s.id), now) for e, s in zip(entries, seats)])
    write_ratings(session, entries)
    write_rewrites(session, entries)
    grade_answers(session, entries, tasks, now)
    adjudicate(session, entries, tasks)
    settle(session, {s.id: tasks[s.task_id] for s in seats if s.place < PERSONAL})


def resume(
    session: Session, project: t.Project, last: t.Judgement, ui: str, now: int, *, lease_s: int = 0, note: str = ""
) -> t.Seat:
    """Take the judgement `last` back: a revision "undo", the seat leased again, a task that had moved on reopened.

    note: why someone else sends it back. lease_s: for how long, the project's lease where 0.
    """
    seat, task = lock(session, [last.seat_id])[last.seat_id]
    facts: dict[str, Any] = {
        **Verdict(comment=note).columns(),
        **_dated(last.annotator_id, now),
        "id": uuid7(),
        "seat_id": seat.id,
        "task_id": seat.task_id,
        "revision": last.revision + 1,
        "supersedes_id": last.id,
        "outcome": "undo",
        "shown_order": last.shown_order,
        "skip_reason": None,
        "ui": ui,
        "app_version": __version__,
        "guideline_id": last.guideline_id,
    }
    session.execute(_INSERT, [facts])
    if seat.state == "released":
        seat.state = _revived(session, seat)
    extra = seat.state == "late"
    seat.state, seat.batch = "leased", EXTRA if extra else 1
    seat.lease_token = new_token(project, seat.id, last.annotator_id)
    seat.leased_at, seat.lease_until = now, now + 1000 * (lease_s or project.lease_s)
    if seat.place < PERSONAL and not extra:
        reopen(session, task)
    if task.kind == "adjudication":
        unsettle(session, task, last)
    session.flush()
    return seat


def stored(session: Session, judgement_ids: Sequence[str]) -> dict[str, str]:
    """Of these judgements, those that are stored, with whose they are."""
    found: dict[str, str] = {}
    for part in chunks(judgement_ids):
        found |= dict(session.execute(_STORED, {"ids": part}).tuples().all())
    return found


def unstored(entries: Sequence[Entry], whose: Mapping[str, str]) -> list[Entry]:
    """The entries that are not among the judgements that are stored (`stored`): what was sent twice is written once.

    Errors: StoreError for an id that another person used.
    """
    for entry in entries:
        if whose.get(entry.judgement_id, entry.card.annotator_id) != entry.card.annotator_id:
            raise StoreError(f"judgement '{entry.judgement_id}': the id is in use; make a new UUID for each answer")
    return [e for e in entries if e.judgement_id not in whose]


def lock(session: Session, seat_ids: Sequence[str]) -> dict[str, tuple[t.Seat, t.Task]]:
    """Seats with their tasks, by seat id; until the end of this transaction no other changes these tasks' votes.

    Errors: `elsewhere`.
    """
    found: dict[str, tuple[t.Seat, t.Task]] = {}
    for part in chunks(seat_ids):
        found |= {seat.id: (seat, task) for seat, task in session.execute(_LOCKED, {"seats": part}).tuples()}
    for seat_id in seat_ids:
        if seat_id not in found:
            raise elsewhere(seat_id)
    return found


def elsewhere(seat_id: str) -> StoreError:
    """The error of a seat that is not there."""
    return StoreError(f"seat '{seat_id}': not in this store; submit the card to the store it came from")


def _settle_seats(session: Session, entries: Sequence[Entry], locked: Locked) -> list[t.Seat]:
    """The seat each judgement belongs to: done, late where its vote is one more than wanted, released for a skip."""
    settled = []
    for entry in entries:
        card = entry.card
        seat, task = locked[card.seat_id]
        if not (seat.state == "leased" and seat.lease_token == card.token):
            seat = _late_seat(session, card, seat)
        extra = seat.state == "late" or (seat.state == "leased" and seat.batch == EXTRA)
        seat.state = "late" if extra else "done"
        if entry.outcome != "answer":
            seat.state = "released"
            pass_on(session, entry, seat, task, wanted=not extra)
        seat.lease_token, seat.lease_until, seat.batch = None, None, 0
        settled.append(seat)
    if len({s.id for s in settled}) < len(settled):
        raise StoreError("answers: two of them are for one card; send one answer a card, edits in a second call")
    return settled


def _late_seat(session: Session, card: Card, seat: t.Seat) -> t.Seat:
    """A seat for an answer whose lease is over: one's own of this task, else a free one, else one more."""
    own = select(t.Seat).where(t.Seat.task_id == card.task_id, t.Seat.annotator_id == card.annotator_id)
    mine = session.scalar(own.with_for_update())
    if mine is not None:
        if mine.state == "released":
            mine.state = _revived(session, mine)
        return mine
    free = seat if seat.state == "open" else free_seat(session, seat.task_id)
    if free is not None:
        free.state, free.annotator_id = "done", card.annotator_id
    else:
        free = t.Seat(**seat_row(seat.project_id, seat.task_id, seat.place, seat.order_key))
        free.state, free.annotator_id = "late", card.annotator_id
        session.add(free)
    session.flush()
    return free


def _revived(session: Session, seat: t.Seat) -> str:
    """The state of a seat that was given up and is wanted back: "done" in exchange for a free one, else "late"."""
    if seat.place >= PERSONAL:
        return "done"
    spare = free_seat(session, seat.task_id)
    if spare is None:
        return "late"
    spare.state = "released"
    session.flush()
    return "done"


def _last_revisions(session: Session, seat_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Per seat, the judgement that nothing supersedes yet: (id, revision)."""
    found: dict[str, tuple[str, int]] = {}
    for part in chunks(seat_ids):
        found |= {seat: (key, revision) for seat, key, revision in session.execute(_LAST, {"seats": part})}
    return found


def _dated(annotator_id: str, now: int) -> dict[str, Any]:
    """What `_INSERT` dates a judgement by."""
    return {"annotator_id": annotator_id, "who": annotator_id, "now": now}


def _row(entry: Entry, seat: t.Seat, last: tuple[str, int] | None, now: int) -> dict[str, Any]:
    card = entry.card
    return {
        **entry.verdict.columns(),
        **_dated(card.annotator_id, now),
        "id": entry.judgement_id,
        "seat_id": seat.id,
        "task_id": seat.task_id,
        "revision": last[1] + 1 if last is not None else 1,
        "supersedes_id": last[0] if last is not None else None,
        "outcome": entry.outcome,
        "shown_order": list(card.shown_order),
        "skip_reason": entry.skip_reason,
        "ui": entry.ui,
        "app_version": __version__,
        "guideline_id": card.guideline_id,
    }
