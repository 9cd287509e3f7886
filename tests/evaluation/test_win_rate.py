"""Win rates: both orders, prompts as the unit, antisymmetry."""

import numpy as np
import pytest

from alignloop.core.errors import DataError
from alignloop.evaluation.win_rate import (
    Verdict,
    compare,
    judge_both_orders,
    length_controlled,
    score_judge,
    win_rate,
    win_rate_of_scores,
)

PROMPTS = [f"prompt {i}" for i in range(6)]
SHORT = ["a", "bb", "ccc", "d", "e", "f"]
LONG = ["aa", "b", "cccc", "d", "ee", "f"]
longest = score_judge(lambda prompt, text: float(len(text)))


def first_place(prompt, a, b):
    """A judge who always takes what stands first."""
    return 1.0


def leaning(prompt, a, b):
    """A judge who likes long texts and the first place."""
    return float(np.clip(0.5 + 0.2 * (len(a) - len(b)) + 0.1, 0, 1))


def test_counts_by_hand():
    w = compare(PROMPTS, LONG, SHORT, longest)  # win, loss, win, tie, win, tie -> (3 + 2/2)/6
    assert (w.wins, w.ties, w.losses, w.prompts) == (3, 2, 1, 6)
    assert w.rate == pytest.approx(4 / 6)
    assert w.ci.low < w.rate < w.ci.high
    assert w.position_bias == pytest.approx(0.0)


def test_antisymmetry_and_self_comparison():
    ab, ba = compare(PROMPTS, LONG, SHORT, leaning), compare(PROMPTS, SHORT, LONG, leaning)
    assert ab.rate + ba.rate == pytest.approx(1.0)
    assert compare(PROMPTS, LONG, LONG, leaning).rate == pytest.approx(0.5)
    assert compare(PROMPTS, LONG, LONG, first_place).ci == compare(PROMPTS, SHORT, SHORT, first_place).ci


def test_a_judge_of_places_says_nothing():
    w = compare(PROMPTS, LONG, SHORT, first_place)
    assert (w.rate, w.ties, w.position_bias) == (0.5, 6, 0.5)
    # One order alone would have said that A wins always.
    one = win_rate([Verdict(p, "ab", 1.0) for p in PROMPTS], allow_missing_order=True)
    assert (one.rate, one.position_bias) == (1.0, None)


def test_several_answers_of_a_prompt_are_one_cluster():
    a = [["xx", "x"], ["x", "x"]]
    b = [["x", "xx"], ["xx", "xx"]]
    w = compare(["p", "q"], a, b, longest)
    assert (w.rate, w.prompts) == (0.25, 2)
    assert (w.wins, w.losses) == (1, 3)
    assert w.se == pytest.approx(0.25)  # prompt means .5 and 0: sd .3536 / sqrt(2)


def test_words_as_winners():
    verdicts = [
        Verdict("p", "ab", "a"),
        Verdict("p", "ba", "b"),
        Verdict("q", "ab", "a"),
        Verdict("q", "ba", "tie"),
    ]
    w = win_rate(verdicts)  # p: 1 and 0 -> 1/2; q: 1 and 1/2 -> 3/4
    assert w.rate == pytest.approx(0.625)
    assert (w.wins, w.ties) == (1, 1)


@pytest.mark.parametrize(
    "verdicts, words",
    [
        ([Verdict("p", "ab", "a")], "lacks a judgement in one order"),
        ([Verdict("p", "ab", "a"), Verdict("p", "ab", "b"), Verdict("p", "ba", "b")], "judged twice"),
        ([Verdict("p", "ab", "left")], "'left' is no winner"),
        ([Verdict("p", "ab", 1.2)], "no probability"),
        ([Verdict("p", "xy", "a")], "order 'xy'"),
        ([], "nothing to average"),
    ],
)
def test_bad_verdicts(verdicts, words):
    with pytest.raises(DataError, match=words):
        win_rate(verdicts)


def test_bad_pairs():
    with pytest.raises(DataError, match=r"row 1.*comes twice"):
        judge_both_orders(["p", "p"], ["a", "b"], ["a", "b"], longest)
    with pytest.raises(DataError, match="2 answers of A for 1 of B"):
        judge_both_orders(["p"], [["a", "b"]], [["a"]], longest)
    with pytest.raises(DataError, match="1 prompts, 2 answers"):
        judge_both_orders(["p"], ["a", "b"], ["a"], longest)


def test_win_rate_of_scores_takes_all_pairs():
    w = win_rate_of_scores([[3.0, 1.0], [2.0]], [[2.0, 0.0], [2.0, 5.0]])  # 3/4 and (1/2 + 0)/2 = 1/4
    assert w.rate == pytest.approx(0.5)
    back = win_rate_of_scores([[2.0, 0.0], [2.0, 5.0]], [[3.0, 1.0], [2.0]])
    assert w.rate + back.rate == pytest.approx(1.0)
    assert win_rate_of_scores([[1.0]], [[1.4]], tie=0.5).rate == 0.5


def test_length_control_takes_the_length_out():
    rng = np.random.default_rng(0)
    gap = rng.normal(1, 1, 4000)
    raw = 1 / (1 + np.exp(-1.5 * np.tanh(gap / gap.std())))
    fit = length_controlled(rng.random(4000) < raw, gap)
    assert fit is not None
    assert fit.raw > 0.65
    assert fit.rate == pytest.approx(0.5, abs=0.03)
    assert fit.slope == pytest.approx(1.5, abs=0.2)
    mirrored = length_controlled(1 - (rng.random(4000) < raw), -gap)
    assert mirrored is not None and mirrored.rate == pytest.approx(0.5, abs=0.03)


def test_length_control_not_applicable():
    assert length_controlled([1.0, 0.0, 1.0], [2.0, 2.0, 2.0]) is None  # no difference in length
    assert length_controlled([1.0, 1.0, 0.0, 0.0], [1.0, 2.0, -1.0, -2.0]) is None  # perfectly separated
