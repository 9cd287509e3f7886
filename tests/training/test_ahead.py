"""Answers drawn ahead: by which weights, the same after a kill, and what becomes of two processes when one is gone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from alignloop.core.batch import Experience
from alignloop.core.errors import ConfigError, TrainingError
from alignloop.core.layout import Item, build
from alignloop.core.types import Sample, SamplingParams
from alignloop.models.load import load_policy
from alignloop.rollout.apart import Apart, Ask
from alignloop.rollout.shards import read_all, read_shard, shards
from alignloop.training import train
from alignloop.training.ahead import Ahead, engine_maker, shares
from alignloop.training.assemble import assemble
from alignloop.training.experience import check_sampler
from alignloop.training.settings import ModelSettings, parse_settings
from alignloop.training.train import Inputs, find_method
from alignloop.training.world import Alone
from tests.invariants import distributed, loop
from tests.training import toys

AHEAD: dict[str, Any] = {"draw_ahead": True, "max_lag": 1, "importance": {"mode": "tis"}}
SHORT: dict[str, Any] = {"rollout_batch_size": 8, "max_completion_length": 6, "learning_rate": 3e-3}


# What is refused


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("ppo", {"importance": {"mode": "tis"}}, "draw_ahead: answers are then one version behind .* set max_lag: 1"),
        ("grpo", {"max_lag": 1}, r"grpo would take them for its own; set importance: \{mode: tis\}"),
        ("trpo", {"max_lag": 1}, "trpo would take them for its own; leave it out"),
    ],
)
def test_settings_that_do_not_fit(method: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_settings(find_method(method), {"draw_ahead": True, **values})


def test_online_dpo_needs_no_weights() -> None:
    """Its loss compares two answers and does not ask who drew them."""
    assert parse_settings(find_method("online_dpo"), {"draw_ahead": True, "max_lag": 1}).rollout.draw_ahead


# Which weights drew


def half_teach(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Answers to prompts of b, d, f and h all score 1, so that dynamic sampling has to go on."""
    varied = toys.variety(prompts, completions)
    return [1.0 if p[0] in "bdfh" else score for p, score in zip(prompts, varied, strict=True)]


def test_answers_are_of_the_weights_before_the_last_update(tmp_path: Path) -> None:
    """Step 0 learns from its own answers, step t from those of version t - 1: the very ones that an engine draws here
    with those weights. Further attempts of dynamic sampling are of the policy as it is."""
    settings = parse_settings(
        find_method("dapo"),
        {**SHORT, **AHEAD, "rollout_batch_size": 4, "num_generations": 2, "max_steps": 3, "slots": 3},
    )
    inputs = Inputs(str(loop.folder()), prompts=toys.prompts(), reward=half_teach)
    job = assemble(find_method("dapo"), settings, inputs, tmp_path, Alone())
    policy, ahead = job.state.learner.policy, job.state.ahead
    assert isinstance(ahead, Ahead)
    weights, said = [loop.weights(policy)], []
    job.begin()
    for _, metrics in job.steps():
        weights.append(loop.weights(policy))
        said.append(metrics)
    assert ahead.apart.process.poll() is not None, "it ends with the run"
    later = 0
    for step, path in enumerate(shards(tmp_path / "rollouts" / "rank-0")):
        samples, version = read_shard(path), max(0, step - 1)
        first = [s for s in samples if int(s.group) < 4]
        assert {s.version for s in first} == {version}
        assert {s.version for s in samples[len(first) :]} <= {step}
        later += len(samples) - len(first)
        policy.load_state_dict(weights[version])
        ahead.live.load(None, version)
        ask = ahead.foresee(step)
        assert ask is not None and len(first) == 8
        here = {(s.prompt_id, s.index): s for s in ahead.live.generate(ask.prompts, ask.n, ask.sampling)}
        for s in first:
            assert here[f"{s.prompt_id}@{s.group}", s.index].tokens == s.tokens
            assert here[f"{s.prompt_id}@{s.group}", s.index].logp == pytest.approx(s.logp, abs=1e-5)
    assert later > 0, "some draw was not foreseen"
    own, drift = "sampling/sampling_logp_difference/mean", "sampling/policy_drift/mean"
    assert said[0][own] < 1e-5 and drift not in said[0]
    assert all(metrics[drift] > 1e-3 for metrics in said[1:])
    assert all(metrics.get(own, 0.0) < 1e-5 for metrics in said), "contract and drift are told apart"


