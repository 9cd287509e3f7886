"""The same numbers as TRL for the methods on comparisons and thumbs: loss and gradient to 1e-5 (see trl_fakes.py).

Where the definitions differ, a test says by how much:
    orpo  TRL's likelihood is over prompt and answer; the paper's L_SFT (eq. 6) is P(y|x), of the answer alone.
    kto   TRL has one z0 for each micro-batch, the paper (section 4.1) one for the batch: at accumulation 1 they agree.
    slic  TRL's hinge is at 1, SLiC-HF's (eq. 1) at δ: at δ = 1 they agree.
Soft labels TRL has none: tests/algorithms/test_pairs_golden.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignloop.algorithms import METHODS, kto, orpo
from alignloop.core.batch import LabelBatch, Out, PairBatch, TokenBatch
from alignloop.core.layout import build
from tests.algorithms.algo_fakes import Alone, Given, close, items, loss_of, metrics_of, pairs, rows_of
from tests.algorithms.trl_fakes import LENGTHS, compare, dpo_loss, fused, logits_of, random_logp, theirs, trainer, trl

INDEX = [(0, 3), (1, 4), (2, 5)]  # TRL stacks chosen on rejected
REFERENCE = [-4.0, -2.0, -6.0, -3.0, -2.5, -9.0]


def objective(name: str, batch: Any, settings: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The library's loss as a function of token log-probabilities."""
    method = METHODS[name]
    cfg = method.config.parse(settings)
    return lambda logp: loss_of(method.objective(Given(logp=logp), batch, cfg), batch)


# ---- with a reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "losses", "smoothing"),
    [
        ("dpo", {"beta": 0.3, "loss_type": "sigmoid_norm"}, {"sigmoid_norm": 1.0}, 0.0),
        ("dpo", {"beta": 0.3, "loss_type": "robust", "label_smoothing": 0.2}, {"robust": 1.0}, 0.2),
        ("dpo", {"beta": 0.3, "rpo_alpha": 0.7}, {"sigmoid": 1.0, "sft": 0.7}, 0.0),
        ("ipo", {"tau": 0.3}, {"ipo": 1.0}, 0.0),
    ],
)
def test_dpo_and_its_kin(name: str, settings: dict[str, Any], losses: dict[str, float], smoothing: float) -> None:
    tokens = rows_of(LENGTHS)
    _, other = dpo_loss(tokens, REFERENCE, losses, beta=0.3, smoothing=smoothing)
    compare(objective(name, pairs(tokens, ref=REFERENCE, index=INDEX), settings), other, random_logp(tokens))


