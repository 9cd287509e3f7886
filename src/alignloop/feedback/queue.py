"""Claiming cards and recording answers: the service that people, judges and simulations all go through.

A task that wants N votes has N seat rows, and claiming takes a row: over- and double assignment are impossible, by the
tables' unique keys. A lease that runs out puts its seat back; an answer that comes late is kept all the same. An answer
sent twice (same client-made id) is stored once. Nothing is changed or deleted: skip, undo and edit are further rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from alignloop.core.errors import DataError, StoreError
from alignloop.feedback.judgements import Card, Verdict
from alignloop.feedback.leases import cards_of, expire, give_back, lease_seats, live_leases, open_seats
from alignloop.feedback.projects import annotator_row
from alignloop.feedback.recording import Entry, record, resume
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms, uuid7
from alignloop.store.votes import project_row

R = TypeVar("R")
RETRIES = 5  # of a claim that lost a race for a seat (PostgreSQL; SQLite has one writer at a time)


def claim(store: Store, project: str, annotator: str, *, now: int | None = None) -> Card | None:
    """The next card for this annotator, leased; the one they hold already, if they do; None when nothing is left.

    Errors: StoreError if the project is not open or the annotator not active.
    """

    def attempt(session: Session) -> Card | None:
        row, person, at = _enter(session, project, annotator, now)
        held = live_leases(session, row.id, person.id)
        seats = held[:1] or lease_seats(session, row, person.id, open_seats(session, row.id, person.id, 1), at, batch=0)
        return cards_of(session, row, person, seats)[0] if seats else None

    return _retrying(store, attempt)


def claim_many(store: Store, project: str, annotator: str, n: int, *, now: int | None = None) -> list[Card]:
    """Up to n cards at once, for judges and simulations; those held already come first. Same rules as `claim`."""

    def attempt(session: Session) -> list[Card]:
        row, person, at = _enter(session, project, annotator, now)
        seats = live_leases(session, row.id, person.id)[:n]
        if len(seats) < n:
            free = open_seats(session, row.id, person.id, n - len(seats))
            seats += lease_seats(session, row, person.id, free, at, batch=1)
        return cards_of(session, row, person, seats)

    return _retrying(store, attempt)


def submit(
    store: Store,
    card: Card,
    verdict: Verdict,
    *,
    judgement_id: str | None = None,
    ui: str = "api",
    now: int | None = None,
) -> str:
    """Record an answer and return the judgement's id.

    judgement_id: a UUID made by the client before it sends; sent again, the answer is not stored again. An expired
    lease loses nothing: the seat is taken back, or where another has it the task gets one vote more.
    Errors: DataError for an answer that does not fit the card, StoreError for a card of another store.
    """
    return submit_many(store, [(card, verdict)], judgement_ids=[judgement_id or uuid7()], ui=ui, now=now)[0]


def submit_many(
    store: Store,
    answers: Sequence[tuple[Card, Verdict]],
    *,
    judgement_ids: Sequence[str] | None = None,
    ui: str = "api",
    now: int | None = None,
) -> list[str]:
    """Record many answers in one transaction: the same rules and the same rows as `submit`, all or none."""
    ids = list(judgement_ids) if judgement_ids is not None else [uuid7() for _ in answers]
    if len(ids) != len(answers) or len(set(ids)) != len(ids):
        raise DataError(
            f"{len(ids)} ids for {len(answers)} answers; give each answer its own id", field="judgement_ids"
        )
    for index, (card, verdict) in enumerate(answers):
        try:
            verdict.check(len(card.completions))
        except DataError as error:
            raise DataError(error.reason, row=index, field=error.field) from None
    entries = [Entry(card, "answer", key, ui, verdict) for key, (card, verdict) in zip(ids, answers)]
    with store.write() as session:
        return record(session, entries, now if now is not None else now_ms())


def skip(
    store: Store,
    card: Card,
    reason: str,
    *,
    flag: bool = False,
    judgement_id: str | None = None,
    active_ms: int | None = None,
    ui: str = "api",
    now: int | None = None,
) -> str:
    """Pass a card on: it never comes back to this annotator, and another gets it. Returns the judgement's id.

    After `max_skips` skips, or at once with `flag`, the task goes to a curator (state "review") instead.
    """
    outcome = "flag" if flag else "skip"
    verdict = Verdict(strength=None, active_ms=active_ms)
    entry = Entry(card, outcome, judgement_id or uuid7(), ui, verdict, reason)
    with store.write() as session:
        return record(session, [entry], now if now is not None else now_ms())[0]


def undo(
    store: Store,
    project: str,
    annotator: str,
    *,
    judgement_id: str | None = None,
    within: int = 20,
    ui: str = "api",
    now: int | None = None,
) -> Card | None:
    """Take back one's last answer (or the one named, among the last `within`) and get its card again.

    The answer stays on record; a new revision with outcome "undo" takes its vote away, and the answer submitted next
    is the revision after that. Undone twice, two cards come back, the later one first. None: nothing to undo.
    """
    with store.write() as session:
        row, person, at = _enter(session, project, annotator, now)
        recent = _recent(session, row.id, person.id, within)
        if judgement_id is not None:
            recent = [j for j in recent if j.id == judgement_id]
            if not recent:
                raise StoreError(
                    f"judgement '{judgement_id}': not among the last {within} of '{person.handle}'; edit it"
                )
        if not recent:
            return None
        last = recent[0]
        seat = session.get_one(t.Seat, last.seat_id)
        resume(session, row, seat, last, ui, at)
        return cards_of(session, row, person, [seat])[0]


def release(store: Store, project: str, annotator: str) -> int:
    """Give every card this annotator holds back to the queue; returns how many."""
    with store.write() as session:
        row, person = project_row(session, project), annotator_row(session, annotator)
        return give_back(session, live_leases(session, row.id, person.id))


def progress(store: Store, project: str) -> dict[str, int]:
    """Seats by state, and all judgements: {"open": 12, "leased": 1, "done": 40, ..., "judgements": 43}."""
    with store.read() as session:
        row = project_row(session, project)
        states = list(session.scalars(select(t.Seat.state).where(t.Seat.project_id == row.id)))
        answers = select(t.Judgement.id).join(t.Task, t.Task.id == t.Judgement.task_id)
        n = len(session.scalars(answers.where(t.Task.project_id == row.id)).all())
    return {state: states.count(state) for state in t.SEAT_STATES} | {"judgements": n}


def close_seats(store: Store, project: str) -> int:
    """Withdraw every seat that is still open (a campaign that ends early); returns how many."""
    with store.write() as session:
        row = project_row(session, project)
        free = session.scalars(select(t.Seat.id).where(t.Seat.project_id == row.id, t.Seat.state == "open")).all()
        if free:
            session.execute(update(t.Seat), [{"id": seat, "state": "released"} for seat in free])
        done = update(t.Task).where(t.Task.project_id == row.id, t.Task.state == "open").values(state="done")
        leased = select(t.Seat.id).where(t.Seat.task_id == t.Task.id, t.Seat.state == "leased").exists()
        session.execute(done.where(~leased).execution_options(synchronize_session=False))
    return len(free)


def _enter(session: Session, project: str, annotator: str, now: int | None) -> tuple[t.Project, t.Annotator, int]:
    """Who asks, where and when; leases that ran out are put back first."""
    row, person = project_row(session, project), annotator_row(session, annotator)
    if row.state != "open":
        raise StoreError(f"project '{row.slug}': is {row.state}; open it to hand out cards")
    if person.state != "active":
        raise StoreError(f"annotator '{person.handle}': is {person.state}; make them active to hand out cards")
    at = now if now is not None else now_ms()
    expire(session, row.id, at)
    return row, person, at


def _recent(session: Session, project_id: str, annotator_id: str, within: int) -> list[t.Judgement]:
    """The annotator's last judgements that are the last word on their seats, newest first."""
    later = t.Judgement.__table__.alias("later")
    query = (
        select(t.Judgement)
        .join(t.Task, t.Task.id == t.Judgement.task_id)
        .where(t.Task.project_id == project_id, t.Judgement.annotator_id == annotator_id)
        .where(t.Judgement.outcome != "undo")
        .where(~select(later.c.id).where(later.c.supersedes_id == t.Judgement.id).exists())
        .order_by(t.Judgement.created_at.desc(), t.Judgement.id.desc())
        .limit(within)
    )
    return list(session.scalars(query))


def _retrying(store: Store, attempt: Callable[[Session], R]) -> R:
    for left in reversed(range(RETRIES)):
        try:
            with store.write() as session:
                return attempt(session)
        except IntegrityError:
            if not left:
                raise
    raise AssertionError("unreachable")
