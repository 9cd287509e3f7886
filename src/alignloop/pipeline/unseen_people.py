"""Does a reward model predict people it never saw? Reward models on the votes of some, tried on the votes of others.

In fold k the model learns from the votes of everybody but group k, on the prompts that are not in part k. It is tried
on the prompts of part k: on the votes of group k (unseen people) and on everybody else's (seen people, unseen votes).
So the two differ by the people alone. `feedback.unseen_people` has the statistics and the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from alignloop.core.errors import DataError
from alignloop.core.files import write_json
from alignloop.core.types import Preference
from alignloop.data.splits import folds
from alignloop.feedback.aggregate import AggregateConfig, estimate
from alignloop.feedback.unseen_people import (
    GROUPS,
    Prediction,
    UnseenPeople,
    people_in_groups,
    unseen_people,
    votes_of_rows,
)
from alignloop.store.rows import preference_of
from alignloop.store.snapshots import load_rows
from alignloop.store.votes import Vote

REPORT = "people.json"
Judge = Callable[[Sequence[Preference]], Sequence[float]]
"""Comparisons -> score(chosen) − score(rejected) of each."""
Learn = Callable[[list[Preference], int], Judge]
"""(what a fold learns from, its number) -> the model."""


def held_out_people(
    snapshot: str | Path, model: str, out: Path, *, groups: int = GROUPS, seed: int = 0, settings: Mapping[str, Any]
) -> UnseenPeople:
    """Train a reward model a fold from `model` under `out`, and write the report beside them.

    settings: of the method `reward`. Killed and called again, it goes on. Errors: StoreError for what is no snapshot of
    comparisons, DataError for votes of fewer than two people, or fewer prompts than groups.
    """
    rows = [row for row in load_rows(snapshot, "pairs") if row["origin"] == "votes"]
    try:
        members = people_in_groups([v.annotator for v in votes_of_rows(rows)], groups, seed)
    except DataError as error:
        raise DataError(error.reason, file=str(snapshot), field=error.field) from None
    learn = _trained(model, out, {"seed": seed, **settings})
    found = unseen_people(predictions(rows, members, learn, seed), max(members.values()) + 1, seed)
    write_json(out / REPORT, {"snapshot": str(snapshot), "model": model, "seed": seed, **asdict(found)})
    return found


def predictions(
    rows: Sequence[Mapping[str, Any]], members: Mapping[str, int], learn: Learn, seed: int = 0
) -> Iterator[Prediction]:
    """Every vote of the rows that names a side, predicted by the model of the fold that its prompt was left out of."""
    records = {row["id"]: replace(preference_of(dict(row)), margin=0.0) for row in rows}
    votes: dict[str, list[Vote]] = {key: [] for key in records}
    for vote in votes_of_rows(rows):
        votes[vote.task].append(vote)
    parts = folds(list(records.values()), max(members.values()) + 1, salt=f"unseen people {seed}")
    for k, (train, test) in enumerate(parts):
        learnt = [v for record in train for v in votes[record.id] if members[v.annotator] != k]
        judge = learn(_as_voted([records[r.id] for r in train], learnt), k)
        for record, delta in zip(test, judge(test), strict=True):
            for vote in votes[record.id]:
                if vote.strength:
                    hit = 0.5 if delta == 0 else float((delta > 0) == (vote.strength > 0))
                    yield Prediction(vote.annotator, members[vote.annotator] != k, hit)


def _as_voted(records: Sequence[Preference], votes: Sequence[Vote]) -> list[Preference]:
    """The records as these votes alone would have them; those without a vote are left out."""
    if not votes:
        raise DataError("a group of people cast all the votes of a fold; take fewer groups", field="groups")
    found = estimate(votes, AggregateConfig())
    p_of = dict(zip(found.tasks, found.p.tolist()))
    decided = {v.task for v in votes if v.strength}
    out = []
    for record in records:
        if record.id in p_of:
            p = p_of[record.id] if record.id in decided else 0.5
            sides = (record.chosen, record.rejected) if p >= 0.5 else (record.rejected, record.chosen)
            out.append(replace(record, chosen=sides[0], rejected=sides[1], p=max(p, 1 - p)))
    return out


def _trained(model: str, out: Path, settings: Mapping[str, Any]) -> Learn:
    def learn(records: list[Preference], fold: int) -> Judge:
        from alignloop.pipeline.measure import pair_scores
        from alignloop.training.scoring import RewardModel
        from alignloop.training.train import train

        made = train("reward", model=model, data=records, output_dir=out / f"fold-{fold}", **settings)

        def judge(pairs: Sequence[Preference]) -> list[float]:
            _, chosen, rejected = pair_scores(RewardModel.load(made.path), pairs)
            return [a - b for a, b in zip(chosen, rejected)]

        return judge

    return learn
