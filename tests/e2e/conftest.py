"""One small world and one finished run of the whole loop, shared by the tests of this folder."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignloop.models.tiny import save_tiny
from tests.e2e import toys
from tests.e2e.command import here, start

RECIPE = Path(__file__).with_name("loop.yaml")


@dataclass
class Finished:
    """A run that went to its end, and what another process saw of it meanwhile."""

    folder: Path
    out: str
    err: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    table: str = ""

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "loop"

    def stage(self, name: str) -> dict[str, Any]:
        """What the run folder says of a stage."""
        (row,) = [s for s in self.status()["stages"] if s["name"] == name]
        return row

    def status(self) -> dict[str, Any]:
        return here("status", "runs/loop", "--json", cwd=self.folder).json()

    def output(self, stage: str, name: str) -> Path:
        """The path of what a stage made."""
        run = json.loads((self.run / "run.json").read_text())
        (key,) = [s["key"] for s in run["stages"] if s["name"] == stage]
        state = json.loads((self.run / "stages" / stage / key[:12] / "state.json").read_text())
        return self.run / state["outputs"][name]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, data, rewards and the recipe. Not to be written to."""
    folder = tmp_path_factory.mktemp("world")
    save_tiny(folder / "base")
    toys.write_world(folder)
    shutil.copy(RECIPE, folder)
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Path:
    """A copy of the world that a test may write to."""
    return Path(shutil.copytree(world, tmp_path / "place"))


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """`alignloop run loop.yaml` in a process of its own, `alignloop status` in this one while it runs."""
    folder = Path(shutil.copytree(world, tmp_path_factory.mktemp("finished") / "place"))
    process = start("run", "loop.yaml", cwd=folder)
    seen, table = [], ""
    while process.poll() is None:
        status = here("status", "runs/loop", "--json", cwd=folder)  # this is another process than the one that runs
        if status.code == 0:
            seen.append(status.json())
            table = table or here("status", "runs/loop", cwd=folder).out
        time.sleep(0.3)
    out, err = process.communicate()
    assert process.returncode == 0, f"{out}\n{err}"
    return Finished(folder, out, err, seen, table)


def change(path: Path, **stages: dict[str, Any] | None) -> Path:
    """Rewrite a recipe: settings of stages, None to leave one out."""
    recipe = yaml.safe_load(path.read_text())
    for name, settings in stages.items():
        if settings is None:
            del recipe["stages"][name]
        else:
            recipe["stages"][name] = {**recipe["stages"].get(name, {}), **settings}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
