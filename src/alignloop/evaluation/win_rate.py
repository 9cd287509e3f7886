"""Order-balanced win rate: how often is A better than B, whichever stands first? (algorithms.md §15.2)

Judges, people and models alike, favour a place. So every pair is judged in both orders and averaged, a tie is half a
win, and the interval resamples prompts. By construction w(a, b) + w(b, a) = 1 and a model against itself has 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from alignloop.core.errors import DataError
from alignloop.evaluation.stats import RESAMPLES, Floats, Interval, bootstrap_ci, finite, mean_se

Judge = Callable[[str, str, str], float]
"""judge(prompt, first, second) -> probability that `first` is better: 1 it is, 0 it is not, 1/2 a tie."""

Answers = Sequence[str | Sequence[str]]
Order = Literal["ab", "ba"]
_POINTS = {"a": 1.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One judgement of one pair in one order. `winner`: "a", "b" or "tie", or the probability that A wins."""

    prompt: str
    order: Order
    winner: str | float
    pair: int = 0


@dataclass(frozen=True, slots=True)
class WinRate:
    """rate = mean of (1 win, 1/2 tie) for A. se and ci over prompts.

    position_bias: mean probability given to whichever stood first, minus 1/2; None where one order is missing.
    """

    rate: float
    ci: Interval
    se: float
    prompts: int
    wins: int
    ties: int
    losses: int
    position_bias: float | None


def judge_both_orders(prompts: Sequence[str], a: Answers, b: Answers, judge: Judge) -> list[Verdict]:
    """Ask `judge` about every pair twice, A first and B first. Several answers to a prompt are paired in turn."""
    if not len(prompts) == len(a) == len(b):
        raise DataError(
            f"{len(prompts)} prompts, {len(a)} answers of A and {len(b)} of B; give the same number of each"
        )
    _unique(prompts)
    verdicts = []
    for row, (prompt, left, right) in enumerate(zip(prompts, a, b)):
        lefts, rights = _several(left), _several(right)
        if len(lefts) != len(rights) or not lefts:
            raise DataError(f"{len(lefts)} answers of A for {len(rights)} of B; give the same number", row=row)
        for pair, (x, y) in enumerate(zip(lefts, rights)):
            first, second = judge(prompt, x, y), 1 - judge(prompt, y, x)
            verdicts += [Verdict(prompt, "ab", first, pair), Verdict(prompt, "ba", second, pair)]
    return verdicts


def win_rate(
    verdicts: Iterable[Verdict], *, allow_missing_order: bool = False, resamples: int = RESAMPLES, seed: int = 0
) -> WinRate:
    """Win rate of A from judgements in both orders.

    Errors: DataError where a pair was judged twice in one order, lacks an order (unless allowed), or where a winner is
    not a, b, tie or a probability.
    """
    table: dict[tuple[str, int], dict[str, float]] = {}
    for row, v in enumerate(verdicts):
        seen = table.setdefault((v.prompt, v.pair), {})
        if v.order not in ("ab", "ba"):
            raise DataError(f"order {v.order!r} is unknown; use 'ab' or 'ba'", row=row, field="order")
        if v.order in seen:
            raise DataError(f"prompt {_short(v.prompt)} was judged twice in order {v.order}", row=row, field="prompt")
        seen[v.order] = _points(v.winner, row)
    missing = next((key for key, seen in table.items() if len(seen) < 2), None)
    if missing and not allow_missing_order:
        raise DataError(f"prompt {_short(missing[0])} lacks a judgement in one order; judge both, or allow it")
    points = finite([sum(seen.values()) / len(seen) for seen in table.values()], "verdicts")
    balanced = [(seen["ab"] + 1 - seen["ba"]) / 2 for seen in table.values() if len(seen) == 2]
    bias = float(np.mean(balanced)) - 0.5 if balanced and len(balanced) == len(table) else None
    return _summary(points, [key[0] for key in table], bias, resamples, seed)


def compare(prompts: Sequence[str], a: Answers, b: Answers, judge: Judge, *, seed: int = 0) -> WinRate:
    """Judge both orders and summarise: the usual way in. Each prompt once; several answers as a list."""
    return win_rate(judge_both_orders(prompts, a, b, judge), seed=seed)


