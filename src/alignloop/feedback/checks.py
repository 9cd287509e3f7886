"""Hidden checks among a member's cards: tasks whose answer is known (gold, attention), and one's own task once more.

A check is due once a member has been handed `next_gold` or `next_repeat` cards. The gap to the one after is drawn
between half and one and a half of its mean, 1 / share, by the project's seed, the person and the card's number. A
repeat shows an earlier task with the sides exchanged (arXiv:2502.06387 finds self-consistency the better check for
preferences). Both are looked for on every card, due or not, so that a card's timing does not tell which it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Integer, bindparam, insert, select
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError, nearest
from alignloop.feedback import audit
from alignloop.feedback.answers import Entry
from alignloop.feedback.desk import Desk
from alignloop.feedback.judgements import STRENGTHS, Verdict
from alignloop.feedback.leases import lease_seats, open_seats
from alignloop.feedback.projects import settings_of
from alignloop.feedback.revisions import STANDS, J
from alignloop.feedback.tasks import ORDINARY, PERSONAL, derived_task, insert_tasks, seat_row
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms
from alignloop.store.votes import project_row

PAUSED, RESUMED = "person.pause", "person.resume"  # actions of the audit log
_S, _G, _T = t.Seat.__table__.c, t.GoldItem.__table__.c, t.Task.__table__.c
_HAD = select(_S.id).where(
    _S.task_id == _G.task_id,
    _S.annotator_id == bindparam("me"),
    (_S.state != "released") | select(J.id).where(J.seat_id == _S.id).exists(),
)
_IN_USE = select(_T.id).where(_T.id == _G.task_id, _T.project_id == bindparam("project"), _T.state == "open")
_UNSEEN = select(_G.task_id).where(_G.retired_at.is_(None), _IN_USE.exists(), ~_HAD.exists()).order_by(_G.task_id)
_OLD = (
    select(_T.id)
    .where(J.task_id == _T.id, J.annotator_id == bindparam("me"), J.outcome == "answer", STANDS)
    .where(_T.project_id == bindparam("project"), _T.kind.in_(ORDINARY), _T.state != "void")
    .order_by(J.created_at.desc(), J.id.desc())
    .offset(bindparam("gap", type_=Integer))
    .limit(bindparam("gap", type_=Integer))
)
EXPECTED = ("sign", "min_strength", "allowed", "thumb", "best")  # keys of a gold's expected answer


class Gold(NamedTuple):
    """A task with a known answer, in the slots' frame.

    expected: {"sign": 1, "min_strength": 1} (slot 0 is better, at least so strongly; sign 0 is a tie),
    {"allowed": [0, 1]} (these strengths), {"thumb": true}, or {"best": 2} (that slot is ranked first, alone).
    """

    completions: Sequence[str]
    expected: Mapping[str, Any]
    explanation: str = ""


def add_golds(
    store: Store,
    project: str,
    golds: Sequence[Gold | tuple[Sequence[str], Mapping[str, Any], str]],
    *,
    kind: str = "gold",
    source: str = "",
    actor: str = audit.SYSTEM,
) -> list[str]:
    """Add tasks with a known answer, handed out by the hidden schedule; returns their task row ids, in order.

    One that exists is left as it is. Errors: StoreError naming the gold whose expected answer cannot be checked, or
    differs from the one on record.
    """
    if kind not in ("gold", "attention"):
        raise StoreError(f"task kind '{kind}': golds are of kind gold or attention")
    wanted = [Gold(*gold) for gold in golds]
    for index, gold in enumerate(wanted):
        _check_expected(index, gold)
    with store.write() as session:
        row = project_row(session, project)
        ids = insert_tasks(session, row, [g.completions for g in wanted], None, kind, strategy="manual")
        known = {g.task_id: g for g in session.scalars(select(t.GoldItem).where(t.GoldItem.task_id.in_(ids)))}
        for index, (task, gold) in enumerate(zip(ids, wanted)):
            expected = dict(gold.expected)
            if task not in known:
                known[task] = t.GoldItem(
                    task_id=task, expected=expected, explanation_md=gold.explanation, source=source
                )
                session.add(known[task])
            elif known[task].expected != expected or not _in_slots(session, task, gold.completions):
                raise StoreError(f"golds[{index}]: is a gold already, with another expected answer; retire that one")
        audit.record(
            session, actor=actor, action="gold.add", object_type="project", object_id=row.id, after={"tasks": ids}
        )
    return ids


def retire_gold(store: Store, task_id: str, *, actor: str, reason: str = "") -> None:
    """Hand a gold out no more; its results stay."""
    with store.write() as session:
        row = session.get(t.GoldItem, task_id)
        if row is None:
            raise StoreError(f"task '{task_id}': is no gold")
        if row.retired_at is None:
            row.retired_at = now_ms()
            audit.record(
                session, actor=actor, action="gold.retire", object_type="task", object_id=task_id, reason=reason
            )


def serve(session: Session, desk: Desk, now: int) -> list[t.Seat]:
    """Lease this person's next seat: a hidden check that is due and fits, else the next of the queue."""
    project, person, member = desk.project, desk.person, desk.member
    seats = open_seats(session, project.id, person.id, 1)
    if member is not None:
        seats = _due_check(session, project, person, member) or seats
        member.served += 1 if seats else 0
    return lease_seats(session, project, person.id, seats, now, batch=0)


