"""The ordinal annotator model: what each pair is worth, and each annotator's skill, side bias and use of the scale.

    P(v_ij > k | d_i) = σ(e^{λ_j} d_i + β_j x_ij − e^{κ_j} τ_k),   τ = (−b, −a, a, b),   d_i ~ N(0, s²)

v_ij in −2..2 is annotator j's strength on pair i (> 0: slot 0 better), x_ij = ±1 the side (+1: slot 0 on the left).
κ is how sparing j is with strong words; without it, someone who shouts at random passes for skilled wherever nobody
else has voted. Priors λ ~ N(0, .5²), β ~ N(0, .4²), κ ~ N(0, .5²), unit normal ones on log a, log(b − a), log s around
log .5, log 1.5, log 1.5. A graded response model (Samejima 1969) with an annotator's habits. d is integrated out by
Gauss–Hermite quadrature (Bock and Aitkin 1981), the rest found by L-BFGS with the analytic gradient. Maximising over d
as well looks simpler and is wrong: with one to five votes a pair, thousands of d soak up the noise (measured: 95 %
intervals that cover 32 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_array
from scipy.special import expit, log_expit, logsumexp

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SD_SKILL, SD_SIDE, SD_HABIT = 0.5, 0.4, 0.5
START = np.log([0.5, 1.5, 1.5])  # log a, log(b - a), log s
_EDGE = 50.0  # stands for an infinite cut-point: σ(±50) is 0 or 1 to double precision
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(31)
_LOG_WEIGHTS = np.log(_WEIGHTS / _WEIGHTS.sum())


@dataclass(frozen=True)
class VoteArrays:
    """Votes as arrays: item i64[V], annotator i64[V], strength i64[V] in −2..2, side f64[V] = ±1 (+1: slot 0 left)."""

    item: Ints
    annotator: Ints
    strength: Ints
    side: Floats
    n_items: int
    n_annotators: int

    def without(self, held: NDArray[np.bool_]) -> VoteArrays:
        """The votes that are not held out; items and annotators keep their numbers."""
        keep = ~held
        return VoteArrays(
            self.item[keep],
            self.annotator[keep],
            self.strength[keep],
            self.side[keep],
            self.n_items,
            self.n_annotators,
        )


@dataclass(frozen=True)
class OrdinalFit:
    """d, d_sd f64[I]: posterior mean and sd. p f64[I]: chance that a typical annotator who decides takes slot 0.

    skill λ, side β, habit κ f64[J]; cuts τ f64[4]; scale s; loss: negative log posterior of these.
    """

    d: Floats
    d_sd: Floats
    p: Floats
    skill: Floats
    side: Floats
    habit: Floats
    cuts: Floats
    scale: float
    loss: float
    converged: bool


def fit_ordinal(votes: VoteArrays, near: OrdinalFit | None = None, max_iterations: int = 200) -> OrdinalFit:
    """The posterior mode of skills, biases, habits, cut-points and scale, and the posterior of every d.

    near: a fit of much the same votes to start from, which saves half the time. Deterministic.
    """
    m = votes.n_annotators
    start = np.concatenate([np.zeros(3 * m), START])
    if near is not None:
        shape = np.log([near.cuts[2], near.cuts[3] - near.cuts[2], near.scale])
        start = np.concatenate([near.skill, near.side, near.habit, shape])
    gather = _gather(votes)
    found = minimize(
        lambda x: loss_and_gradient(x, votes, gather),
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iterations, "ftol": 1e-10, "gtol": 1e-4},
    )
    skill, side, habit, shape = np.split(found.x, [m, 2 * m, 3 * m])
    cuts, scale = _cuts(shape), float(np.exp(shape[2]))
    d = scale * _NODES
    joint = _LOG_WEIGHTS + gather @ _loglik(votes, skill, side, habit, cuts, d)[0]
    posterior = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    mean = posterior @ d
    first, second = expit(d - cuts[2]), expit(-d - cuts[2])  # P(v > 0), P(v < 0) at skill 0 without bias
    return OrdinalFit(
        d=mean,
        d_sd=np.sqrt(np.maximum(posterior @ d**2 - mean**2, 0.0)),
        p=np.clip(posterior @ (first / (first + second)), 1e-6, 1 - 1e-6),
        skill=skill,
        side=side,
        habit=habit,
        cuts=cuts,
        scale=scale,
        loss=float(found.fun),
        converged=bool(found.success),
    )


def loss_and_gradient(x: Floats, votes: VoteArrays, gather: csr_array | None = None) -> tuple[float, Floats]:
    """Negative log posterior and its gradient at x = (λ, β, κ, log a, log(b − a), log s), d integrated out.

    The gradient of log ∫ P(votes | d) N(d) is the posterior mean of the gradient at each node.
    """
    m = votes.n_annotators
    skill, side, habit, shape = np.split(x, [m, 2 * m, 3 * m])
    cuts, d = _cuts(shape), np.exp(shape[2]) * _NODES
    gather = _gather(votes) if gather is None else gather
    loglik, above, below, ratio = _loglik(votes, skill, side, habit, cuts, d)
    joint = _LOG_WEIGHTS + gather @ loglik
    evidence = logsumexp(joint, axis=1, keepdims=True)
    posterior = np.exp(joint - evidence)[votes.item]
    up, down = posterior * expit(-above), posterior * expit(below)
    d_eta = up - down
    by_gain = np.exp(skill[votes.annotator]) * (d_eta @ d)
    grade = votes.strength + 2  # the answer lies between cuts[grade - 1] and cuts[grade]
    wide = np.exp(habit[votes.annotator])
    d_low, d_high = wide * (-up.sum(axis=1) - ratio), wide * (down.sum(axis=1) + ratio)
    low, high = _edges(cuts, votes.strength)
    d_cuts = np.bincount(grade, d_low, 5)[1:] + np.bincount(grade, d_high, 5)[:4]
    a, gap = np.exp(shape[:2])
    d_shape = np.array([a * (d_cuts @ [-1, -1, 1, 1]), gap * (d_cuts @ [-1, 0, 0, 1]), by_gain.sum()])
    drift = shape - START
    penalty = (skill**2).sum() / SD_SKILL**2 + (side**2).sum() / SD_SIDE**2
    penalty += (habit**2).sum() / SD_HABIT**2 + (drift**2).sum()
    gradient = np.concatenate(
        [
            skill / SD_SKILL**2 - np.bincount(votes.annotator, by_gain, m),
            side / SD_SIDE**2 - np.bincount(votes.annotator, d_eta.sum(axis=1) * votes.side, m),
            habit / SD_HABIT**2 - np.bincount(votes.annotator, d_low * low + d_high * high, m),
            drift - d_shape,
        ]
    )
    return float(0.5 * penalty - evidence.sum()), gradient


def _loglik(
    votes: VoteArrays, skill: Floats, side: Floats, habit: Floats, cuts: Floats, d: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """log P of each vote at each node [V, Q], with η − τ_low, η − τ_high [V, Q] and 1 / (e^w − 1) [V].

    With A = η − τ_low, B = η − τ_high, w = τ_high − τ_low: P = σ(A) σ(−B) (1 − e^{−w}), which never cancels.
    """
    wide = np.exp(habit[votes.annotator])
    low, high = (wide * edge for edge in _edges(cuts, votes.strength))
    eta = np.exp(skill[votes.annotator])[:, None] * d + (side[votes.annotator] * votes.side)[:, None]
    above, below, width = eta - low[:, None], eta - high[:, None], np.minimum(high - low, _EDGE)
    loglik = log_expit(above) + log_expit(-below) + np.log(-np.expm1(-width))[:, None]
    return loglik, above, below, 1 / np.expm1(width)


def _edges(cuts: Floats, strength: Ints) -> tuple[Floats, Floats]:
    """The cut-points below and above each answer, before anyone's habit."""
    edges = np.concatenate([[-_EDGE - cuts[3]], cuts, [_EDGE + cuts[3]]])
    return edges[strength + 2], edges[strength + 3]


def _gather(votes: VoteArrays) -> csr_array:
    """The matrix [I, V] that sums votes by item."""
    count = len(votes.item)
    return csr_array((np.ones(count), (votes.item, np.arange(count))), shape=(votes.n_items, count))


def _cuts(shape: Floats) -> Floats:
    a = np.exp(shape[0])
    b = a + np.exp(shape[1])
    return np.array([-b, -a, a, b])
