"""How good is a reward model? Accuracy, calibration, length habits (algorithms.md §15.1).

A pair is (chosen, rejected) as the voters had it, Δ = score(chosen) - score(rejected). Every label points the same way,
so calibration is taken on the confidence σ(|Δ|) that the model's own favourite wins; on σ(Δ) it would mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from alignloop.core.errors import DataError
from alignloop.evaluation.stats import Floats, Interval, finite, wilson

BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs whose confidence fell in [low, high): how sure the model was and how often it was right."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Share:
    """Accuracy over some pairs, with its Wilson interval; `accuracy` is None where there are none."""

    accuracy: float | None
    pairs: int
    ci: Interval | None


@dataclass(frozen=True, slots=True)
class RewardAccuracy:
    """accuracy counts a tied score as half, strict_accuracy as wrong (RewardBench). nll in nats per pair."""

    pairs: int
    accuracy: float
    ci: Interval
    strict_accuracy: float
    nll: float
    ece: float
    ece_mass: float
    bins: tuple[CalibrationBin, ...]
    by_length: dict[str, Share]
    length_correlation: float | None


def accuracy(delta: ArrayLike, *, ties: Literal["half", "wrong"] = "half") -> float:
    """Share of Δ > 0; Δ = 0 counts half or nothing."""
    d = finite(delta, "delta")
    return float(np.mean((d > 0) + (0.5 * (d == 0) if ties == "half" else 0.0)))


def bayes_accuracy(gold_chosen: ArrayLike, gold_rejected: ArrayLike) -> float:
    """Accuracy on the votes of somebody who knows the true gold scores: what noise leaves to be reached."""
    return accuracy(_delta(gold_chosen, gold_rejected))


def nll(delta: ArrayLike) -> float:
    """Mean -log σ(Δ) in nats; a coin has 0.693."""
    return float(np.mean(np.logaddexp(0.0, -finite(delta, "delta"))))


def calibration(
    delta: ArrayLike, *, bins: int = BINS, by: Literal["width", "mass"] = "width"
) -> tuple[CalibrationBin, ...]:
    """The non-empty bins of confidence σ(|Δ|) on [.5, 1]: `bins` of equal width, or of equal numbers of pairs."""
    d = finite(delta, "delta")
    confidence = 1 / (1 + np.exp(-np.abs(d)))
    correct = (d > 0) + 0.5 * (d == 0)
    if bins < 1:
        raise DataError(f"{bins} bins; use 10", field="bins")
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    if by == "mass":
        order = np.argsort(confidence, kind="stable")
        index = np.empty(d.size, dtype=int)
        index[order] = np.arange(d.size) * bins // d.size
    found = []
    for b in np.unique(index):
        c, ok = confidence[index == b], correct[index == b]
        low, high = (edges[b], edges[b + 1]) if by == "width" else (c.min(), c.max())
        found.append(CalibrationBin(float(low), float(high), int(c.size), float(c.mean()), float(ok.mean())))
    return tuple(found)


def expected_calibration_error(bins: tuple[CalibrationBin, ...]) -> float:
    """ECE = Σ_b n_b/n · |accuracy_b - confidence_b|."""
    return sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / sum(b.n for b in bins)


def reward_accuracy(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    chosen_length: ArrayLike | None = None,
    rejected_length: ArrayLike | None = None,
) -> RewardAccuracy:
    """Everything about scores [P] of the chosen and rejected answers; lengths in any one unit add the length habits.

    length_correlation is Pearson's r of score and length over all 2P answers; None without lengths or variation.
    """
    good, bad = finite(chosen, "chosen"), finite(rejected, "rejected")
    d = _delta(good, bad)
    bins = calibration(d)
    by_length: dict[str, Share] = {}
    correlation = None
    if chosen_length is not None and rejected_length is not None:
        a, b = finite(chosen_length, "chosen_length"), finite(rejected_length, "rejected_length")
        if a.size != d.size or b.size != d.size:
            raise DataError(f"{a.size} and {b.size} lengths for {d.size} pairs; give one each", field="chosen_length")
        by_length = {
            "chosen_longer": _share(d[a > b]),
            "chosen_shorter": _share(d[a < b]),
            "equal": _share(d[a == b]),
        }
        correlation = _pearson(np.concatenate([good, bad]), np.concatenate([a, b]))
    half = accuracy(d)
    return RewardAccuracy(
        pairs=d.size,
        accuracy=half,
        ci=wilson(half * d.size, d.size),
        strict_accuracy=accuracy(d, ties="wrong"),
        nll=nll(d),
        ece=expected_calibration_error(bins),
        ece_mass=expected_calibration_error(calibration(d, by="mass")),
        bins=bins,
        by_length=by_length,
        length_correlation=correlation,
    )


def _delta(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    a, b = finite(chosen, "chosen"), finite(rejected, "rejected")
    if a.size != b.size:
        raise DataError(f"{a.size} chosen scores for {b.size} rejected; give one each per pair", field="rejected")
    return a - b


def _share(d: Floats) -> Share:
    if d.size == 0:
        return Share(None, 0, None)
    a = accuracy(d)
    return Share(a, d.size, wilson(a * d.size, d.size))


def _pearson(x: Floats, y: Floats) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None