def grade(expected: Mapping[str, Any], verdict: Verdict) -> float:
    """How an answer compares with what a gold expects: 1 as expected, 0.5 neither for nor against it, 0 against it.

    >>> [grade({"sign": 1, "min_strength": 2}, Verdict(s)) for s in (2, 1, 0, -1)]
    [1.0, 0.5, 0.5, 0.0]
    """
    if "allowed" in expected:
        return float(verdict.strength in expected["allowed"])
    if "thumb" in expected:
        return float(verdict.thumb == expected["thumb"])
    if "best" in expected:
        first = verdict.ranking[0] if verdict.ranking else ()
        return (1.0 if len(first) == 1 else 0.5) if expected["best"] in first else 0.0
    if verdict.strength is None:
        return 0.0
    toward = expected["sign"] * verdict.strength
    if expected["sign"] == 0:
        return {0: 1.0, 1: 0.5}.get(abs(verdict.strength), 0.0)
    return 1.0 if toward >= expected.get("min_strength", 1) else (0.5 if toward >= 0 else 0.0)


def grade_answers(session: Session, entries: Sequence[Entry], tasks: Mapping[str, t.Task], now: int) -> None:
    """Grade the answers to golds among these; pause whom the sequential test flags, where the project says so."""
    for entry in entries:
        task = tasks[entry.card.task_id]
        if task.kind not in ("gold", "attention") or entry.outcome != "answer":
            continue
        gold = session.get(t.GoldItem, task.id)
        if gold is None:
            continue
        score = grade(gold.expected, entry.verdict)
        who = {"task_id": task.id, "annotator_id": entry.card.annotator_id, "created_at": now}
        row = {"judgement_id": entry.judgement_id, "passed": score == 1.0, "score": score}
        session.execute(insert(t.GoldResult), [who | row])
        project = session.get_one(t.Project, task.project_id)
        member = session.get(t.Membership, (project.id, entry.card.annotator_id))
        if settings_of(project).checks.pause_on_fail and member is not None and member.state == "active":
            _pause_if_flagged(session, project, member)


def _due_check(session: Session, project: t.Project, person: t.Annotator, member: t.Membership) -> list[t.Seat]:
    """The seat of the check that is due now, if any. Where no task fits, the schedule moves on."""
    shares = settings_of(project).checks
    seats: list[t.Seat] = []
    for clock, share in (("next_gold", shares.gold), ("next_repeat", shares.repeat)):
        due_at = getattr(member, clock)
        if not share or (due_at is not None and (member.served < due_at or seats)):
            continue
        draw = _drawn(project, person, clock, member.served)
        setattr(member, clock, member.served + gap(share, draw))
        if due_at is None:
            continue
        if clock == "next_gold":
            task = _unseen_gold(session, project, person, draw)
        else:
            task = _old_task(session, project, person, shares.repeat_gap, draw)
        if task is not None:
            shown = session.get_one(t.Task, task)
            if clock == "next_repeat":
                shown = derived_task(session, project, shown, "repeat", person.handle)
            seats = _own_seat(session, shown, person)
    return seats


def gap(share: float, draw: int) -> int:
    """Cards until the next check: between half and one and a half of 1 / share, by a number drawn at random.

    >>> sorted({gap(0.25, draw) for draw in range(100)})
    [2, 3, 4, 5, 6]
    """
    low = max(1, round(0.5 / share))
    high = max(low, round(1.5 / share))
    return low + draw % (high - low + 1)


