"""Iterated RLHF (rounds): samples of mixed temperature, best against worst, a union that only grows, a KL that no round
resets, and rounds that change nothing where the reward is perfect."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from alignloop.feedback.active import CHOSEN, RANDOM, Candidate, Select, acquisition, choose
from alignloop.models.tiny import save_tiny
from alignloop.pipeline.methods import validate_train
from alignloop.pipeline.plan import Plan, make_plan
from alignloop.pipeline.runner import Runner, RunResult
from alignloop.pipeline.spec import parse_recipe
from alignloop.pipeline.stages import STAGES
from alignloop.store.snapshots import load_snapshot

LOOP: dict[str, Any] = {"from": "samples", "sample_with": "ppo"}
STAGES_OF: dict[str, Any] = {
    "samples": {"do": "generate", "model": "base", "prompts": "prompts.jsonl", "split": "all", "n": 3,
                "max_new_tokens": 4},
    "votes": {"do": "annotate", "samples": "samples", "annotators": ["simulated"], "reward": "toys.py:count_x",
              "pairs": 2, "held_out": 0.2},
    "reward": {"do": "train", "method": "reward", "model": "base", "data": "votes", "max_steps": 2},
    "ppo": {"do": "train", "method": "ppo", "model": "base", "reward": "reward", "prompts": "prompts.jsonl",
            "max_steps": 2, "rollout_batch_size": 8, "max_completion_length": 4, "learning_rate": 3e-3},
    "report": {"do": "evaluate", "models": ["ppo"], "prompts": "test.jsonl", "reward": "reward",
               "gold": "toys.py:count_x", "votes": "votes", "max_new_tokens": 4, "limit": 8},
}  # fmt: skip


def plan(stages: dict[str, Any], times: int = 2, **loop: Any) -> Plan:
    recipe = {"name": "r", "model": "base", "stages": stages, "iterate": {"times": times, **LOOP, **loop}}
    return make_plan(parse_recipe(recipe, validate={"train": validate_train}))


def run(place: Path, made: Plan) -> RunResult:
    done = Runner(made, place / "runs" / "r", STAGES).run()
    assert done.status == "done"
    return done


# What a round samples and asks


def test_every_generate_stage_of_the_start_samples_from_the_newest_policy(place: Path) -> None:
    hot = {**STAGES_OF["samples"], "prompts": "samples", "temperature": 1.5}
    other = {**hot, "model": "elsewhere/model"}
    votes = {**STAGES_OF["votes"], "samples": ["samples", "hot", "other"]}
    made = plan({**STAGES_OF, "hot": hot, "other": other, "votes": votes}, times=3)
    for k, model in enumerate(["base", "ppo-1", "ppo-2"], 1):
        assert made[f"samples-{k}"].stage.model == made[f"hot-{k}"].stage.model == model
        assert made[f"hot-{k}"].stage.prompts == f"samples-{k}" and made[f"hot-{k}"].stage.temperature == 1.5
        assert made[f"other-{k}"].stage.model == "elsewhere/model"  # what is written with another model keeps it
        assert made[f"votes-{k}"].stage.samples == [f"samples-{k}", f"hot-{k}", f"other-{k}"]


def test_contrast_asks_for_the_best_against_the_worst_and_a_share_at_random() -> None:
    """Two members; four answers of one prompt score (2, -1, 0, 1) and (4, -1, 0, -1): means 3, -1, 0, 0."""
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    members = [(2.0, -1.0, 0.0, 1.0), (4.0, -1.0, 0.0, -1.0)]
    table = np.array([[m[a] - m[b] for a, b in pairs] for m in members])
    found = acquisition(table, "contrast")
    assert found.tolist() == [4.0, 3.0, 3.0, 1.0, 1.0, 0.0]
    assert acquisition(table[:1], "contrast").tolist() == [3.0, 2.0, 1.0, 1.0, 2.0, 1.0]
    candidates = [
        Candidate((f"{c}{a}", f"{c}{b}"), f"prompt {c}", s) for c in range(8) for (a, b), s in zip(pairs, found)
    ]
    taken = choose(candidates, 8, Select(by="contrast", random=0.25, per_cluster=1), seed=3)
    chosen = [o for o in taken if o.strategy == CHOSEN]
    assert len(taken) == 8 and sum(o.strategy == RANDOM for o in taken) == 2
    assert len({o.pair[0][0] for o in chosen}) == 6 and {o.score for o in chosen} <= {4.0, 3.0}
    assert sum(o.score == 4.0 for o in chosen) >= 4  # the best against the worst, unless drawn at random already


# What a round learns from


def test_the_union_only_grows_and_says_whose_answers_were_judged(place: Path) -> None:
    done = run(place, plan({n: s for n, s in STAGES_OF.items() if n != "report"}, times=3))
    rows = {k: list(load_snapshot(done.results[f"votes-{k}"].outputs["snapshot"])) for k in (1, 2, 3)}
    for k, policy in {1: "model:base@", 2: "model:r/ppo-1/", 3: "model:r/ppo-2/"}.items():
        authors = {side.author for row in rows[k] for side in (row.chosen, row.rejected)}
        assert len(authors) == 1 and authors.pop().startswith(policy)  # the policy by its hash, in every row
        assert all(row.annotators for row in rows[k])
    inputs = [json.loads(done.results[f"reward-{k}"].outputs["train"].read_text())["inputs"] for k in (1, 2, 3)]
    counts = [given["data"]["records"] for given in inputs]
    assert counts[0] < counts[1] < counts[2] <= sum(map(len, rows.values()))
    assert len({given["model"] for given in inputs}) == 1  # a fresh reward model, from the same start, every round


# How far it has come


def test_kl_is_measured_from_the_first_reference_whatever_each_round_starts_from(place: Path) -> None:
    stays = plan(STAGES_OF, times=3, start="previous", reference="previous")
    assert [stays[f"ppo-{k}"].stage.reference for k in (1, 2, 3)] == [None, "ppo-1", "ppo-2"]
    assert [stays[f"report-{k}"].stage.reference for k in (1, 2, 3)] == ["base"] * 3
    named = plan(STAGES_OF, reference="base")
    assert named["report-2"].stage.reference == "base"
    own = {**STAGES_OF, "report": {**STAGES_OF["report"], "models": ["base", "ppo"]}}
    assert plan(own)["report-2"].stage.reference is None  # measured from base, which stands first, as ever
    asked = {**STAGES_OF, "report": {**STAGES_OF["report"], "reference": "ppo"}}
    assert plan(asked)["report-2"].stage.reference == "ppo-2"  # who says so gets it


def test_no_round_resets_the_kl_that_is_reported(place: Path) -> None:
    """Each round learns from where the last one ended, with a KL of its own; the report has the whole way."""
    ppo = {**STAGES_OF["ppo"], "reward": "toys.py:count_x", "max_steps": 4, "learning_rate": 1e-2, "prompts": "samples"}
    report = {**STAGES_OF["report"], "limit": 16, "n": 4}
    done = run(place, plan({**STAGES_OF, "ppo": ppo, "report": report}, start="previous", reference="previous"))
    first, second = (done.results[f"report-{k}"].metrics for k in (1, 2))
    assert {n for n in second if n.startswith("kl/")} == {"kl/ppo-2"}
    log = done.results["ppo-2"].outputs["metrics"].read_text().splitlines()
    assert abs(json.loads(log[0])["objective/kl"]) < 1e-4  # the second round's own KL begins at 0 again,
    assert min(first["kl/ppo-1"], second["kl/ppo-2"]) > 1  # and the way from the start does not (2.3 and 2.7, se 0.4)
    for name in ("gold/ppo-2", "reward/ppo-2", "old_reward/ppo-2", "reward/accuracy", "old_reward/accuracy"):
        assert math.isfinite(second[name])
    votes = done.results["votes-2"].metrics
    assert math.isfinite(votes["alpha"]) and votes["pairs"] > 0  # agreement of the annotators


def test_with_a_perfect_reward_a_second_round_changes_nothing(place: Path) -> None:
    """The reward is the truth, so that no answer of the first round can teach it more: with the same seed the second
    round's policy is the first's to the bit, and a learnt reward's is not."""
    ppo = {**STAGES_OF["ppo"], "prompts": "samples", "seed": 1}
    perfect = {"samples": STAGES_OF["samples"], "ppo": {**ppo, "reward": "toys.py:count_x"}}
    learnt = {n: STAGES_OF[n] for n in ("samples", "votes", "reward")} | {"ppo": ppo}
    same = {}
    for name, stages in {"perfect": perfect, "learnt": learnt}.items():
        done = Runner(plan(stages, start="base", reference="base"), place / "runs" / name, STAGES).run()
        one, two = (done.results[f"ppo-{k}"].outputs["model"] / "model.safetensors" for k in (1, 2))
        same[name] = one.read_bytes() == two.read_bytes()
        assert one.read_bytes() != (place / "base" / "model.safetensors").read_bytes()
    assert same == {"perfect": True, "learnt": False}


def test_the_best_of_n_curve_is_left_out_where_the_reference_gave_no_answers(place: Path) -> None:
    one: dict[str, Any] = {"sampled": {**STAGES_OF["report"], "models": ["other"], "reference": "base", "n": 2,
                                       "reward": "toys.py:count_x"}}  # fmt: skip
    del one["sampled"]["votes"]
    save_tiny(place / "other", seed=5)
    recipe = {"name": "r", "model": "base", "stages": one}
    done = run(place, make_plan(parse_recipe(recipe, validate={"train": validate_train})))
    report = json.loads(done.results["sampled"].outputs["json"].read_text())
    assert not report.get("best_of_n") and report["kl"]["other"]["mean"] != 0.0