def experience(gaps: list[list[float]], version: list[int]) -> Experience:
    """Answers whose tokens the trainer finds more probable than the engine did, by so many nats."""
    tokens = build([Item((1,), (2,) * len(g), (True,) * len(g)) for g in gaps], "right")
    zero = torch.zeros(tokens.tokens.shape)
    sampler = zero.clone()
    sampler[tokens.mask] = -torch.tensor([x for g in gaps for x in g])
    n = torch.zeros(len(gaps))
    return Experience(tokens, zero, sampler, zero, zero, zero, n, n.bool(), n.long(), torch.tensor(version))


def test_drift_is_no_broken_contract() -> None:
    """Of version 3: gaps .1, .3. Of version 2: gaps 1, 2, 3, which at version 2 would be another model."""
    mixed = experience([[0.1, 0.3], [1.0, 2.0, 3.0]], [3, 2])
    assert check_sampler(mixed, 3, Alone()) == pytest.approx(
        {
            "sampling/sampling_logp_difference/mean": 0.2,
            "sampling/sampling_logp_difference/max": 0.3,
            "sampling/policy_drift/mean": 2.0,
            "sampling/policy_drift/max": 3.0,
        }
    )
    with pytest.raises(TrainingError, match="differ from the trainer's by 2 nats a token"):
        check_sampler(experience([[1.0, 2.0, 3.0]], [3]), 3, Alone())
    with pytest.raises(TrainingError, match="differ from the trainer's by nan"):
        check_sampler(experience([[float("nan")], [1.0]], [3, 2]), 3, Alone())


def test_threads_are_shared_out() -> None:
    assert [shares(n) for n in (1, 2, 3, 16)] == [(1, 1), (1, 1), (2, 1), (8, 8)]


# Killed, and continued


def digests(folder: Path) -> dict[str, str]:
    files = [*(folder / "model").glob("*.safetensors"), folder / "metrics.jsonl", *folder.glob("rollouts/*/*")]
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended (one that nobody has waited for is still listed)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def killed_between_two_checkpoints(run: Any, note: Path) -> None:
    """In a process of its own: die after step 3; the number of the process that draws is in the note."""

    def noted(self: Any, version: int, ask: Ask) -> None:
        note.write_text(str(self.process.pid))
        begin(self, version, ask)

    def logged(self: Any, step: int, metrics: Any) -> None:
        log(self, step, metrics)
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        begin, Apart.begin = Apart.begin, noted  # type: ignore[method-assign]
        log, train.JsonlTracker.log = train.JsonlTracker.log, logged
        run()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """An adapter, bfloat16, a critic that learns first: killed after step 3 with a checkpoint at 2, when the answers of
    step 2 were on their way with the weights before it. And the process that drew does not outlive the one it drew for.
    """
    torch.set_num_threads(1)
    how = {**SHORT, **AHEAD, "lora": {"r": 4}, "dtype": "bfloat16", "value_pretraining_steps": 1}

    def run(out: str) -> Path:
        given = {"prompts": toys.prompts(), "reward": toys.count_x, "max_steps": 5, "save_every": 2, "show": False}
        train.train("ppo", model=loop.folder(), output_dir=tmp_path / out, **given, **how)
        return tmp_path / out

    whole = run("whole")
    versions = [{s.version for s in read_shard(path)} for path in shards(whole / "rollouts" / "rank-0")]
    assert versions == [{0}, {0}, {1}, {2}, {3}]
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines[1]["sampling/policy_drift/mean"] < 0.01 < lines[-1]["sampling/policy_drift/mean"], "values first"
    killed_between_two_checkpoints(lambda: run("killed"), tmp_path / "pid")
    drawing = int((tmp_path / "pid").read_text())
    assert digests(run("killed")) == digests(whole)
    for _ in range(100):
        if not alive(drawing):
            return
        time.sleep(0.1)
    pytest.fail("the process that draws outlives its parent")