def _drawn(project: t.Project, person: t.Annotator, what: str, count: int) -> int:
    """A random number that belongs to (seed, project, person, card): the same in every run, new on every card."""
    words = f"{what}|{project.seed}|{project.slug}|{person.handle}|{count}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big")


def _unseen_gold(session: Session, project: t.Project, person: t.Annotator, draw: int) -> str | None:
    """The task of a gold that this person has not judged."""
    found = session.scalars(_UNSEEN, {"project": project.id, "me": person.id})
    return _one_of(found.all(), draw)


def _old_task(session: Session, project: t.Project, person: t.Annotator, gap: int, draw: int) -> str | None:
    """One of this person's own tasks: of those with `gap` or more answers after it, one of the latest `gap`."""
    found = session.scalars(_OLD, {"project": project.id, "me": person.id, "gap": gap})
    return _one_of(found.all(), draw)


def _one_of(tasks: Sequence[str], draw: int) -> str | None:
    return tasks[draw % len(tasks)] if tasks else None


def _own_seat(session: Session, task: t.Task, person: t.Annotator) -> list[t.Seat]:
    """The seat on a check that is this person's alone, to be leased; none if they have judged it."""
    s = t.Seat
    seat = session.scalar(select(s).where(s.task_id == task.id, s.annotator_id == person.id).with_for_update())
    if seat is None:
        seat = t.Seat(**seat_row(task.project_id, task.id, PERSONAL, task.order_key), annotator_id=person.id)
        session.add(seat)
        return [seat]
    judged = select(t.Judgement.id).where(t.Judgement.seat_id == seat.id).limit(1)
    return [seat] if seat.state == "released" and session.scalar(judged) is None else []


def _pause_if_flagged(session: Session, project: t.Project, member: t.Membership) -> None:
    """The sequential test, on the results since a curator last resumed this member."""
    from alignloop.feedback.gold_checks import gold_passes, sequential_test

    own = gold_passes(session, project, member.annotator_id)
    if any(sequential_test(passes).decision == "flag" for passes in own.values()):
        set_member_state(session, project, member, "paused", audit.SYSTEM, "failed the gold checks")


def set_member_state(
    session: Session, project: t.Project, member: t.Membership, state: str, actor: str, reason: str
) -> None:
    """Pause or resume a member, on record."""
    before, member.state = member.state, state
    member.pause_reason = reason if state == "paused" else ""
    audit.record(
        session,
        actor=actor,
        action=PAUSED if state == "paused" else RESUMED,
        object_type="person",
        object_id=member.annotator_id,
        before={"project": project.id, "state": before},
        after={"project": project.id, "state": state},
        reason=reason,
    )


def _in_slots(session: Session, task: str, completions: Sequence[str]) -> bool:
    """Whether a task holds these completions (row ids or keys) in this order."""
    c = t.Completion
    query = select(c.id, c.key).join(t.TaskItem, t.TaskItem.completion_id == c.id).where(t.TaskItem.task_id == task)
    slots = session.execute(query.order_by(t.TaskItem.slot)).all()
    return all(name in slot for name, slot in zip(completions, slots))


def _check_expected(index: int, gold: Gold) -> None:
    expected, place = gold.expected, f"golds[{index}]"
    unknown = [key for key in expected if key not in EXPECTED]
    if unknown:
        raise StoreError(f"{place}: expected '{unknown[0]}': {nearest(unknown[0], EXPECTED)}")
    ways = [key for key in ("sign", "allowed", "thumb", "best") if key in expected]
    if len(ways) != 1:
        raise StoreError(f"{place}: expected: give one of sign, allowed, thumb and best (got {dict(expected)})")
    fits = {
        "sign": lambda v: v in (-1, 0, 1) and expected.get("min_strength", 1) in (1, 2),
        "allowed": lambda v: bool(v) and all(s in STRENGTHS for s in v),
        "thumb": lambda v: isinstance(v, bool),
        "best": lambda v: v in range(len(gold.completions)),
    }
    if not fits[ways[0]](expected[ways[0]]):
        raise StoreError(f"{place}: expected {dict(expected)} cannot be compared with an answer; correct {ways[0]}")
