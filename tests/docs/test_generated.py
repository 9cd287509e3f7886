"""Nothing generated is stale, and nothing that a user can set, read or call is left out."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import alignloop
from alignloop.core.config import Config
from tests.docs.pages import ROOT, make_docs


def docs(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in make_docs().pages())


@pytest.mark.parametrize("page", [p.name for p in make_docs().pages()])
def test_no_generated_part_is_stale(page: str) -> None:
    path = next(p for p in make_docs().pages() if p.name == page)
    text = path.read_text(encoding="utf-8")
    assert make_docs().generated(text) == text, "run: python scripts/make_docs.py"


def test_a_stale_part_is_noticed() -> None:
    part = "<!-- generated: settings alignloop.algorithms.dpo:Config -->\n| old |\n<!-- end -->"
    fresh = make_docs().generated(part)
    assert "| old |" not in fresh and "| `beta` | `0.1` | number, > 0 |" in fresh


def configs() -> Iterator[type[Config]]:
    """Every Config class of the package."""
    for module in pkgutil.walk_packages(alignloop.__path__, "alignloop."):
        if "migrations" not in module.name and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    todo = [Config]
    while todo:
        found = todo.pop().__subclasses__()
        todo += found
        yield from (c for c in found if c.__module__.startswith("alignloop."))


def test_every_setting_is_documented() -> None:
    text = everything()
    classes = list(configs())
    assert len(classes) >= 30
    missing = [f"{c.__module__}:{c.__name__}" for c in classes if f"{c.__module__}:{c.__name__} -->" not in text]
    assert not missing, f"no table for {missing}: add <!-- generated: settings ... --> to a page of docs/"
    bare = [f"{c.__name__}.{n}" for c in classes for n, f in c.model_fields.items() if not f.description]
    assert [name for name in bare if not name.endswith((".do", ".rule"))] == []


def test_every_method_is_documented() -> None:
    from alignloop.algorithms import METHODS

    text = docs("methods.md")
    for name in METHODS:
        assert f"\n## {name}\n" in text and f"<!-- generated: method {name} -->" in text, name
    assert set(METHODS) == set(make_docs().WRITTEN) - {"every"}, "which metrics does the new method write?"


def test_every_metric_is_documented() -> None:
    from alignloop.evaluation.glossary import EXPLANATIONS, explain

    text, tool = docs("metrics.md"), make_docs()
    for section in (*tool.WRITTEN, "report", "unwritten"):
        assert f"<!-- generated: metrics {section} -->" in text, section
    missing = [name for name in EXPLANATIONS if f"| `{name}` |" not in text]
    assert not missing
    assert [name for name in tool.ALARMS if explain(name) is None] == []


def test_every_format_is_documented() -> None:
    from alignloop.data.formats import FORMATS

    text = docs("data.md")
    for kind, known in FORMATS.items():
        assert f"<!-- generated: formats {kind} -->" in text
        shown = {name for name in known if f"<!-- rows: {kind} {name} -->" in text}
        assert shown == set(known) or kind == "prompts", f"{kind}: no example of {set(known) - shown}"


def test_every_kind_of_stage_and_rule_is_documented() -> None:
    from alignloop.pipeline.spec import STAGES
    from alignloop.rewards.rules import RULES

    text = docs("recipes.md")
    for kind in STAGES:
        assert f"\n## do: {kind}\n" in text, kind
    for rule in RULES:
        assert f"\n**{rule}**\n" in text, rule


def test_every_command_is_documented() -> None:
    text = docs("cli.md")
    for path, command in make_docs().command_tree():
        assert f"\n### {path}\n" in text
        for parameter in command.params:
            for option in (o for o in parameter.opts if o.startswith("--")):
                assert f"`{option}`" in text, f"{path} {option}"


SHORT: dict[str, Any] = {"max_steps": 2, "per_device_train_batch_size": 4, "show": False}


def written(folder: Path, method: str, **inputs: Any) -> set[str]:
    """Names in metrics.jsonl of a real run, without eval_ in front of those that training writes too."""
    from alignloop.core.tracking import read_jsonl

    result = alignloop.train(method, output_dir=folder / method, **SHORT, **inputs)
    raw = {name for line in read_jsonl(result.path.parent / "metrics.jsonl") for name in line} - {"global_step"}
    names = {re.sub(r"rewards/[^/]+/mean$", "rewards/{func}/mean", name) for name in raw}
    return {n for n in names if n.removeprefix("eval_") not in names or not n.startswith("eval_")} | (
        names & {"eval_loss"}
    )


def test_the_page_lists_what_training_writes(tmp_path: Path) -> None:
    from alignloop.models.tiny import save_tiny
    from tests.training import toys

    model = save_tiny(tmp_path / "tiny")
    rows, pairs, prompts = toys.demonstrations(8), toys.preferences(8), toys.prompts(8)
    online = {"rollout_batch_size": 4, "max_completion_length": 4, "num_ppo_epochs": 1, "kl": {"placement": "loss"}}
    runs: dict[str, dict[str, Any]] = {
        "sft": {"data": rows, "eval_data": rows, "log_entropy": True},
        "reward": {"data": pairs, "eval_data": pairs},
        "dpo": {"data": pairs, "eval_data": pairs},
        "ppo": {"prompts": prompts, "eval_prompts": prompts, "reward": toys.count_x, **online},
    }
    tool = make_docs()
    assert set(runs) == set(tool.WRITTEN) - {"every"}
    for method, inputs in runs.items():
        expected = {*tool.WRITTEN["every"], *tool.WRITTEN[method]} - ({"eval_loss"} if method == "ppo" else set())
        assert written(tmp_path, method, model=model, **inputs) == expected, method
