"""Claiming cards and recording answers: the service that people, judges and simulations all go through.

A task that wants N votes has N seat rows, and claiming takes a row: over- and double assignment are impossible, by the
tables' unique keys. A lease that runs out puts its seat back; an answer that comes late is kept all the same. An answer
sent twice (same client-made id) is stored once. Nothing is changed or deleted: skip, undo and edit are further rows.

A page works with `card_of` (the card it showed, from what its form sent) and `answer` or `pass_on`, which record and
claim the next card in one transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import exists, func, select, update
from sqlalchemy.orm import Session

from alignloop.core.errors import DataError, StoreError
from alignloop.feedback import history
from alignloop.feedback.admission import admit, left_of_quota
from alignloop.feedback.answers import Entry, check_answers
from alignloop.feedback.cards import cards_of, sent_card
from alignloop.feedback.desk import Handed, desk_of, handed
from alignloop.feedback.judgements import Answered, Card, MyProgress, Recent, Verdict
from alignloop.feedback.leases import give_back, held_now, lease_seats, live_leases, open_seats
from alignloop.feedback.projects import annotator_row, criteria_of
from alignloop.feedback.recording import elsewhere, lock, record, resume, stored, unstored
from alignloop.feedback.revisions import standing
from alignloop.feedback.serving import next_card, next_third_view, writing
from alignloop.feedback.tasks import PRIVATE
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms, uuid7
from alignloop.store.votes import project_row

UNDOABLE = 20


def claim(store: Store, project: str, annotator: str, *, now: int | None = None) -> Card | None:
    """The next card for this annotator, leased; the one they hold already, if they do; None when nothing is left.

    Errors: StoreError if the project is not open, the annotator not active, or not among the project's members where it
    has any.
    """

    return writing(store, lambda session: next_card(session, desk_of(session, project, annotator), _at(now)))


def claim_many(store: Store, project: str, annotator: str, n: int, *, now: int | None = None) -> list[Card]:
    """Up to n cards at once, for judges and simulations; those held already come first. Same rules as `claim`.

    No hidden checks are among them: these are for people, who take one card at a time.
    """

    def attempt(session: Session) -> list[Card]:
        desk, at = desk_of(session, project, annotator), _at(now)
        admit(session, desk)
        row, person, member = desk.project, desk.person, desk.member
        seats = held_now(session, row, person.id, at)[:n]
        left = left_of_quota(session, member)
        more = n - len(seats) if left is None else min(n, left) - len(seats)
        if more > 0:
            free = open_seats(session, row.id, person.id, more)
            seats += lease_seats(session, row, person.id, free, at, batch=1)
            if member is not None:
                member.served += len(free)
        return cards_of(session, desk, seats)

    return writing(store, attempt)


def card_of(store: Store, seat_id: str, token: str, annotator: str, *, guideline: str = "") -> Card:
    """The card that a page names by seat and token, also after its lease ran out (`lease_until` is then 0).

    guideline: the version that the page was made under; the one in force without it, and for one of another project.
    Errors: StoreError unless this seat was given to this person with this token.
    """
    with store.read() as session:
        return sent_card(session, seat_id, token, annotator, guideline=guideline)[1]


def answer(
    store: Store,
    card: Card,
    verdict: Verdict,
    *,
    judgement_id: str | None = None,
    ui: str = "web",
    now: int | None = None,
) -> Answered:
    """Record an answer and claim the next card, in one transaction. Rules of `submit` and `claim`.

    Sent twice, it is stored once, and the next card is the same. Where the person may have no more cards (project
    closed, member paused, nothing left) the answer is kept and `next` is None. After a third view comes the next one.
    """
    verdict.check(card)
    return _record_and_claim(store, Entry(card, "answer", judgement_id or uuid7(), ui, verdict), now)


def answer_sent(
    store: Store,
    seat_id: str,
    token: str,
    annotator: str,
    decide: Callable[[Card], Verdict],
    *,
    guideline: str = "",
    judgement_id: str,
    ui: str,
    now: int | None = None,
) -> Answered:
    """`card_of` and `answer` in one transaction, which is half the work; `decide` says what the verdict on the card is.

    It may be called again where the transaction lost a race. Errors: those of both.
    """

    def attempt(session: Session) -> Answered:
        found, card = sent_card(
            session, seat_id, token, annotator, guideline=guideline, judgement_id=judgement_id, lock=True
        )
        verdict = decide(card)
        verdict.check(card)
        return _recorded(session, found, Entry(card, "answer", judgement_id, ui, verdict), now)

    return writing(store, attempt)


def pass_on(
    store: Store,
    card: Card,
    reason: str,
    *,
    flag: bool = False,
    judgement_id: str | None = None,
    active_ms: int | None = None,
    comment: str = "",
    ui: str = "web",
    now: int | None = None,
) -> Answered:
    """Skip or flag a card and claim the next one, in one transaction. Rules of `skip` and `claim`."""
    return _record_and_claim(store, _skipped(card, reason, flag, judgement_id, active_ms, ui, comment), now)


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
    lease loses nothing: the answer takes the seat back, or a free one of the same task; where there is none the task
    gets one vote more. Errors: DataError for an answer that does not fit the card, StoreError for a card of another
    store.
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
            verdict.check(card)
        except DataError as error:
            raise DataError(error.reason, row=index, field=error.field) from None
    entries = [Entry(card, "answer", key, ui, verdict) for key, (card, verdict) in zip(ids, answers)]
    return _recorded_alone(store, entries, now)


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
    return _recorded_alone(store, [_skipped(card, reason, flag, judgement_id, active_ms, ui)], now)[0]


def undo(
    store: Store,
    project: str,
    annotator: str,
    judgement_id: str | None = None,
    *,
    within: int = UNDOABLE,
    ui: str = "api",
    now: int | None = None,
) -> Card | None:
    """Take back one's last answer (or the one named, among the last `within`) and get its card again.

    The answer stays on record; a new revision with outcome "undo" takes its vote away, and the answer submitted next
    is the revision after that. Undone twice, two cards come back, the later one first. None: nothing to undo.
    """

    def attempt(session: Session) -> Card | None:
        desk = desk_of(session, project, annotator)
        admit(session, desk)
        row, person = desk.project, desk.person
        recent = list(session.scalars(standing(row.id, person.id).limit(within)))
        if judgement_id is not None:
            recent = [j for j in recent if j.id == judgement_id]
            if not recent:
                raise StoreError(
                    f"judgement '{judgement_id}': not among the last {within} of '{person.handle}'; "
                    "ask a curator to send it back"
                )
        if not recent:
            return None
        seat = resume(session, row, recent[0], ui, _at(now))
        return cards_of(session, desk, [seat])[0]

    return writing(store, attempt)


def heartbeat(store: Store, seat_id: str, token: str, annotator: str, *, now: int | None = None) -> int:
    """Extend the lease of a card that is being read; returns until when, 0 if it has run out already.

    A card whose lease ran out may be answered all the same. Errors: StoreError unless it was given to this person.
    """

    def attempt(session: Session) -> int:
        found, card = sent_card(session, seat_id, token, annotator, lock=True)
        if not card.lease_until:
            return 0
        project, seat, at = found.desk.project, found.seat, _at(now)
        until = at + 1000 * project.lease_s
        if (seat.leased_at or 0) <= until:  # else the clock was put back since, and the old end is no end
            until = max(until, card.lease_until)
        seat.leased_at, seat.lease_until = at, until
        return until

    return writing(store, attempt)


def release(store: Store, project: str, annotator: str) -> int:
    """Give every card this annotator holds back to the queue; returns how many."""
    with store.write() as session:
        row, person = project_row(session, project), annotator_row(session, annotator)
        return give_back(session, live_leases(session, row.id, person.id))


def recent(store: Store, project: str, annotator: str, n: int = UNDOABLE) -> tuple[Recent, ...]:
    """This annotator's last n judgements that stand, newest first; the first `UNDOABLE` of them can be undone."""
    with store.read() as session:
        row, person = project_row(session, project), annotator_row(session, annotator)
        return tuple(history.recent_work(session, row.id, person.id, n, UNDOABLE))


