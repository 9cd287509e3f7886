"""38: what must be refused is refused before any compute, in one line that names the place and the cure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignloop.core.errors import AlignloopError, ConfigError, DataError, ModelError, TrainingError
from alignloop.core.layout import Item, build
from alignloop.core.types import Completion, Demonstration, Preference, Prompt, text
from alignloop.training.experience import check_lag, check_sampler
from alignloop.training.learner import Learner, Part
from alignloop.training.settings import Optim, parse_settings
from alignloop.training.state import TrainState, resume, save_state
from alignloop.training.train import find_method, train
from alignloop.training.world import Alone
from tests.invariants import bench, loop
from tests.training import toys

CASE = bench.BY_NAME["ppo, separate critic"]


def refuse(kind: type[AlignloopError], words: str, work: Callable[[], Any]) -> None:
    """`work` raises exactly this kind of error; its message is one line and holds the words."""
    with pytest.raises(kind, match=words) as caught:
        work()
    assert "\n" not in str(caught.value)


def run(method: str, **values: Any) -> Callable[[], Any]:
    """A call of the facade."""
    how = {**loop.RUNS.get(method, loop.RUNS["ppo, separate critic"])[1], "show": False, **values}
    model = how.pop("model", None) or loop.folder()
    return lambda: train(method, model=model, output_dir=loop.root() / "refused", **how)


# Settings


@pytest.mark.parametrize(
    ("method", "values", "words"),
    [
        ("dpo", {"betta": 0.1}, r"train dpo\.betta: unknown setting of method dpo, did you mean 'beta'\?"),
        ("sft", {"learning_rates": 1e-3}, "did you mean 'learning_rate'"),
        ("ppo", {"kl": {"targett": 3}}, r"kl\.targett: unknown setting, did you mean 'target'\?"),
        ("sft", {"temperature": 0.5}, "temperature: unknown setting of method sft"),
        ("dpo", {"beta": -0.1}, r"train dpo\.beta: .*greater than 0 \(got -0.1\)"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing"),
        ("dpo", {"labels": "sotf"}, r"labels: .*\(got 'sotf'\)"),
        ("ppo", {"clip": {"eps_low": 1.0}}, "eps_low"),
        ("ppo", {"clip": {"dual": 1.0}}, "dual"),
        ("ppo", {"c_h": -1}, "c_h"),
        ("ppo", {"temperature": 0.0}, "temperature"),
        ("ppo", {"kl": {"placement": "loss", "estimator": "k1"}}, "i_know_this_is_biased: true"),
        ("ppo", {"top_k": 20}, "top_k: ppo learns from its own distribution"),
        ("ppo", {"top_p": 0.9}, "top_p: ppo learns from its own distribution"),
        ("ppo", {"min_new_tokens": 2}, "min_new_tokens: ppo learns from its own distribution"),
        ("sft", {"learning_rate": -1}, "learning_rate"),
        ("sft", {"max_length": 4096}, "max_length: 4096 is longer than the model's context of 128 tokens"),
        ("dpo", {"lora": {"dropout": 0.1}}, "lora.dropout: dpo compares log-probabilities"),
        ("dpo", {"lora": {"r": 0}}, r"lora\.r"),
        ("dpo", {"reference_kind": "off"}, "'off' needs a LoRA policy; use 'copy' or 'auto'"),
        ("sft", {"lora": {"target_modules": ["query"]}}, "match nothing; modules"),
    ],
)
def test_settings(method: str, values: dict[str, Any], words: str) -> None:
    refuse(AlignloopError, words, run(method, **values))


def test_an_unknown_method_names_the_nearest() -> None:
    refuse(ConfigError, r"unknown method 'dop', did you mean 'dpo'\?", lambda: find_method("dop"))


def test_a_method_without_its_data() -> None:
    refuse(ConfigError, "method dpo needs data: give pairs", run("dpo", data=None))
    refuse(ConfigError, "method ppo needs prompts", run("ppo", prompts=None))
    refuse(AlignloopError, "reward: missing", run("ppo", reward=None))


def test_a_missing_model_names_its_neighbour(tmp_path: Path) -> None:
    missing = loop.folder().with_name(loop.folder().name + "x")
    refuse(ModelError, f"does not exist; did you mean '{loop.folder().name}'", run("sft", model=missing))
    refuse(AlignloopError, "reward", run("ppo", reward=str(tmp_path / "no-such-model")))
    refuse(ModelError, "is not a reward model", run("ppo", reward=loop.folder()))


def test_an_output_folder_of_another_run() -> None:
    out = loop.root() / "taken"
    how: dict[str, Any] = {"model": loop.folder(), "data": toys.demonstrations(), "output_dir": out, "show": False}
    train("sft", **how, max_steps=1)
    refuse(ConfigError, "holds a finished run with other settings", lambda: train("sft", **how, max_steps=2))


# Rows


def test_no_rows() -> None:
    refuse(DataError, "no demonstrations to train on", run("sft", data=[]))
    refuse(
        AlignloopError,
        "validation_fraction 0.5 leaves one side",
        run("dpo", data=toys.preferences(1), validation_fraction=0.5),
    )


def test_an_answer_cut_to_nothing() -> None:
    long = Prompt("long", text("a" * 40))
    row = Demonstration("d", long, Completion("c", "long", text("xyz")))
    ready, steps = loop.run("sft", data=[row] * 4, max_length=16, max_steps=1)
    assert ready.notes["rows_cut"] == 4 and steps[0]["step_tokens"] > 0, "the prompt is cut on the left, not the answer"
    refuse(
        DataError,
        "record d: nothing of the answer is left",
        run("sft", data=[replace(row, completion=Completion("c", "long", text("")))], append_eos=False),
    )


def test_chosen_equal_rejected() -> None:
    p = toys.prompts(1)[0]
    same = Preference("twin", p, Completion("a", p.id, text("xy")), Completion("b", p.id, text("xy")))
    refuse(DataError, "twin", run("dpo", data=[same]))


def test_a_prompt_longer_than_the_context() -> None:
    long = Prompt("endless", text("a" * 300))
    refuse(DataError, "has 30. tokens.* the model's context of 128", run("ppo", prompts=[long]))


def test_items_that_nothing_can_be_learned_from() -> None:
    refuse(
        DataError,
        "sequence 1: no response token is left",
        lambda: build([Item((3,), (4,), (True,)), Item((3,), (4,), (False,))]),
    )
    refuse(DataError, "nothing before it that could predict it", lambda: build([Item((), (4,), (True,))]))
    refuse(DataError, "2 response tokens but a mask of 1", lambda: build([Item((3,), (4, 5), (True,))]))
    refuse(DataError, "empty batch", lambda: build([]))


# Scores and experience


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers(bad: float) -> None:
    refuse(
        TrainingError,
        "completion 0: (nan|inf); return None where it cannot be scored",
        run("ppo", reward=lambda prompts, completions, **_: [bad] * len(completions)),
    )


def test_scores_that_do_not_line_up() -> None:
    refuse(
        TrainingError, "returned 1 values for 8 completions", run("ppo", reward=lambda prompts, completions, **_: [0.0])
    )


def test_nothing_could_be_scored() -> None:
    nothing = run("ppo", reward=lambda prompts, completions, **_: [None] * len(completions))
    refuse(TrainingError, "could score none of the completions", nothing)


def test_unscorable_answers_are_dropped_and_counted() -> None:
    half = loop.run(
        "ppo", **loop.PPO | {"reward": lambda prompts, completions, **_: [1.0, None] * (len(completions) // 2)}
    )
    assert [m["unscorable"] for m in half[1]] == [4.0, 4.0]
    assert [m["val/num_eos_tokens"] for m in half[1]] <= [4.0, 4.0], "an unscorable answer was learned from"


def rollout() -> Any:
    m, pairs = bench.models(CASE), bench.rows()
    tokens = build(bench.items_of_rows(pairs), "right")
    with torch.no_grad():
        return bench.rollout_in(CASE, m, tokens, pairs)


@pytest.mark.parametrize("name", ["logp_old", "logp_ref", "logp_sampler", "value"])
def test_values_that_are_not_finite(name: str) -> None:
    e = rollout()
    bad = getattr(e, name).clone()
    row, column = e.tokens.mask.nonzero()[7].tolist()
    bad[row, column] = float("nan")
    refuse(
        TrainingError,
        f"{name} is nan at row {row}, token {column}",
        lambda: bench.prepared(CASE, replace(e, **{name: bad})),
    )


def test_log_probabilities_above_zero() -> None:
    e = rollout()
    refuse(
        TrainingError, "a log-probability is at most 0", lambda: bench.prepared(CASE, replace(e, logp_old=-e.logp_old))
    )


def test_constants_that_carry_gradients() -> None:
    m = bench.models(CASE)
    batch: Any = bench.batch_of(CASE, m, bench.rows())
    for name in ("advantage", "logp_old", "logp_ref", "target", "value", "reward"):
        loud = replace(batch, **{name: getattr(batch, name).clone().requires_grad_(True)})
        refuse(TrainingError, f"{name} carries a gradient", lambda loud=loud: bench.measure(CASE, m, [loud]))


def test_an_engine_that_runs_another_model() -> None:
    e = rollout()
    refuse(
        TrainingError,
        "do not run the same model, temperature or tokens",
        lambda: check_sampler(replace(e, logp_sampler=e.logp_old - 1.0), int(e.version[0]), Alone()),
    )


def test_answers_of_an_older_policy() -> None:
    samples = [replace(s, version=v) for s, v in zip(bench.samples_of(bench.rows(), bench.models(CASE)), [4, 5, 5, 5])]
    check_lag(samples, 5, 1)
    words = "1 of 4 answers are of policy version 4, and the policy is at 5: older than max_lag 0 allows"
    refuse(TrainingError, words, lambda: check_lag(samples, 5, 0))


# Steps and checkpoints


def test_a_gradient_that_is_not_finite_is_skipped_and_counted() -> None:
    case = bench.BY_NAME["sft"]
    policy = bench.copy.deepcopy(bench.models(case).policy)
    learner = Learner(policy, Optim(learning_rate=1e-2), 3)
    batch = bench.batch_of(case, bench.models(case), bench.rows())

    def broken(module: Any, tokens: Any, config: Any) -> Any:
        return [
            replace(t, total=t.total * float("nan")) for t in bench.METHODS["sft"].objective(module, tokens, config)
        ]

    before = loop.digest(policy)
    metrics = learner.update([Part(broken, [batch], case.config)])
    assert loop.digest(policy) == before and metrics["skipped_updates"] == 1.0
    learner.update([Part(bench.METHODS["sft"].objective, [batch], case.config)])
    assert loop.digest(policy) != before and learner.skipped == 1 and learner.step == 2


def test_nothing_to_train() -> None:
    policy = bench.copy.deepcopy(bench.models("sft").policy).requires_grad_(False)
    refuse(TrainingError, "nothing to train: every parameter is frozen", lambda: Learner(policy, Optim(), 1))


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    from alignloop.models.load import load_policy

    state = TrainState(Learner(load_policy(loop.folder("llama")), Optim(), 1), step=1)
    save_state(state, tmp_path)
    other = TrainState(Learner(load_policy(loop.folder("gpt2")), Optim(), 1))
    refuse(TrainingError, "the checkpoint is of another model", lambda: resume(other, tmp_path))


def test_defaults_are_the_vetted_ones() -> None:
    """§7.5 in numbers: clip .2, λ .95, γ 1, four passes, c_v .1, KL .05 in the reward, missing EOS costs 1."""
    c = parse_settings(find_method("ppo"), {}).method
    assert (c.clip.eps_low, c.clip.eps_high, c.gae.lam, c.gae.gamma) == (0.2, 0.2, 0.95, 1.0)
    assert (c.num_ppo_epochs, c.critic.c_v, c.c_h) == (4, 0.1, 0.0)
    assert (c.kl.placement, c.kl.estimator, c.kl.beta) == ("reward", "k1", 0.05)
    assert (c.shaping.missing_eos, c.shaping.missing_eos_penalty) == ("subtract", 1.0)
