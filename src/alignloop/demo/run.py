"""`alignloop demo`: the tutor recipe through the ordinary runner, then what only this world can tell: gold in parts,
and the kind of every sentence.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from alignloop.demo.world import BASE_MODEL, Gold, gold

FAST = (
    "stages.sft.data.n=600",
    "stages.samples.n=8",
    "stages.votes.pairs=10",
    "stages.dpo.max_steps=20",
    "stages.ppo.max_steps=6",
    "stages.report.limit=24",
    "stages.report.data.n=40",
)
"""The short version: less of everything, the same stages."""


def run_demo(out: Path, seed: int, fast: bool) -> Path:
    """Run (or continue) the tutor recipe in `out` and write its report; returns the page."""
    from rich.console import Console

    from alignloop.pipeline.launch import prepare, run_prepared
    from alignloop.pipeline.methods import validate_train
    from alignloop.pipeline.stages import STAGES, preflight

    os.environ.setdefault("ALIGNLOOP_TUTOR_BASE", str(BASE_MODEL))
    with resources.as_file(resources.files("alignloop.demo") / "tutor.yaml") as recipe:
        prepared = prepare(
            recipe, out=Path(out), overrides=FAST if fast else (), seed=seed, validate={"train": validate_train}
        )
    result = run_prepared(prepared, STAGES, Console(), preflight=preflight)
    outputs = result.results["report"].outputs
    command = f"alignloop demo --out {out} --seed {seed}" + (" --fast" if fast else "")
    return finish_report(Path(out), outputs["json"], outputs["answers"], command)


def finish_report(out: Path, report: Path, answers: Path, command: str) -> Path:
    """The run's report with this world's own figures, written to `out` with every promised key."""
    from alignloop.evaluation.report import read_report, write_report
    from alignloop.pipeline.state import read_status

    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").split("\n") if line]
    judged = [(row, gold(row["prompt"]["extra"]["topic"], row["text"], row["truncated"])) for row in rows]
    data = read_report(report)
    own = world_figures(judged)
    for name, entry in own.pop("gold").items():
        data["gold"][name] = {**data["gold"][name], **entry}
    stages = {row.name: row.state.seconds for row in read_status(out).stages}
    data |= {**own, "stages": stages, "seconds": sum(stages.values()), "command": command, "gold_max": 10.0, **WORDS}
    return write_report(data, out)


WORDS = {
    "title": "A tutor for ten-year-olds: the whole loop",
    "summary": (
        "A tiny language model learns to explain things to a ten-year-old: first from mediocre demonstrations, then "
        "from the votes of twenty simulated people, of whom two answer at random and four favour the left side."
    ),
    "notes": [
        "Gold is a known reward of this small world. The simulated people go by it; no training ever reads it.",
        "The topics shown here were never seen in demonstrations, votes or policy optimisation. The base model has "
        "read about them, in good registers and bad: training re-weights what it knows and adds no knowledge.",
        "The world speaks a closed grammar, so that gold is exact. A correct paraphrase would count as garbled.",
    ],
}
"""What the page says that no figure does."""


def world_figures(judged: list[tuple[Mapping[str, Any], Gold]]) -> dict[str, Any]:
    """Gold in parts, faulty sentences per answer, and sentences marked by kind, for every model."""
    by_model: dict[str, list[Gold]] = {}
    marked: dict[str, dict[str, list[list[str]]]] = {}
    texts: dict[str, dict[str, str]] = {}
    for row, found in judged:
        by_model.setdefault(row["model"], []).append(found)
        prompt = row["prompt"]["messages"][-1]["content"]
        marked.setdefault(prompt, {}).setdefault(row["model"], [[s, kind] for s, kind in found.sentences])
        texts.setdefault(prompt, {}).setdefault(row["model"], row["text"])
    return {
        "gold": {name: {"parts": _parts(found)} for name, found in by_model.items()},
        "readability": {
            name: {
                "wrong_topic": sum(g.wrong_topic for g in found) / len(found),
                "garbled": sum(g.garbled for g in found) / len(found),
            }
            for name, found in by_model.items()
        },
        "samples": {prompt: texts[prompt] for prompt in list(marked)[:12]},
        "samples_marked": {prompt: marked[prompt] for prompt in list(marked)[:12]},
    }


def _parts(found: list[Gold]) -> dict[str, float]:
    return {part: sum(g.parts[part] for g in found) / len(found) for part in found[0].parts}
