"""The real command in a process of its own: quick help, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from alignloop import __version__
from alignloop.cli.main import main


def alignloop(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "alignloop.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=180,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal."""
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


def test_help_is_quick_and_lists_the_commands():
    best = 9.9
    for _ in range(3):
        start = time.perf_counter()
        result = alignloop("--help")
        best = min(best, time.perf_counter() - start)
    assert result.returncode == 0 and best < 1.5  # about 0.3 s on an idle machine
    for command in (
        "demo",
        "run",
        "status",
        "report",
        "train",
        "generate",
        "score",
        "eval",
        "lineage",
        "snapshot",
        "env",
    ):
        assert command in result.stdout


@pytest.mark.parametrize("command", ["demo", "run", "status", "report", "train", "generate", "score", "eval", "env"])
def test_every_command_has_help(command):
    result = alignloop(command, "--help")
    assert result.returncode == 0 and "Usage: alignloop" in result.stdout


def write(path: Path, **changes) -> Path:
    stage = {"do": "train", "method": "sft", "data": "rows.jsonl"}
    recipe = {"name": "x", "model": "org/base", "stages": {"sft": stage}, **changes}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


SFT = {"do": "train", "method": "sft", "data": "rows.jsonl"}


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """The command in this process: for cases that would import torch once each."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit) as left:
            main(arguments)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, left.value.code, out, err)

    return run


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, "r.yaml.sede: unknown setting, did you mean 'seed'?"),
        ({"stages": {"a": {"do": "trane"}}}, "r.yaml.stages.a.do: unknown stage 'trane', did you mean 'train'?"),
        ({"stages": {"a": {**SFT, "model": "b"}, "b": {**SFT, "model": "a"}}}, "stages: a cycle, a → b → a"),
        ({"model": None}, "stages.sft.model: missing"),
    ],
)
def test_bad_recipes(tmp_path, changes, message):
    write(tmp_path / "r.yaml", **changes)
    assert message in refused(alignloop("run", "r.yaml", "--dry-run", cwd=tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages": {"a": {**SFT, "method": "stf"}}},
            "r.yaml.stages.a.method: unknown method 'stf', did you mean 'sft'?",
        ),
        ({"stages": {"a": {**SFT, "lerning_rate": 1}}}, "did you mean 'learning_rate'?"),
        ({"stages": {"a": {**SFT, "modle": "x"}}}, "did you mean 'model'?"),
        ({"stages": {"a": {**SFT, "learning_rate": -1}}}, "r.yaml.stages.a.learning_rate: Input should be greater"),
        ({"stages": {"a": {"do": "train", "method": "sft"}}}, "r.yaml.stages.a.data: missing; method 'sft' needs it"),
    ],
)
def test_bad_settings_of_a_method(tmp_path, here, changes, message):
    write(tmp_path / "r.yaml", **changes)
    assert message in refused(here("run", "r.yaml", "--dry-run"))


def test_bad_files(tmp_path):
    assert "none.yaml: no such recipe" in refused(alignloop("run", "none.yaml", cwd=tmp_path))
    (tmp_path / "empty.yaml").write_text("")
    assert "empty.yaml: is empty" in refused(alignloop("run", "empty.yaml", cwd=tmp_path))
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\n")
    assert "bad.yaml: not UTF-8 at byte 6" in refused(alignloop("run", "bad.yaml", cwd=tmp_path))
    (tmp_path / "cut.yaml").write_text("stages: {a: [")
    assert "cut.yaml, line 1" in refused(alignloop("run", "cut.yaml", cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "rnu"),
        (["run"], "Missing argument"),
        (["demo", "--sede", "1"], "--sede"),
        (["demo", "--seed", "many"], "--seed"),
        (["generate", "model"], "nothing to answer; give --prompt TEXT or --prompts FILE"),
        (["eval", "model"], "nothing to measure on"),
        (["status", "nowhere"], "no run 'nowhere' here or in runs/; known: none yet"),
        (["status"], "no run in runs/; start one with alignloop run RECIPE or alignloop demo"),
        (["report", "nowhere"], "no run 'nowhere'"),
    ],
)
def test_bad_lines(tmp_path, arguments, message):
    assert message in refused(alignloop(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dop", "-m", "a/b", "-o", "x", "--data", "d"], "unknown method 'dop', did you mean 'dpo'?"),
        (["train", "dpo", "-m", "a/b", "-o", "x", "--data", "d", "--betta", "1"], "did you mean 'beta'?"),
        (["train", "dpo", "-m", "a/b", "-o", "x", "--data", "d", "extra"], "unexpected 'extra'"),
        (["train", "dpo", "-m", "a/b", "-o", "x"], "train dpo.data: missing; method 'dpo' needs it"),
    ],
)
def test_bad_lines_of_train(here, arguments, message):
    assert message in refused(here(*arguments))


@pytest.mark.parametrize("way", ["before", "after", "environment"])
def test_debug_shows_the_traceback(tmp_path, way):
    arguments = {"before": ["--debug", "run", "x.yaml"], "after": ["run", "x.yaml", "--debug"]}.get(
        way, ["run", "x.yaml"]
    )
    environment = {"ALIGNLOOP_DEBUG": "1"} if way == "environment" else {}
    result = alignloop(*arguments, cwd=tmp_path, **environment)
    assert result.returncode == 1 and "Traceback" in result.stderr and "ConfigError" in result.stderr


def test_dry_run_shows_the_plan(tmp_path):
    write(tmp_path / "r.yaml")
    more = "stages.more={do: train, method: sft, model: sft, data: d.jsonl}"
    result = alignloop("run", "r.yaml", "--dry-run", "--set", more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "train sft from org/base" in result.stdout and "train sft from sft" in result.stdout


def test_full_disk_is_one_line(tmp_path):
    code = (
        "import errno; from alignloop.cli import main, info\n"
        "def full(): raise OSError(errno.ENOSPC, 'No space left on device', 'runs/x/model.safetensors')\n"
        "main.app.command(name='full')(full)\nmain.main(['full'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "No space left on device (runs/x/model.safetensors)" in refused(result)


def test_ctrl_c_says_how_to_go_on():
    code = (
        "from alignloop.cli import main\n"
        "def stop(): raise KeyboardInterrupt\n"
        "main.app.command(name='stop')(stop)\nmain.main(['stop'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 130 and "start the same command again to go on" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_missing_extra_prints_the_pip_line():
    code = (
        "from alignloop.cli import main\n"
        "def web(): raise ModuleNotFoundError(name='fastapi')\n"
        "main.app.command(name='web')(web)\nmain.main(['web'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'alignloop[web]'" in refused(result)


def test_a_defect_keeps_its_traceback():
    code = (
        "from alignloop.cli import main\n"
        "def defect(): raise ZeroDivisionError\n"
        "main.app.command(name='defect')(defect)\nmain.main(['defect'])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1 and "Traceback" in result.stderr


def test_methods_and_env(here):
    methods = json.loads(here("methods", "--json").stdout)
    assert {"sft", "reward", "dpo", "ppo"} <= {m["name"] for m in methods}
    dpo = next(m for m in methods if m["name"] == "dpo")
    beta = next(s for s in dpo["settings"] if s["name"] == "beta")
    assert beta["default"] == 0.1 and beta["about"]
    assert "dpo" in here("methods").stdout
    env = json.loads(here("env", "--json").stdout)
    assert env["versions"]["alignloop"] == __version__ and env["machine"]["threads"] >= 1
    assert "allocator" in here("env").stdout


def test_the_demo_audit_needs_no_training():
    result = alignloop("demo", "--audit", "--seed", "3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("gold prefers") == 20
    assert result.stdout == alignloop("demo", "--audit", "--seed", "3").stdout
