"""The next card for a person, and transactions that are tried again when they lose a race."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError
from alignloop.feedback.admission import admit, admit_reviewer, left_of_quota
from alignloop.feedback.cards import cards_of
from alignloop.feedback.checks import serve
from alignloop.feedback.desk import Desk
from alignloop.feedback.judgements import Card
from alignloop.feedback.leases import held_now, lease_seats, live_leases, third_views
from alignloop.store import Store
from alignloop.store import tables as t

R = TypeVar("R")
RETRIES = 5  # of a transaction that lost a race (PostgreSQL; SQLite has one writer at a time)
DEADLOCK = "40P01"  # PostgreSQL's code


def next_card(session: Session, desk: Desk, now: int) -> Card | None:
    """The card this person holds, or the next one, leased; None when there is none. Errors: `admission.admit`."""
    admit(session, desk)

    def lease() -> list[t.Seat]:
        return serve(session, desk, now) if left_of_quota(session, desk.member) != 0 else []

    return _card(session, desk, now, lease)


def next_third_view(session: Session, desk: Desk, now: int) -> Card | None:
    """The same for tasks in conflict. Errors: `admission.admit_reviewer`."""
    admit_reviewer(session, desk)

    def lease() -> list[t.Seat]:
        free = third_views(session, desk.project.id, desk.person.id, 1)
        return lease_seats(session, desk.project, desk.person.id, free, now, batch=0)

    return _card(session, desk, now, lease)


def _card(session: Session, desk: Desk, now: int, lease: Callable[[], list[t.Seat]]) -> Card | None:
    seats = held_now(session, desk.project, desk.person.id, now) or lease()
    if not seats:  # a second tab of theirs may just have taken the last one
        seats = live_leases(session, desk.project.id, desk.person.id)
    return cards_of(session, desk, seats[:1])[0] if seats else None


def writing(store: Store, attempt: Callable[[Session], R]) -> R:
    """Run a transaction, again where it lost a race with another."""
    for left in reversed(range(RETRIES)):
        try:
            with store.write() as session:
                return attempt(session)
        except (IntegrityError, StoreError) as error:
            if not left or not _lost_a_race(error):
                raise
    raise AssertionError("unreachable")


def _lost_a_race(error: Exception) -> bool:
    if isinstance(error, IntegrityError):
        return True
    cause = error.__cause__
    return isinstance(cause, DBAPIError) and getattr(cause.orig, "sqlstate", None) == DEADLOCK
