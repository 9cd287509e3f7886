"""The shape of report.json: what it may hold, what is promised, and one-line errors where it does not fit.

Every section is optional, so that any run has a report; `require_promised` asks for what the demo promises. Further
keys are kept as they are. Numbers that do not exist (nan, infinite) are null.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignloop.core.errors import DataError, nearest

FILE = "report.json"
DEMO_MODELS = ("base", "sft", "dpo", "ppo")
DEMO_STAGES = ("base", "sft", "samples", "votes", "reward", "dpo", "ppo", "evaluate", "report")

PROMISED: dict[str, tuple[str, ...]] = {
    "seconds": (),
    "stages": (),
    "gold": DEMO_MODELS,
    "kl": ("dpo", "ppo"),
    "reward_model": ("accuracy", "bayes_accuracy", "ece", "pairs"),
    "annotators": ("n", "overlap", "alpha", "position_bias"),
    "win_rate": ("ppo_vs_sft", "dpo_vs_sft", "sft_vs_base"),
    "perplexity": (),
    "rouge": (),
    "readability": DEMO_MODELS,
    "samples": (),
}
"""Sections of the demo's report.json and the keys that each must hold."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)


class ScoreEntry(_Section):
    """A mean score of one model."""

    mean: float
    se: float | None = None
    """Standard error over prompts."""
    parts: dict[str, float] = Field(default_factory=dict)
    """Mean of each named part."""


class KLEntry(_Section):
    """KL of one model against its reference, k1 sum in nats per sequence."""

    mean: float
    se: float | None = None


class RewardModelEntry(_Section):
    """Held-out accuracy of a reward model."""

    accuracy: float
    bayes_accuracy: float | None = None
    """Accuracy of the true scores on the same votes; absent where no true score is known."""
    ece: float | None = None
    pairs: int
    ci: tuple[float, float] | None = None
    length_correlation: float | None = None
    by_length: dict[str, dict[str, float | None]] = Field(default_factory=dict)


class AnnotatorsEntry(_Section):
    """The people, or simulated people, who compared answers."""

    n: int
    overlap: float | None = None
    """Votes per pair."""
    alpha: float | None = None
    """Krippendorff's alpha; null where it is undefined (all votes equal)."""
    position_bias: float | None = None
    """Share of decided votes for the answer on the left, minus one half: 0 is no bias."""
    votes: int | None = None
    table: list[dict[str, Any]] = Field(default_factory=list)
    """One row per annotator; columns are up to the caller."""


class WinRateEntry(_Section):
    """Order-balanced win rate of the first named model over the second."""

    rate: float
    ci: tuple[float, float]


