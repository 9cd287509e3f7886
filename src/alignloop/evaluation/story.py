"""The story of a run in plain words, built from its numbers and nothing else.

A change counts only when it exceeds the noise: the verdict is taken from the difference in standard errors (two and
three of them), with both means treated as independent, which is cautious for models that answered the same prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from gettext import gettext as _
from typing import Literal

from alignloop.evaluation.schema import ReportData, ScoreEntry, model_order

Verdict = Literal["better", "perhaps", "same", "worse", ""]

NAMES = {"base": "Base", "sft": "SFT", "dpo": "DPO", "ppo": "PPO"}


@dataclass(frozen=True)
class Chapter:
    """One step of the run: a heading, what happened, and the verdict that its numbers allow."""

    title: str
    sentences: tuple[str, ...]
    verdict: Verdict = ""
    verdict_words: str = ""


@dataclass(frozen=True)
class Change:
    """b - a with its standard error (None where it is unknown)."""

    by: float
    se: float | None

    @property
    def sigmas(self) -> float | None:
        return self.by / self.se if self.se else None

    @property
    def verdict(self) -> Verdict:
        if self.sigmas is None:
            return ""
        if self.sigmas <= -2:
            return "worse"
        return "better" if self.sigmas >= 3 else "perhaps" if self.sigmas >= 2 else "same"


def display(model: str) -> str:
    """A model's name as people read it."""
    return NAMES.get(model, model)


def change(a: ScoreEntry, b: ScoreEntry) -> Change:
    """How much b scores above a."""
    se = None if a.se is None or b.se is None else math.hypot(a.se, b.se)
    return Change(b.mean - a.mean, se)


def scores_of(data: ReportData) -> tuple[dict[str, ScoreEntry], str]:
    """The score that the story follows and what to call it: gold where it is known, else the reward."""
    if data.gold:
        return data.gold, _("gold score")
    return data.reward, data.reward_name or _("reward")


def reference_of(data: ReportData) -> str | None:
    """The model that optimisation started from: as the report says, else sft, else the first model."""
    order = [m for m in model_order(data) if m in scores_of(data)[0]]
    if data.start in order:
        return data.start
    return "sft" if "sft" in order else order[0] if order else None


def tell(data: ReportData) -> list[Chapter]:
    """The chapters of a run, in the order things happened; only what was measured is told."""
    scores, _name = scores_of(data)
    order, start = [m for m in model_order(data) if m in scores], reference_of(data)
    chapters = []
    if order and order[0] != start:
        chapters.append(_first(data, order[0]))
    if start and order[0] != start:
        chapters.append(_step(data, order[0], start, _("Learning from demonstrations")))
    elif start:
        chapters.append(_first(data, start))
    if data.annotators:
        chapters.append(_votes(data))
    if data.reward_model:
        chapters.append(_reward_model(data))
    for model in order:
        if start and model != start and (order[0] == start or model != order[0]):
            title = _("Optimising for the votes: {}") if data.annotators else _("Optimising: {}")
            chapters.append(_step(data, start, model, title.format(display(model))))
    if data.overoptimisation:
        chapters += _overoptimisation(data)
    return chapters + _upshot(data, order, start)


_WORDS: dict[Verdict, str] = {
    "better": _("clearly better"),
    "perhaps": _("probably better"),
    "same": _("no measurable change"),
    "worse": _("worse"),
}


def _score(data: ReportData, entry: ScoreEntry) -> str:
    text = f"{entry.mean:.2f}" + (f" ± {entry.se:.2f}" if entry.se is not None else "")
    return text + (_(" of {:g}").format(data.gold_max) if data.gold and data.gold_max else "")


def _first(data: ReportData, model: str) -> Chapter:
    scores, name = scores_of(data)
    lead = _("Before any training here, the answers of {} reach a {} of {}.")
    sentences = [lead.format(display(model), name, _score(data, scores[model]))]
    parts = scores[model].parts
    if len(parts) > 1:
        low, high = min(parts, key=parts.__getitem__), max(parts, key=parts.__getitem__)
        told = _("It does best at {} ({:.2f}) and worst at {} ({:.2f}).")
        sentences.append(told.format(_plain(high), parts[high], _plain(low), parts[low]))
    return Chapter(_("Where it starts: {}").format(display(model)), tuple(sentences))


