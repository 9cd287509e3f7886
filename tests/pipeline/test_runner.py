"""The runner: order, cache, resume after a kill, waiting, errors. Stages here write small files, none trains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from alignloop.core.errors import ConfigError, DataError, TrainingError
from alignloop.pipeline.plan import make_plan
from alignloop.pipeline.runner import Runner, StageContext, StageResult, Waiting
from alignloop.pipeline.spec import parse_recipe
from alignloop.pipeline.state import find_runs, read_status, run_lock, write_text


class Stages:
    """Stage functions that note their calls; `people` is what the annotate stage waits for."""

    def __init__(self, people: bool = True):
        self.calls: list[str] = []
        self.people = people
        self.votes = "v1"

    def run(self, ctx: StageContext) -> StageResult | Waiting:
        self.calls.append(ctx.name)
        if ctx.stage.do == "annotate" and not self.people:
            return Waiting("3 comparisons wait for people: alignloop annotate")
        out = ctx.folder / "out.txt"
        parts = [r.outputs["out"].read_text() for r in ctx.inputs.values()]
        out.write_text(f"{ctx.name}({','.join(parts)})")
        ctx.log.info("wrote %s", out.name)
        ctx.progress(1, 1, "written")
        return StageResult({"out": out}, {"length": len(parts)}, self.votes if ctx.stage.do == "annotate" else "")

    def table(self):
        return dict.fromkeys(("train", "generate", "annotate", "evaluate"), self.run)


def raw(tmp_path: Path, lr: float = 0.1):
    data, prompts = tmp_path / "rows.jsonl", tmp_path / "prompts.jsonl"
    for file in (data, prompts):
        if not file.exists():
            file.write_text("{}\n")
    return {
        "name": "r",
        "model": "org/base",
        "stages": {
            "sft": {"do": "train", "method": "sft", "data": str(data)},
            "samples": {"do": "generate", "model": "sft", "prompts": str(prompts)},
            "votes": {"do": "annotate", "samples": "samples"},
            "reward": {"do": "train", "method": "reward", "model": "sft", "data": "votes", "lr": lr},
            "policy": {"do": "train", "method": "dpo", "model": "sft", "data": "votes"},
        },
    }


def run(tmp_path: Path, recipe, stages: Stages, **options):
    return Runner(make_plan(parse_recipe(recipe)), tmp_path / "run", stages.table()).run(**options)


ALL = ["sft", "samples", "votes", "reward", "policy"]


def test_runs_in_order_and_takes_the_second_time_from_the_cache(tmp_path):
    stages = Stages()
    result = run(tmp_path, raw(tmp_path), stages)
    assert stages.calls == ALL and result.status == "done"
    assert result.results["policy"].outputs["out"].read_text() == "policy(sft(),votes(samples(sft())))"
    again = Stages()
    second = run(tmp_path, raw(tmp_path), again)
    assert again.calls == [] and second.results["policy"].metrics == {"length": 2}
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["stages"]["samples"]["temperature"] == 1.0


def test_a_changed_setting_runs_that_stage_and_what_follows(tmp_path):
    run(tmp_path, raw(tmp_path), Stages())
    changed = Stages()
    run(tmp_path, raw(tmp_path, lr=0.2), changed)
    assert changed.calls == ["reward"]
    recipe = raw(tmp_path)
    recipe["stages"]["samples"]["n"] = 4
    upstream = Stages()
    run(tmp_path, recipe, upstream)
    assert upstream.calls == ["samples", "votes", "reward", "policy"]
    back = Stages()
    run(tmp_path, raw(tmp_path), back)
    assert back.calls == []  # the first results are still there


def test_changed_data_and_changed_seed(tmp_path):
    run(tmp_path, raw(tmp_path), Stages())
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "new"}\n')
    data = Stages()
    run(tmp_path, raw(tmp_path), data)
    assert data.calls == ["samples", "votes", "reward", "policy"]
    seeded = Stages()
    run(tmp_path, {**raw(tmp_path), "seed": 1}, seeded)
    assert seeded.calls == ALL


def test_a_lost_output_is_made_again(tmp_path):
    result = run(tmp_path, raw(tmp_path), Stages())
    result.results["samples"].outputs["out"].unlink()
    stages = Stages()
    run(tmp_path, raw(tmp_path), stages)
    assert stages.calls == ["samples"]


def test_until_and_force(tmp_path):
    stages = Stages()
    assert run(tmp_path, raw(tmp_path), stages, until=["samples"]).status == "partial"
    assert stages.calls == ["sft", "samples"]
    run(tmp_path, raw(tmp_path), stages, force=["sft"])
    assert stages.calls == ["sft", "samples", "sft", "votes", "reward", "policy"]
    with pytest.raises(ConfigError, match="no stage 'sampels', did you mean 'samples'"):
        run(tmp_path, raw(tmp_path), stages, force=["sampels"])


def test_people_are_waited_for_and_their_votes_decide_what_is_run_again(tmp_path):
    stages = Stages(people=False)
    result = run(tmp_path, raw(tmp_path), stages)
    assert result.status == "waiting" and "votes: 3 comparisons wait for people" in result.waiting
    assert stages.calls == ["sft", "samples", "votes"]
    status = read_status(tmp_path / "run")
    assert status.status == "waiting" and [r.state.status for r in status.stages][:3] == ["done", "done", "waiting"]
    stages.people = True
    assert run(tmp_path, raw(tmp_path), stages).status == "done"
    assert stages.calls[3:] == ["votes", "reward", "policy"]
    stages.votes, stages.calls = "v2", []
    run(tmp_path, raw(tmp_path), stages, force=["votes"])
    assert stages.calls == ["votes", "reward", "policy"]


def test_an_error_is_recorded_and_the_next_start_goes_on_from_there(tmp_path):
    stages = Stages()

    def broken(ctx: StageContext) -> StageResult:
        raise DataError("no column 'text'", file="rows.jsonl", row=3)

    table = {**stages.table(), "annotate": broken}
    with pytest.raises(DataError):
        Runner(make_plan(parse_recipe(raw(tmp_path))), tmp_path / "run", table).run()
    status = read_status(tmp_path / "run")
    row = status.stages[2]
    assert status.status == "failed" and row.state.status == "failed"
    assert row.state.message == "rows.jsonl, row 3: no column 'text'"
    log = next((tmp_path / "run" / "stages" / "votes").glob("*/log.txt")).read_text()
    assert "Traceback" in log
    again = Stages()
    run(tmp_path, raw(tmp_path), again)
    assert again.calls == ["votes", "reward", "policy"]


def test_an_output_that_was_not_written_is_an_error(tmp_path):
    def liar(ctx: StageContext) -> StageResult:
        return StageResult({"model": ctx.folder / "model"})

    table = {**Stages().table(), "train": liar}
    with pytest.raises(TrainingError, match="stage 'sft': its output model was not written"):
        Runner(make_plan(parse_recipe(raw(tmp_path))), tmp_path / "run", table).run()


def test_missing_data_is_named_before_anything_runs(tmp_path):
    recipe = raw(tmp_path)
    recipe["stages"]["samples"]["prompts"] = str(tmp_path / "nowhere.jsonl")
    stages = Stages()
    with pytest.raises(ConfigError, match=r"stages\.samples\.prompts: no file '.*nowhere.jsonl'"):
        run(tmp_path, recipe, stages)
    assert stages.calls == []


def test_one_process_at_a_time(tmp_path):
    run(tmp_path, raw(tmp_path), Stages())
    with run_lock(tmp_path / "run"), pytest.raises(ConfigError, match=f"process {os.getpid()} is running it"):
        run(tmp_path, raw(tmp_path), Stages())


def test_a_run_folder_may_be_moved(tmp_path):
    run(tmp_path, raw(tmp_path), Stages())
    (tmp_path / "run").rename(tmp_path / "moved")
    stages = Stages()
    runner = Runner(make_plan(parse_recipe(raw(tmp_path))), tmp_path / "moved", stages.table())
    assert runner.run().results["sft"].outputs["out"].read_text() == "sft()" and stages.calls == []
    assert find_runs(tmp_path) == [tmp_path / "moved"]


def test_status_of_no_run(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        read_status(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


CHILD = """
    import sys, time, json
    from pathlib import Path
    from alignloop.pipeline.plan import make_plan
    from alignloop.pipeline.runner import Runner, StageResult
    from alignloop.pipeline.spec import parse_recipe

    def train(ctx):
        checkpoint = ctx.folder / "steps.txt"
        done = len(checkpoint.read_text().splitlines()) if checkpoint.exists() else 0
        with checkpoint.open("a") as file:
            for step in range(done, 40):
                file.write(f"{ctx.seed} {step}\\n"); file.flush()
                ctx.progress(step + 1, 40, "stepping")
                time.sleep(float(sys.argv[3]))
        return StageResult({"steps": checkpoint}, {"entered_at": done})

    recipe = json.loads(sys.argv[2])
    Runner(make_plan(parse_recipe(recipe)), Path(sys.argv[1]), {"train": train}).run()
