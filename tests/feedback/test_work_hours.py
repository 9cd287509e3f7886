"""What a project costs in people's hours, so far and to come."""

from __future__ import annotations

import pytest

from alignloop.feedback.activity import Forecast, activity, work_of
from alignloop.feedback.judgements import Verdict
from alignloop.feedback.queue import claim, pass_on, submit, undo
from alignloop.feedback.tasks import create_tasks

HOUR = 3_600_000


def test_hours_by_hand():
    """One person took 2 hours for 60 votes, another 1 hour for 60: 90 s a vote, half an hour each off the mean."""
    found = work_of([(2 * HOUR, 60), (HOUR, 60)], 40)
    assert (found.hours, found.seconds.value, found.seconds.n) == (3.0, 90.0, 120)
    # sd: sqrt(2/1 · (.5² + .5²)) / 120 hours = 1/120 hours = 30 s
    assert (found.seconds.low, found.seconds.high) == pytest.approx((90 - 1.96 * 30, 90 + 1.96 * 30), abs=0.01)
    assert found.to_come.hours == 1.0
    assert (found.to_come.low, found.to_come.high) == pytest.approx((0.3467, 1.6533), abs=1e-3)


def test_one_person_tells_no_interval_and_nobody_nothing():
    assert work_of([(HOUR, 30)], 30).to_come == Forecast(1.0, None, None)
    assert work_of([(HOUR, 30)], 0).to_come is None
    assert work_of([], 5) is None and work_of([(HOUR, 0)], 5) is None


def test_skips_and_what_was_taken_back_cost_time_and_are_no_votes(store, pairs):
    create_tasks(store, "votes", pairs, overlap=1)
    submit(store, claim(store, "votes", "ann"), Verdict(1, active_ms=20_000))
    pass_on(store, claim(store, "votes", "ann"), "unclear", active_ms=10_000)
    submit(store, claim(store, "votes", "bob"), Verdict(1, active_ms=30_000))
    undo(store, "votes", "bob")
    submit(store, claim(store, "votes", "bob"), Verdict(-1, active_ms=40_000))
    submit(store, claim(store, "votes", "cy"), Verdict(1))  # nobody measured this one
    found = activity(store, "votes").work
    assert found.hours == pytest.approx(100 / 3600)
    assert (found.seconds.value, found.seconds.n) == (pytest.approx(50), 2)
    assert found.to_come.hours == pytest.approx(7 * 50 / 3600)
