"""Estimates and intervals against numbers worked out by hand."""

import doctest
import math

import numpy as np
import pytest

from alignloop.core.errors import DataError
from alignloop.evaluation import perplexity, stats
from alignloop.evaluation.stats import bootstrap_ci, bootstrap_means, mean_se, paired_difference, proportion_se, wilson


@pytest.mark.parametrize("module", [stats, perplexity])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


def test_mean_and_se_by_hand():
    m = mean_se([2.0, 4.0, 6.0])  # sd = 2, SE = 2/sqrt(3)
    assert (m.mean, m.n) == (4.0, 3)
    assert m.se == pytest.approx(1.1547005)


def test_clustered_se_by_hand():
    # Prompt means 1, 5 and 3: the SE is that of three values, sd 2, not of six.
    m = mean_se([1.0, 1.0, 5.0, 5.0, 3.0, 3.0], groups=["a", "a", "b", "b", "c", "c"])
    assert m.mean == 3.0
    assert m.se == pytest.approx(1.1547005)
    # Unequal clusters: sums 3 (of 3 values) and 3 (of 1), mean 1.5; residuals -1.5 and 1.5; sqrt(2/1 * 4.5)/4 = .75.
    assert mean_se([1.0, 1.0, 1.0, 3.0], groups=[0, 0, 0, 1]).se == pytest.approx(0.75)


def test_one_unit_alone_has_no_se():
    assert math.isnan(mean_se([3.0]).se)
    assert math.isnan(mean_se([1.0, 2.0], groups=["p", "p"]).se)


def test_binary_se_golden():
    assert proportion_se(0.6, 100) == pytest.approx(0.04899, abs=1e-5)
    wins = np.r_[np.ones(60), np.zeros(40)]
    assert bootstrap_means(wins, seed=1).std() == pytest.approx(0.04899, rel=0.03)
    ci = bootstrap_ci(wins, seed=1)
    assert ci.low == pytest.approx(0.50, abs=0.011)
    assert ci.high == pytest.approx(0.70, abs=0.011)


def test_bootstrap_resamples_prompts_not_samples():
    # 50 prompts of 4 identical answers are 50 facts, not 200: the interval must not shrink by half.
    values = np.r_[np.ones(30), np.zeros(20)]
    alone, copied = (
        bootstrap_ci(values, seed=3),
        bootstrap_ci(np.repeat(values, 4), np.repeat(np.arange(50), 4), seed=3),
    )
    assert copied == alone
    naive = bootstrap_ci(np.repeat(values, 4), seed=3)
    assert naive.high - naive.low < 0.6 * (copied.high - copied.low)


def test_bootstrap_is_seeded_and_chunks_change_nothing_of_the_mean():
    x = np.arange(500.0)
    assert bootstrap_ci(x, seed=5) == bootstrap_ci(x, seed=5)
    assert bootstrap_ci(x, seed=5) != bootstrap_ci(x, seed=6)
    assert bootstrap_means(x, resamples=9000).shape == (9000,)  # more than one chunk
    assert bootstrap_ci([2.5, 2.5, 2.5]).low == bootstrap_ci([2.5, 2.5, 2.5]).high == 2.5


def test_wilson_published_values():
    ten = wilson(8, 10)
    assert (round(ten.low, 4), round(ten.high, 4)) == (0.4902, 0.9433)
    none = wilson(0, 10)
    assert (none.low, round(none.high, 4)) == (0.0, 0.2775)
    assert wilson(10, 10).high == 1.0


def test_paired_difference_cancels_what_is_shared():
    difficulty = np.random.default_rng(0).normal(0, 5, 40)
    d = paired_difference(difficulty + 1.0, difficulty)
    assert d.mean == pytest.approx(1.0)
    assert d.se == pytest.approx(0.0, abs=1e-9)
    assert (d.ci.low, d.ci.high) == pytest.approx((1.0, 1.0))
    by_hand = paired_difference([3.0, 5.0, 4.0], [1.0, 1.0, 4.0])  # differences 2, 4, 0: sd 2
    assert (by_hand.mean, by_hand.se) == pytest.approx((2.0, 1.1547005))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: mean_se([]), "field 'values'"),
        (lambda: mean_se([1.0, float("nan")]), "row 1, field 'values'"),
        (lambda: mean_se([1.0, 2.0], groups=["a"]), "1 groups for 2 values"),
        (lambda: wilson(3, 2), "3 successes of 2"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "same items"),
        (lambda: bootstrap_ci([1.0], resamples=0), "resamples"),
    ],
)
def test_bad_input_names_the_place(call, words):
    with pytest.raises(DataError, match=words):
        call()