# ---- thumbs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [[True, False, True, True, False, False], [True] * 6, [False] * 6])
@pytest.mark.parametrize("shift", [-6.0, 6.0])  # of the reference on strangers: z0 above 0, and held at 0
def test_kto(good: list[bool], shift: float) -> None:
    """From the token log-probabilities of both passes, z0 included."""
    tokens, strangers = rows_of(LENGTHS), build(items(LENGTHS, seed=7), "right")
    strange, strange_ref = random_logp(strangers, seed=3), [x + shift for x in REFERENCE]
    cfg = kto.Config(beta=0.3, desirable_weight=1.2, undesirable_weight=0.7)
    batch = LabelBatch(
        tokens=tokens,
        good=torch.tensor(good),
        weight=torch.ones(tokens.n),
        ref=torch.tensor(REFERENCE),
        mismatched=strangers,
        mismatched_ref=torch.tensor(strange_ref),
    )
    inputs = {
        "input_ids": tokens.tokens,
        "attention_mask": tokens.segment >= 0,
        "completion_mask": tokens.mask.long(),
        "KL_input_ids": strangers.tokens,
        "KL_attention_mask": strangers.segment >= 0,
        "KL_completion_mask": strangers.mask.long(),
        "label": torch.tensor(good),
        "ref_logps": torch.tensor(REFERENCE),
        "ref_KL_logps": torch.tensor(strange_ref),
    }
    me = theirs(
        lambda: trainer(
            trl.KTOTrainer,
            calculate_KL=True,
            precompute_ref_logps=True,
            loss_type="kto",
            beta=0.3,
            desirable_weight=1.2,
            undesirable_weight=0.7,
        )
    )
    found: dict[str, float] = {}

    def ours(logp: Tensor) -> Tensor:
        def policy(asked: TokenBatch, want: set[str]) -> Out:
            return Out(logp=strange if asked is strangers else logp)

        (made,), metrics = kto.before_step(policy, [batch], cfg, Alone())
        terms = kto.objective(policy, made, cfg)
        found.update(metrics | metrics_of(t for t in terms if True in good and False in good))
        return loss_of(terms, made)

    def other(logp: Tensor) -> Tensor:
        def model(input_ids: Tensor, **_: Any) -> Any:
            return fused(strange, strangers) if input_ids is strangers.tokens else fused(logp, tokens)

        return theirs(lambda: trl.KTOTrainer._compute_loss(me, model, dict(inputs), False))

    compare(ours, other, random_logp(tokens))
    assert (found["kl"] > 0) == (shift < 0)
    for name in ("kl", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"):
        if name in found:
            close(found[name], me._metrics["train"][name][0], 1e-5)


# ---- without a reference ---------------------------------------------------------------------------------------------


def experimental(name: str, **given: Any) -> Any:
    """A trainer of `trl.experimental` that was never initialised."""
    kind = theirs(lambda: getattr(importlib.import_module(f"trl.experimental.{name}"), f"{name.upper()}Trainer"))
    return trainer(kind, is_encoder_decoder=False, padding_value=0, pad_token_id=0, **given)


def loss_by_logits(me: Any, tokens: TokenBatch) -> Callable[[Tensor], Tensor]:
    """TRL's whole loss, its own shift, masks and means included, as a function of token log-probabilities."""
    columns = {
        "input_ids": tokens.tokens,
        "attention_mask": (tokens.segment >= 0).long(),
        "labels": torch.where(tokens.mask, tokens.tokens, -100),
    }
    half = tokens.n // 2
    batch = {f"chosen_{name}": x[:half] for name, x in columns.items()}
    batch |= {f"rejected_{name}": x[half:] for name, x in columns.items()}

    def loss(logp: Tensor) -> Tensor:
        def model(input_ids: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=logits_of(logp, input_ids))

        return theirs(lambda: me.get_batch_loss_metrics(model, dict(batch)))[0]

    return loss


def rows_after(prompt: int) -> TokenBatch:
    return build(items(LENGTHS, prompt=prompt), "right")


@pytest.mark.parametrize("lam", [0.1, 1.0])
def test_orpo(lam: float) -> None:
    """After a prompt of one token, which nothing predicts, both imitate the same tokens."""
    tokens = rows_after(1)
    batch = pairs(tokens, index=INDEX)
    compare(
        objective("orpo", batch, {"lam": lam}),
        loss_by_logits(experimental("orpo", beta=lam), tokens),
        random_logp(tokens),
    )


def test_orpo_of_trl_imitates_the_prompt_too() -> None:
    """Its token mean runs over prompt and answer of the preferred rows; the odds ratio is the same."""
    tokens = rows_after(3)
    inside = (tokens.segment >= 0) & ~tokens.mask
    inside[:, 0] = False  # the first token is not predicted
    logp = torch.where(inside, -2.5, random_logp(tokens))
    mine = objective("orpo", pairs(tokens, index=INDEX), {"lam": 0.5})(logp)
    other = loss_by_logits(experimental("orpo", beta=0.5), tokens)(logp)
    answers = sum(LENGTHS[:3])
    nll = -logp[:3][tokens.mask[:3]].sum()
    close(other - mine, (nll + 6 * 2.5) / (answers + 6) - nll / answers, 1e-5)  # two predicted prompt tokens a row
    assert abs(float(other - mine)) > 0.05


def test_odds_ratio_alone() -> None:
    tokens = rows_of(LENGTHS)
    me = experimental("orpo", beta=1.0)
    length = torch.tensor(LENGTHS)

    def other(logp: Tensor) -> Tensor:
        mean = torch.where(tokens.mask, logp, 0.0).sum(1) / length
        return -theirs(lambda: me.odds_ratio_loss(mean[:3], mean[3:]))[0].mean()

    def ours(logp: Tensor) -> Tensor:
        batch = pairs(tokens, index=INDEX)
        _, contrast = orpo.objective(Given(logp=logp), batch, orpo.Config(lam=1.0))
        return loss_of([contrast], batch)

    compare(ours, other, random_logp(tokens))


@pytest.mark.parametrize(
    ("name", "settings", "loss_type", "given"),
    [
        ("cpo", {"beta": 0.3}, "sigmoid", {"beta": 0.3, "cpo_alpha": 1.0}),
        ("cpo", {"beta": 0.3, "cpo_alpha": 0.0}, "sigmoid", {"beta": 0.3, "cpo_alpha": 0.0}),
        (
            "cpo",
            {"beta": 0.3, "cpo_alpha": 0.4, "label_smoothing": 0.2},
            "sigmoid",
            {"beta": 0.3, "cpo_alpha": 0.4, "label_smoothing": 0.2},
        ),
        ("simpo", {}, "simpo", {"beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),  # TRL takes γ, the library γ/β
        (
            "simpo",
            {"beta": 2.5, "gamma_beta_ratio": 0.2},
            "simpo",
            {"beta": 2.5, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        ),
        ("slic", {"delta": 1.0, "lam": 0.3}, "hinge", {"beta": 1.0, "cpo_alpha": 0.3}),
    ],
)
def test_cpo_and_its_kin(name: str, settings: dict[str, Any], loss_type: str, given: dict[str, Any]) -> None:
    tokens = rows_of(LENGTHS)
    plain = {"alpha": 0.0, "simpo_gamma": 0.0, "label_smoothing": 0.0, "loss_type": loss_type}
    me = experimental("cpo", **{**plain, **given})
    at = torch.where(tokens.mask, random_logp(tokens), -1.0)  # of the prompt: nothing may read it
    compare(objective(name, pairs(tokens, index=INDEX), settings), loss_by_logits(me, tokens), at)


@pytest.mark.parametrize("smoothing", [0.1, 0.4])
def test_cdpo_is_the_smoothed_cpo_of_log_ratios(smoothing: float) -> None:
    """TRL's DPO trainer has no cDPO for more than one pair; its CPO loss smooths in the same way (Mitchell 2023)."""
    tokens = rows_of(LENGTHS)
    me = experimental("cpo", alpha=0.0, beta=0.3, loss_type="sigmoid", label_smoothing=smoothing)
    reference = torch.tensor(REFERENCE)

    def other(logp: Tensor) -> Tensor:
        gain = torch.where(tokens.mask, logp, 0.0).sum(1) - reference
        return theirs(lambda: me.cpo_loss(gain[:3], gain[3:]))[0].mean()

    batch: PairBatch = pairs(tokens, ref=REFERENCE, index=INDEX)
    compare(objective("dpo", batch, {"beta": 0.3, "label_smoothing": smoothing}), other, random_logp(tokens))
