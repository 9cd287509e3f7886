"""Making tasks: which completions are compared, and how many votes each comparison gets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import Field
from sqlalchemy import func, insert, select
from sqlalchemy.orm import Session

from alignloop.core.config import Config
from alignloop.core.errors import StoreError, nearest
from alignloop.core.types import content_id
from alignloop.store import Store
from alignloop.store import tables as t
from alignloop.store.ids import uuid7
from alignloop.store.records import fetch
from alignloop.store.records import pairs as key_pairs
from alignloop.store.votes import project_row

ORDINARY = ("normal", "calibration")  # kinds of task whose votes are data
PRIVATE = 1e9  # the place, in the queue, of third views; places from here on are not for whoever comes
PERSONAL = 2e9  # the place of hidden checks, whose seats open for one person each, when the check is due
SIZES = {"pairwise": (2, 2), "rank": (2, 9), "rate": (1, 9), "thumbs": (1, 1), "edit": (1, 1), "mixed": (1, 9)}


class Overlap(Config):
    """Votes per task: one on most, several on a random slice, from which agreement and calibration are measured.

    Tasks whose prompts are in the split test have as many as the slice: what models are tested on has to be sure.
    """

    votes: int = Field(1, ge=1)
    """Votes of an ordinary task. On a fixed budget, more pairs teach more than more votes per pair."""
    slice: float = Field(0.2, ge=0, le=1)
    """Share of tasks in the slice."""
    slice_votes: int = Field(3, ge=1)
    """Votes of a task in the slice, and of every task of a test prompt."""


def create_tasks(
    store: Store,
    project: str,
    comparisons: Sequence[Sequence[str]],
    *,
    overlap: Overlap | int | None = None,
    kind: str = "normal",
    strategy: str = "random",
    priority: float = 0.0,
) -> list[str]:
    """One task per comparison, one open seat per vote; returns task row ids, in order.

    comparisons: completions (row ids or keys), first in slot 0; two each, or as many as the project's kind asks for
    (`SIZES`). The slice and the serving order are random by the project's seed and depend on the content alone. A
    comparison of the project that exists is returned as it is. overlap: an `Overlap`, or a number of votes for all
    tasks. Errors: StoreError naming the comparison whose completions are missing, equal, or answer different prompts.
    """
    plan = Overlap(votes=overlap, slice=0, slice_votes=overlap) if isinstance(overlap, int) else overlap
    if kind not in t.TASK_KINDS:
        raise StoreError(f"task kind '{kind}': {nearest(kind, t.TASK_KINDS)}")
    with store.write() as session:
        row = project_row(session, project)
        return insert_tasks(session, row, comparisons, plan or Overlap(), kind, strategy=strategy, priority=priority)


def insert_tasks(
    session: Session,
    row: t.Project,
    comparisons: Sequence[Sequence[str]],
    plan: Overlap | None,
    kind: str,
    *,
    strategy: str,
    priority: float = 0.0,
) -> list[str]:
    """`create_tasks` inside a session that is open. No plan: no seats, they open when they are due."""
    known = _completions(session, {c for group in comparisons for c in group})
    prompts = {c.prompt_id for c in known.values()}
    prompt_keys = dict(key_pairs(session, t.Prompt.id, t.Prompt.key, prompts))
    splits = dict(key_pairs(session, t.Prompt.id, t.Prompt.split, prompts)) if plan is not None else {}
    groups = [_checked(row.kind, index, group, known) for index, group in enumerate(comparisons)]
    keys = [content_id("task", row.slug, kind, prompt_keys[g[0].prompt_id], sorted(c.key for c in g)) for g in groups]
    existing = select(t.Task.key, t.Task.id).where(t.Task.project_id == row.id)
    ids: dict[str, str] = {found[0]: found[1] for found in session.execute(existing)}
    new = {key: group for key, group in zip(keys, groups) if key not in ids}
    last = session.scalar(select(func.max(t.Task.order_key)).where(t.Task.project_id == row.id))
    order = sorted(new, key=lambda key: _draw("order", row.seed, key))
    n_slice = round(plan.slice * len(new)) if plan is not None else 0
    in_slice = set(sorted(new, key=lambda key: _draw("slice", row.seed, key))[:n_slice])
    ids |= {key: uuid7() for key in order}
    shared = {"project_id": row.id, "kind": kind, "state": "open", "created_by_strategy": strategy}
    tasks: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    seats: list[dict[str, Any]] = []
    for place, key in enumerate(order, start=0 if last is None else last + 1):
        group, task = new[key], ids[key]
        facts = {"id": task, "key": key, "prompt_id": group[0].prompt_id, "n_items": len(group)}
        tasks.append(facts | shared | {"priority": priority, "order_key": place})
        items += [{"task_id": task, "slot": s, "completion_id": c.id} for s, c in enumerate(group)]
        if plan is not None:
            tested = splits[group[0].prompt_id] == "test"
            votes = plan.slice_votes if key in in_slice else max(plan.votes, tested * plan.slice_votes)
            seats += [seat_row(row.id, task, -priority, place) for _ in range(votes)]
    for table, rows in ((t.Task, tasks), (t.TaskItem, items), (t.Seat, seats)):
        if rows:
            session.execute(insert(table), rows)
    return [ids[key] for key in keys]


def derived_task(session: Session, project: t.Project, original: t.Task, kind: str, whose: str = "") -> t.Task:
    """The task of this kind that shows `original` once more (to `whose`, a handle), made where it does not exist."""
    key = content_id("task", project.slug, kind, original.key, whose)
    found = session.scalar(select(t.Task).where(t.Task.project_id == project.id, t.Task.key == key))
    if found is not None:
        return found
    task = t.Task(
        id=uuid7(),
        project_id=project.id,
        key=key,
        kind=kind,
        prompt_id=original.prompt_id,
        n_items=original.n_items,
        repeat_of=original.id,
        priority=original.priority,
        order_key=original.order_key,
        state="open" if kind == "adjudication" else "done",  # nothing waits for a repeat
        created_by_strategy=original.created_by_strategy,
    )
    session.add(task)
    session.flush()
    slots = select(t.TaskItem.slot, t.TaskItem.completion_id).where(t.TaskItem.task_id == original.id)
    items = [{"task_id": task.id, "slot": slot, "completion_id": c} for slot, c in session.execute(slots)]
    session.execute(insert(t.TaskItem), items)
    return task


def seat_row(project_id: str, task_id: str, place: float, order_key: int) -> dict[str, Any]:
    """The columns of a new open seat."""
    row = {"id": uuid7(), "project_id": project_id, "task_id": task_id, "state": "open"}
    return row | {"batch": 0, "place": place, "order_key": order_key}


def _completions(session: Session, names: set[str]) -> dict[str, t.Completion]:
    rows = fetch(session, select(t.Completion), t.Completion, names)
    return {r.id: r for r in rows} | {r.key: r for r in rows}


def _checked(kind: str, index: int, group: Sequence[str], known: dict[str, t.Completion]) -> list[t.Completion]:
    place = f"comparisons[{index}]"
    low, high = SIZES[kind]
    if len(group) < low:
        needs = "a comparison needs at least two" if low == 2 else "a task needs at least one"
        raise StoreError(f"{place}: holds {len(group)} completion; {needs}")
    if len(group) > high:
        raise StoreError(f"{place}: holds {len(group)} completions; a {kind} project takes at most {high} a task")
    for name in group:
        if name not in known:
            raise StoreError(f"{place}: completion '{name}' is not in the store; call add_completions first")
    rows = [known[name] for name in group]
    if len({r.prompt_id for r in rows}) > 1:
        raise StoreError(f"{place}: the completions answer different prompts; compare answers to one prompt")
    if len({r.text_sha256 for r in rows}) < len(rows):
        raise StoreError(f"{place}: two completions have the same text; leave the comparison out")
    return rows


def _draw(what: str, seed: int, key: str) -> bytes:
    """A random sort key that depends on the content alone: the order in which pairs are given changes nothing."""
    return hashlib.sha256(f"{what}|{seed}|{key}".encode()).digest()
