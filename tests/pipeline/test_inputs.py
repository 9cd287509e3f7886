"""What a stage's texts mean: prompts of a generate stage."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from alignloop.core.types import Prompt, text
from alignloop.pipeline import inputs
from alignloop.pipeline.plan import make_plan
from alignloop.pipeline.runner import StageContext
from alignloop.pipeline.spec import Generate, parse_recipe


def asked_twice() -> list[Prompt]:
    first, second = Prompt("a", text("one")), Prompt("b", text("two"))
    return [first, second, replace(first, id="c")]


def test_a_wording_is_answered_once(tmp_path: Path) -> None:
    """The store keeps a wording once, so a second id for it would have no row; the first one stays, in its place."""
    raw = {"do": "generate", "model": "m", "prompts": {"function": f"{__file__}:asked_twice"}}
    recipe = parse_recipe({"name": "x", "stages": {"samples": raw}})
    stage = make_plan(recipe)["samples"].stage
    assert isinstance(stage, Generate)
    log = logging.getLogger("test")
    ctx = StageContext("samples", stage, recipe, {}, tmp_path, tmp_path, 0, "", 0, log, lambda *_: None)
    assert [p.id for p in inputs.chosen_prompts(ctx, stage)] == ["a", "b"]
