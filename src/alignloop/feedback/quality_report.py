"""All that is known of a project's people, in one report: what the live quality page shows.

Every number has its n and a 95 % interval. Flags and alarms are words for a person to act on; nothing here takes votes
away. An alarm is about the task (an unclear guideline), a flag about one annotator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignloop.feedback.agreement import PairAgreement, agreement, pairs_of_annotators
from alignloop.feedback.calibration import Calibration, calibrate
from alignloop.feedback.campaign import Campaign, read_campaign
from alignloop.feedback.consistency import Consistency, Repeat, consistency, read_repeats
from alignloop.feedback.copying import Alike, answer_alike
from alignloop.feedback.dawid_skene import fit_dawid_skene, same_side
from alignloop.feedback.gold_checks import GoldRule, GoldState, gold_passes, sequential_test
from alignloop.feedback.intervals import Figure, Rate, normal_figure
from alignloop.feedback.laplace import OrdinalSd, laplace
from alignloop.feedback.ordinal import OrdinalFit, fit_ordinal
from alignloop.feedback.pace import Pace, PersonPace, pace
from alignloop.feedback.quality import AnnotatorSummary, QualityReport, summary_of
from alignloop.feedback.style import StyleReport, style_bias
from alignloop.feedback.unseen_people import consensus_on_unseen
from alignloop.store import Store
from alignloop.store.votes import project_row

LOW_ALPHA, LOW_REPEAT_AGREEMENT = 0.2, 0.65
FAIR_LEFT = (0.45, 0.55)  # P(left chosen) that nobody is asked about
COIN = 0.55  # agreement with others that is hardly better than a coin's
LOW_SKILL = float(np.log(2 / 3))  # two thirds of the typical slope


@dataclass(frozen=True)
class AnnotatorReport:
    """One annotator: the record, the model's skill λ (0: typical) and left bias β (log-odds), checks, pace, flags."""

    summary: AnnotatorSummary
    skill: Figure
    left_bias: Figure
    golds: GoldState
    repeats: Consistency
    pace: PersonPace
    flags: tuple[str, ...]


@dataclass(frozen=True)
class ModelReport:
    """The ordinal model. cuts: −b, −a, a, b; scale: sd of d. same_side: how often Dawid and Skene's model agrees.

    unseen: share of votes that it predicts of people whose votes were all left out.
    """

    cuts: tuple[Figure, ...]
    scale: Figure
    left_bias: Figure
    calibration: Calibration | None
    same_side: Rate | None
    unseen: Figure
    converged: bool


@dataclass(frozen=True)
class Alarm:
    """Something about the task itself. sure: the whole interval is beyond the limit, not the value alone."""

    name: str
    message: str
    figure: Figure | Rate
    limit: float
    sure: bool


@dataclass(frozen=True)
class ProjectReport:
    """Everything about a project's people. model: None without votes. pairs: annotators who share 30 items or more.

    alike: those of them who answer alike too often to have read for themselves.
    """

    summary: QualityReport
    fleiss: Figure
    fleiss_votes: int
    pairs: tuple[PairAgreement, ...]
    alike: tuple[Alike, ...]
    annotators: tuple[AnnotatorReport, ...]
    model: ModelReport | None
    repeats: Consistency
    pace_exponent: Figure
    style: StyleReport
    alarms: tuple[Alarm, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)


def quality_report(store: Store, project: str, *, rule: GoldRule | None = None, seed: int = 0) -> ProjectReport:
    """Everything about a project's people, as it is now. Errors: StoreError for an unknown project."""
    with store.read() as session:
        row = project_row(session, project)
        campaign = read_campaign(session, row)
        golds = gold_passes(session, row)
        repeats = read_repeats(session, row, campaign.votes, campaign.items)
    return report_of(campaign, golds, repeats, rule=rule, seed=seed)


def report_of(
    campaign: Campaign,
    golds: Mapping[str, Sequence[bool]],
    repeats: Sequence[Repeat],
    *,
    rule: GoldRule | None = None,
    seed: int = 0,
) -> ProjectReport:
    """The report of a campaign that was read; golds: passes by annotator in order of time."""
    arrays, names = campaign.arrays, campaign.names
    found = agreement(arrays.counts(), seed=seed)
    summary = summary_of(campaign.votes, arrays, names, found)
    states = {name: sequential_test(golds.get(name, ()), rule) for name in names}
    fit = fit_ordinal(arrays)
    sd = laplace(fit, arrays)
    times = np.array([np.nan if v.active_ms is None else v.active_ms for v in campaign.votes], dtype=np.float64)
    speed = pace(times, campaign.reading[arrays.item], arrays.annotator, _good(names, states, fit))
    everyone = consistency(repeats)
    return ProjectReport(
        summary=summary,
        fleiss=found.fleiss,
        fleiss_votes=found.fleiss_votes,
        pairs=tuple(pairs_of_annotators(arrays, names, seed=seed)),
        alike=tuple(pair for pair in answer_alike(arrays, names, fit) if pair.suspected),
        annotators=tuple(_people(summary, states, repeats, fit, sd, speed)),
        model=_model(campaign, fit, sd, seed) if campaign.votes else None,
        repeats=everyone,
        pace_exponent=speed.exponent,
        style=style_bias(campaign),
        alarms=alarms(found.alpha, everyone.agree),
    )


