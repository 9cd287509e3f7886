"""What models are tested on gets as many votes as the slice from which agreement is measured."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select

from alignloop.core.types import Completion, Message, Prompt
from alignloop.feedback.projects import create_project
from alignloop.feedback.tasks import Overlap, create_tasks
from alignloop.store import Store
from alignloop.store import tables as t

SPLITS = ("train", "validation", "test", "test")


@pytest.mark.parametrize(
    ("overlap", "votes"),
    [
        (Overlap(slice=0), [1, 1, 3, 3]),
        (Overlap(slice=1, slice_votes=4), [4, 4, 4, 4]),
        (Overlap(votes=5, slice=0, slice_votes=3), [5, 5, 5, 5]),  # never fewer than any other task
        (2, [2, 2, 2, 2]),
    ],
)
def test_tasks_of_test_prompts_have_the_votes_of_the_slice(tmp_path, overlap, votes):
    with Store(tmp_path / "s.db") as store:
        store.add_prompts([Prompt(f"p{k}", (Message("user", f"{k}?"),), "", s) for k, s in enumerate(SPLITS)])
        store.add_completions(
            [Completion(f"{k}{s}", f"p{k}", (Message("assistant", s),)) for k in range(4) for s in "ab"]
        )
        create_project(store, "votes")
        tasks = create_tasks(store, "votes", [(f"{k}a", f"{k}b") for k in range(4)], overlap=overlap)
        with store.read() as session:
            seats = Counter(session.scalars(select(t.Seat.task_id)))
        assert [seats[task] for task in tasks] == votes
