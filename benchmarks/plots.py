"""Write docs/performance.md's results, tables and drawings, from the results files of the speed benchmarks alone.

    python benchmarks/plots.py             # after a measurement
    python benchmarks/plots.py --check     # says whether page and drawings are what the results files give

A part stands between ``<!-- measured: NAME -->`` and ``<!-- end -->``. Of each benchmark the newest code that was
measured counts. Where nothing was measured, the page says so; no figure is ever typed in.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from measure import drawings, equal_work
from measure.runs import RESULTS, ROOT, Record, largest, rate, ratio, read_results

PAGE = ROOT / "docs" / "performance.md"
DRAWINGS = PAGE.parent / "performance"
PART = re.compile(r"(?P<head><!-- measured: (?P<name>\w+) -->\n).*?(?P<tail><!-- end -->)", re.S)
NOTHING = "Not measured yet.\n"

FLOORS: Mapping[str, tuple[str, str, str]] = {
    "sft": ("floor 7", "floor 3.5", "at most 0.6"),
    "dpo": ("floor 7", "floor 2.6", "at most 0.6"),
    "reward": ("floor 1.3", "floor 1.0", "at most 0.9"),
    "kto": ("aim 6", "aim 2.5", ""),
    "grpo": ("aim 4", "aim 2.5", ""),
    "rloo": ("aim 4", "aim 2.5", ""),
}
"""What was asked for: against TRL as installed, against TRL with the tuned allocator, peak memory."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something is stale")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results files")
    given = parser.parse_args(arguments)
    files = render(given.results)
    stale = [p for p, content in files.items() if not p.is_file() or p.read_text(encoding="utf-8") != content]
    if not given.check:
        DRAWINGS.mkdir(exist_ok=True)
        for path, content in files.items():
            path.write_text(content, encoding="utf-8")
    for path in stale:
        print(f"{'stale' if given.check else 'written'}: {path.relative_to(ROOT)}")
    return int(given.check and bool(stale))


def render(results: Path) -> dict[Path, str]:
    """Every file this script looks after, with the content that the results give it."""
    files: dict[Path, str] = {}

    def part(match: re.Match[str]) -> str:
        text, drawn = PARTS[match["name"]](read_results(results / f"{FILES[match['name']]}.jsonl"))
        files.update({DRAWINGS / f"{name}.svg": svg for name, svg in drawn.items()})
        return match["head"] + text + match["tail"]

    page = PART.sub(part, PAGE.read_text(encoding="utf-8"))
    return {PAGE: page, **files}


Part = tuple[str, Mapping[str, str]]
"""Markdown, and drawings by name."""


def versus(records: Sequence[Record]) -> Part:
    """Ratios by model and method, and the figures behind them."""
    records = newest(records)
    if not records:
        return NOTHING, {}
    keys = sorted({_key(r) for r in records}, key=_order)
    lines, bars = [], []
    for key in keys:
        mine = [r for r in records if _key(r) == key]
        try:
            equal_work.check(mine[0]["setup"]["method"], mine)
        except equal_work.UnequalWorkError as error:
            lines.append([*key[:2], f"no ratio: {error}", *[""] * 7])
            continue
        rates = {side: rate(mine, side) for side in ("ours", "trl", "trl_tuned", "packed")}
        peaks = {side: largest(mine, side, _memory(mine)) for side in rates}
        by_side = [ratio(rates["ours"], rates[side]) for side in ("trl", "trl_tuned", "packed")]
        floor = FLOORS.get(key[1], ("", "", "")) if key[0] == "small" and key[2] == "cpu" else ("", "", "")
        lines.append([
            *key[:2], _shown(rates["ours"], 0), _shown(rates["trl"], 0), _shown(rates["trl_tuned"], 0),
            _times(by_side[0], floor[0]), _times(by_side[1], floor[1]),
            _times(ratio(peaks["ours"], peaks["trl_tuned"]), floor[2]), _shown(by_side[2], 2),
            f"{_shown(peaks['ours'], 0)} / {_shown(peaks['trl_tuned'], 0)}",
        ])  # fmt: skip
        if by_side[0] or by_side[1]:
            bars.append((f"{key[1]} ({key[0]})", by_side[0], by_side[1]))
    head = [
        "model", "method", "ours, tokens/s", "TRL", "TRL tuned", "vs TRL as installed", "vs TRL tuned",
        "peak memory vs tuned", "of the packed limit", "MB ours / TRL tuned",
    ]  # fmt: skip
    text = under(table(head, lines), records, "versus", "Times as many tokens per second as TRL, by method")
    return text, {"versus": drawings.ratios(bars)}