def test_a_checkpoint_of_another_kind_is_refused() -> None:
    plain = loop.job("grpo", prompts=toys.prompts(), reward=toys.count_x, **{**SHORT, "max_steps": 1})
    saved = plain.state.state_dict()
    assert saved["ahead"] is None
    with pytest.raises(TrainingError, match="the checkpoint and the settings disagree about draw_ahead"):
        plain.state.load_state_dict({**saved, "ahead": {"version": 0, "weights": {}}})


# One of the two is gone


def apart(model: str, folder: Path) -> Apart:
    like = dict(load_policy(loop.folder()).model.named_parameters())
    return Apart(engine_maker(model, ModelSettings(), 2), like, folder, 1)


def test_what_fails_over_there_is_told_here(tmp_path: Path) -> None:
    away = apart("no/such/model", tmp_path)
    with pytest.raises(TrainingError, match="the process that draws ahead: model folder no/such/model does not exist"):
        away.take()
    away.close()


def test_a_process_that_was_killed_is_told(tmp_path: Path) -> None:
    away = apart(str(loop.folder()), tmp_path)
    assert list(tmp_path.iterdir()) == [], "the weights are in a file without a name"
    away.process.kill()
    ask = Ask(tuple(toys.prompts(1)), 1, SamplingParams())
    for call in (away.take, partial(away.begin, 0, ask)):
        with pytest.raises(TrainingError, match=r"was killed by signal 9 .* what the run had saved is kept"):
            call()
            call()  # a pipe takes the first words of a reader that has gone
    away.close()


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(TrainingError, match=r"no room in .* \([\d,]+ bytes\): No space left on device"):
        apart(str(loop.folder()), tmp_path)


# It learns


def test_one_version_behind_it_learns_as_much() -> None:
    """count_x from a model that says x about once in 64 letters: 5 letters, best reward 1, in turn and at once."""
    how: dict[str, Any] = {
        "prompts": toys.prompts(),
        "reward": toys.count_x,
        "max_steps": 30,
        "rollout_batch_size": 8,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 5,
        "per_device_train_batch_size": 32,
        "learning_rate": 6e-3,
        "lr_scheduler_type": "constant",
        "shaping": {"missing_eos": "none"},
    }
    for more in ({}, AHEAD):
        _, steps = loop.run("grpo", **how, **more)
        assert steps[0]["objective/scores"] < 0.1
        assert sum(m["objective/scores"] for m in steps[-4:]) / 4 > 0.9
        assert ("sampling/policy_drift/mean" in steps[-1]) == bool(more)


@pytest.mark.slow
def test_a_greedy_baseline_is_of_the_policy_as_it_is(tmp_path: Path) -> None:
    given = {"prompts": toys.prompts(), "reward": toys.variety, "max_steps": 3, "show": False}
    train.train("remax", model=loop.folder(), output_dir=tmp_path, **given, **SHORT, **AHEAD)
    samples: list[Sample] = list(read_all(tmp_path / "rollouts" / "rank-0"))
    assert [s.version for s in samples if s.sampling.temperature == 0] == [0] * 8 + [1] * 8 + [2] * 8
    assert [s.version for s in samples if s.sampling.temperature == 1] == [0] * 16 + [1] * 8


@pytest.mark.slow
def test_two_processes_draw_ahead_what_one_would(monkeypatch: pytest.MonkeyPatch) -> None:
    run = {**SHORT, **AHEAD, "prompts": toys.prompts(), "reward": toys.count_x, "num_generations": 2}
    monkeypatch.setitem(loop.RUNS, "grpo, drawn ahead", ("grpo", run))
    distributed.whole_runs_agree("grpo, drawn ahead")