def my_progress(store: Store, project: str, annotator: str, *, now: int | None = None) -> MyProgress:
    """How far this annotator is in a project, in numbers that do not tell which cards were checks."""
    with store.read() as session:
        row, person = project_row(session, project), annotator_row(session, annotator)
        return history.my_progress(session, row.id, person.id, _at(now))


def progress(store: Store, project: str) -> dict[str, int]:
    """Seats by state, and all judgements: {"open": 12, "leased": 1, "done": 40, ..., "judgements": 43}.

    Seats are those of ordinary tasks; hidden checks and third views are not among them.
    """
    with store.read() as session:
        row = project_row(session, project)
        seats = select(t.Seat.state, func.count()).where(t.Seat.project_id == row.id, t.Seat.place < PRIVATE)
        states = dict(session.execute(seats.group_by(t.Seat.state)).tuples().all())
        judged = select(func.count(t.Judgement.id)).join(t.Task, t.Task.id == t.Judgement.task_id)
        n = session.scalar(judged.where(t.Task.project_id == row.id)) or 0
    return {state: states.get(state, 0) for state in t.SEAT_STATES} | {"judgements": n}


def close_seats(store: Store, project: str) -> int:
    """Withdraw every seat that is still open (a campaign that ends early); returns how many."""
    with store.write() as session:
        row = project_row(session, project)
        in_project = t.Seat.project_id == row.id
        withdrawn = session.execute(
            update(t.Seat)
            .where(in_project, t.Seat.state == "open")
            .values(state="released")
            .returning(t.Seat.id)
            .execution_options(synchronize_session=False)
        ).all()
        leased = exists().where(t.Seat.task_id == t.Task.id, t.Seat.state == "leased")
        session.execute(
            update(t.Task)
            .where(t.Task.project_id == row.id, t.Task.state == "open", ~leased)
            .where(t.Task.id.not_in(select(t.GoldItem.task_id)))
            .values(state="done")
            .execution_options(synchronize_session=False)
        )
    return len(withdrawn)


