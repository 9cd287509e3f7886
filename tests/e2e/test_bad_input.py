"""What people get wrong: one line that names the place and the cure, exit code 2, and nothing spent before it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alignloop.pipeline.state import run_lock
from tests.e2e.command import Ended, alignloop, here
from tests.e2e.conftest import change

TRAIN = ("--model", "base", "-o", "out", "--max-steps", "2")
PPO = (
    "train",
    "ppo",
    *TRAIN,
    "--prompts",
    "prompts.jsonl",
    "--rollout-batch-size",
    "4",
    "--max-completion-length",
    "4",
)


def nothing_spent(folder: Path) -> None:
    """No stage has begun and no model was trained."""
    assert not list(folder.glob("runs/*/stages/*")), "a stage had begun"
    assert not list(folder.glob("out/*.jsonl")) and not (folder / "out" / "model").exists()


def row(**values: object) -> str:
    return json.dumps(values) + "\n"


GOOD = row(prompt="ab ", chosen="x", rejected="z")

DATA: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("bad.jsonl", "holds no rows", "give a file")),
    "columns": (
        row(question="a", answer="b").encode(),
        ("bad.jsonl", "question, answer", "explicit (prompt, chosen, rejected)", "columns:"),
    ),
    "encoding": (GOOD.encode() + b'{"prompt": "\xff"}\n', ("bad.jsonl", "row 2", "UTF-8")),
    "json": ((GOOD + '{"prompt": "ab ", "chos\n').encode(), ("bad.jsonl", "row 2", "JSON")),
    "equal": (
        (GOOD + row(prompt="ab ", chosen="x", rejected="x")).encode(),
        ("row 2", "equals rejected", "on_bad_row"),
    ),
    "type": ((GOOD + row(prompt="ab ", chosen=3, rejected="x")).encode(), ("row 2", "chosen", "on_bad_row")),
    "missing": (b"-", ("nowhere.jsonl", "no such file")),
}


@pytest.mark.parametrize("case", DATA)
def test_data_of_a_command_and_of_a_recipe(place: Path, case: str) -> None:
    """The recipe reads its DPO data before SFT starts."""
    content, said = DATA[case]
    name = "nowhere.jsonl" if case == "missing" else "bad.jsonl"
    if case != "missing":
        (place / name).write_bytes(content)
    refused = here("train", "dpo", *TRAIN, "--data", name, cwd=place).refusal
    assert all(part in refused for part in said), refused
    change(place / "loop.yaml", dpo={"data": f"./{name}"})
    refused = here("run", "loop.yaml", cwd=place).refusal
    assert all(part in refused for part in said), refused
    nothing_spent(place)


def test_a_bad_row_is_skipped_if_asked_and_counted(place: Path) -> None:
    (place / "bad.jsonl").write_text(GOOD * 3 + row(prompt="ab ", chosen="x", rejected="x") + GOOD)
    skipped = "1 rows skipped (row 4 chosen: equals rejected"
    source = "{path: bad.jsonl, on_bad_row: skip}"
    assert here("train", "dpo", *TRAIN, "--data", source, cwd=place).code == 0
    notes = json.loads((place / "out" / "train.json").read_text())["notes"]
    assert notes["rows"] == 4 and skipped in notes["report"] and notes["skipped"][0][1] == 4
    change(place / "loop.yaml", dpo={"data": {"path": "bad.jsonl", "on_bad_row": "skip"}, "max_steps": 1})
    ran = here("run", "loop.yaml", "--until", "dpo", cwd=place)
    assert ran.code == 0 and skipped in " ".join(ran.out.split()), ran.err
    (log,) = place.glob("runs/loop/stages/dpo/*/log.txt")
    assert skipped in log.read_text()


def test_reader_settings_are_checked(place: Path) -> None:
    refused = here("train", "dpo", *TRAIN, "--data", "{path: pairs.jsonl, on_bad_rows: skip}", cwd=place).refusal
    assert "did you mean 'on_bad_row'?" in refused
    nothing_spent(place)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"lerning_rate": 1}}, ("stages.sft.lerning_rate", "did you mean 'learning_rate'?")),
        ({"ppo": {"kl": {"betta": 1}}}, ("stages.ppo.kl.betta", "did you mean 'beta'?")),
        ({"samples": {"temprature": 1}}, ("stages.samples.temprature", "did you mean 'temperature'?")),
        ({"reward": {"model": "stf"}}, ("stages.reward.model", "'stf'", "did you mean 'sft'?")),
        ({"ppo": {"reward": "rewrad"}}, ("stages.ppo.reward", "did you mean 'reward'?")),
        ({"report": {"models": ["sft", "pp"]}}, ("stages.report.models", "did you mean 'ppo'?")),
        ({"votes": {"samples": "sample"}}, ("stages.votes.samples", "did you mean 'samples'?")),
        ({"votes": {"annotators": [{"simulate": 3}]}}, ("'simulate'", "did you mean 'simulated'?")),
        ({"votes": {"annotators": [{"simulated": 3, "tei": 0.1}]}}, ("annotators", "tei", "did you mean 'tie'?")),
        ({"votes": {"reward": "toys.py:count_y"}}, ("stages.votes.reward", "did you mean 'count_x'?")),
        ({"report": {"gold": "toy.py:count_x"}}, ("stages.report.gold", "no file 'toy.py'")),
        ({"ppo": {"top_k": 10}}, ("stages.ppo.top_k", "own distribution", "negative KL")),
        ({"dpo": {"lora": {"dropout": 0.1}}}, ("stages.dpo.lora.dropout", "set it to 0")),
        ({"report": {"models": ["sft", "./runs/gone"]}}, ("./runs/gone", "does not exist")),
        ({"dpo": {"reference": "./bsae"}}, ("./bsae", "did you mean 'base'?")),
        ({"report": {"prompts": "tset.jsonl"}}, ("tset.jsonl", "did you mean 'test.jsonl'")),
        ({"report": {"data": "prompts.jsonl"}}, ("prompts.jsonl", "completion")),
    ],
)
def test_recipe(place: Path, changes: dict, said: tuple[str, ...]) -> None:
    """Also what only the last stage would meet is found before the first one starts."""
    change(place / "loop.yaml", **changes)
    refused = here("run", "loop.yaml", cwd=place).refusal
    assert all(part in refused for part in said), refused
    nothing_spent(place)


def test_unknown_key_on_top(place: Path) -> None:
    recipe = yaml.safe_load((place / "loop.yaml").read_text())
    (place / "loop.yaml").write_text(yaml.safe_dump({**recipe, "sede": 3}))
    assert "loop.yaml.sede: unknown setting, did you mean 'seed'?" in here("run", "loop.yaml", cwd=place).refusal


@pytest.mark.parametrize("where", ["samples", "ppo", "report"])
def test_prompt_longer_than_the_context(place: Path, where: str) -> None:
    """Named with its first words before anything is trained, wherever it stands."""
    long = "abcdefghij" * 20
    (place / "long.jsonl").write_text(row(prompt="ab ") + row(prompt=long) + row(prompt="cd "))
    change(place / "loop.yaml", **{where: {"prompts": "long.jsonl"}})
    refused = here("run", "loop.yaml", cwd=place).refusal
    assert all(part in refused for part in ("row 2", "abcdefghij", "200 tokens", "context of 128", "shorten")), refused
    nothing_spent(place)
    alone = here(*PPO[:-6], "--prompts", "long.jsonl", "--reward", "toys.py:count_x", cwd=place)
    assert "200 tokens" in alone.refusal
    assert "128" in here("generate", "base", "--prompt", long, cwd=place).refusal


REWARDS = {
    "not_a_number": ("'not_a_number'", "nan", "return None"),
    "one_too_few": ("'one_too_few'", "returned 3 values for 4 completions"),
    "raises": ("KeyError", "missing", "--debug"),
}


@pytest.mark.parametrize("function", REWARDS)
def test_reward_function(place: Path, function: str) -> None:
    """In training, in scoring and where simulated annotators go by it."""
    said = REWARDS[function]
    refused = here(*PPO, "--reward", f"toys.py:{function}", cwd=place).refusal
    assert all(part in refused for part in said), refused
    (place / "rows.jsonl").write_text(row(prompt="a", completion="x") * 4)
    refused = here("score", f"toys.py:{function}", "rows.jsonl", cwd=place).refusal
    assert all(part in refused for part in said), refused
    shown = here("--debug", *PPO, "--reward", f"toys.py:{function}", cwd=place)
    assert "Traceback" in shown.err and shown.code != 0
    if function == "raises":
        assert "in raises" in shown.err  # the line of the user's own function


def test_model_folder(place: Path) -> None:
    for i in range(12):
        (place / "models" / f"run{i}").mkdir(parents=True)
    many = here("generate", "models/zzz", "--prompt", "a", cwd=place).refusal
    assert "models/zzz does not exist" in many and "run0" in many and "7 more" in many and "run9" not in many
    near = here("generate", "models/rn3", "--prompt", "a", cwd=place).refusal
    assert "did you mean 'run3'?" in near


COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "loop.yaml"),
    "train": ("train", "sft", *TRAIN, "--data", "demonstrations.jsonl"),
    "generate": ("generate", "base", "--prompt", "a"),
}


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x89PNG" * 300)


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_without_tokenizer, "tokenizer"),
        (_cut, "model.safetensors"),
        (_garbage, "model.safetensors"),
        (_without_weights, "safetensors"),
    ],
)
def test_spoilt_model(place: Path, command: str, spoil: Callable[[Path], None], said: str) -> None:
    spoil(place / "base")
    refused = here(*COMMANDS[command], cwd=place).refusal
    assert "base" in refused and (said in refused or command != "run"), refused
    nothing_spent(place)


def test_spoilt_model_of_a_late_stage(place: Path) -> None:
    """A reference that only DPO reads is looked at before SFT starts."""
    shutil.copytree(place / "base", place / "other")
    _cut(place / "other")
    change(place / "loop.yaml", dpo={"reference": "./other"})
    assert "other/model.safetensors" in here("run", "loop.yaml", cwd=place).refusal
    nothing_spent(place)


def test_store_that_is_no_database(place: Path) -> None:
    recipe = yaml.safe_load((place / "loop.yaml").read_text())
    (place / "notes.txt").write_text("these are notes, not a database\n" * 100)
    (place / "loop.yaml").write_text(yaml.safe_dump({**recipe, "store": "sqlite:///notes.txt"}))
    assert (
        "notes.txt" in (refused := here("run", "loop.yaml", cwd=place).refusal)
        and "not an alignloop database" in refused
    )
    nothing_spent(place)
    assert (place / "notes.txt").read_text().startswith("these are notes")


def test_two_runs_in_one_folder(place: Path) -> None:
    with run_lock(place / "runs" / "loop"):
        refused = here("run", "loop.yaml", cwd=place).refusal
        assert "runs/loop: process " in refused and "is running it" in refused and "--out" in refused
        nothing_spent(place)
    with run_lock(place / "out"):
        assert "is running it" in here("train", "sft", *TRAIN, "--data", "demonstrations.jsonl", cwd=place).refusal


def test_traceback_only_with_debug_in_a_process_of_its_own(place: Path) -> None:
    plain = alignloop("run", "gone.yaml", cwd=place)
    assert plain.refusal == "error: gone.yaml: no such recipe; give the path of a YAML file"
    debugged: Ended = alignloop("run", "gone.yaml", "--debug", cwd=place)
    assert debugged.code not in (0, 2) and "Traceback" in debugged.err and "ConfigError" in debugged.err