class CalibrationEntry(_Section):
    """One bin of the calibration curve."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


class BestOfNEntry(_Section):
    """One point of best-of-n."""

    n: int
    gold: float
    gold_se: float | None = None
    kl_upper_bound: float


class LineageNode(_Section):
    """Something that was made: a model, a data set, votes."""

    id: str
    label: str
    kind: str = "model"


class Lineage(_Section):
    """What was made from what; an edge [a, b] says that b was made from a."""

    nodes: list[LineageNode] = Field(default_factory=list)
    edges: list[tuple[str, str]] = Field(default_factory=list)


Point = tuple[float, float | None]
Figures = dict[str, float | dict[str, float | None] | None]


class ReportData(_Section):
    """Everything a report can show. Names of models are the keys of every per-model section."""

    title: str = "Report of a run"
    summary: str = ""
    command: str = ""
    config: str = ""
    seed: int | None = None
    seconds: float | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    stages: dict[str, float] = Field(default_factory=dict)
    """Seconds by stage."""
    models: list[str] = Field(default_factory=list)
    """Order in which models are shown; models left out follow."""
    start: str | None = None
    """The model that optimisation started from; sft, else the first model, if left out."""
    stage_order: list[str] = Field(default_factory=list)
    gold: dict[str, ScoreEntry] = Field(default_factory=dict)
    """The known true score, where there is one."""
    gold_max: float | None = None
    reward: dict[str, ScoreEntry] = Field(default_factory=dict)
    """Any other reward: a rule, a reward model. Shown in place of gold where there is none."""
    reward_name: str = ""
    kl: dict[str, KLEntry] = Field(default_factory=dict)
    reward_model: RewardModelEntry | None = None
    annotators: AnnotatorsEntry | None = None
    win_rate: dict[str, WinRateEntry] = Field(default_factory=dict)
    """"a_vs_b" -> win rate of a over b."""
    perplexity: Figures = Field(default_factory=dict)
    rouge: Figures = Field(default_factory=dict)
    readability: Figures = Field(default_factory=dict)
    """Faulty sentences per answer: a number, or one per fault."""
    text: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    samples: dict[str, dict[str, str]] = Field(default_factory=dict)
    samples_marked: dict[str, dict[str, list[tuple[str, str]]]] = Field(default_factory=dict)
    """prompt -> model -> [[sentence, kind], ...]."""
    curves: dict[str, dict[str, list[Point]]] = Field(default_factory=dict)
    reward_samples: dict[str, list[float]] = Field(default_factory=dict)
    calibration: list[CalibrationEntry] = Field(default_factory=list)
    overoptimisation: dict[str, list[tuple[float, float | None, float | None, float | None]]] = Field(
        default_factory=dict
    )
    """run -> [[update, proxy, gold, kl], ...]."""
    best_of_n: list[BestOfNEntry] = Field(default_factory=list)
    lineage: Lineage = Field(default_factory=Lineage)
    notes: list[str] = Field(default_factory=list)
    """Caveats, shown as they are."""


def jsonable(value: Any) -> Any:
    """`value` as plain JSON: dataclasses and numpy unwrapped, tuples as lists, nan and infinities as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return jsonable({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, BaseModel):
        return jsonable(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return jsonable(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(v) for v in value]
    raise DataError(
        f"{type(value).__name__} cannot be written as JSON; give numbers, text, lists or mappings", file=FILE
    )


def parse_report(report: Mapping[str, Any]) -> ReportData:
    """The typed report; a DataError lists every field that does not fit, by its path."""
    try:
        return ReportData.model_validate(jsonable(report))
    except ValidationError as error:
        first = error.errors()[0]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        path = ".".join(str(p) for p in first["loc"])
        raise DataError(f"{first['msg']}{more}", file=FILE, field=path) from None


def require_promised(report: Mapping[str, Any]) -> None:
    """DataError unless every promised key is there (null counts as there: measured, but undefined)."""
    for section, keys in PROMISED.items():
        if report.get(section) is None:
            raise DataError(f"is promised and missing, {nearest(section, report)}", file=FILE, field=section)
        for key in keys:
            if key not in report[section]:
                raise DataError("is promised and missing", file=FILE, field=f"{section}.{key}")
    for model, entry in report["gold"].items():
        if model in DEMO_MODELS and not (entry.get("parts") and "se" in entry):
            raise DataError("needs mean, se and parts", file=FILE, field=f"gold.{model}")
    if not report["samples"]:
        raise DataError("is promised and empty", file=FILE, field="samples")
    for prompt, texts in report["samples"].items():
        for model in DEMO_MODELS:
            if model not in texts:
                raise DataError(f"the answer of {model} is promised and missing", file=FILE, field=f"samples.{prompt}")


def model_order(data: ReportData) -> list[str]:
    """Every model that a section names: as `models` has it, then base, sft, dpo, ppo, then by appearance."""
    seen: dict[str, None] = dict.fromkeys(data.models)
    sections: list[Mapping[str, Any]] = [data.gold, data.reward, data.kl, data.text, data.readability]
    sections += [data.reward_samples, *data.samples.values(), *data.samples_marked.values()]
    # A flat {"rouge1": .3} or {"perplexity": 9.1} names measures, not models.
    sections += [s for s in (data.perplexity, data.rouge) if set(s) & {*seen, *data.gold, *data.reward, *data.text}]
    named = dict.fromkeys(name for s in sections for name in s)
    return list({**seen, **dict.fromkeys(m for m in DEMO_MODELS if m in named), **named})


def stage_order(data: ReportData) -> list[str]:
    """Stages of `stages` and `curves`: as `stage_order` has them, then by appearance."""
    return list(dict.fromkeys([*data.stage_order, *data.stages, *data.curves]))
