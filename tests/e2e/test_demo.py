"""The embedded demo, for real: the short version once; the full one under three seeds in `make test-all`."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alignloop.evaluation.schema import PROMISED

MODELS = ("base", "sft", "dpo", "ppo")


def demo(out: Path, *options: str) -> dict[str, Any]:
    """Run the command line as a user would and read the report it promises."""
    command = [sys.executable, "-m", "alignloop.cli", "demo", "--out", str(out), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"report: {out / 'report.html'}" in done.stdout.replace("\n", "")
    return dict(json.loads((out / "report.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return out, demo(out, "--fast")


def test_the_report_is_complete(fast: tuple[Path, dict[str, Any]]) -> None:
    _, report = fast
    for section, keys in PROMISED.items():
        assert section in report, section
        for key in keys:
            assert key in report[section], f"{section}.{key}"
    for name in MODELS:
        assert set(report["gold"][name]) >= {"mean", "se", "parts"}
        assert len(report["gold"][name]["parts"]) == 5
        assert math.isclose(sum(report["gold"][name]["parts"].values()), report["gold"][name]["mean"], rel_tol=1e-6)
    assert all(set(texts) == set(MODELS) for texts in report["samples"].values())
    assert report["annotators"]["n"] == 20
    assert set(report["stages"]) >= {"sft", "samples", "votes", "reward", "dpo", "ppo", "report"}


def test_demonstrations_help(fast: tuple[Path, dict[str, Any]]) -> None:
    _, report = fast
    assert report["gold"]["sft"]["mean"] > report["gold"]["base"]["mean"]


def test_the_page_stands_alone(fast: tuple[Path, dict[str, Any]]) -> None:
    out, _ = fast
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Explain quantum computing to a 10-year-old:" in page
    assert "<script" not in page
    assert 'src="http' not in page and 'href="http' not in page.replace('href="https://arxiv.org', "")


def test_it_runs_again_from_the_cache(fast: tuple[Path, dict[str, Any]]) -> None:
    out, report = fast
    model = next(out.glob("stages/ppo/*/files/model/model.safetensors"))
    before = model.stat().st_mtime_ns
    again = demo(out, "--fast")
    assert again["gold"] == report["gold"]
    assert model.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_demo(seed: int, tmp_path: Path) -> None:
    """What the demo promises: every step a clear gain on unseen topics, near Bayes, close to SFT, as readable."""
    report = demo(tmp_path / "run", "--seed", str(seed))
    gold = {name: (entry["mean"], entry["se"]) for name, entry in report["gold"].items()}
    for better, worse in (("sft", "base"), ("dpo", "sft"), ("ppo", "sft")):
        (a, sa), (b, sb) = gold[better], gold[worse]
        assert a - b > 3 * math.hypot(sa, sb), f"gold({better}) {a:.2f} ± {sa:.2f}, gold({worse}) {b:.2f} ± {sb:.2f}"
    reward = report["reward_model"]
    assert reward["bayes_accuracy"] - reward["accuracy"] <= 0.08
    assert 0 < report["kl"]["ppo"]["mean"] < 15
    faults = {name: sum(entry.values()) for name, entry in report["readability"].items()}
    assert faults["ppo"] <= faults["sft"] + 0.1
    assert faults["dpo"] <= faults["sft"] + 0.1
