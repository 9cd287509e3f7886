"""The report's plots, as inline SVG that takes its colours from the page.

Matplotlib draws with placeholder colours, which are replaced by the style sheet's variables: one drawing serves the
light and the dark page. Text stays text (it can be read out and searched), ids are prefixed so that drawings do not
share clip paths, and nothing refers to anything outside the page. Series differ by marker or dash as well as by colour.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from gettext import gettext as _
from html import escape
from typing import Any, ParamSpec

import numpy as np

from alignloop.evaluation.schema import BestOfNEntry, CalibrationEntry, KLEntry, Point, ScoreEntry
from alignloop.evaluation.story import display

INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--rule", PAPER: "--card"}
SERIES = 8
_KNOWN = {"base": 0, "sft": 1, "dpo": 2, "ppo": 3}
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))
MAX_POINTS = 240

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "alignloop",
    "text.parse_math": False,  # a name may hold a dollar sign
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}


def slots(models: Sequence[str]) -> dict[str, int]:
    """The colour and marker of each model: base, sft, dpo, ppo keep theirs in every report; others take the rest."""
    free = [i for i in range(SERIES) if i not in {_KNOWN[m] for m in models if m in _KNOWN}]
    # Prefer colours that no known model has, so that reports of different runs agree.
    free.sort(key=lambda i: i in _KNOWN.values())
    out, taken = {}, 0
    for m in models:
        out[m] = _KNOWN[m] if m in _KNOWN else free[taken % len(free)]
        taken += m not in _KNOWN
    return out


def colour(slot: int) -> str:
    """The placeholder of a series colour; the page's ``--m0`` .. ``--m7``."""
    return f"#0a0b1{slot % SERIES:x}"


P = ParamSpec("P")


def _styled(draw: Callable[P, str]) -> Callable[P, str]:
    """Run `draw` under the house style, which matplotlib reads whenever something is added to a figure."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> str:
        import matplotlib  # slow to import, and only reports need it

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


class Canvas:
    """One figure of `width` x `height` points with `rows` axes below each other."""

    def __init__(self, width: float, height: float, rows: int = 1, layout: Any = "constrained", **subplots: Any):
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.figure = Figure(figsize=(width / 72, height / 72), layout=layout)
        FigureCanvasSVG(self.figure)
        self.axes = np.atleast_1d(self.figure.subplots(rows, 1, **subplots)).ravel()

    def svg(self, name: str, alt: str) -> str:
        """The SVG element: `name` prefixes its ids, `alt` is read out in its place."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
        return _inline(buffer.getvalue(), name, alt)


