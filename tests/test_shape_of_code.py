"""Sizes that keep the code readable, and recipes that must parse."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import alignloop
from alignloop.core.config import Config
from alignloop.pipeline.plan import make_plan
from alignloop.pipeline.recipe_file import read_recipe
from alignloop.pipeline.spec import parse_recipe

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "alignloop"
FILES = sorted(SOURCE.rglob("*.py"))
TELL_APART = ("do", "rule")  # constants by which a recipe says which class it means
FILE_LINES, FUNCTION_LINES, CONFIG_FIELDS = 400, 60, 12


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_files_are_short():
    long = {name(p): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > FILE_LINES}
    assert not long, f"split these by idea: {long}"


def test_functions_are_short():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long[f"{name(path)}:{node.name}"] = lines
    assert not long, f"split these: {long}"


def test_there_is_no_drawer_for_everything():
    assert not [name(p) for p in FILES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_every_module_says_what_it_is():
    assert not [name(p) for p in FILES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))]


def configs() -> list[type[Config]]:
    """Every configuration class of the package."""
    for module in pkgutil.walk_packages(alignloop.__path__, "alignloop."):
        if not module.name.endswith("__main__") and "migrations" not in module.name:
            importlib.import_module(module.name)
    found: list[type[Config]] = []
    queue = [Config]
    while queue:
        for kind in queue.pop().__subclasses__():
            if kind.__module__.startswith("alignloop.") and kind not in found:
                found.append(kind)
                queue.append(kind)
    return found


def test_configs_are_small_and_explained():
    kinds = configs()
    assert len(kinds) > 10
    for kind in kinds:
        own = [f for f in kind.__annotations__ if f in kind.model_fields and f not in TELL_APART]
        assert len(own) <= CONFIG_FIELDS, f"{kind.__module__}.{kind.__name__} has {len(own)} fields: make blocks"
        bare = [f for f in own if not kind.model_fields[f].description]
        assert not bare, f"{kind.__module__}.{kind.__name__}: no docstring under {', '.join(bare)}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.name)
def test_shipped_recipes_parse(path, monkeypatch):
    from alignloop.pipeline.methods import validate_train

    monkeypatch.chdir(ROOT)
    plan = make_plan(parse_recipe(read_recipe(path), path.name, {"train": validate_train}))
    assert plan.stages
