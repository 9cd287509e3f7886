"""Two people who answer alike too often, and people who do so because they read well or lean to one side."""

from __future__ import annotations

from math import erfc, sqrt

import numpy as np
import pytest

from alignloop.feedback.copying import answer_alike
from alignloop.feedback.ordinal import fit_ordinal
from alignloop.feedback.vote_arrays import VoteArrays

PEOPLE, ITEMS = 6, 400
NAMES = [f"p{k}" for k in range(PEOPLE)]


def campaign(seed: int, *, copied: float = 0.0, left: float = 0.0) -> VoteArrays:
    """Three of six people on each item; p1 takes over a share of p0's answers; p2 and p3 lean to the left."""
    rng = np.random.default_rng(seed)
    d = rng.normal(0, 1.5, ITEMS)
    who = np.concatenate([rng.permutation(PEOPLE)[:3] for _ in range(ITEMS)])
    item = np.repeat(np.arange(ITEMS), 3)
    side = rng.choice([-1.0, 1.0], len(item))
    skill = np.exp(rng.normal(0, 0.3, PEOPLE))
    lean = np.where(np.isin(who, (2, 3)), left, 0.0)
    u = skill[who] * d[item] + lean * side + rng.logistic(size=len(item))
    strength = (u[:, None] > np.array([-2.0, -0.5, 0.5, 2.0])).sum(axis=1) - 2
    for i in range(ITEMS):
        here = np.flatnonzero(item == i)
        if {0, 1} <= set(who[here].tolist()) and rng.random() < copied:
            strength[here[who[here] == 1]] = strength[here[who[here] == 0]]
    return VoteArrays(item, who, strength, side, ITEMS, PEOPLE)


def test_a_copier_is_found_and_nobody_else():
    for seed in range(4):
        arrays = campaign(seed, copied=0.7)
        found = answer_alike(arrays, NAMES, fit_ordinal(arrays))
        assert [(f.first, f.second) for f in found if f.suspected] == [("p0", "p1")]
        assert found[0].same.value > found[0].expected + 0.2 and found[0].same.n > 60


def test_people_who_read_for_themselves_are_as_alike_as_expected():
    """60 pairs of four campaigns: nobody is suspected, and on average they agree as often as the model says."""
    gaps, chances = [], []
    for seed in range(4):
        arrays = campaign(20 + seed)
        found = answer_alike(arrays, NAMES, fit_ordinal(arrays))
        assert len(found) == 15 and not any(f.suspected for f in found)
        gaps += [f.same.value - f.expected for f in found]
        chances += [f.p for f in found]
    assert abs(np.mean(gaps)) < 0.02
    assert 0.3 < np.mean(chances) < 0.75


def test_a_common_habit_is_no_copying():
    arrays = campaign(7, left=2.0)
    found = {(f.first, f.second): f for f in answer_alike(arrays, NAMES, fit_ordinal(arrays))}
    assert not found["p2", "p3"].suspected


def test_too_few_shared_items_say_nothing():
    arrays = campaign(0, copied=1.0)
    few = arrays.without(arrays.item >= 40)
    assert answer_alike(few, NAMES, fit_ordinal(few)) == ()
    assert len(answer_alike(few, NAMES, fit_ordinal(few), least=2)) == 15


def test_the_chance_by_hand():
    """Two who always tie on 40 items and nobody else: the same every time, and the model knows that they tie."""
    item, who = np.repeat(np.arange(40), 2), np.tile([0, 1], 40)
    arrays = VoteArrays(item, who, np.zeros(80, dtype=int), np.ones(80), 40, 2)
    [one] = answer_alike(arrays, ["a", "b"], fit_ordinal(arrays))
    assert (one.same.value, one.same.n) == (1.0, 40) and one.expected > 0.8
    e = one.expected  # of 40 equal items: 40 alike, 40 e expected, variance 40 e (1 - e)
    assert one.p == pytest.approx(erfc((40 - 40 * e - 0.5) / sqrt(2 * 40 * e * (1 - e))) / 2)
    assert not one.suspected
