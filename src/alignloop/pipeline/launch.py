"""From the path of a recipe to a run: read, check, plan, show, run. What `alignloop run` does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from rich.console import Console, RenderableType

from alignloop.core.errors import ConfigError
from alignloop.pipeline.plan import Plan, make_plan
from alignloop.pipeline.recipe_file import apply_overrides, read_recipe
from alignloop.pipeline.runner import Runner, RunResult, StageFunction
from alignloop.pipeline.show import RichDisplay, plan_table
from alignloop.pipeline.spec import Validate, check_stages, parse_recipe
from alignloop.pipeline.state import find_runs, read_status, store_url

Preflight = Callable[[Plan], Iterable[RenderableType]]
"""Tables to show before a run starts."""


@dataclass(frozen=True)
class Prepared:
    """A recipe that has passed every check, and where it will run."""

    plan: Plan
    run_dir: Path
    given: str


def prepare(
    path: Path,
    *,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    validate: Mapping[str, Validate] | None = None,
) -> Prepared:
    """Read and check a recipe; `overrides` are ``key.key=value``. Folder: `out`, the recipe's `out`, or runs/NAME."""
    raw = apply_overrides(read_recipe(path), overrides)
    if seed is not None:
        raw["seed"] = seed
    recipe = parse_recipe(raw, str(path))
    plan = make_plan(recipe)
    check_stages(recipe, str(path), validate or {})  # last: it may import torch
    folder = out or Path(recipe.out or Path("runs") / recipe.name)
    return Prepared(plan, folder, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))


def run_prepared(
    prepared: Prepared,
    stages: Mapping[str, StageFunction],
    console: Console,
    *,
    until: Sequence[str] = (),
    force: Sequence[str] = (),
    preflight: Preflight | None = None,
) -> RunResult:
    """Show the plan and, by `preflight`, the models held and the batch arithmetic; run; say how it ended."""
    console.print(plan_table(prepared.plan))
    for table in preflight(prepared.plan) if preflight else ():
        console.print(table)
    console.print(f"run folder: {prepared.run_dir}", markup=False, soft_wrap=True)
    _open_store(prepared)
    display = RichDisplay(console, len(prepared.plan.stages))
    runner = Runner(prepared.plan, prepared.run_dir, stages, display=display, given=prepared.given)
    result = runner.run(until, force)
    if result.status == "waiting":
        console.print(f"waiting: {result.waiting}; then start the same command again", markup=False, soft_wrap=True)
    for name, found in result.results.items():
        for kind in ("report", "html"):
            if kind in found.outputs:
                console.print(f"{name}: {found.outputs[kind]}", markup=False, soft_wrap=True)
    return result


def _open_store(prepared: Prepared) -> None:
    """Create or migrate the database now: one that cannot be used stops the run before anything is trained."""
    from alignloop.store.store import Store

    prepared.run_dir.mkdir(parents=True, exist_ok=True)
    Store(store_url(prepared.run_dir, prepared.plan.recipe.store)).close()


def run_folder(name: str | None, root: Path = Path("runs")) -> Path:
    """A run's folder from what a person types: a folder, a name below `root`, or nothing for the latest run."""
    if name is not None:
        for folder in (Path(name), root / name):
            if (folder / "run.json").is_file():
                return folder
        known = ", ".join(p.name for p in find_runs(root)) or "none yet"
        raise ConfigError(f"no run '{name}' here or in {root}/; known: {known}")
    found = find_runs(root)
    if not found:
        raise ConfigError(f"no run in {root}/; start one with alignloop run RECIPE or alignloop demo")
    return found[0]


def find_report(folder: Path) -> Path:
    """The report of a run: the one in the folder itself (the demo's), else the latest one that a stage wrote."""
    if (folder / "report.html").is_file():
        return folder / "report.html"
    if (folder / "run.json").is_file():
        for row in reversed(read_status(folder).stages):
            report = row.state.outputs.get("report")
            if report is not None and (folder / report).is_file():
                return folder / report
    raise ConfigError(
        f"{folder}: no report yet; finish the run with alignloop run (alignloop status shows where it is)"
    )
