"""Estimates with their uncertainty: means, cluster bootstrap, Wilson interval, paired differences.

Samples of one prompt are not independent: wherever `groups` is given, it names each value's prompt, standard errors are
cluster-robust and the bootstrap resamples prompts, not samples. Everything is seeded and vectorised; free of torch.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alignloop.core.errors import DataError

Floats = NDArray[np.float64]
Groups = Sequence[Hashable] | NDArray[np.generic]
RESAMPLES = 10_000
_CELLS = 2_000_000  # indices drawn at once by the bootstrap: 16 MB


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean, its standard error and the number of values. `se` is nan where one unit alone carries the mean."""

    mean: float
    se: float
    n: int


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval of confidence `level`."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean of paired differences a - b with its standard error and bootstrap interval."""

    mean: float
    se: float
    ci: Interval
    n: int


def finite(values: ArrayLike, field: str) -> Floats:
    """`values` as float64[n]; a DataError names the first row that is not finite, or the field when it is empty."""
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    if array.size == 0:
        raise DataError("there is nothing to average; give at least one value", field=field)
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        raise DataError(f"{array[bad[0]]} is not a finite number; drop or mend the row", row=int(bad[0]), field=field)
    return array


def _clusters(values: Floats, groups: Groups | None) -> tuple[Floats, Floats]:
    """Sum and count of each cluster; every value is its own cluster without groups."""
    if groups is None:
        return values, np.ones_like(values)
    if len(groups) != values.size:
        raise DataError(f"{len(groups)} groups for {values.size} values; give one group per value", field="groups")
    codes: dict[Hashable, int] = {}
    index = np.array([codes.setdefault(g, len(codes)) for g in groups], dtype=np.intp)
    sums: Floats = np.bincount(index, weights=values).astype(np.float64)
    return sums, np.bincount(index).astype(np.float64)


def mean_se(values: ArrayLike, groups: Groups | None = None) -> Mean:
    """Mean and standard error sqrt(G/(G-1) Σ_g (S_g - n_g·mean)²)/N; without groups this is sd/√n with n-1.

    >>> mean_se([1.0, 2.0, 3.0, 4.0])
    Mean(mean=2.5, se=0.6454972243679028, n=4)
    """
    array = finite(values, "values")
    sums, counts = _clusters(array, groups)
    mean, g = float(array.mean()), sums.size
    if g == 1:
        return Mean(mean, math.nan, array.size)
    spread = float(((sums - counts * mean) ** 2).sum())
    return Mean(mean, math.sqrt(g / (g - 1) * spread) / array.size, array.size)


def proportion_se(rate: float, n: int) -> float:
    """Standard error sqrt(p(1-p)/n) of a share.

    >>> round(proportion_se(0.6, 100), 5)
    0.04899
    """
    if n < 1 or not 0 <= rate <= 1:
        raise DataError(f"a share of {rate} among {n} has no standard error; give 0 <= rate <= 1 and n >= 1")
    return math.sqrt(rate * (1 - rate) / n)


def bootstrap_means(
    values: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Floats:
    """f64[resamples]: the mean over clusters drawn with replacement, as many as there are."""
    sums, counts = _clusters(finite(values, "values"), groups)
    if resamples < 1:
        raise DataError(f"{resamples} resamples give no interval; use 10000", field="resamples")
    rng, g, parts = np.random.default_rng(seed), sums.size, []
    step = max(1, _CELLS // g)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, g, size=(min(step, resamples - start), g))
        parts.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(parts)


def bootstrap_ci(
    values: ArrayLike,
    groups: Groups | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of the mean, resampling clusters (prompts) where `groups` names them."""
    means = bootstrap_means(values, groups, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level)


def wilson(successes: float, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval of a share; holds its coverage near 0 and 1, where p ± 2·SE does not.

    `successes` may be fractional (a tie is half a success).
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} is no share; give 0 <= successes <= n and n >= 1")
    z = NormalDist().inv_cdf((1 + level) / 2)
    p, z2 = successes / n, z * z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = centre - half, centre + half  # exact at the ends, where rounding leaves 1e-17
    return Interval(low if successes > 0 else 0.0, high if successes < n else 1.0, level)


def paired_difference(
    a: ArrayLike, b: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """a - b over the same items: prompts are resampled jointly for both, so what they share cancels."""
    left, right = finite(a, "a"), finite(b, "b")
    if left.size != right.size:
        raise DataError(
            f"a has {left.size} values and b {right.size}; a paired difference needs the same items in both"
        )
    m = mean_se(left - right, groups)
    return Difference(m.mean, m.se, bootstrap_ci(left - right, groups, resamples=resamples, seed=seed), m.n)
