"""report.json and report.html: what came out of a run, for machines and for people.

The page is one file that opens offline: styles and drawings are inside it, and it has no script. Everything that a
model wrote is escaped. A section whose numbers are missing is left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from gettext import gettext as _
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from alignloop.evaluation import plots
from alignloop.evaluation.glossary import explain
from alignloop.evaluation.lineage_graph import lineage_svg
from alignloop.evaluation.marks import legend
from alignloop.evaluation.schema import (
    ReportData,
    jsonable,
    model_order,
    parse_report,
    require_promised,
    stage_order,
)
from alignloop.evaluation.story import display, reference_of, scores_of, tell
from alignloop.evaluation.tables import (
    annotator_rows,
    annotator_table,
    language_rows,
    number,
    reward_model_rows,
    score_rows,
)

OPEN_CURVES = 10
"""How many curves of a stage are shown at once; the rest is folded."""
HEADLINES = (
    ("loss", "eval_loss", "accuracy", "eval_accuracy", "margin", "rewards/margins", "rewards/accuracies")
    + ("rewards/chosen", "rewards/rejected", "objective/scores", "eval_reward", "objective/kl", "objective/rlhf_reward")
    + ("policy/entropy_avg", "policy/approxkl_avg", "policy/clipfrac_avg", "val/explained_variance")
    + ("mean_token_accuracy", "nll", "entropy", "completions/mean_length", "grad_norm", "learning_rate")
)
"""Curves that are shown before others, in this order."""
OPEN_PROMPTS = 3
"""How many prompts are shown at once; the rest is folded."""


@dataclass(frozen=True)
class Tile:
    """A figure that is read first."""

    label: str
    value: str
    note: str


def write_report(report: Mapping[str, Any], out_dir: str | Path, *, promised: bool = True) -> Path:
    """Write DIR/report.json (sorted, replaced in one step) and DIR/report.html; returns the path of the page.

    promised: refuse a report that lacks a key of `schema.PROMISED`, as the demo must have them all; a run of one's own
    passes False. Errors: DataError naming the field.
    """
    plain = jsonable(report)
    if promised:
        require_promised(plain)
    data = parse_report(plain)
    # Sorting loses the order of models and stages: keep it, so that the page can be made again from the file.
    plain |= {"models": model_order(data), "stage_order": stage_order(data)}
    page = render_html(plain)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    _replace(folder / "report.json", text + "\n")
    _replace(folder / "report.html", page)
    return folder / "report.html"


def read_report(path: str | Path) -> dict[str, Any]:
    """The content of a report.json, to be rendered again or compared."""
    loaded: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return loaded


def render_html(report: Mapping[str, Any]) -> str:
    """The page as one string."""
    data = parse_report(report)
    loader = jinja2.PackageLoader("alignloop.evaluation", "templates")
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.globals |= {"_": _, "display": display, "breakable": _breakable}
    return env.get_template("report.html.j2").render(_context(data))


def _replace(path: Path, text: str) -> None:
    """Write beside the file and rename: a reader never sees half of it, a full disk leaves the old one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _context(data: ReportData) -> dict[str, Any]:
    models = model_order(data)
    prompts = list(data.samples or data.samples_marked)
    return {
        "data": data,
        "models": models,
        "slot": plots.slots(models),
        "chapters": tell(data),
        "tiles": _tiles(data),
        "score_table": score_rows(data, [m for m in models if m in scores_of(data)[0]]),
        "score_models": [m for m in models if m in scores_of(data)[0]],
        "language_table": language_rows(data, models),
        "figures": _figures(data, models),
        "win_rates": _win_rates(data),
        "reward_model_rows": reward_model_rows(data),
        "annotator_rows": annotator_rows(data),
        "annotator_table": annotator_table(data),
        "prompts": prompts,
        "open_prompts": OPEN_PROMPTS,
        "open_curves": OPEN_CURVES,
        "marks": legend(data.samples_marked),
        "curves": _curves(data),
        "lineage": lineage_svg(data.lineage) if data.lineage.nodes else "",
        "stages": _stages(data),
        "duration": duration,
        "explain": explain,
    }


