"""Who may be given cards of a project, and how many."""

from __future__ import annotations

from sqlalchemy import bindparam, func, select
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError
from alignloop.feedback.desk import Desk
from alignloop.feedback.revisions import STANDS
from alignloop.store import tables as t
from alignloop.store.studio_tables import ROLES

REVIEWERS = ROLES[1:]  # reviewer, curator, owner
_M = t.Membership.__table__.c
_ANY_MEMBER = select(_M.annotator_id).where(_M.project_id == bindparam("project")).limit(1)


def admit(session: Session, desk: Desk) -> None:
    """Let this person have cards of the project: its active members may, owners of the store, and anybody where there
    are no members yet (scripts, a single user).

    Errors: StoreError if the project is not open, the person not active, or not one of its members.
    """
    project, person, member = desk.project, desk.person, desk.member
    if project.state != "open":
        raise StoreError(f"project '{project.slug}': is {project.state}; open it to hand out cards")
    if person.state != "active":
        raise StoreError(f"annotator '{person.handle}': is {person.state}; make them active to hand out cards")
    if member is None:
        if person.role != "owner" and session.scalar(_ANY_MEMBER, {"project": project.id}) is not None:
            raise StoreError(f"annotator '{person.handle}': is no member of project '{project.slug}'; invite them")
    elif member.state != "active":
        raise StoreError(
            f"annotator '{person.handle}': is {member.state} in project '{project.slug}'; a curator can resume them"
        )


def admit_reviewer(session: Session, desk: Desk) -> None:
    """Like `admit`, and the person may settle conflicts. Errors: StoreError for a role that may not."""
    admit(session, desk)
    project, person, member = desk.project, desk.person, desk.member
    if member is not None and person.role != "owner" and member.role not in REVIEWERS:
        raise StoreError(
            f"annotator '{person.handle}': is {member.role} in project '{project.slug}'; "
            f"third views are given by {', '.join(REVIEWERS)}"
        )


def left_of_quota(session: Session, member: t.Membership | None) -> int | None:
    """Answers that this member may still give; None without a limit."""
    if member is None or member.quota is None:
        return None
    return max(0, member.quota - answers_given(session, member.project_id, member.annotator_id))


def answers_given(session: Session, project_id: str, annotator_id: str, since: int = 0) -> int:
    """This person's answers that stand, of every kind of task, given at `since` or later."""
    j = t.Judgement
    query = (
        select(func.count(j.id))
        .join(t.Task, t.Task.id == j.task_id)
        .where(t.Task.project_id == project_id, j.annotator_id == annotator_id)
        .where(j.outcome == "answer", j.created_at >= since, STANDS)
    )
    return session.scalar(query) or 0
