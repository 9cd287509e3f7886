"""Recipes: what is refused and how, references, rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignloop.core.errors import ConfigError
from alignloop.pipeline.plan import make_plan, missing_files
from alignloop.pipeline.recipe_file import apply_overrides, parse_yaml, read_recipe
from alignloop.pipeline.spec import Annotate, Train, check_settings, parse_recipe

TUTOR = """
name: tutor
model: Qwen/Qwen3-0.6B
store: sqlite:///runs/tutor.db
stages:
  sft:     {do: train, method: sft, data: databricks/databricks-dolly-15k}
  samples: {do: generate, model: sft, prompts: prompts.jsonl, n: 4}
  votes:   {do: annotate, samples: samples, annotators: [human, judge], overlap: 2}
  reward:  {do: train, method: reward, model: sft, data: votes}
  policy:  {do: train, method: ppo, model: sft, reward: reward, reference: sft, prompts: prompts.jsonl}
  report:  {do: evaluate, models: [sft, policy], reward: reward}
iterate: {times: 3, from: samples, sample_with: policy, votes: union, start: sft, reference: sft}
"""


def recipe(text: str, **changes):
    return parse_recipe({**parse_yaml(text, environment={}), **changes})


def minimal(**stages):
    return {"name": "x", "model": "org/base", "stages": stages}


SFT = {"do": "train", "method": "sft", "data": "rows.jsonl"}
GEN = {"do": "generate", "model": "sft", "prompts": "p.jsonl"}


def test_flat_settings_are_the_methods():
    parsed = recipe("{name: x, model: a/b, stages: {dpo: {do: train, method: dpo, data: d.jsonl, beta: 1e-1, lr: 2}}}")
    assert parsed.stages["dpo"].settings == {"beta": 0.1, "lr": 2}
    nested = parse_recipe(minimal(dpo={"do": "train", "method": "dpo", "data": "d.jsonl", "settings": {"beta": 0.2}}))
    assert nested.stages["dpo"].settings == {"beta": 0.2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nmae": "x"}, "recipe.nmae: unknown setting, did you mean 'name'?"),
        ({"dtype": "float8"}, "recipe.dtype: Input should be"),
        ({"seed": "many"}, "recipe.seed: Input should be a valid integer"),
        ({"name": "a/b"}, "recipe.name: String should match"),
        ({"stages": {}}, "stages is missing or empty"),
        ({"stages": {"Sft": SFT}}, "recipe.stages.Sft: a stage's name has lower-case"),
        ({"stages": {"sft": "train"}}, "recipe.stages.sft: write {do: train | generate"),
        ({"stages": {"sft": {"method": "sft"}}}, "recipe.stages.sft.do: missing"),
        ({"stages": {"sft": {"do": "trian"}}}, "recipe.stages.sft.do: unknown stage 'trian', did you mean 'train'?"),
        ({"stages": {"sft": {"do": "train"}}}, "recipe.stages.sft.method: Field required"),
        ({"stages": {"s": {**GEN, "promts": 1}}}, "recipe.stages.s.promts: unknown setting, did you mean 'prompts'?"),
        ({"stages": {"s": {**GEN, "n": 0}}}, "recipe.stages.s.n: Input should be greater than or equal to 1"),
        ({"stages": {"s": {**GEN, "top_p": 0}}}, "recipe.stages.s.top_p"),
        ({"stages": {"s": {**SFT, "lr": 1, "settings": {"lr": 2}}}}, "'lr' stands in the stage and in its settings"),
        ({"stages": {"s": {**SFT, "settings": 3}}}, "recipe.stages.s.settings: write a mapping"),
        (
            {"iterate": {"times": 2, "form": "s", "sample_with": "p"}},
            "iterate.form: unknown setting, did you mean 'from'",
        ),
        ({"iterate": {"times": 0, "from": "s", "sample_with": "p"}}, "recipe.iterate.times: Input should be greater"),
    ],
)
def test_bad_recipes_are_one_line_with_the_cure(change, message):
    with pytest.raises(ConfigError) as error:
        parse_recipe({**minimal(sft=SFT), **change})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_misspelt_stages_key_is_named():
    with pytest.raises(ConfigError, match="stages is missing or empty; did you mean 'stage'"):
        parse_recipe({"name": "x", "stage": {}})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"sft": SFT, "s": {**GEN, "model": "sfft"}}, "stages.s.model: no stage or path 'sfft', did you mean 'sft'?"),
        ({"v": {"do": "annotate", "samples": "s"}}, "stages.v.samples: no generate stage 's'"),
        ({"sft": SFT, "v": {"do": "annotate", "samples": "sft"}}, "'sft' is a train stage; name a generate stage"),
        ({"d": {**SFT, "data": "votes"}}, "stages.d.data: no stage or path 'votes'"),
        ({"d": {**SFT, "model": "d"}}, "stages.d.model: the stage names itself"),
        (
            {"a": {**SFT, "model": "b"}, "b": {**SFT, "model": "c"}, "c": {**SFT, "model": "a"}},
            "stages: a cycle, a → b → c → a",
        ),
    ],
)
def test_bad_references(stages, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        make_plan(parse_recipe(minimal(**stages)))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_missing_model():
    with pytest.raises(ConfigError, match=r"stages\.sft\.model: missing; name a stage, a folder or a hub model"):
        make_plan(parse_recipe({"name": "x", "stages": {"sft": SFT}}))


def test_a_hub_name_without_a_slash_is_a_model():
    plan = make_plan(parse_recipe({**minimal(sft=SFT), "model": "gpt2"}))
    assert plan["sft"].stage.model == "gpt2"


def test_order_follows_needs_not_the_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(parse_recipe(minimal(s=GEN, sft=SFT, v={"do": "annotate", "samples": "s"})))
    assert [p.name for p in plan.stages] == ["sft", "s", "v"]
    assert plan["v"].needs == ("s",) and plan.needed_for(("s",)) == {"s", "sft"}
    assert missing_files(plan)[0].startswith("stages.sft.data: no file 'rows.jsonl'")
    with pytest.raises(ConfigError, match="no stage 'sfft', did you mean 'sft'"):
        _ = plan["sfft"]


def test_the_reward_of_a_mapping_may_be_a_stage():
    rm = {"do": "train", "method": "reward", "data": "d.jsonl"}
    ppo = {"do": "train", "method": "ppo", "prompts": "p.jsonl", "reward": [{"model": "rm", "weight": 2}, "a.b:f"]}
    assert make_plan(parse_recipe(minimal(ppo=ppo, rm=rm)))["ppo"].needs == ("rm",)


def test_rounds():
    plan = make_plan(recipe(TUTOR))
    per_round = ["samples", "votes", "reward", "policy", "report"]
    assert [p.name for p in plan.stages] == ["sft"] + [f"{n}-{k}" for k in (1, 2, 3) for n in per_round]
    assert [plan[f"samples-{k}"].stage.model for k in (1, 2, 3)] == ["sft", "policy-1", "policy-2"]
    assert [plan[f"reward-{k}"].stage.data for k in (1, 2, 3)] == [
        "votes-1",
        ["votes-1", "votes-2"],
        ["votes-1", "votes-2", "votes-3"],
    ]
    third = plan["policy-3"].stage
    assert (third.model, third.reference, third.reward) == ("sft", "sft", "reward-3")
    assert plan["report-2"].stage.models == ["sft", "policy-2"] and plan["report-2"].round == 2
    assert plan["reward-2"].needs == ("sft", "votes-1", "votes-2") and plan["sft"].round == 0


def test_rounds_that_continue_the_policy_on_the_latest_votes():
    raw = parse_yaml(TUTOR)
    raw["iterate"] = {
        **{"times": 2, "from": "samples", "sample_with": "policy"},
        **{"votes": "latest", "start": "previous", "reference": "previous"},
    }
    plan = make_plan(parse_recipe(raw))
    assert plan["reward-2"].stage.data == "votes-2"
    assert (plan["policy-1"].stage.model, plan["policy-1"].stage.reference) == ("sft", "sft")
    assert (plan["policy-2"].stage.model, plan["policy-2"].stage.reference) == ("policy-1", "policy-1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"from": "sample"}, "iterate.from: no stage 'sample', did you mean 'samples'?"),
        ({"from": "votes"}, "'votes' is a annotate stage; name a generate stage"),
        ({"sample_with": "sft"}, "iterate.sample_with: 'sft' is no train stage that follows 'samples'"),
        ({"start": "policy"}, "iterate.start: 'policy' is itself repeated"),
        ({"reference": "sfft"}, "iterate.reference: no stage or path 'sfft', did you mean 'sft'?"),
    ],
)
def test_bad_rounds(change, message):
    raw = parse_yaml(TUTOR)
    raw["iterate"] = {**raw["iterate"], **change}
    with pytest.raises(ConfigError) as error:
        make_plan(parse_recipe(raw))
    assert message in str(error.value)


def test_resolved_recipe_is_yaml_with_every_default():
    plan = make_plan(recipe(TUTOR))
    back = yaml.safe_load(yaml.safe_dump(plan.resolved(), sort_keys=False))
    assert back["stages"]["samples-1"]["temperature"] == 1.0 and back["iterate"]["from"] == "samples"
    assert back["seed"] == 0 and next(iter(back["stages"])) == "sft"


def test_validation_of_a_method_is_called_with_the_place():
    seen = []
    parse_recipe(minimal(sft=SFT), validate={"train": lambda where, stage: seen.append((where, stage.method))})
    assert seen == [("recipe.stages.sft", "sft")]
    stage = Train.parse({"do": "train", "method": "dpo", "settings": {"betta": 1}})
    with pytest.raises(ConfigError, match=r"s\.dpo\.betta: unknown setting of method 'dpo', did you mean 'beta'"):
        check_settings("s.dpo", stage, ["beta"])
    misspelt = stage.model_copy(update={"settings": {"modle": 1}})
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        check_settings("s.dpo", misspelt, ["beta"])
    assert Annotate.parse({"do": "annotate", "samples": "s"}).annotators == ("human",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "recipe, line 1"),
        ("a: 1\nb: 2\na: 3\n", "recipe, line 3, column 1: the key 'a' stands here twice"),
        ("a: ${NOT_SET_ANYWHERE}", "the environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(ConfigError) as error:
        parse_yaml(text, environment={})
    assert message in str(error.value)


def test_yaml_numbers_and_variables():
    got = parse_yaml(
        "{a: 1e-4, b: 1.5e3, c: -2E+1, d: 12, e: '1e-4', f: 1e5x, g: '${A}/x ${B:-y}'}", environment={"A": "z"}
    )
    assert got == {"a": 1e-4, "b": 1500.0, "c": -20.0, "d": 12, "e": "1e-4", "f": "1e5x", "g": "z/x y"}
    assert parse_yaml("base: &b {x: 1}\nc: {<<: *b, y: 2}")["c"] == {"x": 1, "y": 2}


def test_files_that_are_no_recipe(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe(tmp_path / "none.yaml")
    for content, message in ((b"", "is empty"), (b"- 1\n", "holds a list"), (b"\xff\xfe", "not UTF-8 at byte 0")):
        path = tmp_path / "r.yaml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            read_recipe(path)


def test_overrides():
    raw = {"name": "x", "stages": {"sft": {"lr": 1}}}
    got = apply_overrides(raw, ["stages.sft.lr=1e-4", "stages.dpo.beta=0.1", "seed=7"])
    assert got == {"name": "x", "seed": 7, "stages": {"sft": {"lr": 1e-4}, "dpo": {"beta": 0.1}}}
    assert raw["stages"]["sft"] == {"lr": 1}
    with pytest.raises(ConfigError, match="write key=value"):
        apply_overrides(raw, ["seed"])
    with pytest.raises(ConfigError, match="'name' is no mapping"):
        apply_overrides(raw, ["name.x=1"])