_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def _inline(svg: str, name: str, alt: str) -> str:
    """A stand-alone SVG as a part of the page: page colours, page fonts, own ids, a label, no name spaces."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\1{name}-", svg)
    for placeholder, variable in _VARIABLES.items():
        svg = svg.replace(placeholder, f"var({variable})")
    svg = re.sub(r"#0a0b1([0-7])", r"var(--m\1)", svg)
    svg = re.sub(r"(font: (?:[\w.]+ )*?[\d.]+px) [^;\"]+", r"\1 inherit", svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: inherit", svg)
    svg = re.sub(r"\n\s*", " ", svg)
    return svg.replace("<svg ", f'<svg class="plot" role="img" aria-label="{escape(alt)}" ', 1).strip()


@_styled
def score_bars(scores: Mapping[str, ScoreEntry], label: str, top: float | None = None) -> str:
    """Mean score of each model with two standard errors."""
    models, slot = list(scores), slots(list(scores))
    canvas = Canvas(340, 60 + 34 * len(models))
    ax = canvas.axes[0]
    for y, m in enumerate(models):
        s = scores[m]
        ax.plot([0, s.mean], [y, y], color=colour(slot[m]), linewidth=9, alpha=0.28, solid_capstyle="butt")
        _dot(ax, s.mean, y, slot[m], xerr=2 * s.se if s.se is not None else None)
        ax.annotate(f"{s.mean:.2f}", (s.mean, y), xytext=(0, 9), textcoords="offset points", ha="center", weight="bold")
    ax.set_yticks(range(len(models)), [display(m) for m in models])
    ax.set_ylim(len(models) - 0.45, -0.7)
    low = min(0.0, *(s.mean - 2 * (s.se or 0) for s in scores.values()))
    ax.set_xlim(low, top or 1.15 * max(0.0, *(s.mean + 2 * (s.se or 0) for s in scores.values())) or 1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(_("{}, mean ± 2 standard errors").format(label))
    told = ", ".join(f"{display(m)} {s.mean:.2f}" for m, s in scores.items())
    return canvas.svg("bars", _("{} by model: {}").format(label, told))


@_styled
def part_dots(scores: Mapping[str, ScoreEntry]) -> str:
    """Each part of the score, model by model."""
    models, slot = list(scores), slots(list(scores))
    names = list(dict.fromkeys(k for s in scores.values() for k in s.parts))
    canvas = Canvas(340, 78 + 32 * len(names))
    ax = canvas.axes[0]
    for y, part in enumerate(names):
        known = [scores[m].parts[part] for m in models if part in scores[m].parts]
        ax.plot([min(known), max(known)], [y, y], color=GRID, linewidth=5, solid_capstyle="round", zorder=1)
        for m in models:
            if part in scores[m].parts:
                _dot(ax, scores[m].parts[part], y, slot[m], label=display(m) if y == 0 else None)
    ax.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    if min(v for s in scores.values() for v in s.parts.values()) >= 0:
        ax.set_xlim(left=0)
    ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="y", visible=False)
    _legend(canvas, ax, len(models))
    return canvas.svg("parts", _("Parts of the score by model; the table beside it has the numbers"))


@_styled
def reward_against_kl(
    scores: Mapping[str, ScoreEntry],
    kl: Mapping[str, KLEntry],
    start: str | None,
    label: str,
    best: Sequence[BestOfNEntry],
) -> str:
    """What each model gained for the distance it moved; best-of-n at its analytic upper bound."""
    slot = slots(list(scores))
    canvas = Canvas(330, 290)
    ax = canvas.axes[0]
    points = {m: (kl[m].mean, kl[m].se) for m in scores if m in kl}
    if start and start in scores and start not in points:
        points = {start: (0.0, None), **points}
    for m, (x0, se) in points.items():
        s = scores[m]
        _dot(ax, x0, s.mean, slot[m], label=display(m), xerr=2 * se if se else None, yerr=2 * s.se if s.se else None)
    if best:
        x, y = [b.kl_upper_bound for b in best], [b.gold for b in best]
        ax.plot(x, y, color=MUTED, linestyle=":", marker=".", label=_("best of n, KL an upper bound"))
        for b in best:
            place = (b.kl_upper_bound, b.gold)
            ax.annotate(f"n={b.n}", place, (-4, 5), textcoords="offset points", color=MUTED, size=8.5, ha="right")
    ax.set_xlabel(_("KL from the start, nats per answer"))
    ax.set_ylabel(label)
    ax.margins(0.1)
    _legend(canvas, ax, 4)
    told = ", ".join(_("{} {:.2f} at {:.1f} nats").format(display(m), scores[m].mean, p[0]) for m, p in points.items())
    return canvas.svg("frontier", _("{} against KL: {}").format(label, told))


@_styled
def distributions(samples: Mapping[str, Sequence[float]], label: str) -> str:
    """Histogram of each model's scores on one axis, with the mean."""
    models, slot = [m for m in samples if len(samples[m])], slots([m for m in samples if len(samples[m])])
    values = np.concatenate([np.asarray(samples[m], dtype=float) for m in models])
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, 25)
    canvas = Canvas(330, 48 + 56 * len(models), rows=len(models), sharex=True)
    for ax, m in zip(canvas.axes, models):
        x = np.asarray(samples[m], dtype=float)
        ax.hist(x, bins=edges, color=colour(slot[m]), alpha=0.55, density=True)
        ax.axvline(x.mean(), color=INK, linewidth=1.4, linestyle="--")
        ax.annotate(f"{x.mean():.2f}", (1, 0.72), xycoords="axes fraction", ha="right", size=9.5, weight="bold")
        ax.set_yticks([])
        ax.set_ylabel(display(m), rotation=0, ha="right", va="center", color=INK)
        ax.spines["left"].set_visible(False)
    canvas.axes[-1].set_xlabel(_("{} of single answers; dashed and bold: mean").format(label))
    told = ", ".join(f"{display(m)} {np.mean(samples[m]):.2f}" for m in models)
    return canvas.svg("spread", _("Distribution of {} by model; means: {}").format(label, told))


