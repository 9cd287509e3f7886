"""The report's tables: which rows there are, what each says, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from gettext import gettext as _
from typing import Any

from alignloop.evaluation.glossary import Explanation, explain
from alignloop.evaluation.schema import ReportData
from alignloop.evaluation.story import change, display, reference_of, scores_of, total


@dataclass(frozen=True)
class Row:
    """A line of a table: a metric, what it means, and one cell per model."""

    label: str
    about: Explanation | None
    cells: Sequence[str]
    part: bool = False


def score_rows(data: ReportData, models: Sequence[str]) -> list[Row]:
    """The score, its change, its parts, the distance and the faults."""
    scores, name = scores_of(data)
    if not scores:
        return []
    start = reference_of(data)
    rows = [
        Row(
            name[0].upper() + name[1:],
            explain("gold" if data.gold else "reward"),
            [_pm(scores[m].mean, scores[m].se) for m in models],
        )
    ]
    if start and len(models) > 1:
        moves = [change(scores[start], scores[m]) for m in models]
        cells = [
            "–" if m == start else f"{c.by:+.2f}" + (f" ({c.sigmas:+.1f} SE)" if c.sigmas is not None else "")
            for m, c in zip(models, moves)
        ]
        about = Explanation(_("Difference in the score; beyond 3 standard errors (SE) it is not chance."))
        rows.append(Row(_("Change against {}").format(display(start)), about, cells))
    for part in dict.fromkeys(k for m in models for k in scores[m].parts):
        cells = [number(scores[m].parts.get(part)) for m in models]
        rows.append(Row(part.replace("_", " "), explain(f"gold.{part}"), cells, part=True))
    if data.kl:
        rows.append(
            Row(
                _("KL, nats per answer"),
                explain("kl"),
                [_pm(data.kl[m].mean, data.kl[m].se) if m in data.kl else "–" for m in models],
            )
        )
    return rows


def language_rows(data: ReportData, models: Sequence[str]) -> list[Row]:
    """Readability, perplexity, ROUGE, habits. A section that names measures instead of models fills one cell."""
    rows = []
    for title, section in (
        (_("Faulty sentences"), data.readability),
        (_("Perplexity"), data.perplexity),
        (_("ROUGE"), data.rouge),
        ("", data.text),
    ):
        key = {_("Faulty sentences"): "readability", _("Perplexity"): "perplexity"}.get(title, title)
        by_model: Mapping[str, Any] = section if set(section) & set(models) else {models[-1]: section} if models else {}
        if not any(by_model.values()):
            continue
        if all(not isinstance(v, Mapping) for v in by_model.values()):
            rows.append(Row(title, explain(key), [number(total(by_model.get(m))) for m in models]))
            continue
        measures = dict.fromkeys(k for v in by_model.values() if isinstance(v, Mapping) for k in v)
        for measure in (k for k in measures if k not in ("n", "tokens", "n_bytes", "nll")):
            cells = [number((by_model.get(m) or {}).get(measure)) for m in models]
            if any(c != "–" for c in cells):
                rows.append(Row(_measure(measure), explain(measure), cells))
    return rows


_MEASURES = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
    "words": _("Words per answer"),
    "words_p95": _("Words, 95th percentile"),
    "self_bleu": "Self-BLEU",
}


def _measure(name: str) -> str:
    plain = name.replace("_", " ")
    return _MEASURES.get(name, plain[:1].upper() + plain[1:])


def reward_model_rows(data: ReportData) -> list[Row]:
    r = data.reward_model
    if r is None:
        return []
    ci = f" ({r.ci[0]:.1%} – {r.ci[1]:.1%})" if r.ci else ""
    rows = [Row(_("Accuracy on unseen votes"), explain("reward_model.accuracy"), [f"{r.accuracy:.1%}{ci}"])]
    if r.bayes_accuracy is not None:
        cell = [f"{r.bayes_accuracy:.1%}"]
        rows.append(Row(_("Ceiling (true score on the same votes)"), explain("reward_model.bayes_accuracy"), cell))
    if r.ece is not None:
        rows.append(Row(_("Calibration error"), explain("reward_model.ece"), [f"{r.ece:.3f}"]))
    for key, share in r.by_length.items():
        if share.get("accuracy") is not None:
            cell = [_("{:.1%} of {:,.0f} pairs").format(share["accuracy"], share.get("pairs") or 0)]
            rows.append(Row(_measure(key), explain(key), cell, part=True))
    if r.length_correlation is not None:
        about = explain("reward_model.length_correlation")
        rows.append(Row(_("Correlation with length"), about, [f"{r.length_correlation:+.2f}"]))
    rows.append(Row(_("Pairs tested"), explain("reward_model.pairs"), [f"{r.pairs:,}"]))
    return rows


def annotator_rows(data: ReportData) -> list[Row]:
    a = data.annotators
    if a is None:
        return []
    cells: dict[str, tuple[str, str | None]] = {
        "n": (_("Annotators"), f"{a.n:,}"),
        "votes": (_("Votes"), None if a.votes is None else f"{a.votes:,}"),
        "overlap": (_("Votes per pair"), None if a.overlap is None else f"{a.overlap:.3g}"),
        "alpha": (_("Agreement (alpha)"), _("n/a: all equal") if a.alpha is None else f"{a.alpha:.2f}"),
        "position_bias": (
            _("Votes for the left"),
            None
            if a.position_bias is None
            else _("{:.1%} ({:+.1f} points)").format(0.5 + a.position_bias, 100 * a.position_bias),
        ),
    }
    return [Row(label, explain(f"annotators.{k}"), [cell]) for k, (label, cell) in cells.items() if cell is not None]


@dataclass(frozen=True)
class Table:
    """Columns, those of them that hold words, and the cells."""

    columns: Sequence[str]
    words: frozenset[str]
    rows: Sequence[Sequence[str]]


def annotator_table(data: ReportData) -> Table:
    """One row per annotator; who it is comes first, whatever the order in the file."""
    rows = data.annotators.table if data.annotators else []
    columns = list(dict.fromkeys(k for row in rows for k in row))
    for first in ("kind", "annotator", "name"):
        if first in columns:
            columns.insert(0, columns.pop(columns.index(first)))
    words = frozenset(c for c in columns if any(isinstance(row.get(c), str) for row in rows))
    return Table(columns, words, [[_cell(row.get(c)) for c in columns] for row in rows])


def _pm(mean: float, se: float | None) -> str:
    return f"{mean:.2f}" + ("" if se is None else f" ±\N{NO-BREAK SPACE}{se:.2f}")


def number(value: float | None) -> str:
    """A number with as many digits as it deserves.

    >>> number(0.00025), number(0.123), number(44.03), number(12345.6), number(None)
    ('0.00025', '0.12', '44.0', '12,346', '–')
    """
    if value is None:
        return "–"
    size = abs(value)
    if size and size < 0.01:
        return f"{value:.2g}"
    return f"{value:.2f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def _cell(value: Any) -> str:
    """A cell of the caller's own table; a rate with its interval is shown as both."""
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        return f"{value['value']:.0%} ({value['low']:.0%} – {value['high']:.0%})"
    if isinstance(value, bool) or value is None:
        return {True: _("yes"), False: _("no"), None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return number(value) if isinstance(value, float) else str(value)
