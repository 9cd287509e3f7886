"""Seats and their leases: which are free for whom, who holds which, what happens when a lease runs out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.orm import Session, aliased

from alignloop.core.types import Completion, Prompt
from alignloop.feedback.judgements import Card, shown_order
from alignloop.feedback.projects import guideline_in_force
from alignloop.feedback.tasks import seat_row
from alignloop.store import tables as t
from alignloop.store.ids import uuid7
from alignloop.store.records import chunks, completion_record, prompt_record


def expire(session: Session, project_id: str, now: int) -> None:
    """Put the seats back whose leases ran out before `now`."""
    over = select(t.Seat).where(t.Seat.project_id == project_id, t.Seat.state == "leased", t.Seat.lease_until < now)
    give_back(session, list(session.scalars(over.with_for_update(skip_locked=True))))


def give_back(session: Session, seats: Sequence[t.Seat]) -> int:
    """End leases. A seat with history (its answer was undone) stays with its annotator, and a fresh one opens."""
    if not seats:
        return 0
    with_history: set[str] = set()
    for part in chunks([s.id for s in seats]):
        with_history |= set(session.scalars(select(t.Judgement.seat_id).where(t.Judgement.seat_id.in_(part))))
    for seat in seats:
        seat.lease_token, seat.leased_at, seat.lease_until, seat.batch = None, None, None, 0
        seat.state = "released" if seat.id in with_history else "open"
        seat.annotator_id = seat.annotator_id if seat.id in with_history else None
    session.flush()
    fresh = [seat_row(s.project_id, s.task_id, s.place, s.order_key) for s in seats if s.id in with_history]
    if fresh:
        session.execute(insert(t.Seat), fresh)
    return len(seats)


def live_leases(session: Session, project_id: str, annotator_id: str) -> list[t.Seat]:
    """The seats this annotator holds, the latest lease first (an undone card comes back before the one put aside)."""
    query = select(t.Seat).where(
        t.Seat.annotator_id == annotator_id, t.Seat.project_id == project_id, t.Seat.state == "leased"
    )
    return list(session.scalars(query.order_by(t.Seat.leased_at.desc(), t.Seat.place, t.Seat.order_key)))


def open_seats(session: Session, project_id: str, annotator_id: str, n: int) -> list[t.Seat]:
    """Up to n free seats of different tasks that this annotator has not had, in serving order."""
    mine = aliased(t.Seat)
    query = (
        select(t.Seat)
        .join(t.Task, t.Task.id == t.Seat.task_id)
        .where(t.Seat.project_id == project_id, t.Seat.state == "open", t.Task.state == "open")
        .where(~select(mine.id).where(mine.task_id == t.Seat.task_id, mine.annotator_id == annotator_id).exists())
        .order_by(t.Seat.place, t.Seat.order_key, t.Seat.id)
    )
    window, skip_locked = n, True
    while True:
        locked = query.limit(window).with_for_update(of=t.Seat, skip_locked=skip_locked)
        rows = list(session.scalars(locked))
        found: dict[str, t.Seat] = {}
        for seat in rows:
            found.setdefault(seat.task_id, seat)
        if len(found) >= n or (rows and len(rows) < window):
            return list(found.values())[:n]
        if not rows:
            if not skip_locked:
                return []
            skip_locked = False  # all may be locked for a moment by others: wait once before saying "nothing left"
        else:
            window *= 2  # several seats of one task in the window


def lease_seats(
    session: Session, project: t.Project, annotator_id: str, seats: Sequence[t.Seat], now: int, *, batch: int
) -> list[t.Seat]:
    """Lease free seats to an annotator until `now` + the project's lease."""
    for seat in seats:
        seat.state, seat.annotator_id, seat.lease_token, seat.batch = "leased", annotator_id, uuid7(), batch
        seat.leased_at, seat.lease_until = now, now + 1000 * project.lease_s
    session.flush()
    return list(seats)


def cards_of(session: Session, project: t.Project, person: t.Annotator, seats: Sequence[t.Seat]) -> list[Card]:
    """The cards of leased seats, in order."""
    tasks, items, completions, prompts = _contents(session, [s.task_id for s in seats])
    guideline = guideline_in_force(session, project.id)
    cards = []
    for seat in seats:
        task, slots = tasks[seat.task_id], items[seat.task_id]
        cards.append(
            Card(
                seat_id=seat.id,
                token=seat.lease_token or "",
                project=project.slug,
                task_id=task.id,
                task=task.key,
                annotator_id=person.id,
                annotator=person.handle,
                prompt=prompts[task.prompt_id],
                completions=tuple(completions[c] for c in slots),
                completion_ids=tuple(slots),
                shown_order=shown_order(project.seed, project.slug, task.key, person.handle, len(slots)),
                lease_until=seat.lease_until or 0,
                guideline_id=guideline.id if guideline is not None else None,
            )
        )
    return cards


def _contents(
    session: Session, task_ids: Sequence[str]
) -> tuple[dict[str, t.Task], dict[str, list[str]], dict[str, Completion], dict[str, Prompt]]:
    tasks: dict[str, t.Task] = {}
    items: dict[str, list[str]] = {}
    completions: dict[str, Completion] = {}
    prompts: dict[str, Prompt] = {}
    for part in chunks(task_ids):
        query = (
            select(t.Task, t.TaskItem.slot, t.Completion, t.Prompt)
            .join(t.TaskItem, t.TaskItem.task_id == t.Task.id)
            .join(t.Completion, t.Completion.id == t.TaskItem.completion_id)
            .join(t.Prompt, t.Prompt.id == t.Task.prompt_id)
            .where(t.Task.id.in_(part))
            .order_by(t.Task.id, t.TaskItem.slot)
        )
        rows: Any = session.execute(query)
        for task, _, completion, prompt in rows:
            tasks[task.id] = task
            items.setdefault(task.id, []).append(completion.id)
            prompts.setdefault(prompt.id, prompt_record(prompt))
            completions.setdefault(completion.id, completion_record(completion, prompt.key))
    return tasks, items, completions, prompts
