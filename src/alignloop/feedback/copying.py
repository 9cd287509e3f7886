"""Who answers alike more often than two people who read for themselves would?

Given what an item is worth, the ordinal model takes votes for independent. So two people j and k give the same one of
the five answers to item i with probability

    e_i = ∫ Σ_v P_j(v | d) P_k(v | d) p(d | the other votes on i) dd,

and the sum over the items both have judged has the mean Σ e_i and the variance Σ e_i (1 − e_i). Copying, talking, one
person with two accounts and two scripts that press one key all show as too many. What the two agree on through skill,
a common side bias or a common use of the scale is in P_j and P_k already, fitted with their own votes: a cautious test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array
from scipy.special import ndtr

from alignloop.feedback.agreement import LEAST_SHARED
from alignloop.feedback.intervals import Floats, Ints, Rate, wilson
from alignloop.feedback.ordinal import NODES, OrdinalFit, VoteKinds, likelihood, posterior_of_d
from alignloop.feedback.vote_arrays import STRENGTHS, VoteArrays

ERROR = 0.01  # the chance that anybody at all is suspected where nobody copies
_AT_ONCE = 20_000  # pairs of votes compared together: 2 · 20,000 · 5 · 31 numbers, 50 MB


@dataclass(frozen=True)
class Alike:
    """Two people's answers to the items both judged. same: given alike; expected: by people who read for themselves.

    p: chance of as many or more among such people. suspected: p is below 1 % over the number of pairs looked at.
    """

    first: str
    second: str
    same: Rate
    expected: float
    p: float
    suspected: bool


def answer_alike(
    votes: VoteArrays, names: Sequence[str], fit: OrdinalFit, least: int = LEAST_SHARED
) -> tuple[Alike, ...]:
    """Every two people with `least` shared items or more, the least likely first. fit: of these votes."""
    m = votes.n_annotators
    sums = np.zeros((4, m * m))  # items, same answers, Σ e, Σ e (1 − e), by pair
    for first, second, expected in _compared(votes, fit):
        a, b = votes.annotator[first], votes.annotator[second]
        pair = np.minimum(a, b) * m + np.maximum(a, b)
        same = (votes.strength[first] == votes.strength[second]).astype(float)
        for row, column in zip(sums, (np.ones(len(pair)), same, expected, expected * (1 - expected))):
            row += np.bincount(pair, column, m * m)
    n, same, mean, variance = sums[:, known := np.flatnonzero(sums[0] >= least)]
    z = (same - mean - 0.5) / np.sqrt(np.maximum(variance, 1e-12))  # half an answer, since answers are counted
    p = ndtr(-z)
    found = []
    for k in np.argsort(p, kind="stable").tolist():
        share = wilson(int(same[k]), int(n[k]))
        assert share is not None
        who = names[known[k] // m], names[known[k] % m]
        found.append(Alike(*who, share, float(mean[k] / n[k]), float(p[k]), bool(p[k] < ERROR / len(known))))
    return tuple(found)


def _compared(votes: VoteArrays, fit: OrdinalFit) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs of votes on one item, by number, and the chance that they are the same."""
    kinds = VoteKinds.of(votes)
    weight, _ = posterior_of_d(kinds, likelihood(kinds, fit.point, votes.n_annotators))
    table = _answers(fit, votes.n_annotators)
    row = votes.annotator * 2 + (votes.side > 0)
    for first, second in _pairs(votes.item):
        a, b = table[row[first]], table[row[second]]
        place = np.arange(len(first))
        own = a[place, votes.strength[first] + 2] * b[place, votes.strength[second] + 2]
        others = weight[votes.item[first]] / own  # the posterior of d without these two votes, but for its scale
        yield first, second, ((a * b).sum(axis=1) * others).sum(axis=1) / others.sum(axis=1)


def _answers(fit: OrdinalFit, people: int) -> Floats:
    """P of every answer at every node, f64[2 J, 5, Q]: person j with slot 0 on the right 2 j, on the left 2 j + 1."""
    who, left, strength = (grid.ravel() for grid in np.indices((people, 2, STRENGTHS)))
    kinds = VoteKinds(who, strength - 2, 2.0 * left - 1, csr_array((0, len(who))))
    return np.exp(likelihood(kinds, fit.point, people).log_p).reshape(2 * people, STRENGTHS, len(NODES))


def _pairs(item: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Every two votes on one item, by number, some at a time."""
    order = np.argsort(item, kind="stable")
    for lag in range(1, int(np.bincount(item).max(initial=0))):
        at = np.flatnonzero(item[order[lag:]] == item[order[:-lag]])
        for start in range(0, len(at), _AT_ONCE):
            part = at[start : start + _AT_ONCE]
            yield order[part], order[part + lag]
