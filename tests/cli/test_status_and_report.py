"""`status` and `report` read what another process has written; free settings of `train` are parsed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignloop.cli.lazy import settings_of
from alignloop.core.errors import ConfigError
from alignloop.pipeline.plan import make_plan
from alignloop.pipeline.runner import Runner, StageContext, StageResult, Waiting
from alignloop.pipeline.spec import parse_recipe


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a report, below runs/ of `tmp_path`."""

    def stage(ctx: StageContext) -> StageResult | Waiting:
        if ctx.stage.do == "annotate":
            return Waiting("2 comparisons wait")
        report = ctx.folder / "report.html"
        report.write_text("<p>report</p>")
        ctx.progress(3, 3, "steps")
        return StageResult({"report": report}, {"loss": 0.123456, "note": "text"})

    recipe = {
        "name": "tutor",
        "model": "org/base",
        "stages": {
            "report": {"do": "evaluate", "models": ["org/base"]},
            "samples": {"do": "generate", "prompts": str(tmp_path)},
            "votes": {"do": "annotate", "samples": "samples"},
        },
    }
    table = dict.fromkeys(("evaluate", "generate", "annotate"), stage)
    Runner(make_plan(parse_recipe(recipe)), tmp_path / "runs" / "tutor", table).run()
    return tmp_path


def alignloop(cwd: Path, *arguments: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "alignloop.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_status(run):
    text = alignloop(run, "status")
    assert "tutor in runs/tutor: waiting" in text and "loss 0.1235" in text and "2 comparisons wait" in text
    found = json.loads(alignloop(run, "status", "tutor", "--json"))
    assert [s["status"] for s in found["stages"]] == ["done", "done", "waiting"]
    assert found["stages"][0]["metrics"]["loss"] == 0.123456
    assert found["store"].startswith("sqlite:///") and found["store"].endswith("runs/tutor/store.db")
    assert alignloop(run, "status", "runs/tutor", "--watch")


def test_report(run):
    path = Path(alignloop(run, "report").strip())
    assert (run / path).read_text() == "<p>report</p>"
    (run / "plain").mkdir()
    (run / "plain" / "report.html").write_text("x")
    assert alignloop(run, "report", "plain").strip() == "plain/report.html"


def test_free_settings():
    assert settings_of(["--beta", "0.1", "--lora.r=8", "--lora.alpha", "16", "--flag"]) == {
        "beta": 0.1,
        "lora": {"r": 8, "alpha": 16},
        "flag": True,
    }
    assert settings_of(["--learning-rate", "1e-4", "--kl-coef", "-1"]) == {"learning_rate": 1e-4, "kl_coef": -1}
    with pytest.raises(ConfigError, match="unexpected '-x'; settings are written --name value"):
        settings_of(["-x", "1"])