def score_judge(score: Callable[[str, str], float], *, tie: float = 0.0) -> Judge:
    """A judge that prefers the higher score(prompt, answer); differences up to `tie` are ties."""

    def judge(prompt: str, first: str, second: str) -> float:
        d = score(prompt, first) - score(prompt, second)
        return 0.5 if abs(d) <= tie else float(d > 0)

    return judge


def win_rate_of_scores(
    a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, tie: float = 0.0, resamples: int = RESAMPLES, seed: int = 0
) -> WinRate:
    """Win rate of A by scores, one row per prompt; every answer of A meets every answer of B to the same prompt.

    A score knows no order, so both orders agree. Rows may differ in length; each prompt counts once.
    """
    if len(a) != len(b) or not len(a):
        raise DataError(f"{len(a)} prompts for A and {len(b)} for B; give the same prompts to both")
    points = []
    for x, y in zip(a, b):
        d = finite(x, "a")[:, None] - finite(y, "b")[None, :]
        points.append(float(np.mean((d > tie) + 0.5 * (np.abs(d) <= tie))))
    return _summary(np.array(points), range(len(points)), 0.0, resamples, seed)


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """What the win rate would be at equal length; `slope` is the log-odds per unit of tanh(Δlength/sd)."""

    rate: float
    raw: float
    slope: float


def length_controlled(points: ArrayLike, length_difference: ArrayLike) -> LengthControlled | None:
    """Small mode of length-controlled win rate (Dubois et al. 2024, arXiv:2404.04475): intercept and length only.

    Fits P(A wins) = σ(c + s·tanh(Δlen/sd)) to soft preferences by Newton's method and predicts at Δlen = 0. None where
    lengths do not differ in difference, or the fit has no maximum (perfect separation). Differs from the paper: no
    instruction-difficulty term, which needs many systems.
    """
    y, d = finite(points, "points"), finite(length_difference, "length_difference")
    if y.size != d.size:
        raise DataError(f"{d.size} length differences for {y.size} preferences; give one each")
    spread = float(d.std())
    if spread == 0:
        return None
    x = np.stack([np.ones_like(d), np.tanh(d / spread)], axis=1)
    w: Floats = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        hessian = x.T @ (x * (p * (1 - p))[:, None])
        if np.linalg.cond(hessian) > 1e10 or np.abs(w).max() > 15:
            return None
        step = np.linalg.solve(hessian, x.T @ (y - p))
        w = w + step
        if np.abs(step).max() < 1e-10:
            return LengthControlled(float(1 / (1 + np.exp(-w[0]))), float(y.mean()), float(w[1]))
    return None


def _summary(points: Floats, prompts: Sequence[object], bias: float | None, resamples: int, seed: int) -> WinRate:
    """Counts are of pairs; a pair is won when its points over both orders exceed 1/2."""
    groups = [str(p) for p in prompts]
    m = mean_se(points, groups)
    return WinRate(
        rate=m.mean,
        ci=bootstrap_ci(points, groups, resamples=resamples, seed=seed),
        se=m.se,
        prompts=len(set(groups)),
        wins=int((points > 0.5).sum()),
        ties=int((points == 0.5).sum()),
        losses=int((points < 0.5).sum()),
        position_bias=bias,
    )


def _points(winner: str | float, row: int) -> float:
    if isinstance(winner, str):
        if winner not in _POINTS:
            raise DataError(f"{winner!r} is no winner; use 'a', 'b' or 'tie'", row=row, field="winner")
        return _POINTS[winner]
    if not 0 <= winner <= 1:
        raise DataError(f"{winner} is no probability; a judge answers between 0 and 1", row=row, field="winner")
    return float(winner)


def _unique(prompts: Sequence[str]) -> None:
    seen: set[str] = set()
    for row, prompt in enumerate(prompts):
        if prompt in seen:
            raise DataError(
                f"prompt {_short(prompt)} comes twice; give several answers of one prompt as a list",
                row=row,
                field="prompts",
            )
        seen.add(prompt)


def _several(answers: str | Sequence[str]) -> Sequence[str]:
    return [answers] if isinstance(answers, str) else answers


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 40 else prompt[:37] + "...")
