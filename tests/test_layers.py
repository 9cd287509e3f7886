"""The import law: a folder imports only from lower layers, and the light rooms never load torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "alignloop"
LAYERS = [
    {"core"},
    {"algorithms", "data", "models", "store"},
    {"rollout", "rewards", "feedback"},
    {"training", "evaluation"},
    {"pipeline"},
    {"demo", "web"},
    {"cli"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
NEVER = {"data": {"store"}, "training": {"store"}, "feedback": {"algorithms", "data", "models"}}
THIRD_PARTY_OF_ALGORITHMS = {"torch", "pydantic", "jaxtyping"}  # pydantic: Field of a Config; jaxtyping: shapes


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of a file, whether at its top or inside a function."""
    found = []
    package = ["alignloop", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            found += [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ENTRY_CALLS:
            texts = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            found += [(node.lineno, text) for text in texts]
    return sorted(found)


ENTRY_CALLS = {"import_module", "entry"}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "alignloop" and len(parts) > 1 and parts[1] in LEVEL else None


def breaches(path: Path) -> list[str]:
    room = path.relative_to(SOURCE).parts[0]
    lines = []
    for line, module in imports(path):
        other = room_of(module)
        if other is None or other == room:
            continue
        if LEVEL[other] >= LEVEL[room] or other in NEVER.get(room, set()):
            lines.append(f"{path.relative_to(SOURCE)}:{line}: {room} must not import {other} ({module})")
    return lines


FILES = sorted(p for p in SOURCE.rglob("*.py") if len(p.relative_to(SOURCE).parts) > 1)


def test_every_folder_has_a_layer():
    rooms = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.rglob("*.py"))}
    assert rooms <= set(LEVEL), f"give these a layer: {rooms - set(LEVEL)}"


def test_folders_import_only_from_lower_layers():
    found = [line for path in FILES for line in breaches(path)]
    assert not found, "\n".join(found)


def test_algorithms_import_torch_and_core_only():
    found = []
    for path in (SOURCE / "algorithms").rglob("*.py"):
        for line, module in imports(path):
            top = module.split(".")[0]
            if top not in {"alignloop", "__future__", *THIRD_PARTY_OF_ALGORITHMS, *sys.stdlib_module_names}:
                found.append(f"{path.name}:{line}: {module}")
    assert not found, "\n".join(found)


def test_the_law_sees_a_breach(tmp_path, monkeypatch):
    """The test itself is tested: imports at the top, in functions, relative, and by name."""
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    bad = tmp_path / "data" / "bad.py"
    bad.parent.mkdir()
    bad.write_text(
        "import alignloop.store\n"
        "from alignloop.core import types\n"
        "def f():\n    from alignloop import models\n"
        "from ..training import train\n"
        "import importlib\nimportlib.import_module('alignloop.cli.main')\n"
        "from . import schemas\n"
    )
    assert [line.split(" ")[-2] for line in breaches(bad)] == ["store", "models", "training", "cli"]


@pytest.mark.parametrize(
    "module",
    [
        "core",
        "core.protocols",
        "store",
        "feedback",
        "web",
        "cli.main",
        "pipeline.spec",
        "pipeline.plan",
        "rewards.load",
    ],
)
def test_light_rooms_leave_torch_alone(module):
    code = (
        f"import sys, alignloop.{module}; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("room", ["store", "feedback", "web", "cli"])
def test_no_module_of_a_light_room_imports_torch_at_its_top(room):
    heavy = {"torch", "transformers", "datasets", "peft"}
    found = []
    for path in (SOURCE / room).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [f"{path.relative_to(SOURCE)}: {n}" for n in names if n.split(".")[0] in heavy]
    assert not found, "\n".join(found)
