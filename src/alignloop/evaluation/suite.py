"""What is known of one model after evaluation, and how it enters report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from alignloop.core.errors import DataError
from alignloop.evaluation.drift import KL, TextStats
from alignloop.evaluation.perplexity import Perplexity
from alignloop.evaluation.reward_accuracy import RewardAccuracy
from alignloop.evaluation.stats import Groups, Mean, mean_se
from alignloop.evaluation.win_rate import WinRate


@dataclass(frozen=True)
class Scores:
    """A reward over a model's answers: its mean with SE over prompts, and the mean of each named part."""

    total: Mean
    parts: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.total.mean, "se": self.total.se, "n": self.total.n, "parts": dict(self.parts)}


def scores(values: ArrayLike, groups: Groups | None = None, parts: Mapping[str, ArrayLike] | None = None) -> Scores:
    """Mean, SE over prompts (`groups` names each value's prompt) and means of the parts."""
    total = mean_se(values, groups)
    means = {}
    for name, part in (parts or {}).items():
        if np.size(part) != total.n:
            raise DataError(f"{np.size(part)} values for {total.n} answers; give one per answer", field=f"parts.{name}")
        means[name] = mean_se(part).mean
    return Scores(total, means)


@dataclass(frozen=True)
class Evaluation:
    """One model's figures. Whatever was not measured is None or empty and is left out of the report.

    gold: the known true reward; reward: any other reward (a rule, a reward model); readability: faults per answer.
    """

    model: str
    gold: Scores | None = None
    reward: Scores | None = None
    kl: KL | None = None
    text: TextStats | None = None
    perplexity: Perplexity | None = None
    rouge: Mapping[str, float] = field(default_factory=dict)
    readability: Mapping[str, float] = field(default_factory=dict)


def sections(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    """The per-model sections of report.json: ``{"gold": {model: {...}}, "kl": ..., "text": ..., ...}``."""
    names = [e.model for e in evaluations]
    if len(set(names)) < len(names):
        raise DataError(f"a model is evaluated twice among {', '.join(names)}", field="model")
    out: dict[str, Any] = {"models": names}
    for e in evaluations:
        perplexity = asdict(e.perplexity) if e.perplexity else None
        entries = {
            "gold": e.gold.to_dict() if e.gold else None,
            "reward": e.reward.to_dict() if e.reward else None,
            "kl": asdict(e.kl) if e.kl else None,
            "text": asdict(e.text) if e.text else None,
            "perplexity": perplexity,
            "rouge": dict(e.rouge) or None,
            "readability": dict(e.readability) or None,
        }
        for section, entry in entries.items():
            if entry is not None:
                out.setdefault(section, {})[e.model] = entry
    return out


def win_rate_entry(result: WinRate) -> dict[str, Any]:
    """A win rate as report.json has it: rate, ci [low, high], se and the counts."""
    return {
        "rate": result.rate,
        "ci": [result.ci.low, result.ci.high],
        "se": result.se,
        "prompts": result.prompts,
        "wins": result.wins,
        "ties": result.ties,
        "losses": result.losses,
    }


def reward_model_entry(result: RewardAccuracy, bayes_accuracy: float | None = None) -> dict[str, Any]:
    """A reward model's accuracy as report.json has it; without a known gold score there is no `bayes_accuracy`."""
    entry: dict[str, Any] = {
        "accuracy": result.accuracy,
        "ci": [result.ci.low, result.ci.high],
        "strict_accuracy": result.strict_accuracy,
        "nll": result.nll,
        "ece": result.ece,
        "pairs": result.pairs,
        "by_length": {k: {"accuracy": s.accuracy, "pairs": s.pairs} for k, s in result.by_length.items() if s.pairs},
        "length_correlation": result.length_correlation,
    }
    if bayes_accuracy is not None:
        entry["bayes_accuracy"] = bayes_accuracy
    return entry


def calibration_entry(result: RewardAccuracy) -> list[dict[str, float]]:
    """The calibration curve as report.json has it: one dict a bin."""
    return [asdict(b) for b in result.bins]