def _step(data: ReportData, before: str, after: str, title: str) -> Chapter:
    """What became of the score, where it came from, what it cost."""
    scores, name = scores_of(data)
    moved = change(scores[before], scores[after])
    told = _("The {} {} from {:.2f} ({}) to {:.2f} ({}): {:+.2f}{}.")
    verb = _("rises") if moved.by >= 0 else _("falls")
    sigmas = ""
    if moved.se is not None and moved.sigmas is not None:
        sigmas = _(" ± {:.2f}, {:.1f} standard errors").format(moved.se, abs(moved.sigmas))
    a, b = scores[before].mean, scores[after].mean
    sentences = [told.format(name, verb, a, display(before), b, display(after), moved.by, sigmas)]
    if moved.verdict == "same":
        sentences.append(_("That is within the noise: this step did not change the score measurably."))
    elif moved.verdict == "worse":
        sentences.append(_("This step made the answers worse; look at its curves and its distance below."))
    sentences += _parts(scores[before], scores[after])
    sentences += _wins(data, after, before) + _distance(data, after) + _faults(data, before, after)
    return Chapter(title, tuple(sentences), moved.verdict, _WORDS.get(moved.verdict, ""))


def _parts(a: ScoreEntry, b: ScoreEntry) -> list[str]:
    """The part that gained most, and the one that paid for it."""
    moves = {k: b.parts[k] - a.parts[k] for k in b.parts if k in a.parts}
    if len(moves) < 2:
        return []
    up, down = max(moves, key=moves.__getitem__), min(moves, key=moves.__getitem__)
    out = []
    if moves[up] >= 0.05:
        out.append(_("Most of it is {} ({:.2f} → {:.2f}).").format(_plain(up), a.parts[up], b.parts[up]))
    if moves[down] <= -0.05:
        out.append(_("It pays with {} ({:.2f} → {:.2f}).").format(_plain(down), a.parts[down], b.parts[down]))
    return out


def _wins(data: ReportData, a: str, b: str) -> list[str]:
    entry = data.win_rate.get(f"{a}_vs_{b}")
    if entry is None:
        return []
    told = _("Side by side its answer wins {:.0%} of the time (95 % interval {:.0%} to {:.0%}).")
    words = [told.format(entry.rate, *entry.ci)]
    if entry.ci[0] <= 0.5 <= entry.ci[1]:
        words.append(_("That interval includes 50 %, so neither can be called the winner."))
    return words


def _distance(data: ReportData, model: str) -> list[str]:
    entry = data.kl.get(model)
    if entry is None:
        return []
    se = "" if entry.se is None else f" ± {entry.se:.1f}"
    words = [_("For that it moved {:.1f}{} nats per answer away from where it started.").format(entry.mean, se)]
    if entry.mean > 25:
        words.append(_("That is far: read its texts before trusting its score."))
    return words


def _faults(data: ReportData, before: str, after: str) -> list[str]:
    a, b = total(data.readability.get(before)), total(data.readability.get(after))
    if a is None or b is None:
        return []
    if b > a + 0.1:
        return [_("Its text reads worse: {:.2f} faulty sentences per answer against {:.2f}.").format(b, a)]
    if b < a - 0.1:
        return [_("Its text reads better: {:.2f} faulty sentences per answer against {:.2f}.").format(b, a)]
    return [_("Its text reads as well as before ({:.2f} faulty sentences per answer, {:.2f} before).").format(b, a)]


def total(entry: float | dict[str, float | None] | None) -> float | None:
    """One number of a section that gives a number, or a number for each of several faults."""
    if isinstance(entry, dict):
        values = [v for v in entry.values() if v is not None]
        return entry.get("total") or sum(values) if values else None
    return entry


def _votes(data: ReportData) -> Chapter:
    a = data.annotators
    assert a is not None
    count = _("{:,} votes").format(a.votes) if a.votes else _("their votes")
    lead = _("{} annotators compared pairs of answers ({}")
    overlap = _(", {:.3g} on each pair)").format(a.overlap) if a.overlap else ")"
    sentences = [lead.format(a.n, count) + overlap + "."]
    if a.alpha is not None:
        levels = [(0.2, _("barely more than chance")), (0.4, _("fair")), (0.6, _("moderate")), (0.8, _("good"))]
        word = next((w for limit, w in levels if a.alpha < limit), _("very good"))
        sentences.append(_("Their agreement is {} (alpha {:.2f}).").format(word, a.alpha))
    if a.position_bias is not None:
        fair = abs(a.position_bias) < 0.05
        side = _("no side is favoured much") if fair else _("a bias to allow for")
        sentences.append(_("The answer on the left got {:.0%} of the votes: {}.").format(0.5 + a.position_bias, side))
    return Chapter(_("Asking which answer is better"), tuple(sentences))


