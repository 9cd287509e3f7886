"""The lineage of a run as a layered drawing: what was made from what, top to bottom, as inline SVG.

A small Sugiyama layout: layers by longest path, long edges through invisible stops, three sweeps of barycentres to
uncross them. Enough for the dozens of nodes of one run; not a general graph drawer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from textwrap import wrap

from alignloop.core.errors import DataError
from alignloop.evaluation.schema import FILE, Lineage

WIDTH, HEIGHT, GAP_X, GAP_Y, PAD = 164, 60, 18, 40, 6
_LINE = 20  # characters of a label that fit in a box


@dataclass(frozen=True)
class Layout:
    """Centre of every node and the stops of every edge, in pixels."""

    nodes: Mapping[str, tuple[float, float]]
    edges: Sequence[Sequence[tuple[float, float]]]
    width: float
    height: float


def layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Layer of each node: one below the lowest of what it was made from. A DataError names a cycle or unknown node."""
    for a, b in edges:
        for end in (a, b):
            if end not in nodes:
                raise DataError(f"the edge [{a}, {b}] names the unknown node {end}", file=FILE, field="lineage.edges")
    level = dict.fromkeys(nodes, 0)
    for _ in range(len(nodes)):
        changed = False
        for a, b in edges:
            if level[b] < level[a] + 1:
                level[b], changed = level[a] + 1, True
        if not changed:
            return level
    if not nodes:
        return level
    raise DataError("something is made from itself: the edges have a cycle", file=FILE, field="lineage.edges")


def layout(lineage: Lineage) -> Layout:
    """Places of nodes and edges."""
    ids = [n.id for n in lineage.nodes]
    edges = list(dict.fromkeys(lineage.edges))
    level = layers(ids, edges)
    rows: list[list[str]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node in ids:
        rows[level[node]].append(node)
    paths: list[list[str]] = []
    for a, b in edges:
        stops = [f"\0{a}\0{b}\0{k}" for k in range(level[a] + 1, level[b])]
        for k, stop in enumerate(stops):
            rows[level[a] + 1 + k].append(stop)
        paths.append([a, *stops, b])
    _uncross(rows, paths)
    return _place(rows, paths, ids)


def _uncross(rows: list[list[str]], paths: Sequence[Sequence[str]]) -> None:
    """Order each row by the mean place of its neighbours above, then below, three times."""
    up: dict[str, list[str]] = {}
    down: dict[str, list[str]] = {}
    for path in paths:
        for a, b in pairwise(path):
            down.setdefault(a, []).append(b)
            up.setdefault(b, []).append(a)
    for sweep in range(6):
        neighbours = up if sweep % 2 == 0 else down
        order = rows if sweep % 2 == 0 else rows[::-1]
        for before, row in pairwise(order):
            at = {node: (i + 0.5) / len(before) for i, node in enumerate(before)}
            here = {node: (i + 0.5) / len(row) for i, node in enumerate(row)}
            places = {node: [at[n] for n in neighbours.get(node, ()) if n in at] for node in row}
            means = {node: sum(p) / len(p) if p else here[node] for node, p in places.items()}
            row.sort(key=means.__getitem__)


def _place(rows: list[list[str]], paths: Sequence[Sequence[str]], ids: Sequence[str]) -> Layout:
    real = set(ids)

    def span(row: Sequence[str]) -> float:
        return sum(WIDTH if n in real else GAP_X for n in row) + GAP_X * (len(row) - 1)

    width = max((span(row) for row in rows), default=0)
    at: dict[str, tuple[float, float]] = {}
    for i, row in enumerate(rows):
        x = PAD + (width - span(row)) / 2
        for node in row:
            w = WIDTH if node in real else GAP_X
            at[node] = (x + w / 2, PAD + HEIGHT / 2 + i * (HEIGHT + GAP_Y))
            x += w + GAP_X
    height = len(rows) * (HEIGHT + GAP_Y) - GAP_Y + 2 * PAD
    return Layout({n: at[n] for n in ids}, [[at[n] for n in path] for path in paths], width + 2 * PAD, max(height, 0))


def lineage_svg(lineage: Lineage) -> str:
    """The drawing, coloured by the page's style sheet (classes `node`, `edge`, `kind-…`)."""
    plan = layout(lineage)
    labels = {n.id: n.label for n in lineage.nodes}
    told = "; ".join(f"{labels[b]} from {labels[a]}" for a, b in dict.fromkeys(lineage.edges))
    out = [
        f'<svg class="lineage" viewBox="0 0 {plan.width:g} {plan.height:g}" width="{plan.width:g}" '
        f'height="{plan.height:g}" style="min-width: {0.8 * plan.width:.0f}px" role="img" '
        f'aria-label="{escape("Lineage: " + told)}">',
        '<defs><marker id="lineage-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" class="arrow"/></marker></defs>',
    ]
    out += [f'<path class="edge" d="{_curve(stops)}" marker-end="url(#lineage-arrow)"/>' for stops in plan.edges]
    for node in lineage.nodes:
        x, y = plan.nodes[node.id]
        kind = "".join(c for c in node.kind.lower() if c.isalnum() or c == "-")
        lines = wrap(node.label, _LINE, max_lines=2, placeholder=" …") or [node.id]
        top = y + 5 - 8 * len(lines)
        label = "".join(f'<text x="{x:g}" y="{top + 16 * i:g}">{escape(t)}</text>' for i, t in enumerate(lines))
        out.append(
            f'<g class="node kind-{kind}"><title>{escape(node.label)} ({escape(node.kind)})</title>'
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="9"/>'
            f'{label}<text class="kind" x="{x:g}" y="{top + 16 * len(lines):g}">{escape(node.kind)}</text></g>'
        )
    return "".join(out) + "</svg>"


def _curve(stops: Sequence[tuple[float, float]]) -> str:
    """A smooth way down through the stops, from the lower rim of the first box to the upper rim of the last."""
    # Beside the boxes of a row it runs straight down; it moves sideways only between rows.
    half = HEIGHT / 2
    points = [(x, y + side) for x, y in stops for side in (-half, half)][1:-1]
    d = f"M{points[0][0]:g} {points[0][1]:g}"
    for (x0, y0), (x1, y1) in pairwise(points):
        mid = (y0 + y1) / 2
        d += f"L{x1:g} {y1:g}" if x0 == x1 else f"C{x0:g} {mid:g} {x1:g} {mid:g} {x1:g} {y1:g}"
    return d
