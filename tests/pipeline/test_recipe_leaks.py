"""A recipe that learns from what it is measured on is told so before it starts; `without` cures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignloop.models.tiny import save_tiny
from alignloop.pipeline.fingerprint import FileHashes, stage_key
from alignloop.pipeline.methods import validate_train
from alignloop.pipeline.plan import Plan, make_plan
from alignloop.pipeline.spec import parse_recipe
from alignloop.pipeline.work import preflight

NUMBERS = "one two three four five six seven eight nine ten eleven twelve thirteen"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "base")
    asked = [f"q{k} " for k in range(5)]
    write(
        "train.jsonl",
        [{"prompt": p, "completion": "x"} for p in [*asked, "w "]] + [{"prompt": "n ", "completion": NUMBERS}],
    )
    write("test.jsonl", [{"prompt": "W!"}, {"prompt": f"say {NUMBERS}"}])
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan(data: Any) -> Plan:
    stages = {
        "sft": {"do": "train", "method": "sft", "data": data},
        "samples": {"do": "generate", "model": "sft", "prompts": "test.jsonl"},
        "report": {"do": "evaluate", "models": ["sft"], "prompts": "test.jsonl"},
        "again": {"do": "evaluate", "models": ["sft"], "prompts": "samples"},
    }
    recipe = parse_recipe({"name": "r", "model": "base", "stages": stages}, validate={"train": validate_train})
    return make_plan(recipe)


def told(data: Any) -> list[str]:
    return [str(shown) for shown in preflight(plan(data)) if "rows" in str(shown)]


def test_training_rows_that_evaluation_asks_are_counted(here: Path) -> None:
    [line] = told("train.jsonl")
    assert line.startswith("stages.sft: 2 of 7 rows share 13 words in a row with a prompt that is evaluated on")
    assert "(the first: 'W!'); leave them out with without: in the data" in line


def test_without_leaves_them_out_and_the_key_follows_that_file(here: Path) -> None:
    data = {"path": "train.jsonl", "without": "test.jsonl"}
    [line] = told(data)
    assert "5 demonstrations from train.jsonl" in line and "2 rows skipped" in line

    def key() -> str:
        made = plan(data)
        return stage_key(made["sft"], made.recipe, {}, FileHashes())

    before = key()
    write("test.jsonl", [{"prompt": "other"}])
    assert key() != before
