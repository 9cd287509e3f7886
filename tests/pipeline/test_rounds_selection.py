"""Rounds with replay and held-out prompts, and procedures as stages of a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import toys

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import prompt_hash, text
from alignloop.pipeline.methods import validate_train
from alignloop.pipeline.plan import Plan, make_plan
from alignloop.pipeline.runner import Runner, RunResult
from alignloop.pipeline.spec import parse_recipe
from alignloop.pipeline.stages import STAGES, preflight

VOTES: dict[str, Any] = {
    "samples": {"do": "generate", "model": "base", "prompts": "prompts.jsonl", "split": "all", "n": 2},
    "votes": {"do": "annotate", "samples": "samples", "annotators": ["simulated"], "reward": "toys.py:count_x"},
    "reward": {"do": "train", "method": "reward", "model": "base", "data": "votes"},
    "ppo": {"do": "train", "method": "ppo", "model": "base", "reward": "reward", "prompts": "prompts.jsonl"},
}
SELECT: dict[str, Any] = {
    "do": "train",
    "prompts": "prompts.jsonl",
    "reward": "toys.py:count_x",
    "num_generations": 4,
    "max_completion_length": 6,
}


def plan(stages: dict[str, Any], **top: Any) -> Plan:
    recipe = {"name": "r", "model": "base", "stages": stages, **top}
    return make_plan(parse_recipe(recipe, validate={"train": validate_train}))


def rounds(times: int, **more: Any) -> dict[str, Any]:
    return {"times": times, "from": "samples", "sample_with": "ppo", "start": "base", "reference": "base", **more}


def test_replay_reads_a_share_of_every_earlier_round(place: Path) -> None:
    made = plan(VOTES, iterate=rounds(3, votes="replay", replay=0.2))
    assert made["reward-1"].stage.data == "votes-1"
    assert made["reward-3"].stage.data == [
        {"stage": "votes-1", "share": 0.2},
        {"stage": "votes-2", "share": 0.2},
        "votes-3",
    ]
    assert set(made["reward-3"].needs) >= {"votes-1", "votes-2", "votes-3"}  # a fresh model from base each time
    assert made["reward-3"].stage.model == made["ppo-3"].stage.reference == "base"
    assert made["samples-3"].stage.model == "ppo-2"


@pytest.fixture
def two_rounds(place: Path) -> tuple[dict[str, Any], RunResult]:
    """A cheap recipe, and two rounds of it run to their end."""
    cheap = {name: {**stage} for name, stage in VOTES.items()}
    cheap["samples"] |= {"n": 4, "max_new_tokens": 4}
    cheap["votes"] |= {"pairs": 3, "held_out": 0.2}
    cheap["ppo"] |= {"max_steps": 1, "rollout_batch_size": 4, "max_completion_length": 4}
    cheap["report"] = {"do": "evaluate", "models": ["base", "ppo"], "prompts": "test.jsonl", "reward": "reward",
                       "gold": "toys.py:count_x", "votes": "votes", "max_new_tokens": 4, "limit": 8}  # fmt: skip
    done = Runner(plan(cheap, iterate=rounds(2, votes="replay", replay=0.3)), place / "runs" / "r", STAGES).run()
    assert done.status == "done"
    return cheap, done


def test_rounds_with_replay(place: Path, two_rounds: tuple[dict[str, Any], RunResult]) -> None:
    """Whole prompts of the first round are read again; a third round takes the first two as they are."""
    cheap, done = two_rounds

    def rows(stage: str) -> int:
        record = json.loads(done.results[stage].outputs["train"].read_text())
        return int(record["inputs"]["data"]["records"])

    pairs = [int(done.results[f"votes-{k}"].metrics["pairs"]) for k in (1, 2)]
    own = rows("reward-1")  # less those held out, which stay held out
    assert 0.5 * pairs[0] < own < pairs[0]
    fresh = own * pairs[1] / pairs[0]  # about what round 2 has of its own, of the same prompts
    assert 0.1 * own < rows("reward-2") - fresh < 0.6 * own  # the judgements of 0.3 of the prompts, on average
    again = Runner(plan(cheap, iterate=rounds(3, votes="replay", replay=0.3)), place / "runs" / "r", STAGES)
    kept = again.run(until=["reward-2"]).results["reward-2"]
    assert kept.outputs["train"] == done.results["reward-2"].outputs["train"]  # nothing of it was run again


def test_every_round_is_measured_by_gold_by_its_own_reward_and_by_the_last_one(
    two_rounds: tuple[dict[str, Any], RunResult],
) -> None:
    _, done = two_rounds
    first, second = (done.results[f"report-{k}"].metrics for k in (1, 2))
    assert not [name for name in first if name.startswith("old_reward")]
    assert {"gold/ppo-2", "reward/ppo-2", "kl/ppo-2", "old_reward/ppo-2", "old_reward/base"} <= set(second)
    assert 0 <= second["reward/accuracy"] <= 1 and 0 <= second["old_reward/accuracy"] <= 1
    # The last round's reward model said the same of base when it was the newest (same prompts, other random numbers).
    assert second["old_reward/base"] == pytest.approx(first["reward/base"], abs=1.5)
    assert second["old_reward/base"] != second["reward/base"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"stage": "votes"}, "needs share: between 0 and 1"),
        ({"stage": "votes", "share": 1.5}, "needs share: between 0 and 1"),
        ({"stage": "votes", "shar": 0.1}, "unknown data setting 'shar', did you mean 'share'"),
    ],
)
def test_a_share_that_is_none_is_refused_before_the_start(place: Path, source: dict[str, Any], message: str) -> None:
    stages = {**VOTES, "reward": {**VOTES["reward"], "data": source}}
    with pytest.raises(ConfigError, match=message):
        list(preflight(plan(stages)))


def test_a_prompt_that_is_learnt_from_and_measured_on_is_refused(place: Path) -> None:
    """By hash: other case and spacing do not hide it, and neither does another round."""
    report = {"do": "evaluate", "models": ["base", "ppo"], "prompts": "test.jsonl"}
    stages = {**VOTES, "report": report}
    list(preflight(plan(stages, iterate=rounds(2))))
    rows = [json.loads(line) for line in (place / "test.jsonl").read_text().splitlines()]
    toys.write_rows(place / "test.jsonl", [*rows, {"prompt": "  AI "}])
    assert prompt_hash(text("  AI ")) == prompt_hash(text("ai "))
    with pytest.raises(DataError, match=r"stages.report-.: the prompt .* is learnt from in stages\."):
        list(preflight(plan(stages, iterate=rounds(2))))


def test_procedures_are_stages_and_answers_are_demonstrations(place: Path) -> None:
    stages = {
        "best": {**SELECT, "method": "best_of_n", "n": 2},
        "distilled": {"do": "train", "method": "sft", "data": "best", "num_train_epochs": 1},
        "raft": {**SELECT, "method": "raft", "model": "distilled", "rounds": 1, "eval_prompts": "test.jsonl"},
        "report": {"do": "evaluate", "models": ["distilled", "raft"], "prompts": "test.jsonl",
                   "reward": "toys.py:count_x", "max_new_tokens": 6},
    }  # fmt: skip
    made = plan(stages)
    list(preflight(made))
    done = Runner(made, place / "runs" / "r", STAGES).run()
    assert done.status == "done"
    best, distilled = done.results["best"], done.results["distilled"]
    assert set(best.outputs) == {"answers", "metrics", "train"}
    answers = best.outputs["answers"].read_text().splitlines()
    assert len(answers) == 32 and best.metrics["reward/selected"] > best.metrics["reward/mean"]
    told = [bool(json.loads(line)["completion"]) for line in answers]  # an untrained model may say nothing at all
    assert json.loads(distilled.outputs["train"].read_text())["inputs"]["data"]["records"] == sum(told) >= 28
    assert done.results["raft"].outputs["model"].is_dir()
    from alignloop.store.store import Store

    runner = Runner(made, place / "runs" / "r", STAGES)
    with Store(runner.store) as store:
        assert store.model(str(done.results["raft"].outputs["model"])) is not None


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"method": "raft", "prompts": "prompts.jsonl"}, r"reward: missing; method 'raft' needs it"),
        ({**SELECT, "method": "best_of_n", "data": "pairs.jsonl"}, r"method 'best_of_n' reads no data"),
        ({**SELECT, "method": "rest", "learnin_rate": 1}, r"unknown setting of method 'rest', did you mean 'learning"),
        ({**SELECT, "method": "best_of_m"}, r"method: unknown method 'best_of_m', did you mean 'best_of_n'"),
    ],
)
def test_stages_of_procedures_are_checked_as_methods_are(place: Path, stage: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan({"one": {"do": "train", **stage}})
