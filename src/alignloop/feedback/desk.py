"""Who is at work, where and on which card: what the work on one card begins with, each read in one statement."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from alignloop.feedback.projects import annotator_row
from alignloop.feedback.revisions import J
from alignloop.store import tables as t
from alignloop.store.votes import project_row


class Desk(NamedTuple):
    """A person in a project. member: their place in it, None where they have none.

    guideline: the one in force (id). asked: whether there are criteria.
    """

    project: t.Project
    person: t.Annotator
    member: t.Membership | None
    guideline: str | None
    asked: bool


class Handed(NamedTuple):
    """A seat, its task, and the person who names it. stored_by: who gave the judgement asked for, None: nobody did."""

    desk: Desk
    seat: t.Seat
    task: t.Task
    stored_by: str | None


def desk_of(session: Session, project: str, annotator: str) -> Desk:
    """A person (handle or row id) in a project (slug or row id). Errors: StoreError with the nearest name."""
    found: Any = session.execute(_DESK, {"project": project, "who": annotator}).first()
    if found is None:
        project_row(session, project)  # whichever is unknown says so
        annotator_row(session, annotator)
        return desk_of(session, project, annotator)  # both were made this moment
    return Desk(*found)


def handed(
    session: Session, seat_id: str, annotator: str, *, judgement_id: str = "", lock: bool = False
) -> Handed | None:
    """A seat with its task, project and this person (handle or row id); None where there is no such seat or person.

    judgement_id: a judgement that may be stored already. lock: until the end of the transaction no other changes the
    votes of the task.
    """
    query = _HANDED_LOCKED if lock else _HANDED
    found: Any = session.execute(query, {"seat": seat_id, "who": annotator, "judgement": judgement_id}).first()
    if found is None:
        return None
    seat, task, stored_by, *desk = found
    return Handed(Desk(*desk), seat, task, stored_by)


def _at_desk(query: Select[Any]) -> Select[Any]:
    """A query of projects that is joined with the rest of `Desk`."""
    person, member, version, criterion = t.Annotator, t.Membership, t.Guideline, t.Criterion
    theirs = (member.project_id == t.Project.id) & (member.annotator_id == person.id)
    newest = select(version.id).where(version.project_id == t.Project.id).order_by(version.version.desc()).limit(1)
    asked = select(criterion.id).where(criterion.project_id == t.Project.id, criterion.position >= 0)
    in_force = newest.correlate(t.Project).scalar_subquery()
    return (
        query.add_columns(t.Project, person, member, in_force, asked.correlate(t.Project).exists())
        .join(person, (person.id == bindparam("who")) | (person.handle == bindparam("who")))
        .outerjoin(member, theirs)
    )


_DESK = _at_desk(select().select_from(t.Project)).where(
    (t.Project.slug == bindparam("project")) | (t.Project.id == bindparam("project"))
)
_STORED_BY = select(J.annotator_id).where(J.id == bindparam("judgement")).scalar_subquery()
_HANDED = _at_desk(
    select(t.Seat, t.Task, _STORED_BY)
    .select_from(t.Seat)
    .join(t.Task, t.Task.id == t.Seat.task_id)
    .join(t.Project, t.Project.id == t.Seat.project_id)
).where(t.Seat.id == bindparam("seat"))
_HANDED_LOCKED = _HANDED.with_for_update(of=(t.Seat, t.Task), key_share=True)