def _record_and_claim(store: Store, entry: Entry, now: int | None) -> Answered:
    def attempt(session: Session) -> Answered:
        card, key = entry.card, entry.judgement_id
        found = handed(session, card.seat_id, card.annotator_id, judgement_id=key, lock=True)
        if found is None:
            raise elsewhere(card.seat_id)
        return _recorded(session, found, entry, now)

    return writing(store, attempt)


def _recorded(session: Session, found: Handed, entry: Entry, now: int | None) -> Answered:
    desk, seat, task, stored_by = found
    at, key = _at(now), entry.judgement_id
    new = unstored([entry], {key: stored_by} if stored_by is not None else {})
    check_answers(desk.project, criteria_of(session, desk.project.id) if desk.asked else (), new)
    record(session, new, {seat.id: (seat, task)}, at)
    following = next_third_view if task.kind == "adjudication" else next_card
    try:
        return Answered(key, following(session, desk, at))
    except StoreError:  # no cards for this person now; what they answered is kept
        return Answered(key, None)


def _recorded_alone(store: Store, entries: Sequence[Entry], now: int | None) -> list[str]:
    ids = [e.judgement_id for e in entries]

    def attempt(session: Session) -> list[str]:
        new = unstored(entries, stored(session, ids))
        locked = lock(session, [e.card.seat_id for e in new])
        for project in {seat.project_id for seat, _ in locked.values()}:
            here = [e for e in new if locked[e.card.seat_id][0].project_id == project]
            check_answers(session.get_one(t.Project, project), criteria_of(session, project), here)
        record(session, new, locked, _at(now))
        return ids

    return writing(store, attempt)


def _skipped(
    card: Card, reason: str, flag: bool, judgement_id: str | None, active_ms: int | None, ui: str, comment: str = ""
) -> Entry:
    verdict = Verdict(active_ms=active_ms, comment=comment)
    return Entry(card, "flag" if flag else "skip", judgement_id or uuid7(), ui, verdict, reason)


def _at(now: int | None) -> int:
    return now if now is not None else now_ms()