def _reward_model(data: ReportData) -> Chapter:
    r = data.reward_model
    assert r is not None
    sentences = [
        _("A reward model learnt to predict the votes. On {:,} unseen ones it is right {:.1%} of the time.").format(
            r.pairs, r.accuracy
        )
    ]
    verdict: Verdict = ""
    words = ""
    if r.bayes_accuracy is not None:
        gap = r.bayes_accuracy - r.accuracy
        told = _("The votes are noisy: even the true score would agree with only {:.1%} of them.")
        sentences.append(told.format(r.bayes_accuracy))
        if gap <= 0.05:
            verdict, words = "better", _("close to the ceiling")
        elif gap <= 0.08:
            verdict, words = "perhaps", _("near the ceiling")
        else:
            verdict, words = "same", _("well below the ceiling")
            sentences.append(_("It misses {:.1f} points of what could be learnt.").format(100 * gap))
    elif r.ci and r.ci[0] <= 0.5:
        verdict, words = "worse", _("not better than a coin")
        sentences.append(_("Its interval reaches 50 %: it is not measurably better than a coin."))
    if r.ece is not None:
        sure = _("about as sure as it should be") if r.ece < 0.05 else _("surer or less sure than it should be")
        sentences.append(_("It is {} (calibration error {:.2f}).").format(sure, r.ece))
    return Chapter(_("Learning what the voters like"), tuple(sentences), verdict, words)


def _overoptimisation(data: ReportData) -> list[Chapter]:
    """Did the true score fall while the reward model's kept rising?"""
    sentences = []
    for run, rows in data.overoptimisation.items():
        known = [(u, p, g) for u, p, g, _kl in rows if p is not None and g is not None]
        if len(known) < 3:
            continue
        best = max(known, key=lambda row: row[2])
        last = known[-1]
        if last[1] > best[1] and last[2] < best[2] and best[0] < last[0]:
            told = _(
                "{}: the true score peaks at update {:g} ({:.2f}) and ends at {:.2f}, while the reward model's own "
                "score still rises from {:.2f} to {:.2f}. From there on it is being gamed."
            )
            sentences.append(told.format(display(run), best[0], best[2], last[2], best[1], last[1]))
        else:
            told = _("{}: the true score goes from {:.2f} to {:.2f} as the reward model's goes from {:.2f} to {:.2f}.")
            sentences.append(told.format(display(run), known[0][2], last[2], known[0][1], last[1]))
    return [Chapter(_("Pushing too hard"), tuple(sentences))] if sentences else []


def _upshot(data: ReportData, order: list[str], start: str | None) -> list[Chapter]:
    """The whole way, and whether one method can be called the best."""
    scores, name = scores_of(data)
    tuned = sorted((m for m in order if m not in (start, order[0])), key=lambda m: -scores[m].mean)
    if not tuned or len(order) < 3:
        return []
    best, whole = tuned[0], change(scores[order[0]], scores[tuned[0]])
    told = _("From {} to {} the {} moves from {:.2f} to {:.2f} ({:+.2f}).")
    first = scores[order[0]].mean
    sentences = [told.format(display(order[0]), display(best), name, first, scores[best].mean, whole.by)]
    for other in tuned[1:]:
        apart = change(scores[other], scores[best])
        if apart.verdict in ("better", "perhaps"):
            sentences.append(_("{} ends above {} by {:.2f}.").format(display(best), display(other), apart.by))
        elif apart.verdict == "same":
            told = _("{} and {} cannot be told apart by this score ({:.1f} standard errors between them).")
            sentences.append(told.format(display(best), display(other), apart.sigmas or 0.0))
    selected = max(data.best_of_n, key=lambda b: b.n, default=None)
    if selected and selected.n > 1:
        told = _("For comparison: the best of {} plain answers by the reward model, without training, has {:.2f}.")
        sentences.append(told.format(selected.n, selected.gold))
    return [Chapter(_("What came of it"), tuple(sentences), whole.verdict, _WORDS.get(whole.verdict, ""))]


def _plain(name: str) -> str:
    return name.replace("_", " ")
