"""Best-of-n: draw n answers, keep the one the reward likes best (algorithms.md §11.1).

The formula ln n - (n-1)/n is an UPPER BOUND on the divergence from the sampler (Beirami et al. 2024, arXiv:2401.01879),
equal only when rewards are continuous and without ties. Everything here and in the report calls it a bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from alignloop.core.errors import DataError
from alignloop.evaluation.stats import Floats, finite, mean_se


@dataclass(frozen=True, slots=True)
class BestOfN:
    """One point of the curve: mean proxy and gold of the answer that the proxy keeps, SE over prompts."""

    n: int
    proxy: float
    proxy_se: float
    gold: float
    gold_se: float
    kl_upper_bound: float


def rank_weights(total: int, n: int) -> Floats:
    """f64[total]: C(i-1, n-1)/C(total, n), the chance that rank i (ascending, from 1) is the best of n drawn."""
    if not 1 <= n <= total:
        raise DataError(
            f"best of {n} needs between 1 and {total} samples per prompt; lower n or sample more", field="n"
        )
    denominator = math.comb(total, n)
    return np.array([math.comb(i, n - 1) / denominator for i in range(total)])


def expected_max(rewards: ArrayLike, n: int) -> float:
    """Unbiased estimate of E[max of n] from N >= n rewards of one prompt, drawn without replacement."""
    values = np.sort(finite(rewards, "rewards"))
    return float(rank_weights(values.size, n) @ values)


def expected_selected(proxy: ArrayLike, gold: ArrayLike, n: int) -> float:
    """E[gold of the answer with the highest proxy of n]; proxy ties share their places (random tie-breaking, exact)."""
    p, g = finite(proxy, "proxy"), finite(gold, "gold")
    if p.size != g.size:
        raise DataError(f"{p.size} proxy scores for {g.size} gold scores; give one each per sample", field="gold")
    _, tier = np.unique(p, return_inverse=True)
    average = np.bincount(tier, weights=g) / np.bincount(tier)
    return float(rank_weights(p.size, n) @ average[np.sort(tier)])


def kl_upper_bound(n: int) -> float:
    """ln n - (n-1)/n in nats per answer: an analytic upper bound, not a measurement."""
    if n < 1:
        raise DataError(f"best of {n} is not defined; n starts at 1", field="n")
    return math.log(n) - (n - 1) / n


def win_rate_bound(n: int) -> float:
    """n/(n+1): the most that best-of-n can win against one plain sample."""
    return n / (n + 1)


def selected_pmf(probs: ArrayLike, n: int) -> Floats:
    """Distribution of the best of n over outcomes listed by ascending reward: P_i = F_i^n - F_{i-1}^n."""
    p = finite(probs, "probs")
    if (p < 0).any() or abs(float(p.sum()) - 1) > 1e-9:
        raise DataError("probabilities must be >= 0 and sum to 1", field="probs")
    if n < 1:
        raise DataError(f"best of {n} is not defined; n starts at 1", field="n")
    return np.diff(np.concatenate([[0.0], np.cumsum(p)]) ** n)


def exact_kl(probs: ArrayLike, n: int) -> float:
    """KL(best of n ‖ sampler) in nats where the outcomes can be listed (ascending reward, no ties)."""
    p, q = finite(probs, "probs"), selected_pmf(probs, n)
    seen = q > 0
    return float((q[seen] * np.log(q[seen] / p[seen])).sum())


def curve(proxy: Sequence[ArrayLike], gold: Sequence[ArrayLike], ns: Sequence[int] = (1, 2, 4, 8)) -> list[BestOfN]:
    """Proxy and gold of best-of-n, one row of N samples per prompt; larger n than N are left out."""
    if len(proxy) != len(gold) or not len(proxy):
        raise DataError(f"{len(proxy)} prompts of proxy scores for {len(gold)} of gold; give the same prompts to both")
    fewest = min(np.size(row) for row in proxy)
    points = []
    for n in (k for k in ns if k <= fewest):
        p = mean_se([expected_max(row, n) for row in proxy])
        g = mean_se([expected_selected(a, b, n) for a, b in zip(proxy, gold)])
        points.append(BestOfN(n, p.mean, p.se, g.mean, g.se, kl_upper_bound(n)))
    return points
