"""The rows of a preference data set: what a snapshot file holds, and the training records they become."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from alignloop.core.errors import StoreError
from alignloop.core.types import Completion, Preference, Prompt
from alignloop.store import tables as t
from alignloop.store.records import as_json, completion_record, fetch, messages_of, prompt_record
from alignloop.store.votes import Vote, load_items, load_votes, votes_sha256


def preference_rows(session: Session, project: t.Project, aggregation: t.Aggregation) -> list[dict[str, Any]]:
    """The rows of one project under one aggregation, sorted by id (the task's key).

    votes: a = annotator, s = strength in the row's frame (> 0 prefers chosen), side of the chosen one (L or R), ms.
    Errors: StoreError if votes have come or gone since the aggregation.
    """
    votes = load_votes(session, project)
    if votes_sha256(votes) != aggregation.votes_sha256:
        raise StoreError(f"project '{project.slug}': its votes changed after they were aggregated; aggregate again")
    by_task: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_task[vote.task_id].append(vote)
    items = {task: item for task, item in load_items(session, project).items() if task in by_task}
    prompts = {r.id: prompt_record(r) for r in fetch(session, select(t.Prompt), t.Prompt, _of(items, "prompt"))}
    written = {r.id: r for r in fetch(session, select(t.Completion), t.Completion, _of(items, "completions"))}
    estimates = session.scalars(select(t.Estimate).where(t.Estimate.aggregation_id == aggregation.id))
    rows = []
    for estimate in estimates:
        item = items[estimate.task_id]
        prompt = prompts[item.prompt_id]
        pair = [completion_record(written[c], prompt.id) for c in item.completions]
        rows.append(_row(estimate, by_task[estimate.task_id], prompt, pair))
    return sorted(rows, key=lambda row: str(row["id"]))


def preference_of(row: dict[str, Any]) -> Preference:
    """The training record of a row."""
    prompt = Prompt(row["prompt_id"], messages_of(row["prompt"]), row["source"], row["split"], row["extra"])
    chosen, rejected = (
        Completion(
            row[f"{side}_id"],
            prompt.id,
            messages_of(row[side]),
            row[f"{side}_author"],
            row[f"{side}_sample"],
            row[f"{side}_ended"],
        )
        for side in ("chosen", "rejected")
    )
    return Preference(
        id=row["id"],
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        p=row["p"],
        margin=row["margin"],
        weight=row["weight"],
        group=row["group_id"],
        annotators=tuple(sorted({v["a"] for v in row["votes"]})),
        kind=row["kind"],
    )


def _of(items: dict[str, Any], what: str) -> set[str]:
    if what == "prompt":
        return {item.prompt_id for item in items.values()}
    return {c for item in items.values() for c in item.completions}


def _row(e: t.Estimate, votes: Sequence[Vote], prompt: Prompt, pair: Sequence[Completion]) -> dict[str, Any]:
    first = e.p_slot0 >= 0.5
    sign = 1 if first else -1
    chosen, rejected = (pair[0], pair[1]) if first else (pair[1], pair[0])
    cast: list[dict[str, Any]] = [
        {"a": v.annotator, "s": sign * v.strength, "side": "L" if v.first_left == first else "R", "ms": v.active_ms}
        for v in votes
    ]
    kinds = {v.kind for v in votes}
    row: dict[str, Any] = {
        "id": votes[0].task,
        "prompt_id": prompt.id,
        "prompt": as_json(prompt.messages),
        "source": prompt.source,
        "split": prompt.split,
        "extra": dict(prompt.extra),
        "p": e.p_slot0 if first else 1 - e.p_slot0,
        "margin": e.margin,
        "weight": 1.0,
        "strength": sum(v["s"] for v in cast) / len(cast),
        "n_votes": len(cast),
        "votes": sorted(cast, key=lambda v: (v["a"], v["s"], v["side"])),
        "both_bad": sum(map(int, (v.both_bad for v in votes))),
        "both_good": sum(map(int, (v.both_good for v in votes))),
        "tie": e.tie,
        "disputed": e.disputed,
        "group_id": prompt.id,
        "kind": next(iter(kinds)) if len(kinds) == 1 else ("human" if "human" in kinds else "ai"),
    }
    for side, completion in (("chosen", chosen), ("rejected", rejected)):
        row[side] = as_json(completion.messages)
        row[f"{side}_id"], row[f"{side}_author"] = completion.id, completion.author
        row[f"{side}_sample"], row[f"{side}_ended"] = completion.sample_id, completion.ended
    return row
