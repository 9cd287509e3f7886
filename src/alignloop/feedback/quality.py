"""How far annotators agree, and whether the side decides: numbers with n and an interval, None where undefined."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignloop.store import Store
from alignloop.store.votes import Vote, load_votes, project_row

Distance = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True)
class Rate:
    """A share of n with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class AnnotatorSummary:
    """One annotator's record. agreement: with the other decided votes on the same items (pairs, not independent)."""

    annotator: str
    kind: str
    n: int
    ties: float
    left: Rate | None
    agreement: Rate | None
    median_ms: float | None


@dataclass(frozen=True)
class QualityReport:
    """A project's agreement. overlap: mean votes per item; alpha: Krippendorff's, ordinal, on items of two or more."""

    votes: int
    items: int
    annotators: tuple[AnnotatorSummary, ...]
    overlap: float
    alpha: float | None
    agreement: Rate | None
    position_bias: Rate | None

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON."""
        return asdict(self)


def project_quality(store: Store, project: str, seed: int = 0) -> QualityReport:
    """Agreement and position bias of a project's ordinary tasks."""
    with store.read() as session:
        votes = load_votes(session, project_row(session, project))
    return quality(votes, seed)


def quality(votes: Sequence[Vote], seed: int = 0) -> QualityReport:
    """Agreement and position bias of some votes."""
    items = {v.task for v in votes}
    return QualityReport(
        votes=len(votes),
        items=len(items),
        annotators=tuple(annotator_summaries(votes)),
        overlap=len(votes) / len(items) if items else 0.0,
        alpha=alpha(votes),
        agreement=pair_agreement(votes, seed=seed),
        position_bias=position_bias(votes),
    )


def alpha(votes: Sequence[Vote], distance: Distance = "ordinal") -> float | None:
    """Krippendorff's α = 1 − D_observed / D_expected of the strengths, by `evalica`.

    None where it is undefined: no item with two votes, or all votes on such items equal (then nothing varies, and
    perfect agreement cannot be told from a question with one possible answer).
    """
    return alpha_of([(v.task, v.annotator, v.strength) for v in votes], distance)


def alpha_of(ratings: Sequence[tuple[Hashable, Hashable, float]], distance: Distance = "ordinal") -> float | None:
    """Krippendorff's α of (item, rater, value) triples; None where undefined."""
    shared = {item for item, n in Counter(item for item, _, _ in ratings).items() if n >= 2}
    rows = [r for r in ratings if r[0] in shared]
    if len({value for _, _, value in rows}) < 2:
        return None
    import evalica
    import pandas as pd

    raters = {name: k for k, name in enumerate(sorted({r[1] for r in rows}, key=str))}
    units = {name: k for k, name in enumerate(sorted(shared, key=str))}
    table = np.full((len(raters), len(units)), np.nan)
    for item, rater, value in rows:
        table[raters[rater], units[item]] = value
    return float(evalica.alpha(pd.DataFrame(table), distance).alpha)


def pair_agreement(votes: Sequence[Vote], *, resamples: int = 1000, seed: int = 0) -> Rate | None:
    """Share of vote pairs on one item that name the same side, ties left out; bootstrap interval over items.

    n counts pairs. Published campaigns reach 63-77 %. None without any such pair.
    """
    signs: dict[str, list[int]] = defaultdict(list)
    for vote in votes:
        if vote.strength:
            signs[vote.task].append(1 if vote.strength > 0 else -1)
    agree, total = [], []
    for values in signs.values():
        first, second = values.count(1), values.count(-1)
        agree.append(math.comb(first, 2) + math.comb(second, 2))
        total.append(math.comb(first + second, 2))
    same, pairs = np.array(agree, dtype=float), np.array(total, dtype=float)
    same, pairs = same[pairs > 0], pairs[pairs > 0]
    if not len(pairs):
        return None
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(pairs), len(pairs))
        rates.append(same[drawn].sum() / pairs[drawn].sum())
    low, high = np.quantile(rates, [0.025, 0.975])
    return Rate(float(same.sum() / pairs.sum()), float(low), float(high), int(pairs.sum()))


def position_bias(votes: Sequence[Vote]) -> Rate | None:
    """P(the left one is chosen) over decided votes, with Wilson's interval; .5 is no bias. None without any."""
    decided = [(v.strength > 0) == v.first_left for v in votes if v.strength]
    return wilson(sum(decided), len(decided))


def wilson(k: int, n: int, confidence: float = 0.95) -> Rate | None:
    """k of n with Wilson's score interval (Wilson 1927); None for n = 0."""
    if n == 0:
        return None
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Rate(p, max(0.0, centre - half), min(1.0, centre + half), n)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> float | None:
    """Cohen's κ = (p_o − p_e) / (1 − p_e) of two raters' labels on the same items; None where p_e = 1 or empty."""
    n = len(first)
    if n == 0 or n != len(second):
        return None
    observed = sum(a == b for a, b in zip(first, second)) / n
    left, right = Counter(first), Counter(second)
    expected = sum(left[c] * right[c] for c in left) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def fleiss_kappa(items: Sequence[Sequence[Hashable]]) -> float | None:
    """Fleiss' κ = (P̄ − P̄_e) / (1 − P̄_e), the same number of labels on every item; None where undefined."""
    sizes = {len(labels) for labels in items}
    if len(sizes) != 1 or (m := sizes.pop()) < 2:
        return None
    counts = [Counter(labels) for labels in items]
    observed = sum((sum(k * k for k in c.values()) - m) / (m * (m - 1)) for c in counts) / len(items)
    overall = sum(counts, Counter())
    expected = sum((k / (m * len(items))) ** 2 for k in overall.values())
    return None if expected == 1 else (observed - expected) / (1 - expected)


def annotator_summaries(votes: Sequence[Vote]) -> list[AnnotatorSummary]:
    """Each annotator's count, ties, side, agreement with the others and median time, by name."""
    sides: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # per item: votes for slot 1, for slot 0
    for vote in votes:
        if vote.strength:
            sides[vote.task][vote.strength > 0] += 1
    by_name: dict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_name[vote.annotator].append(vote)
    out = []
    for name, own in sorted(by_name.items()):
        decided = [v for v in own if v.strength]
        same = sum(sides[v.task][v.strength > 0] - 1 for v in decided)
        others = sum(sum(sides[v.task]) - 1 for v in decided)
        times = [v.active_ms for v in own if v.active_ms is not None]
        summary = AnnotatorSummary(
            annotator=name,
            kind=own[0].kind,
            n=len(own),
            ties=1 - len(decided) / len(own),
            left=position_bias(own),
            agreement=wilson(same, others),
            median_ms=float(median(times)) if times else None,
        )
        out.append(summary)
    return out


def expected_calibration_error(p: NDArray[np.float64], y: NDArray[np.float64], bins: int = 10) -> float:
    """Σ over equal-width bins of P(.5 .. 1) of (share of rows) · |mean y − mean p|; p ≥ .5, y in {0, 1}."""
    place = np.minimum(((p - 0.5) * 2 * bins).astype(int), bins - 1)
    total = 0.0
    for b in range(bins):
        chosen = place == b
        if chosen.any():
            total += float(chosen.mean() * abs(y[chosen].mean() - p[chosen].mean()))
    return total