def _tiles(data: ReportData) -> list[Tile]:
    """Up to five figures at the top."""
    scores, name = scores_of(data)
    order, start = [m for m in model_order(data) if m in scores], reference_of(data)
    tiles = []
    if len(order) > 1:
        best = max(order[1:], key=lambda m: scores[m].mean)
        scale = _(", out of {:g}").format(data.gold_max) if data.gold and data.gold_max else ""
        note = _("{} → {}{}").format(display(order[0]), display(best), scale)
        tiles.append(Tile(name[0].upper() + name[1:], f"{scores[order[0]].mean:.2f} → {scores[best].mean:.2f}", note))
        rate = data.win_rate.get(f"{best}_vs_{start}")
        if rate:
            note = _("{} against {}, 95 %: {:.0%} to {:.0%}").format(display(best), display(start or ""), *rate.ci)
            tiles.append(Tile(_("Answers preferred"), f"{rate.rate:.0%}", note))
        if best in data.kl:
            tiles.append(
                Tile(_("Distance moved"), f"{data.kl[best].mean:.1f}", _("nats per answer, {}").format(display(best)))
            )
    if data.reward_model:
        ceiling = data.reward_model.bayes_accuracy
        note = _("of unseen votes; the ceiling is {:.1%}").format(ceiling) if ceiling else _("of unseen votes")
        tiles.append(Tile(_("Reward model is right"), f"{data.reward_model.accuracy:.1%}", note))
    if data.seconds is not None:
        seed = "" if data.seed is None else _("seed {}").format(data.seed)
        tiles.append(Tile(_("Time"), duration(data.seconds), seed))
    return tiles


def _figures(data: ReportData, models: Sequence[str]) -> dict[str, str]:
    """Every drawing that its numbers allow, by name."""
    scores, name = scores_of(data)
    shown = {m: scores[m] for m in models if m in scores}
    out = {}
    if shown:
        out["bars"] = plots.score_bars(shown, name, data.gold_max if data.gold else None)
    if any(len(s.parts) > 1 for s in shown.values()):
        out["parts"] = plots.part_dots({m: s for m, s in shown.items() if s.parts})
    if shown and any(m in data.kl for m in shown):
        out["frontier"] = plots.reward_against_kl(shown, data.kl, reference_of(data), name, data.best_of_n)
    if any(data.reward_samples.values()):
        ordered = {m: data.reward_samples[m] for m in models if data.reward_samples.get(m)}
        out["spread"] = plots.distributions(ordered, name)
    if data.calibration:
        out["calibration"] = plots.calibration(data.calibration)
    if data.overoptimisation:
        out["hot"] = plots.overoptimisation(data.overoptimisation)
    return out


def _win_rates(data: ReportData) -> list[dict[str, Any]]:
    """Each comparison with its interval and what it allows to say."""
    out = []
    for key, entry in data.win_rate.items():
        a, _sep, b = key.partition("_vs_")
        low, high = entry.ci
        verdict = "better" if low > 0.5 else "worse" if high < 0.5 else "same"
        words = {"better": _("wins"), "worse": _("loses"), "same": _("undecided")}[verdict]
        out.append({"a": a, "b": b, "rate": entry.rate, "low": low, "high": high, "verdict": verdict, "words": words})
    return out


def _curves(data: ReportData) -> list[dict[str, Any]]:
    """Stages with their drawings; metrics without a number are left out."""
    out, drawn = [], 0
    slot = plots.slots(model_order(data))
    for stage in (s for s in stage_order(data) if s in data.curves):
        items = []
        place = {metric: i for i, metric in enumerate(HEADLINES)}
        for metric, points in sorted(data.curves[stage].items(), key=lambda item: place.get(item[0], len(place))):
            if not any(y is not None for _x, y in points):
                continue
            drawn += 1
            drawing = plots.curve(points, metric, drawn, slot.get(stage, 4))
            last = next(y for _x, y in reversed(points) if y is not None)
            items.append({"name": metric, "svg": drawing, "last": number(last), "about": explain(metric)})
        if items:
            out.append({"stage": stage, "items": items})
    return out


def _stages(data: ReportData) -> list[dict[str, Any]]:
    whole = sum(data.stages.values()) or 1.0
    return [
        {"name": s, "seconds": data.stages[s], "share": data.stages[s] / whole}
        for s in stage_order(data)
        if s in data.stages
    ]


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(9.26), duration(312), duration(7265)
    ('9.3 s', '5 min 12 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _breakable(name: str) -> Markup:
    """A metric's name, escaped, that may be broken after "_" and "/"."""
    return Markup(re.sub(r"([_/])(?=.)", r"\1<wbr>", str(escape(name))))
