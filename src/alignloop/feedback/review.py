"""What people above annotators do with tasks and answers: third views, the curator's queue, sending back, pausing."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError, nearest
from alignloop.feedback import audit
from alignloop.feedback.checks import set_member_state
from alignloop.feedback.desk import desk_of
from alignloop.feedback.judgements import Card
from alignloop.feedback.projects import annotator_row
from alignloop.feedback.recording import resume
from alignloop.feedback.revisions import STANDS
from alignloop.feedback.serving import next_third_view, writing
from alignloop.feedback.settling import in_conflict, side, without_waiting
from alignloop.feedback.tasks import PRIVATE, seat_row
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import now_ms
from alignloop.store.records import prompt_record
from alignloop.store.votes import project_row

ACTIONS = {"void": "void", "reopen": "open", "keep": "done"}  # of `resolve`: the task's state after it
SENT_BACK_S = 7 * 24 * 3600  # how long an answer that was sent back waits for its annotator


@dataclass(frozen=True, slots=True)
class ReviewRow:
    """A task that waits for a curator. why: flag, skip (too many) or conflict.

    reasons: what those who passed it on said. left, ties, right: votes for slot 0, for neither, for slot 1.
    """

    task_id: str
    task: str
    why: str
    reasons: tuple[str, ...]
    prompt_text: str
    left: int
    ties: int
    right: int


def claim_adjudication(store: Store, project: str, annotator: str, *, now: int | None = None) -> Card | None:
    """The next task in conflict, for a reviewer who has not voted on it and sees none of the votes: a blind third view.

    Answered by `answer` or `submit` like any card; the answer settles the task (`t.Adjudication`). Errors: as for
    `queue.claim`, and StoreError for a member who is no reviewer.
    """

    def attempt(session: Session) -> Card | None:
        return next_third_view(session, desk_of(session, project, annotator), now if now is not None else now_ms())

    return writing(store, attempt)


def review_queue(store: Store, project: str, limit: int = 200) -> tuple[ReviewRow, ...]:
    """The tasks that wait for a curator, in serving order."""
    with store.read() as session:
        row = project_row(session, project)
        query = (
            select(t.Task, t.Prompt)
            .join(t.Prompt, t.Prompt.id == t.Task.prompt_id)
            .where(t.Task.project_id == row.id, t.Task.state == "review")
            .order_by(t.Task.order_key, t.Task.id)
            .limit(limit)
        )
        return tuple(_review_row(session, task, prompt) for task, prompt in session.execute(query).tuples())


def resolve(store: Store, task_id: str, action: str, *, actor: str, reason: str = "") -> None:
    """Settle a task in review. void: out of the data; reopen: back to the queue; keep: done with the votes it has.

    Reopened with no vote left to come, it gets one more. Errors: StoreError for a task that is not in review.
    """
    if action not in ACTIONS:
        raise StoreError(f"action '{action}': {nearest(action, ACTIONS)}")

    def attempt(session: Session) -> None:
        task = session.get(t.Task, task_id, with_for_update={"key_share": True})
        if task is None or task.state != "review":
            raise StoreError(f"task '{task_id}': is {task.state if task else 'not in the store'}, not in review")
        task.state = ACTIONS[action]
        free = (t.Seat.task_id == task.id) & (t.Seat.state == "open")
        if action == "reopen":
            if without_waiting(session, [task]):
                place = PRIVATE if task.kind == "adjudication" else -task.priority
                session.execute(insert(t.Seat), [seat_row(task.project_id, task.id, place, task.order_key)])
        else:
            withdraw = update(t.Seat).where(free).values(state="released")
            session.execute(withdraw.execution_options(synchronize_session=False))
        audit.record(
            session,
            actor=actor,
            action=f"task.{action}",
            object_type="task",
            object_id=task.id,
            before={"state": "review"},
            after={"state": task.state},
            reason=reason,
        )

    writing(store, attempt)


def send_back(store: Store, judgement_id: str, *, actor: str, comment: str, now: int | None = None) -> None:
    """Ask an annotator to look at an older answer again: its card comes back to them first, with the comment.

    Until they answer, their vote does not count; the answer itself stays on record. After a week without an answer the
    card goes to someone else. Errors: StoreError for a judgement that has been revised since, or an empty comment.
    """
    if not comment.strip():
        raise StoreError("send back: write what is to be looked at again")

    def attempt(session: Session) -> None:
        last = session.get(t.Judgement, judgement_id)
        later = select(t.Judgement.id).where(t.Judgement.supersedes_id == judgement_id)
        if last is None or last.outcome == "undo" or session.scalar(later) is not None:
            raise StoreError(f"judgement '{judgement_id}': is not the last word on its card; send back the newest")
        project = session.get_one(t.Project, session.get_one(t.Task, last.task_id).project_id)
        at = now if now is not None else now_ms()
        resume(session, project, last, "review", at, lease_s=SENT_BACK_S, note=comment.strip())
        audit.record(
            session,
            actor=actor,
            action="judgement.send_back",
            object_type="judgement",
            object_id=last.id,
            reason=comment.strip(),
        )

    writing(store, attempt)


def pause_person(store: Store, project: str, annotator: str, *, actor: str, reason: str) -> None:
    """Give a member no more cards; a card they hold may still be answered, and the answer is kept."""
    _set_state(store, project, annotator, "paused", actor, reason)


def resume_person(store: Store, project: str, annotator: str, *, actor: str, reason: str = "") -> None:
    """Give a paused member cards again; earlier gold checks are not held against them any more."""
    _set_state(store, project, annotator, "active", actor, reason)


def _set_state(store: Store, project: str, annotator: str, state: str, actor: str, reason: str) -> None:
    with store.write() as session:
        row, person = project_row(session, project), annotator_row(session, annotator)
        member = session.get(t.Membership, (row.id, person.id), with_for_update=True)
        if member is None or member.state == "left":
            raise StoreError(f"annotator '{person.handle}': is no member of project '{row.slug}'; invite them")
        if member.state != state:
            set_member_state(session, row, member, state, actor, reason)


def _review_row(session: Session, task: t.Task, prompt: t.Prompt) -> ReviewRow:
    j = t.Judgement
    query = (
        select(j.outcome, j.skip_reason, j.comment, j.strength, j.thumb)
        .where(j.task_id == task.id, j.outcome != "undo", STANDS)
        .order_by(j.created_at, j.id)
    )
    standing = session.execute(query).all()
    passed = [s for s in standing if s.outcome != "answer"]
    signs = [side(s.strength, s.thumb) for s in standing if s.outcome == "answer"]
    flagged = any(s.outcome == "flag" for s in passed)
    why = "flag" if flagged else ("conflict" if in_conflict(signs) else "skip")
    words = tuple(f"{s.skip_reason}: {s.comment}" if s.comment else str(s.skip_reason) for s in passed)
    return ReviewRow(
        task.id, task.key, why, words, prompt_record(prompt).question, signs.count(1), signs.count(0), signs.count(-1)
    )
