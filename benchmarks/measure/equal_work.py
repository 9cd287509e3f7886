"""That two sides did the same work: learning rates, losses and log-probabilities step by step, or, where answers are
drawn at random, lengths and rewards within their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from measure.workload import ANSWERS, ONLINE

Record = Mapping[str, Any]

COMPARED: Mapping[str, dict[str, tuple[float, float]]] = {
    "sft": {"loss": (0.01, 0.002)},
    "reward": {"loss": (0.01, 0.02)},
    "dpo": {"loss": (0.02, 0.05), "logps/chosen": (1.0, 0.002), "logps/rejected": (1.0, 0.002)},
    "kto": {"loss": (0.02, 0.05), "logps/chosen": (1.0, 0.002), "logps/rejected": (1.0, 0.002)},
}
"""Metric: (absolute, relative) tolerance of each step. bfloat16 rounds differently in another order of summation."""
RATE: dict[str, tuple[float, float]] = {"learning_rate": (0.0, 0.001)}
"""Compared for every method: another schedule is seen here at once, and in the losses only after many steps."""
TOKENS = 0.002
"""Share by which a side's own count of useful tokens may differ from what the rows ask for."""
ERRORS = 4.0
"""Standard errors by which means over random answers may differ."""
ANSWER_SD: dict[str, float] = {"completions/mean_length": 45.0, "reward": 0.25}
"""Upper bounds of the deviation of one answer: lengths within 1..128, geometric; the share of letters."""

SCORE_SD: Mapping[str, dict[str, float]] = {"ppo": {"reward": 1.2}}
"""The same where the reward is a random classifier: a head of variance 1/d on normalised states of d numbers."""


class UnequalWorkError(RuntimeError):
    """The sides did not do the same work, so that their times do not compare."""


def check(method: str, records: Sequence[Record]) -> dict[str, float]:
    """The largest difference of every compared quantity to each other side; UnequalWorkError beyond the bounds."""
    ours = next((r for r in records if r["side"] == "ours"), None)
    others = [r for r in records if r["side"] != "ours"]
    if ours is None:
        return {}
    found: dict[str, float] = {}
    for other in others:
        compare = _online if method in ONLINE else _offline
        for name, value in compare(method, ours, other).items():
            found[name] = max(found.get(name, 0.0), value)
    return {name: round(value, 6) for name, value in found.items()}


def _offline(method: str, ours: Record, other: Record) -> dict[str, float]:
    side, found = other["side"], {}
    asked, own = other["tokens"], other.get("own_tokens", other["tokens"])
    if ours["tokens"] != asked or abs(own - asked) > TOKENS * asked:
        raise UnequalWorkError(f"{side} counts {own} tokens, the rows ask for {asked} and ours counts {ours['tokens']}")
    for name, (absolute, relative) in (RATE | COMPARED[method]).items():
        theirs = other["metrics"].get(name)
        if theirs is None:
            continue
        for step, (a, b) in enumerate(zip(ours["metrics"][name], theirs, strict=True), 1):
            if a is None or b is None or not abs(a - b) <= absolute + relative * abs(b):
                raise UnequalWorkError(
                    f"{name} of step {step}: ours {a}, {side} {b}; allowed {absolute} + {relative:.1%}"
                )
            found[f"{name} {side}"] = max(found.get(f"{name} {side}", 0.0), abs(a - b))
    if f"loss {side}" not in found:
        raise UnequalWorkError(f"{side} reported no loss, so the work cannot be compared")
    return found


def _online(method: str, ours: Record, other: Record) -> dict[str, float]:
    """In standard errors of the difference of means over all answers of the run."""
    side, found = other["side"], {}
    for name, sd in (ANSWER_SD | SCORE_SD.get(method, {})).items():
        mine = ours["metrics"].get("objective/scores" if name == "reward" else name)
        theirs = other["metrics"].get(name)
        if mine is None or theirs is None:
            continue
        n = ANSWERS[method]
        error = sd * math.sqrt(1 / (n * len(mine)) + 1 / (n * len(theirs)))
        gap = abs(sum(mine) / len(mine) - sum(theirs) / len(theirs)) / error
        if not gap <= ERRORS:
            raise UnequalWorkError(f"mean {name}: {gap:.1f} standard errors between ours and {side}; allowed {ERRORS}")
        found[f"{name} {side}, standard errors"] = gap
    return found
