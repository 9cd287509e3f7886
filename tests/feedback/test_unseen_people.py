"""People left out: their groups, the shares of their votes that were predicted, and the consensus of the others."""

import numpy as np
import pytest

from alignloop.core.errors import DataError
from alignloop.feedback.ordinal import fit_ordinal
from alignloop.feedback.unseen_people import (
    Prediction,
    consensus_on_unseen,
    people_in_groups,
    unseen_people,
    votes_of_rows,
)
from alignloop.feedback.vote_arrays import VoteArrays


def test_everybody_is_in_one_group_and_groups_are_even():
    names = [f"p{k}" for k in range(11)]
    found = people_in_groups([*names, "p0"], 4, seed=3)
    assert sorted(found) == sorted(names)
    assert sorted(np.bincount(list(found.values())).tolist()) == [2, 3, 3, 3]
    assert found == people_in_groups(names[::-1], 4, seed=3)
    assert found != people_in_groups(names, 4, seed=4)


def test_there_are_no_more_groups_than_people():
    assert sorted(people_in_groups(["a", "b"], 5).values()) == [0, 1]
    with pytest.raises(DataError, match="votes of one person"):
        people_in_groups(["a", "a"])
    with pytest.raises(DataError, match="field 'groups'"):
        people_in_groups(["a", "b"], 1)


def test_shares_by_hand():
    """a: 1 of 2 unseen, 3 of 4 seen; b: half of 1 unseen; c: seen only."""
    said = {("a", False): [1, 0], ("a", True): [1, 1, 1, 0], ("b", False): [0.5], ("c", True): [0, 0]}
    found = unseen_people([Prediction(who, seen, hit) for (who, seen), hits in said.items() for hit in hits], 2)
    assert (found.groups, found.people) == (2, 3)
    assert (found.unseen.value, found.unseen.n) == (0.5, 3)  # 1.5 of 3
    assert (found.seen.value, found.seen.n) == (0.5, 6)
    assert (found.gap.value, found.gap.n) == (0.25, 2)  # a alone has both: 3/4 - 1/2
    assert found.unseen.low is None and found.unseen.why == "2 people are too few for an interval"


def test_intervals_are_over_people():
    """Ten people, half always predicted and half never: the share is uncertain by people, whatever their votes."""
    said = [Prediction(f"p{k}", False, float(k % 2)) for k in range(10) for _ in range(100)]
    found = unseen_people(said, 5).unseen
    assert (found.value, found.n) == (0.5, 1000)
    assert found.low == pytest.approx(0.2, abs=0.11) and found.high == pytest.approx(0.8, abs=0.11)


def test_nothing_predicted():
    found = unseen_people([], 5)
    assert (found.people, found.unseen.value, found.unseen.why) == (0, None, "no such votes")


def votes(strength: list[list[int]]) -> VoteArrays:
    """strength[j][i] of person j on item i."""
    table = np.array(strength)
    who, item = np.indices(table.shape)
    sides = np.where((who + item) % 2, 1.0, -1.0).ravel()
    return VoteArrays(item.ravel(), who.ravel(), table.ravel(), sides, table.shape[1], table.shape[0])


def test_a_dissenter_is_the_one_whom_the_others_do_not_predict():
    """Four agree on twenty items and the fifth contradicts them: four of five are foreseen, ties are not tried."""
    agreed = [2 if i % 2 else -2 for i in range(20)]
    arrays = votes([agreed] * 4 + [[-s for s in agreed]])
    names = ["a", "b", "c", "d", "e"]
    found = consensus_on_unseen(arrays, names, fit_ordinal(arrays))
    assert (found.value, found.n) == (0.8, 100)
    tied = votes([agreed[:10] + [0] * 10] * 5)
    assert consensus_on_unseen(tied, names, fit_ordinal(tied)).n == 50


def test_items_that_only_the_group_judged_say_nothing():
    arrays = VoteArrays(np.array([0, 1]), np.array([0, 1]), np.array([2, 2]), np.array([1.0, 1.0]), 2, 2)
    assert consensus_on_unseen(arrays, ["a", "b"], fit_ordinal(arrays)).why == "no such votes"
    assert consensus_on_unseen(arrays, ["a"], fit_ordinal(arrays)).why == "one person has voted"


def test_votes_come_back_from_the_rows_of_a_snapshot():
    cast = [{"a": "h1", "s": 2, "side": "R", "ms": 900}, {"a": "h2", "s": -1, "side": "L", "ms": None}]
    rows = [{"id": "t", "origin": "votes", "kind": "human", "votes": cast}, {"id": "t-e-h1", "origin": "edit"}]
    assert [(v.task, v.annotator, v.strength, v.first_left, v.active_ms) for v in votes_of_rows(rows)] == [
        ("t", "h1", 2, False, 900),
        ("t", "h2", -1, True, None),
    ]
