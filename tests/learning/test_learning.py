"""Every method reaches a known optimum on a toy, in seconds: the optimum is computed by hand, not by the method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from alignloop.core.batch import per_sequence
from alignloop.core.types import Completion, Demonstration, Preference, Prompt, text
from alignloop.data.collate import collate_pairs, collate_tokens, demonstration_rows, pair_rows
from alignloop.models.load import load_policy
from alignloop.training.scoring import score_items
from tests.invariants import loop
from tests.training import toys

SEEDS = (0, 1, 2)
SOFT = (("u", "v", 0.9), ("v", "w", 0.75), ("u", "w", 27 / 28))
"""P(u ≻ v) has odds 9, P(v ≻ w) odds 3, P(u ≻ w) odds 27 = 9 · 3: Bradley–Terry scores that fit exactly exist."""


PROMPTS = [Prompt(a + b, text(a + b + " ")) for a in "abcdefgh" for b in "ijklmnop"]
"""Prompts of one length: their rows are computed in one call, which makes these tests fast."""


def soft_preferences() -> list[Preference]:
    return [
        Preference(f"{p.id}{a}{b}", p, _answer(p, a), _answer(p, b), p=q) for p in toys.prompts(8) for a, b, q in SOFT
    ]


def _answer(prompt: Prompt, words: str) -> Completion:
    return Completion(f"{prompt.id}-{words}", prompt.id, text(words))


def mean(steps: Sequence[dict[str, float]], name: str) -> float:
    return sum(m[name] for m in steps) / len(steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_sft_reaches_the_entropy_of_its_data(seed: int) -> None:
    """Answers x, y, z with probabilities 1/2, 1/4, 1/4, then a certain end: (1.5 ln 2 + 0) / 2 nats a token."""
    prompt = Prompt("p", text("ab "))
    data = [Demonstration(f"d{i}", prompt, _answer(prompt, w)) for i, w in enumerate("xxxxxxxxyyyyzzzz")]
    how: dict[str, Any] = {"max_steps": 50, "per_device_train_batch_size": 16, "learning_rate": 1e-2}
    _, steps = loop.run("sft", data=data, seed=seed, **how)
    floor = 1.5 * math.log(2) / 2
    assert steps[0]["nll"] > 3
    assert floor - 1e-6 < steps[-1]["nll"] < floor + 0.005


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_model_is_calibrated(seed: int) -> None:
    """Soft labels: the score difference is the log odds of the label: ln 9, ln 3, ln 27."""
    how: dict[str, Any] = {"max_steps": 40, "per_device_train_batch_size": 24, "learning_rate": 1e-2}
    ready, _ = loop.run("reward", data=soft_preferences(), seed=seed, **how)
    for row in pair_rows(soft_preferences(), ready.chat):
        chosen, rejected = score_items(ready.state.learner.policy, row.items)
        assert abs((chosen - rejected) - math.log(row.p / (1 - row.p))) < 0.15, row


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_model_recovers_planted_preferences(seed: int) -> None:
    """x is good and z is bad, whatever the length: on prompts it has not seen it is right every time."""
    held = [
        Preference(f"h{i}", p, _answer(p, "x" * (1 + i % 2)), _answer(p, "z" * (1 + (i + 1) % 2)))
        for i, p in enumerate(Prompt(f"h{i}", text(w)) for i, w in enumerate(["hgf ", "ab ba ", "ccdd ", "eh "]))
    ]
    how: dict[str, Any] = {"max_steps": 20, "per_device_train_batch_size": 12, "learning_rate": 1e-2}
    ready, _ = loop.run("reward", data=toys.preferences(), seed=seed, **how)
    for row in pair_rows(held, ready.chat):
        chosen, rejected = score_items(ready.state.learner.policy, row.items)
        assert chosen - rejected > 0.5, row.id


@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_settles_at_the_log_odds(seed: int) -> None:
    """At the optimum the implicit reward difference β h is the log odds of the label, as of a reward model."""
    how: dict[str, Any] = {"max_steps": 40, "per_device_train_batch_size": 24, "learning_rate": 5e-3, "beta": 0.5}
    ready, steps = loop.run("dpo", data=soft_preferences(), seed=seed, **how)
    assert abs(steps[0]["loss"] - math.log(2)) < 1e-5
    batch = collate_pairs(pair_rows(soft_preferences(), ready.chat))
    with torch.no_grad():
        now, before = (
            per_sequence(p(batch.tokens, {"logp"}).logp, batch.tokens)
            for p in (ready.state.learner.policy, load_policy(loop.folder()))
        )
    gain = now - before
    margin = 0.5 * (gain[batch.chosen] - gain[batch.rejected])
    torch.testing.assert_close(margin, torch.logit(batch.p), rtol=0, atol=0.15)


def count_x(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [min(c.count("x"), 5) / 5 for c in completions]


def ppo(**changes: Any) -> list[dict[str, float]]:
    """PPO on count_x from a model that says x about once in 64 letters: 5 letters, best reward 1."""
    how: dict[str, Any] = {
        "prompts": PROMPTS,
        "reward": count_x,
        "max_steps": 30,
        "rollout_batch_size": 24,
        "max_completion_length": 5,
        "per_device_train_batch_size": 24,
        "num_ppo_epochs": 4,
        "num_mini_batches": 2,
        "learning_rate": 4e-3,
        "lr_scheduler_type": "constant",
        "shaping": {"missing_eos": "none"},
        "kl": {"beta": 0.0},
    }
    return loop.run("ppo", **{**how, **changes})[1]


def test_ppo_reaches_the_best_reward() -> None:
    steps = ppo(seed=0)
    assert steps[0]["objective/scores"] < 0.1
    assert mean(steps[-4:], "objective/scores") > 0.9


SHARED: dict[str, Any] = {  # values and policy pull at one trunk: whole batches and Monte-Carlo targets keep it calm
    "critic": {"layout": "shared"},
    "gae": {"lam": 1.0},
    "num_mini_batches": 1,
    "learning_rate": 3e-3,
    "max_steps": 60,
}


def test_ppo_with_a_shared_critic_reaches_the_best_reward() -> None:
    steps = ppo(seed=0, **SHARED)
    assert mean(steps[-4:], "objective/scores") > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("how", [{"max_steps": 40}, SHARED], ids=["separate", "shared"])
def test_ppo_reaches_the_best_reward_from_other_seeds(seed: int, how: dict[str, Any]) -> None:
    steps = ppo(seed=seed, **how)
    assert mean(steps[-4:], "objective/scores") > 0.9


def says_x(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return [float(c == "x") for c in completions]


def test_ppo_with_kl_settles_at_the_tilt() -> None:
    """Answers of one letter: the optimum of E[R] - β KL is π* ∝ π_ref exp(R / β), a number that can be computed."""
    beta = 0.25
    ready = loop.job(
        "ppo",
        prompts=PROMPTS,
        reward=says_x,
        max_steps=45,
        rollout_batch_size=64,
        max_completion_length=1,
        per_device_train_batch_size=64,
        learning_rate=3e-3,
        kl={"beta": beta},
        shaping={"missing_eos": "none"},
        gae={"whiten": False},
        critic_learning_rate=1e-2,
    )
    policy = ready.state.learner.policy
    said = collate_tokens(demonstration_rows([Demonstration(p.id, p, _answer(p, "x")) for p in PROMPTS], ready.chat))
    first = said.mask & (said.tokens == ready.chat.tokenizer.convert_tokens_to_ids("x"))

    def probability() -> torch.Tensor:
        with torch.no_grad():
            return policy(said, {"logp"}).logp[first].exp()

    start = probability()
    tilted = start * math.exp(1 / beta) / (1 - start + start * math.exp(1 / beta))
    for _ in ready.steps():
        pass
    found = probability()
    assert float(start.mean()) < 0.1 and len(start) == 64
    assert abs(float((found - tilted).mean())) < 0.05, (float(start.mean()), float(tilted.mean()), float(found.mean()))
    assert float((found - tilted).abs().mean()) < 0.15


def test_the_adaptive_controller_settles_near_its_target() -> None:
    steps = ppo(seed=0, max_steps=36, kl={"beta": 0.1, "controller": "adaptive", "target": 4.0, "horizon": 60})
    kl = mean(steps[-15:], "objective/kl")
    assert 2.5 < kl < 5.5, [round(m["objective/kl"], 2) for m in steps]
    assert len({m["kl_coef"] for m in steps}) > 30


def test_value_pretraining_raises_explained_variance() -> None:
    """A reward that the prompt decides: a critic of the prompt can know it, while the policy stands still."""

    def length(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [float(len(p)) for p in prompts]

    steps = ppo(
        seed=0,
        prompts=toys.prompts(),
        max_steps=12,
        value_pretraining_steps=12,
        value_pretraining_ev=1.0,
        value_pretraining_patience=12,
        reward=length,
        clip={"value": None},
        learning_rate=1e-2,
    )
    assert steps[0]["val/explained_variance"] < 0.1
    assert steps[-1]["val/explained_variance"] > 0.7, [round(m["val/explained_variance"], 2) for m in steps]
    assert {m["objective/kl"] for m in steps} == {0.0}, "the policy moved"
