"""The parts of the speed benchmarks that decide what a ratio means: rows, rounds, totals, equal work, the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.small import assets, equal_work, make_small, plots, runs, scaling, trl_side, workload


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(tmp_path_factory.mktemp("assets"))


def letters(words: str, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
    """A tokenizer of one token a letter; "th" is one token."""
    return {"input_ids": [ord(c) for c in words.replace("th", "θ")]}


@pytest.fixture
def four_rows(tmp_path: Path) -> Path:
    rows = [
        {"prompt": "ab", "chosen": "xyz", "rejected": "z"},
        {"prompt": "at", "chosen": "he", "rejected": "z"},  # merges over the boundary
        {"prompt": "abc", "chosen": "x", "rejected": "zzzz"},
        {"prompt": "a", "chosen": "xy", "rejected": "zz"},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("sft", [6 + 5, 4 + 6]),  # prompt + chosen + end: (2+3+1) + (3+1+1), then (1+2+1) + the first row again
        ("dpo", [(6 + 4) + (5 + 8), (4 + 4) + (6 + 4)]),
        ("kto", [6 + 8, 4 + 4]),  # good, bad, good, bad
    ],
)
def test_useful_tokens_are_counted_by_hand(four_rows: Path, method: str, asked: list[int]) -> None:
    assert workload.make(method, four_rows, letters, steps=2, batch=2).asked == asked


def test_a_row_that_merges_over_the_boundary_is_left_out(four_rows: Path) -> None:
    assert "at" not in {row["prompt"] for row in workload.make("sft", four_rows, letters, steps=2, batch=2).data}


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "grpo"])
def test_our_permutation_gives_the_rows_in_the_opponents_order(folder: Path, method: str) -> None:
    from transformers import AutoTokenizer

    from alignloop.training.loader import Stream

    work = workload.make(method, folder, AutoTokenizer.from_pretrained(folder / "S"), steps=3, batch=4)
    per_step = len(work.data) // 3
    stream = Stream(work.ours, batch=per_step, epochs=1.0, seed=0, max_steps=3)
    seen = [row["prompt"] for step in range(3) for row in stream.at(step)]
    assert seen == [row["prompt"] for row in work.data]


def side(name: str) -> runs.Side:
    return runs.Side(name, "ours", {}, {})


def said(**more: Any) -> dict[str, Any]:
    return {"seconds": [1.0, 3.0], "tokens": 100, "wall_s": 4.0, **more}


def test_sides_take_turns_and_an_interrupted_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(one: runs.Side, **how: Any) -> dict[str, Any]:
        order.append(one.name)
        if len(order) == 4:
            raise runs.SideError(one.name, "killed")
        return said()

    monkeypatch.setattr(runs, "run_side", run)
    book = runs.Notebook(tmp_path / "r.jsonl", "versus_trl")
    sides = [side("a"), side("b")]
    with pytest.raises(runs.SideError, match="b: killed"):
        book.rounds({"method": "sft"}, sides, 2)
    found = book.rounds({"method": "sft"}, sides, 2)
    assert order == ["a", "b", "a", "b", "b"]
    assert [(r["side"], r["round"]) for r in found] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len(book.rounds({"method": "dpo"}, sides, 1)) == 2  # another setup counts nothing of these
    assert [r["setup"]["method"] for r in runs.read_results(book.results)] == ["sft"] * 4 + ["dpo"] * 2


def test_a_line_that_was_cut_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    runs.append(file, {"a": 1})
    with file.open("a") as out:
        out.write('{"a": 2')
    assert runs.read_results(file) == [{"a": 1}]
    runs.append(file, {"a": 3})
    assert runs.read_results(file) == [{"a": 1}, {"a": 3}]


def test_a_rate_is_all_tokens_over_all_seconds() -> None:
    records = [{"side": "ours", "seconds": [1.0, 3.0], "tokens": 100}, {"side": "ours", "seconds": [1.0], "tokens": 50}]
    assert runs.rate(records, "ours") == 30.0  # 150 tokens in 5 seconds; the mean of the two rates would be 37.5
    assert runs.rate(records, "trl") is None
    assert runs.ratio(30.0, None) is None
    assert runs.ratio(30.0, 12.0) == 2.5


def both(theirs: Mapping[str, Any], **more: Any) -> list[dict[str, Any]]:
    ours = {"loss": [10.40, 10.30], "learning_rate": [2e-5, 1e-5]}
    return [
        {"side": "ours", "tokens": 100, "metrics": ours},
        {"side": "trl", "tokens": 100, "own_tokens": 100, "metrics": theirs, **more},
    ]


def test_equal_work_is_measured() -> None:
    assert equal_work.check("sft", both({"loss": [10.41, 10.30]})) == {"loss trl": 0.01}


@pytest.mark.parametrize(
    ("theirs", "more", "words"),
    [
        ({"loss": [10.40, 10.50]}, {}, "loss of step 2: ours 10.3, trl 10.5"),
        ({"loss": [10.40, float("nan")]}, {}, "loss of step 2"),
        ({"loss": [10.40, 10.30]}, {"own_tokens": 90}, "trl counts 90 tokens, the rows ask for 100"),
        ({"learning_rate": [2e-5, 1e-5]}, {}, "trl reported no loss"),
        ({"loss": [10.40, 10.30], "learning_rate": [2e-5, 2e-5]}, {}, "learning_rate of step 2: ours 1e-05, trl 2e-05"),
    ],
)
def test_unequal_work_has_no_ratio(theirs: Mapping[str, Any], more: Mapping[str, Any], words: str) -> None:
    with pytest.raises(equal_work.UnequalWorkError, match=words):
        equal_work.check("sft", both(theirs, **more))


def test_random_answers_may_differ_by_chance_only() -> None:
    def pair(length: float) -> list[dict[str, Any]]:
        mine = {"completions/mean_length": [70.0, 74.0], "objective/scores": [0.8, 0.8]}
        theirs = {"completions/mean_length": [length], "reward": [0.8]}
        return [{"side": "ours", "metrics": mine}, {"side": "trl", "metrics": theirs}]

    # One error of the difference: 45 · sqrt(1/128 + 1/64) = 6.89 tokens.
    assert equal_work.check("grpo", pair(78.89))["completions/mean_length trl, standard errors"] == pytest.approx(
        1.0, 1e-3
    )
    with pytest.raises(equal_work.UnequalWorkError, match="mean completions/mean_length"):
        equal_work.check("grpo", pair(105.0))


def test_a_slope_is_that_of_the_logarithms() -> None:
    assert scaling.slope([(1, 3.0), (2, 6.0), (4, 12.0)]) == 1.0
    assert scaling.slope([(2, 5.0), (4, 20.0), (8, 80.0)]) == 2.0
    assert scaling.slope([(2, 5.0), (8, 5.0)]) == 0.0
    assert scaling.slope([(2, 5.0)]) is None


def test_without_the_shared_folder_it_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNLOOP_SHARED", str(tmp_path))
    with pytest.raises(SystemExit, match=r"is absent: the opponent \(trl_baseline.py\)"):
        assets.ensure(tmp_path / "none")


def test_the_page_says_what_was_not_measured(tmp_path: Path) -> None:
    files = plots.render(tmp_path)
    assert list(files) == [plots.PAGE]
    assert files[plots.PAGE].count("Not measured yet.\n<!-- end -->") == len(plots.PARTS) == 6


def test_the_page_is_made_of_the_results(tmp_path: Path) -> None:
    setup = {
        "method": "sft", "model": "small", "steps": 2, "warmup": 1, "batch": 8, "dtype": "bf16", "device": "cpu",
        "threads": 0, "code": "abc 123", "trl_python": None,
    }  # fmt: skip
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "system": "x", "load": [0.5, 0, 0]}
    sides = {"ours": (700, 300), "trl": (100, 600), "trl_tuned": (200, 1000), "packed": (350, 100)}
    for name, (tokens, memory) in sides.items():
        own = 1000 if name != "ours" else None
        record = {
            "setup": setup, "side": name, "seconds": [1000 / tokens], "tokens": 1000, "peak_rss_mb": memory,
            "metrics": {"loss": [1.0]}, "at": "2026-11-21T10:00:00", "machine": machine, "threads": 2,
        }  # fmt: skip
        runs.append(tmp_path / "versus_trl.jsonl", record | ({"own_tokens": own} if own else {}))
    files = plots.render(tmp_path)
    page = files[plots.PAGE]
    assert "| small | sft | 700 | 100 | 200 | 7.00 (floor 7) | 3.50 (floor 3.5) | 0.30 (at most 0.6) | 2.00 |" in page
    assert "2 cores of a processor" in page and "code abc 123" in page
    assert files == plots.render(tmp_path)  # the drawing has the same bytes, too
    assert page.count("Not measured yet.") == len(plots.PARTS) - 1


def test_the_page_tells_of_overlap_and_of_a_step(tmp_path: Path) -> None:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "load": [0.5]}
    common = {"setup": {"method": "ppo", "code": "abc 123"}, "at": "2026-11-21T10:00:00", "machine": machine}
    turn = {"step_s": 2.0, "cpu_s": 3.9, "last_reward": 4.3, "drift": 0.0}
    once = {"step_s": 1.0, "cpu_s": 1.9, "last_reward": 4.2, "drift": 0.0047}
    stale = {**common, "setup": {**common["setup"], "code": "older"}, "sides": {"in turn": once}, "times_as_fast": 9.0}
    runs.append(tmp_path / "overlap.jsonl", stale)
    runs.append(
        tmp_path / "overlap.jsonl", {**common, "sides": {"in turn": turn, "at once": once}, "times_as_fast": 2.0}
    )
    runs.append(
        tmp_path / "step_profile.jsonl", {**common, "ms": {"attention": 25.0, "the rest": 75.0}, "bound_ms": 40.0}
    )
    page = plots.render(tmp_path)[plots.PAGE]
    assert (
        "| ppo | in turn | 2.00 | 3.90 | 4.30 | 0.0000 | – |\n| ppo | at once | 1.00 | 1.90 | 4.20 | 0.0047 | 2.00 |"
        in page
    )
    assert (
        "| attention | 25 (25%) |\n| the rest | 75 (75%) |\n| a step | 100 |\n| bound of its matrix products | 40 |"
        in page
    )


def test_the_page_is_up_to_date() -> None:
    assert plots.main(["--check"]) == 0, "run python benchmarks/plots.py"


def test_a_line_names_every_version_that_was_measured() -> None:
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 24.0, "load": [0.5]}
    common = {"at": "2026-11-21T10:00:00", "machine": machine, "setup": {"code": "abc 123"}}
    records = [{**common, "versions": {"trl": v, "torch": "2.13.0"}} for v in ("1.16.0", "1.12.0")]
    assert "torch 2.13.0, trl 1.12.0 and 1.16.0" in plots.where(records)


def test_ppo_has_one_end_token(folder: Path) -> None:
    made = assets.one_end(folder / "S")
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == 2
    several = json.loads((folder / "S" / "generation_config.json").read_text())["eos_token_id"]
    assert len(several) == 7 and assets.one_end(folder / "S") == made
    assert (made / "model.safetensors").stat().st_size == (folder / "S" / "model.safetensors").stat().st_size


def test_ppo_is_compared_by_scores_and_lengths() -> None:
    mine = {"completions/mean_length": [127.0, 127.0], "objective/scores": [0.5, 0.5]}

    def against(reward: float) -> dict[str, float]:
        theirs = {"completions/mean_length": [127.0], "reward": [reward]}
        return equal_work.check("ppo", [{"side": "ours", "metrics": mine}, {"side": "trl", "metrics": theirs}])

    # One error of the difference: 1.2 · sqrt(1/64 + 1/32) = 0.2598.
    assert against(0.7598)["reward trl, standard errors"] == pytest.approx(1.0, 1e-3)
    with pytest.raises(equal_work.UnequalWorkError, match="mean reward"):
        against(1.6)


def test_the_opponents_logs_get_one_name() -> None:
    last = {"train_runtime": 3.0}
    grpo = trl_side.metrics({"method": "grpo"}, {}, [{"loss": 0.1, "reward": 0.8}, {"loss": 0.2, "reward": 0.7}, last])
    assert grpo == {"loss": [0.1, 0.2], "reward": [0.8, 0.7]}
    ppo = trl_side.metrics({"method": "ppo", "batch": 4}, {"resp_per_step": 40.0}, [{"objective/scores": 0.5}, last])
    assert ppo == {"objective/scores": [0.5], "reward": [0.5], "completions/mean_length": [10.0]}
