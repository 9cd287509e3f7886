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
from alignloop.training.procedures import PROCEDURES
from tests.docs.pages import ROOT, make_docs

TEXTS = ROOT / "tests" / "training" / "short_texts"
WORDS = ROOT / "tests" / "training" / "words"
"""Critiques that fit into the context of the tiny model."""


def docs(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def everything() -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in make_docs().pages())


@pytest.mark.parametrize("page", make_docs().pages(), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_generated_part_is_stale(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
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
    used = [c for c in classes if f"{c.__module__}:{c.__name__} -->" not in text and not c.__subclasses__()]
    missing = [f"{c.__module__}:{c.__name__}" for c in used]  # what others extend has its fields in their tables
    assert not missing, f"no table for {missing}: add <!-- generated: settings ... --> to a page of docs/"
    bare = [f"{c.__name__}.{n}" for c in classes for n, f in c.model_fields.items() if not f.description]
    assert [name for name in bare if not name.endswith((".do", ".rule"))] == []


HEADINGS = (
    "Idea", "Formula", "When to use it", "Settings", "Metrics", "Signs of trouble",
    "Differences between implementations", "How it is tested", "Reference",
)  # fmt: skip


def test_every_method_is_documented() -> None:
    known = make_docs().known_methods()
    assert {p.stem for p in (ROOT / "docs" / "methods").glob("*.md")} == set(known)
    assert set(known) == set(make_docs().WRITTEN) - {"every"}, "which metrics does the new method write?"


@pytest.mark.parametrize("name", make_docs().known_methods())
def test_pages_of_methods_have_one_shape(name: str) -> None:
    text = docs(f"methods/{name}.md")
    config = make_docs().known_methods()[name].config
    assert text.startswith(f"# {name}\n")
    assert tuple(re.findall(r"^## (.*)$", text, re.M)) == HEADINGS
    for part in (f"method {name}", f"settings {config.__module__}:{config.__name__}", f"metrics {name}"):
        assert f"<!-- generated: {part} -->" in text, part
    said = dict(zip(HEADINGS, re.split(r"^## .*$", text, flags=re.M)[1:]))
    short = [heading for heading, words in said.items() if len(words.split()) < 8]
    assert not short
    assert len(re.findall(r"`tests/\w+/test_\w+\.py::test_\w+`", said["How it is tested"])) >= 2


def test_every_metric_is_documented() -> None:
    from alignloop.evaluation.glossary import EXPLANATIONS, explain

    text, tool = docs("metrics.md"), make_docs()
    for section in ("every", "fixed", "sampling", "selection", "report", "unwritten"):
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
        assert f"\n**{rule}**: " in text, rule


def test_every_command_is_documented() -> None:
    text = docs("cli.md")
    for path, command in make_docs().command_tree():
        assert f"\n### {path}\n" in text
        for parameter in command.params:
            for option in (o for o in parameter.opts if o.startswith("--")):
                assert f"`{option}`" in text, f"{path} {option}"


def written(folder: Path, method: str, **inputs: Any) -> set[str]:
    """Names in metrics.jsonl of a real run, without eval_ in front of those that training writes too."""
    from alignloop.core.tracking import read_jsonl

    result = alignloop.train(method, output_dir=folder, show=False, **inputs)
    place = folder if (folder / "metrics.jsonl").exists() else result.path.parent
    raw = {name for line in read_jsonl(place / "metrics.jsonl") for name in line} - {"global_step"}
    part = re.compile(r"rewards/.+/(mean|std|multiplier)$")
    names = {re.sub(r"best_of_\d+$", "best_of_{n}", part.sub(r"rewards/{func}/\1", n)) for n in raw}
    shown = {n for name in names for n in [re.sub("^eval_rewards/{func}", "rewards/{func}", name)]}
    return {n for n in shown if not n.startswith("eval_") or n.removeprefix("eval_") not in shown} | (
        shown & {"eval_loss", "eval_reward"}
    )


def runs() -> list[tuple[str, dict[str, Any]]]:
    """Runs of every method that together switch on whatever it may write."""
    from tests.training import toys

    pairs, prompts = toys.preferences(8), toys.prompts(8)
    held = {"eval_data": pairs}
    fixed: list[tuple[str, dict[str, Any]]] = [
        ("sft", {"data": toys.demonstrations(8), "eval_data": toys.demonstrations(8), "log_entropy": True}),
        ("reward", {"data": pairs, "labels": "hard", "ties": "davidson", **held}),
        ("reward_kwise", {"data": toys.rankings(8), "eval_data": toys.rankings(8)}),
        ("reward_stepwise", {"data": toys.steps(8), "eval_data": toys.steps(8), "step_separator": ", "}),
        ("dpo", {"data": pairs, "rpo_alpha": 1.0, **held}),
        ("kto", {"data": toys.labels(8), "eval_data": toys.labels(8)}),
        *((name, {"data": pairs, **held}) for name in ("ipo", "orpo", "simpo", "cpo", "slic")),
    ]
    sampled = {"prompts": prompts, "reward": toys.variety, "max_completion_length": 4}
    online = {**sampled, "eval_prompts": toys.prompts(2), "rollout_batch_size": 4, "num_generations": 2}
    free = {"kl": {"placement": "loss", "beta": 0.05}, "importance": {"mode": "tis", "level": "sequence_mean"}}
    ptx = {"pretrain_data": toys.demonstrations(8), "ptx_coef": 0.5, "ptx_batch_size": 4}
    alone = ("reinforce", "reinforce_pp", "rloo", "remax", "grpo", "dr_grpo", "dapo", "gspo", "cispo")
    selected = {**sampled, "reward": toys.variety, "num_generations": 2}
    held_out = {"eval_prompts": toys.prompts(10)[8:], "eval_reward": toys.variety}
    judged = {
        **{name: value for name, value in online.items() if name not in ("reward", "rollout_batch_size")},
        "judge": {"templates": str(WORDS / "judge.yaml")}, "eval_reward": toys.variety, "max_steps": 2,
        "eval_prompts": toys.prompts(10)[8:], "policy": {"rollout_batch_size": 4, "max_completion_length": 4},
    }  # fmt: skip
    return [
        *((name, {**given, "max_steps": 2, "per_device_train_batch_size": 4}) for name, given in fixed),
        ("online_dpo", {**online, "max_steps": 2}),
        ("ppo", {**online, **ptx, **free, "max_steps": 2, "positive": {"min_score": 0.2}}),
        ("trpo", {**online, "max_steps": 2}),
        *((name, {**online, **free, "max_steps": 2}) for name in alone),
        ("best_of_n", {**selected, "eval_reward": toys.count_x}),
        ("raft", {**selected, **held_out, "rounds": 1}),
        ("rest", {**selected, **held_out, "thresholds": (0.1,)}),
        ("rlaif", judged),
        ("constitutional", {**judged, "constitution": str(WORDS / "constitution.yaml"), "revisions": 1}),
        ("test_time_po", {**selected, "eval_reward": toys.count_x, "max_critique_length": 4, "templates": str(TEXTS)}),
    ]


RARE = {"eval_loss", "kl_exact", "learning_rate", "rewards/{func}/multiplier", *make_docs().DRIFT}
"""Not in every run: of held-out rows; where all probable answers were drawn; TRPO has no rate; of bounded parts; of
answers drawn ahead."""


@pytest.mark.parametrize(("method", "inputs"), runs(), ids=lambda x: x if isinstance(x, str) else "")
def test_the_page_lists_what_training_writes(tmp_path: Path, method: str, inputs: dict[str, Any]) -> None:
    from alignloop.models.tiny import save_tiny

    tool = make_docs()
    every = set() if method in PROCEDURES else set(tool.WRITTEN["every"])
    found = written(tmp_path / "run", method, model=save_tiny(tmp_path / "tiny"), **inputs)
    listed = every | set(tool.WRITTEN[method])
    assert found - listed == set(), "not on the page"
    assert listed - found <= RARE, "on the page, never written"


def test_every_method_is_run() -> None:
    assert {method for method, _ in runs()} == set(make_docs().known_methods())