"""


def test_killed_in_the_middle_it_goes_on_inside_the_stage(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    stage = {"do": "train", "method": "sft", "data": str(data)}
    recipe = {"name": "r", "model": "org/base", "stages": {"a": stage, "b": {**stage, "model": "a"}}}
    script, folder = tmp_path / "child.py", tmp_path / "run"
    script.write_text(textwrap.dedent(CHILD))

    def command(pause: float) -> list[str]:
        return [sys.executable, str(script), str(folder), json.dumps(recipe), str(pause)]

    child = subprocess.Popen(command(0.05))
    steps = folder / "stages" / "a"
    deadline = time.monotonic() + 30
    while not any(len(p.read_text().splitlines()) >= 8 for p in steps.glob("*/files/steps.txt")):
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    running = read_status(folder)
    assert running.status == "running" and running.stages[0].state.status == "running"
    assert running.pid == child.pid and running.stages[0].total == 40
    child.send_signal(signal.SIGKILL)
    child.wait()
    killed = read_status(folder)
    assert killed.status == "interrupted" and killed.stages[0].state.status == "interrupted"

    subprocess.run(command(0), check=True, timeout=60)
    status = read_status(folder)
    assert status.status == "done" and [r.state.status for r in status.stages] == ["done", "done"]
    first = status.stages[0].state
    assert first.attempts == 2 and first.metrics["entered_at"] >= 8
    lines = (folder / first.outputs["steps"]).read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == list(range(40))
    assert len({line.split()[0] for line in lines}) == 1  # one seed before and after