def alarms(alpha: Figure, repeat_agreement: Rate | None) -> tuple[Alarm, ...]:
    """Signs that the task is unclear: α under .2, or repeats of which less than 65 % are answered alike."""
    checks = (
        ("agreement", "people hardly agree (alpha", alpha, LOW_ALPHA),
        ("repeats", "people differ from themselves (repeats answered alike", repeat_agreement, LOW_REPEAT_AGREEMENT),
    )
    out = []
    for name, words, figure, limit in checks:
        if figure is None or figure.value is None or figure.value >= limit:
            continue
        sure = figure.high is not None and figure.high < limit
        advice = "the guideline may be unclear, or the answers too much alike"
        told = f"{words} {_told(figure)}): {advice}" + ("" if sure else "; too few answers to be sure")
        out.append(Alarm(name, told, figure, limit, sure))
    return tuple(out)


def _good(names: Sequence[str], states: Mapping[str, GoldState], fit: OrdinalFit) -> NDArray[np.bool_]:
    """Whose times set the pace: those whom golds have cleared; where there are none, the more skilled half."""
    cleared = np.array([states[name].decision == "clear" for name in names], dtype=bool)
    if cleared.any() or not len(names):
        return cleared
    return np.asarray(fit.skill >= np.median(fit.skill))


def _model(campaign: Campaign, fit: OrdinalFit, sd: OrdinalSd, seed: int) -> ModelReport:
    arrays, n = campaign.arrays, len(campaign.votes)
    sizes = np.bincount(arrays.item, minlength=arrays.n_items)
    return ModelReport(
        cuts=tuple(normal_figure(value, error, n) for value, error in zip(fit.cuts, sd.cuts)),
        scale=normal_figure(fit.scale, sd.scale, n),
        left_bias=normal_figure(float(fit.side.mean()), sd.mean_side, n),
        calibration=calibrate(arrays, campaign.tasks, fit),
        same_side=same_side(fit.d, fit_dawid_skene(arrays).side, sizes),
        unseen=consensus_on_unseen(arrays, campaign.names, fit, seed=seed),
        converged=fit.converged,
    )


def _people(
    summary: QualityReport,
    states: Mapping[str, GoldState],
    repeats: Sequence[Repeat],
    fit: OrdinalFit,
    sd: OrdinalSd,
    speed: Pace,
) -> list[AnnotatorReport]:
    out = []
    for j, record in enumerate(summary.annotators):
        skill = normal_figure(fit.skill[j], sd.skill[j], record.n)
        golds = states[record.annotator]
        own = consistency([r for r in repeats if r.annotator == record.annotator])
        person = speed.people[j]
        flags = _flags(record, skill, golds, own, person)
        bias = normal_figure(fit.side[j], sd.side[j], record.n)
        out.append(AnnotatorReport(record, skill, bias, golds, own, person, tuple(flags)))
    return out


def _flags(
    record: AnnotatorSummary, skill: Figure, golds: GoldState, repeats: Consistency, person: PersonPace
) -> list[str]:
    """What a curator should look at, in words: where the whole interval says so, or the gold test, or the clock."""
    left, agree, again = record.left, record.agreement, repeats.agree
    flags = []
    if golds.decision == "flag" and golds.passed is not None:
        flags.append(f"fails gold checks: passed {_told(golds.passed)}")
    if skill.high is not None and skill.high < LOW_SKILL:
        flags.append(f"votes follow the answers less than a typical annotator's do: skill {_told(skill)}")
    if left is not None and not (left.high >= FAIR_LEFT[0] and left.low <= FAIR_LEFT[1]):
        flags.append(f"leans to the {'left' if left.value > 0.5 else 'right'}: chose the left one in {_told(left)}")
    if agree is not None and agree.high < COIN:
        flags.append(f"agrees with the others hardly more than a coin would: {_told(agree)}")
    if again is not None and again.high < LOW_REPEAT_AGREEMENT:
        flags.append(f"answers the same card otherwise when it comes again: alike in {_told(again)}")
    if person.too_fast and person.fast is not None:
        flags.append(f"answers faster than reading takes: {_told(person.fast)} of cards; look before you judge")
    return flags


def _told(figure: Figure | Rate) -> str:
    """A figure in words: shares in per cent, α as it is.

    >>> _told(Rate(0.5, 0.25, 0.75, 12))
    '50 % (25 to 75 %, n = 12)'
    """
    value, low, high = figure.value, figure.low, figure.high
    assert value is not None
    if isinstance(figure, Rate):
        return f"{value:.0%} ({low:.0%} to {high:.0%}, n = {figure.n})".replace("%", " %").replace(" % to", " to")
    between = "" if low is None or high is None else f"{low:.2f} to {high:.2f}, "
    return f"{value:.2f} ({between}n = {figure.n})".replace("-", "−")
