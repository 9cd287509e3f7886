"""The speed benchmarks run: tiny models, one step, real processes. Nothing here looks at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.small import (
    ROOT,
    loop,
    make_small,
    overlap,
    rollout,
    runs,
    scaling,
    step_profile,
    versus_trl,
)

SHARED = ROOT / ".." / "shared" / "bench" / "trl_baseline.py"
needs_shared = pytest.mark.skipif(not SHARED.is_file(), reason="../shared/bench is absent")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("assets"))


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def versus(folder: Path, results: Path, methods: str, sides: str) -> int:
    options = ["--steps", "1", "--rounds", "1", "--batch", "4", "--dtype", "fp32", "--threads", "1", "--json"]
    given = ["--methods", methods, "--sides", sides, "--assets", str(folder), "--results", str(results)]
    return versus_trl.main([*given, *options])


@needs_shared
def test_ours_beside_the_packed_limit(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "r.jsonl"
    assert versus(folder, results, "dpo", "ours,packed") == 0
    [one] = said(capsys)
    assert one["method"] == "dpo" and one["ratio_tokens_per_s"] is None
    assert one["fraction_of_packed_limit"] > 0 and one["ours"]["tokens"] == one["packed"]["tokens"]
    assert one["equal_work"]["loss packed"] < 1e-4 and "learning_rate packed" in one["equal_work"]
    assert one["setup"]["dtype"] == "fp32" and one["threads"] == {"ours": 1, "packed": 1}
    lines = results.read_text()
    assert versus(folder, results, "dpo", "ours,packed") == 0  # everything is there already
    assert results.read_text() == lines and said(capsys) == [one]


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "kto", "grpo", "rloo"])
def test_ours_and_trl_do_the_same_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    assert versus(folder, tmp_path / "r.jsonl", method, "ours,trl,trl_tuned") == 0
    [one] = said(capsys)
    for key in ("ratio_tokens_per_s", "ratio_tokens_per_s_tuned", "ratio_peak_rss"):
        assert one[key] > 0
    assert one["versions"]["trl"] and one["equal_work"]
    if method == "sft":
        assert max(one["equal_work"].values()) < 1e-4


@needs_shared
@pytest.mark.slow
def test_ppo_stands_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert versus(folder, tmp_path / "r.jsonl", "ppo", "ours,trl,trl_tuned") == 0
    [one] = said(capsys)
    assert one["ours"]["tokens_per_s"] > 0 and one["ratio_tokens_per_s"] is None and "trl" not in one


def test_rollouts(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompts", "12", "--new-tokens", "8", "--repeats", "1", "--rounds", "1", "--threads", "1", "--json"]
    given = ["--engines", "ours,hf8", "--assets", str(folder), "--results", str(tmp_path / "r.jsonl")]
    assert rollout.main([*given, *options]) == 0
    one = said(capsys)
    assert one["ratio_tokens_per_s"] == one["ratios"]["hf8"] > 0
    assert 1 <= one["engines"]["ours"]["mean_length"] <= 8 and one["not_run"] == {}


@pytest.mark.slow
def test_continuous_batching_of_transformers(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--prompts", "12", "--new-tokens", "8", "--repeats", "1", "--rounds", "1", "--threads", "1", "--json"]
    given = ["--engines", "ours,hf_continuous", "--assets", str(folder), "--results", str(tmp_path / "r.jsonl")]
    assert rollout.main([*given, *options]) == 0
    assert said(capsys)["ratios"]["hf_continuous"] > 0


def test_scaling(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--axes", "sequences", "--points", "2", "--steps", "1", "--threads", "1", "--json"]
    assert scaling.main([*options, "--assets", str(folder), "--results", str(tmp_path / "r.jsonl")]) == 0
    [one] = said(capsys)
    assert [p["x"] for p in one["points"]] == [4, 8] and all(p["seconds"] > 0 for p in one["points"])


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["group", "lora_rank"])
def test_scaling_of_other_settings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], axis: str) -> None:
    options = ["--axes", axis, "--points", "1", "--steps", "1", "--threads", "1", "--json"]
    assert scaling.main([*options, "--assets", str(folder), "--results", str(tmp_path / "r.jsonl")]) == 0
    [one] = said(capsys)
    assert one["slope_seconds"] is None and len(one["points"]) == 1


def test_the_profile_of_a_step(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "sft", "--steps", "1", "--warmup", "1", "--batch", "4", "--json"]
    assert step_profile.main([*options, "--assets", str(folder), "--results", str(tmp_path / "r.jsonl")]) == 0
    [one] = said(capsys)
    named = {name for name, _ in step_profile.KINDS}
    assert named | {step_profile.BODY, step_profile.HEAD, step_profile.REST} == set(one["ms"])
    assert all(ms > 0 for ms in one["ms"].values()) and one["bound_ms"] > 0
    assert runs.read_results(tmp_path / "r.jsonl") == [one]


@pytest.mark.slow
def test_drawing_in_turn_and_at_once(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--methods", "ppo", "--steps", "4", "--rounds", "1", "--answers", "4", "--new-tokens", "6", "--json"]
    given = ["--threads", "1", "--model", str(folder / "S"), "--results", str(tmp_path / "r.jsonl")]
    assert overlap.main([*options, *given]) == 0
    [one] = said(capsys)
    assert one["sides"]["in turn"]["drift"] == 0 < one["sides"]["at once"]["drift"]
    assert one["times_as_fast"] > 0 and all(side["cpu_s"] > 0 for side in one["sides"].values())
    assert runs.read_results(tmp_path / "r.jsonl") == [one]


@pytest.mark.slow
def test_the_loop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loop.main(["--fast", "--results", str(tmp_path / "r.jsonl"), "--json"]) == 0
    one = said(capsys)
    assert {"sft", "votes", "dpo", "ppo", "report"} <= {stage["name"] for stage in one["stages"]}
    assert 0 < one["in_stages_s"] <= one["wall_s"]
    assert runs.read_results(tmp_path / "r.jsonl") == [one]
