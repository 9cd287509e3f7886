"""Two rounds: the second samples from the first's policy, judges anew, and learns from the votes of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.command import here
from tests.e2e.conftest import change

LOOP = {"times": 2, "from": "samples", "sample_with": "ppo", "votes": "union", "start": "sft", "reference": "sft"}


@pytest.fixture(scope="module")
def rounds(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    folder = Path(shutil.copytree(world, tmp_path_factory.mktemp("rounds") / "place"))
    path = change(folder / "loop.yaml", dpo=None, report={"models": ["base", "sft", "ppo"], "data": None})
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**recipe, "iterate": LOOP}, sort_keys=False))
    done = here("run", "loop.yaml", cwd=folder)
    assert done.code == 0, done.out + done.err
    return folder


def stages(folder: Path) -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in here("status", "--json", cwd=folder).json()["stages"]}


def record(folder: Path, stage: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "loop" / stages(folder)[stage]["outputs"]["train"]).read_text())


def test_order_and_rounds(rounds: Path) -> None:
    found = stages(rounds)
    each = ["samples", "votes", "reward", "ppo", "report"]
    assert list(found) == ["sft", *[f"{name}-{k}" for k in (1, 2) for name in each]]
    assert {s["status"] for s in found.values()} == {"done"}
    assert [s["round"] for s in found.values()] == [0] + [1] * 5 + [2] * 5


def test_a_fresh_reward_model_learns_from_the_votes_of_both_rounds(rounds: Path) -> None:
    first, second = record(rounds, "reward-1"), record(rounds, "reward-2")
    counts = [stages(rounds)[f"votes-{k}"]["metrics"]["pairs"] for k in (1, 2)]
    rows = [r["inputs"]["data"]["records"] for r in (first, second)]
    assert rows[0] < counts[0] and rows[0] < rows[1] <= sum(counts)  # less those held out
    assert first["inputs"]["model"] == second["inputs"]["model"] == record(rounds, "ppo-1")["inputs"]["model"]


def test_the_second_round_starts_from_sft_and_samples_from_the_first_policy(rounds: Path) -> None:
    one, two = record(rounds, "ppo-1"), record(rounds, "ppo-2")
    assert "stages/sft/" in one["inputs"]["model"] and one["inputs"]["model"] == two["inputs"]["model"]
    assert "stages/reward-1/" in one["inputs"]["reward"] and "stages/reward-2/" in two["inputs"]["reward"]
    tree = here("lineage", "ppo-2", cwd=rounds).out
    assert "by: model:loop/sft/" in tree and "by: model:loop/ppo-1/" in tree
    assert "snapshot votes-1" in tree and "snapshot votes-2" in tree
    forward = here("lineage", "ppo-1", "--forward", cwd=rounds).out
    assert "snapshot votes-2" in forward and "model ppo-2" in forward and "snapshot votes-1" not in forward


def test_votes_and_report_say_how_far_it_has_come(rounds: Path) -> None:
    reports = [
        json.loads((rounds / "runs" / "loop" / stages(rounds)[f"report-{k}"]["outputs"]["json"]).read_text())
        for k in (1, 2)
    ]
    for k, report in enumerate(reports, 1):
        # KL to the first SFT, whatever the round's policy started from
        assert set(report["kl"]) == {"base", f"ppo-{k}"} and report["kl"][f"ppo-{k}"]["mean"] > 0
        assert report["gold"][f"ppo-{k}"]["mean"] > report["gold"]["sft"]["mean"]


def test_a_third_round_takes_the_first_two_from_the_cache(rounds: Path) -> None:
    more = here("run", "loop.yaml", "--set", "iterate.times=3", "--until", "samples-3", cwd=rounds)
    assert more.code == 0, more.err
    assert more.out.count("done before") == 9  # sft, and samples, votes, reward, ppo of two rounds
