"""KL against a reference, and what texts look like."""

import math

import numpy as np
import pytest

from alignloop.core.errors import DataError
from alignloop.evaluation.drift import distinct, kl_to_reference, repeated_trigrams, self_bleu, text_stats
from alignloop.evaluation.suite import Evaluation, scores, sections


def test_kl_by_hand():
    # Sequence sums of d: ln 2 and -ln 2 + 0; k3 = e^-d - 1 + d.
    logp, ref = [[math.log(0.5)], [math.log(0.25), -1.0]], [[math.log(0.25)], [math.log(0.5), -1.0]]
    k = kl_to_reference(logp, ref)
    assert k.mean == pytest.approx(0.0)
    assert k.se == pytest.approx(math.log(2))  # sd = ln2 * sqrt 2, over sqrt 2
    assert k.k3 == pytest.approx(((0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2))) / 2)  # = 1/4
    assert k.k3 == pytest.approx(0.25)
    assert (k.per_token, k.n) == (pytest.approx(0.0), 2)


def test_kl_reads_nothing_outside_the_mask():
    logp = np.array([[-1.0, np.nan], [-2.0, -3.0]])
    ref = np.array([[-1.5, np.inf], [-2.0, -3.5]])
    k = kl_to_reference(logp, ref, mask=np.array([[True, False], [True, True]]))
    assert k.mean == pytest.approx(0.5)
    assert k.per_token == pytest.approx(1.0 / 3)


def test_kl_of_a_policy_with_itself_is_zero_and_k3_is_never_negative():
    rng = np.random.default_rng(0)
    logp = [-rng.random(5) for _ in range(20)]
    same = kl_to_reference(logp, logp)
    assert (same.mean, same.se, same.k3) == (0.0, 0.0, 0.0)
    moved = kl_to_reference(logp, [x - rng.normal(0, 0.1, 5) for x in logp])
    assert moved.k3 > 0


def test_k1_and_k3_estimate_the_true_kl():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.4, 0.4, 0.2])
    draws = np.random.default_rng(3).choice(3, size=40_000, p=p)
    k = kl_to_reference(np.log(p[draws])[:, None], np.log(q[draws])[:, None])
    assert k.mean == pytest.approx(0.183787, abs=4 * k.se)  # .7 ln 1.75 + .3 ln .5
    assert k.k3 == pytest.approx(0.183787, abs=4 * k.k3_se)
    assert k.k3_se < k.se


def test_kl_clusters_by_prompt():
    logp, ref = [[-1.0], [-1.0], [-3.0], [-3.0]], [[-1.0], [-1.0], [-4.0], [-4.0]]
    assert kl_to_reference(logp, ref, groups=["p", "p", "q", "q"]).se == pytest.approx(0.5)


@pytest.mark.parametrize(
    "logp, ref, mask, words",
    [
        ([], [], None, "0 rows"),
        ([[-1.0]], [[-1.0, -1.0]], None, "row 0"),
        ([[-1.0], [0.5]], [[-1.0], [-1.0]], None, "row 1, field 'logp'.*above 0"),
        ([[-np.inf]], [[-1.0]], None, "not finite"),
        ([[-1.0]], [[-1.0]], [[False]], "no sequence has a token"),
    ],
)
def test_kl_bad_input(logp, ref, mask, words):
    with pytest.raises(DataError, match=words):
        kl_to_reference(logp, ref, mask)


def test_text_statistics_by_hand():
    assert distinct([["a", "b", "a", "b"]], 1) == 0.5
    assert distinct([["a", "b", "a", "b"]], 2) == pytest.approx(2 / 3)  # ab ba ab
    assert distinct([["a"]], 3) == 0.0
    # abcabc: trigrams abc bca cab abc -> one of four repeats; the other text has none of its own.
    assert repeated_trigrams([list("abcabc"), list("abc")]) == pytest.approx(1 / 5)
    assert repeated_trigrams([["a"], []]) == 0.0
    s = text_stats(["One two", "one two three four"], truncated=[True, False])
    assert (s.n, s.words, s.truncated) == (2, 3.0, 0.5)
    assert s.distinct_1 == pytest.approx(4 / 6)
    assert s.self_bleu is None
    with pytest.raises(DataError):
        text_stats([])


def test_self_bleu_tells_collapse_from_variety():
    same = [["a", "b", "c", "d", "e"]] * 3
    assert self_bleu(same) == pytest.approx(1.0)
    assert self_bleu([["a", "b", "c"], ["d", "e", "f"]]) == 0.0
    mixed = text_stats(["the cat sat on the mat", "the dog sat on the rug", "a bird flew by today"], bleu_texts=10)
    assert 0 < mixed.self_bleu < 1


def test_evaluations_become_report_sections():
    base = Evaluation("base", gold=scores([1.0, 3.0], parts={"age": [0.0, 1.0]}), rouge={"rouge1": 0.2})
    sft = Evaluation("sft", gold=scores([4.0, 6.0]), kl=kl_to_reference([[-1.0], [-2.0]], [[-1.5], [-2.5]]))
    out = sections([base, sft])
    assert out["gold"]["base"] == {"mean": 2.0, "se": 1.0, "n": 2, "parts": {"age": 0.5}}
    assert out["models"] == ["base", "sft"]
    assert out["kl"]["sft"]["mean"] == 0.5
    assert "perplexity" not in out and set(out["rouge"]) == {"base"}
    with pytest.raises(DataError, match="twice"):
        sections([base, base])
    with pytest.raises(DataError, match=r"parts\.age"):
        scores([1.0, 2.0], parts={"age": [1.0]})