def rollouts(records: Sequence[Record]) -> Part:
    """Tokens per second of every engine."""
    records = newest(records)
    if not records:
        return NOTHING, {}
    lines, bars = [], []
    for model in dict.fromkeys(r["setup"]["model"] for r in records):
        mine = [r for r in records if r["setup"]["model"] == model]
        ours = rate(mine, "ours")
        for side in dict.fromkeys(r["side"] for r in mine):
            speed = rate(mine, side)
            times = None if side == "ours" else ratio(ours, speed)
            wanted = "floor 2.5" if side == "hf8" and model == "small" else ""
            peak = largest(mine, side, "peak_rss_mb")
            lines.append([model, side, _shown(speed, 0), _times(times, wanted), _shown(peak, 0)])
            bars.append((f"{side} ({model})", speed or 0.0))
    text = table(["model", "engine", "useful tokens/s", "ours is", "peak MB"], lines)
    drawn = drawings.bars(bars, "useful tokens per second")
    return under(text, records, "rollout", "Useful tokens per second by engine"), {"rollout": drawn}


def scaling(records: Sequence[Record]) -> Part:
    """Slopes by axis."""
    from scaling import AXES, slope

    records = newest(records)
    if not records:
        return NOTHING, {}
    lines, curves = [], {}
    for axis in (a for a in AXES if any(r["setup"]["axis"] == a for r in records)):
        mine = sorted((r for r in records if r["setup"]["axis"] == axis), key=lambda r: int(r["setup"]["x"]))
        memory = _memory(mine)
        points = [(r["setup"]["x"], sorted(r["seconds"])[len(r["seconds"]) // 2], r[memory]) for r in mine]
        slopes = [slope([(p[0], p[k]) for p in points]) for k in (1, 2)]
        span = f"{points[0][0]:,} – {points[-1][0]:,}"
        ends = [" → ".join(_shown(p[k], 3 - 3 * (k == 2)) for p in (points[0], points[-1])) for k in (1, 2)]
        lines.append([axis, span, ends[0], _shown(slopes[0], 2), ends[1], _shown(slopes[1], 2)])
        curves[axis] = points
    text = table(["axis", "from – to", "seconds a step", "slope", "peak MB", "slope"], lines)
    drawn = drawings.curves(curves)
    return under(text, records, "scaling", "Seconds of a step and memory as each axis grows"), {"scaling": drawn}


def loop(records: Sequence[Record]) -> Part:
    """Seconds of the demo by stage: the newest run of each kind."""
    latest = {r["setup"]["fast"]: r for r in newest(records)}
    if not latest:
        return NOTHING, {}
    full = latest.get(False, latest.get(True))
    assert full is not None
    names = list(dict.fromkeys(s["name"] for r in latest.values() for s in r["stages"]))
    kinds = [("demo", latest.get(False)), ("demo --fast", latest.get(True))]
    shown = [(name, one) for name, one in kinds if one is not None]
    lines = [[name, *(_shown(_stage(one, name), 1) for _, one in shown)] for name in names]
    lines.append(["beside the stages", *(_shown(one["wall_s"] - one["in_stages_s"], 1) for _, one in shown)])
    lines.append(["all", *(_shown(one["wall_s"], 1) for _, one in shown)])
    drawn = drawings.bars([(s["name"], s["seconds"]) for s in full["stages"]], "seconds")
    text = table(["stage", *(f"{name}, seconds" for name, _ in shown)], lines)
    return under(text, list(latest.values()), "loop", "Seconds of the demo by stage"), {"loop": drawn}


def overlap(records: Sequence[Record]) -> Part:
    """Drawing and learning in turn and at once: the newest run of each method."""
    latest = {r["setup"]["method"]: r for r in newest(records)}
    if not latest:
        return NOTHING, {}
    columns = [("step_s", 2), ("cpu_s", 2), ("last_reward", 2), ("drift", 4)]
    lines = [
        [method, name, *(_shown(side[key], digits) for key, digits in columns)]
        + [_times(one["times_as_fast"], "") if name == "at once" else "–"]
        for method, one in latest.items()
        for name, side in one["sides"].items()
    ]
    head = ["method", "side", "seconds a step", "CPU s of the learner", "last reward", "drift, nats", "times as fast"]
    return f"{table(head, lines)}\n\n{where(list(latest.values()))}", {}


def step_profile(records: Sequence[Record]) -> Part:
    """Milliseconds of a step by kind of work: the newest run of each method."""
    latest = {r["setup"]["method"]: r for r in newest(records)}
    if not latest:
        return NOTHING, {}
    wholes = {method: sum(one["ms"].values()) for method, one in latest.items()}
    kinds = dict.fromkeys(kind for one in latest.values() for kind in one["ms"])
    lines = [
        [
            kind,
            *(f"{one['ms'].get(kind, 0):.0f} ({one['ms'].get(kind, 0) / wholes[m]:.0%})" for m, one in latest.items()),
        ]
        for kind in kinds
    ]
    lines.append(["a step", *(f"{whole:.0f}" for whole in wholes.values())])
    lines.append(["bound of its matrix products", *(f"{one['bound_ms']:.0f}" for one in latest.values())])
    head = ["kind of work", *(f"{method}, ms on one thread" for method in latest)]
    return f"{table(head, lines)}\n\n{where(list(latest.values()))}", {}


PARTS: Mapping[str, Callable[[Sequence[Record]], Part]] = {
    "versus": versus, "rollout": rollouts, "scaling": scaling, "loop": loop, "overlap": overlap,
    "step_profile": step_profile,
}  # fmt: skip
FILES = {**{name: name for name in PARTS}, "versus": "versus_trl"}


def newest(records: Sequence[Record]) -> list[Record]:
    """The records of the code that was measured last."""
    last = records[-1]["setup"]["code"] if records else ""
    return [r for r in records if r["setup"]["code"] == last]


def where(records: Sequence[Record]) -> str:
    """When, on what and with which versions: the line under a table."""
    one = records[-1]
    versions: dict[str, set[str]] = {}
    for name, version in (pair for r in records for pair in r.get("versions", {}).items()):
        versions.setdefault(name, set()).add(version)
    named = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in sorted(versions.items()))
    days = sorted({r["at"][:10] for r in records})
    load = max(r["machine"]["load"][0] for r in records)
    threads = sorted({r["threads"] for r in records if "threads" in r})
    m = one["machine"]
    return (
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}, {m['cores']} cores of {m['cpu']}, {m['memory_gib']} GiB"
        f"{', threads ' + ', '.join(map(str, threads)) if threads else ''}; code {one['setup']['code']}; "
        f"{named + '; ' if named else ''}load average when a process ended at most {load}.\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def under(text: str, records: Sequence[Record], name: str, words: str) -> str:
    """A table, what it was measured on, and its drawing."""
    return f"{text}\n\n{where(records)}\n![{words}](performance/{name}.svg)\n"


def _key(record: Record) -> tuple[str, str, str, str]:
    s = record["setup"]
    rest = f"{s['steps']} {s['warmup']} {s['batch']} {s['dtype']} {s['threads']} {s['trl_python']}"
    return s["model"], s["method"], s["device"], rest


def _order(key: tuple[str, ...]) -> tuple[int, int, tuple[str, ...]]:
    from measure import assets, workload

    return list(assets.MODELS).index(key[0]), workload.METHODS.index(key[1]), key


def _memory(records: Sequence[Record]) -> str:
    return "peak_gpu_mb" if records[0]["setup"].get("device") == "cuda" else "peak_rss_mb"


def _stage(one: Record, name: str) -> float | None:
    return next((float(s["seconds"]) for s in one["stages"] if s["name"] == name), None)


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _times(value: float | None, floor: str) -> str:
    """A ratio beside what was asked for."""
    return _shown(value, 2) + (f" ({floor})" if floor and value is not None else "")


if __name__ == "__main__":
    sys.exit(main())