@_styled
def calibration(bins: Sequence[CalibrationEntry]) -> str:
    """How often the reward model is right, by how sure it is; dots grow with the number of pairs."""
    canvas = Canvas(330, 290)
    ax = canvas.axes[0]
    ax.plot([0.5, 1], [0.5, 1], color=MUTED, linestyle="--", linewidth=1.2, label=_("as sure as right"))
    ax.legend(loc="lower right", fontsize=9, labelcolor=MUTED)
    most = max(b.n for b in bins)
    x, y = [b.confidence for b in bins], [b.accuracy for b in bins]
    errors = [2 * (max(b.accuracy * (1 - b.accuracy), 0.25 / b.n) / b.n) ** 0.5 for b in bins]
    ax.errorbar(x, y, yerr=errors, color=colour(1), linewidth=1.4, elinewidth=1)
    ax.scatter(x, y, s=[18 + 110 * b.n / most for b in bins], color=colour(1), edgecolors=PAPER, zorder=3)
    ax.set_xlim(0.48, 1.02)
    ax.set_ylim(min(0.3, *y) - 0.05, 1.05)
    ax.set_xlabel(_("how sure it is"))
    ax.set_ylabel(_("how often it is right"))
    told = "; ".join(_("{:.0%} sure, {:.0%} right ({} pairs)").format(b.confidence, b.accuracy, b.n) for b in bins)
    return canvas.svg("calibration", _("Calibration of the reward model: {}").format(told))


@_styled
def overoptimisation(runs: Mapping[str, Sequence[tuple[float, float | None, float | None, float | None]]]) -> str:
    """The reward model's own score, the true score and the distance, update by update."""
    canvas = Canvas(330, 360, rows=3, sharex=True)
    names = [_("reward model's score"), _("true score"), _("KL, nats per answer")]
    for i, (run, rows) in enumerate(runs.items()):
        for panel, ax in enumerate(canvas.axes, start=1):
            known = [(row[0], row[panel]) for row in rows if row[panel] is not None]
            if known:
                x, y = zip(*known)
                ax.plot(x, y, color=colour(3 + i), linestyle=_DASHES[i % SERIES], label=display(run))
    for ax, name in zip(canvas.axes, names):
        ax.set_title(name, loc="left", fontsize=10, color=INK)
    canvas.axes[-1].set_xlabel(_("update"))
    _legend(canvas, canvas.axes[0], 3)
    return canvas.svg(
        "hot", _("Reward model's score, true score and KL over the updates of {}").format(", ".join(runs))
    )


@_styled
def curve(points: Sequence[Point], name: str, number: int, slot: int = 1) -> str:
    """One training curve, small; long ones are averaged to `MAX_POINTS` points."""
    known = np.array([(x, y) for x, y in points if y is not None], dtype=float).reshape(-1, 2)
    canvas = Canvas(196, 110, layout=None)  # fixed margins: measuring them takes longer than drawing
    canvas.figure.subplots_adjust(left=0.2, right=0.97, top=0.93, bottom=0.16)
    ax = canvas.axes[0]
    if len(known):
        x, y = _thin(known)
        ax.plot(x, y, color=colour(slot), linewidth=1.6, marker="o" if len(x) == 1 else None)
        ax.plot(x[-1], y[-1], marker="o", markersize=4, color=colour(slot))
    ax.locator_params(axis="both", nbins=4)
    ax.tick_params(labelsize=8.5)
    ax.ticklabel_format(axis="y", scilimits=(-3, 4))
    ax.yaxis.get_offset_text().set_fontsize(7.5)
    last = f"{known[0, 1]:.4g} → {known[-1, 1]:.4g}" if len(known) else _("no values")
    return canvas.svg(f"c{number}", f"{name}: {last}")


def _thin(known: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    if len(known) <= MAX_POINTS:
        return known[:, 0], known[:, 1]
    parts = np.array_split(known, MAX_POINTS)
    return np.array([p[:, 0].mean() for p in parts]), np.array([p[:, 1].mean() for p in parts])


def _dot(ax: Any, x: float, y: float, slot: int, label: str | None = None, **errors: Any) -> None:
    """One marked value; the marker tells the series apart without colour."""
    ax.errorbar(
        x,
        y,
        fmt=_MARKERS[slot],
        color=colour(slot),
        markersize=7.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        elinewidth=1.6,
        label=label,
        zorder=3,
        **errors,
    )


def _legend(canvas: Canvas, ax: Any, columns: int) -> None:
    """A legend above the drawing: it never hides a point."""
    # Matplotlib lists lines before whiskers; readers expect the models first.
    pairs = sorted(zip(*ax.get_legend_handles_labels()), key=lambda pair: type(pair[0]).__name__ != "ErrorbarContainer")
    if pairs:
        handles, labels = zip(*pairs)
        canvas.figure.legend(
            handles, labels, loc="outside upper left", ncols=min(columns, 4), fontsize=9, handletextpad=0.3
        )
