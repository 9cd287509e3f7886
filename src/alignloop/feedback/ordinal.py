"""The ordinal annotator model: what each pair is worth, how skilled and how side-biased each annotator is.

    P(v_ij > k) = σ(e^{λ_j} d_i + β_j x_ij − τ_k),   τ = (−b, −a, a, b)

v_ij in −2..2 is annotator j's strength on pair i (> 0: slot 0 better), x_ij = ±1 the side (+1: slot 0 on the left).
Priors d ~ N(0, 1.5²), λ ~ N(0, .5²), β ~ N(0, .4²); log a, log(b − a) ~ N(log .5, 1), N(log 1.5, 1). A graded response
model (Samejima 1969) with an annotator's bias. The maximum is found by L-BFGS with the analytic gradient; the standard
deviation of d is Laplace's, from the diagonal of the Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SD_D, SD_SKILL, SD_SIDE = 1.5, 0.5, 0.4
LOG_CUTS = np.log([0.5, 1.5])
_EDGE = 50.0  # stands for an infinite cut-point: σ(±50) is 0 or 1 to double precision


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
    """d, d_sd f64[I]; skill λ, side β f64[J]; cuts τ f64[4]; loss: negative log posterior."""

    d: Floats
    d_sd: Floats
    skill: Floats
    side: Floats
    cuts: Floats
    loss: float
    converged: bool

    @property
    def logit(self) -> Floats:
        """d shrunk by its uncertainty: σ(d / √(1 + π sd² / 8)) ≈ E σ(d) (MacKay 1992)."""
        return self.d / np.sqrt(1 + np.pi * self.d_sd**2 / 8)


def fit_ordinal(votes: VoteArrays, max_iterations: int = 500) -> OrdinalFit:
    """The posterior mode of the model. Deterministic; about 0.1 s for 5,000 votes."""
    n, m = votes.n_items, votes.n_annotators
    start = np.concatenate([np.zeros(n + 2 * m), LOG_CUTS])
    options = {"maxiter": max_iterations, "maxcor": 20}
    found = minimize(loss_and_gradient, start, args=(votes,), jac=True, method="L-BFGS-B", options=options)
    d, skill, side, log_cuts = np.split(found.x, [n, n + m, n + 2 * m])
    cuts = _cuts(log_cuts)
    low, high = _bounds(cuts, votes.strength)
    eta = np.exp(skill[votes.annotator]) * d[votes.item] + side[votes.annotator] * votes.side
    upper, lower = expit(eta - low), expit(eta - high)
    curvature = np.exp(2 * skill[votes.annotator]) * (upper * (1 - upper) + lower * (1 - lower))
    hessian = np.bincount(votes.item, curvature, n) + 1 / SD_D**2
    return OrdinalFit(d, 1 / np.sqrt(hessian), skill, side, cuts, float(found.fun), bool(found.success))


def loss_and_gradient(x: Floats, votes: VoteArrays) -> tuple[float, Floats]:
    """Negative log posterior and its gradient at x = (d, λ, β, log a, log(b − a)).

    With A = η − τ_low, B = η − τ_high, w = τ_high − τ_low: P = σ(A) σ(−B) (1 − e^{−w}), which never cancels.
    """
    n, m = votes.n_items, votes.n_annotators
    d, skill, side, log_cuts = np.split(x, [n, n + m, n + 2 * m])
    cuts = _cuts(log_cuts)
    low, high = _bounds(cuts, votes.strength)
    gain = np.exp(skill[votes.annotator])
    eta = gain * d[votes.item] + side[votes.annotator] * votes.side
    above, below, width = eta - low, eta - high, high - low
    loglik = log_expit(above) + log_expit(-below) + np.log(-np.expm1(-width))
    d_eta = expit(-above) - expit(below)
    ratio = 1 / np.expm1(width)
    d_low, d_high = -expit(-above) - ratio, expit(below) + ratio
    grade = votes.strength + 2  # the answer lies between cuts[grade - 1] and cuts[grade]
    d_cuts = np.bincount(grade, d_low, 5)[1:] + np.bincount(grade, d_high, 5)[:4]
    step = np.exp(log_cuts)
    scale = (log_cuts - LOG_CUTS,)
    loss = -loglik.sum() + 0.5 * (
        (d**2).sum() / SD_D**2 + (skill**2).sum() / SD_SKILL**2 + (side**2).sum() / SD_SIDE**2 + (scale[0] ** 2).sum()
    )
    gradient = np.concatenate(
        [
            d / SD_D**2 - np.bincount(votes.item, d_eta * gain, n),
            skill / SD_SKILL**2 - np.bincount(votes.annotator, d_eta * gain * d[votes.item], m),
            side / SD_SIDE**2 - np.bincount(votes.annotator, d_eta * votes.side, m),
            scale[0] - step * np.array([d_cuts @ [-1, -1, 1, 1], d_cuts @ [-1, 0, 0, 1]]),
        ]
    )
    return float(loss), gradient


def _cuts(log_cuts: Floats) -> Floats:
    a = np.exp(log_cuts[0])
    b = a + np.exp(log_cuts[1])
    return np.array([-b, -a, a, b])


def _bounds(cuts: Floats, strength: Ints) -> tuple[Floats, Floats]:
    edges = np.concatenate([[-_EDGE - cuts[3]], cuts, [_EDGE + cuts[3]]])
    return edges[strength + 2], edges[strength + 3]
