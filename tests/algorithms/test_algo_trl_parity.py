"""The same numbers as TRL, as functions of the same token log-probabilities or scores: loss and gradient to 1e-5.

TRL's own `compute_loss` functions run here on a stand-in for the trainer and for the model (trl_fakes.py), so that what
is compared is the objective alone. `test_trl_pairs.py` and `test_trl_policy.py` go on with the other methods.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignloop.algorithms import dpo, reward, sft
from tests.algorithms.algo_fakes import Given, close, loss_of, pairs, rows_of
from tests.algorithms.trl_fakes import LENGTHS, compare, dpo_loss, fused, random_logp, theirs, trainer, trl


def test_sft() -> None:
    tokens = rows_of(LENGTHS)
    args = SimpleNamespace(loss_type="nll", average_tokens_across_devices=False)

    def other(logp: Tensor) -> Tensor:
        inputs = {"input_ids": tokens.tokens, "attention_mask": tokens.segment >= 0}
        return theirs(
            lambda: trl.SFTTrainer.compute_loss(trainer(args=args), lambda **_: fused(logp, tokens), dict(inputs))
        )

    def ours(logp: Tensor) -> Tensor:
        return loss_of(sft.objective(Given(logp=logp), tokens, sft.Config()), tokens)

    compare(ours, other, random_logp(tokens))


@pytest.mark.parametrize("margin", [None, [0.5, 0.0, 2.0]])
@pytest.mark.parametrize("centring", [None, 0.01])
def test_reward(margin: list[float] | None, centring: float | None) -> None:
    tokens = rows_of(LENGTHS)
    args = SimpleNamespace(center_rewards_coefficient=centring)
    batch = pairs(tokens, margin=margin, index=[(0, 3), (1, 4), (2, 5)])  # TRL stacks chosen on rejected
    settings = {"labels": "margin" if margin else "auto", "center_rewards_coefficient": centring or 0.0}
    me = trainer(args=args)

    def other(scores: Tensor) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": tokens.tokens, "attention_mask": tokens.segment >= 0}
        if margin:
            inputs["margin"] = torch.tensor(margin)
        model = lambda **_: SimpleNamespace(logits=scores[:, None])  # noqa: E731
        return theirs(lambda: trl.RewardTrainer.compute_loss(me, model, inputs))

    terms = {}

    def ours(scores: Tensor) -> Tensor:
        terms["last"] = reward.objective(Given(scores=scores), batch, reward.Config(**settings))
        return loss_of(terms["last"], batch)

    compare(ours, other, torch.tensor([1.2, -0.3, 0.7, 0.2, 0.4, -2.0]))
    logged = me._metrics["train"]
    for name in ("accuracy", "margin", "mean_reward"):
        total, count = terms["last"][0].metrics[name]
        close(float(total) / float(count), logged[name][0], 1e-5)


@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.0), (0.5, 0.0), (0.3, 0.2)])
def test_dpo(beta: float, smoothing: float) -> None:
    """Label smoothing: TRL has cDPO's loss in `aot`, which for one pair is cDPO of that pair."""
    tokens = rows_of(LENGTHS[:2]) if smoothing else rows_of(LENGTHS)
    index = [(0, 1)] if smoothing else [(0, 3), (1, 4), (2, 5)]
    reference = [-4.0, -2.0, -6.0, -3.0, -2.5, -9.0][: tokens.n]
    batch = pairs(tokens, ref=reference, index=index)
    cfg = dpo.Config(beta=beta, label_smoothing=smoothing)
    loss = "aot" if smoothing else "sigmoid"
    me, other = dpo_loss(tokens, reference, {loss: 1.0}, beta=beta, smoothing=smoothing)
    terms = {}

    def ours(logp: Tensor) -> Tensor:
        terms["last"] = dpo.objective(Given(logp=logp), batch, cfg)
        return loss_of(terms["last"], batch)

    compare(ours, other, random_logp(tokens))
    logged = me._metrics["train"]
    for name, (total, count) in terms["last"][0].metrics.items():
        if name == "logps/displaced":  # TRL has none
            continue
        close(float(total) / float(count), logged[name][0], 1e-5)
