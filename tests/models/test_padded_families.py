"""Families that cannot pack: they load, say so, and train padded with the numbers of single sequences."""

from __future__ import annotations

import copy
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.invariants import bench
from tests.invariants.case import Case
from tests.invariants.rows import Pair, items_of_rows, rows
from torch import Tensor

from alignloop.core.errors import ModelError
from alignloop.core.layout import Item, build, gather
from alignloop.models.load import load_policy
from alignloop.models.policy import Policy, _say_padded
from alignloop.rollout.local import LocalEngine

SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},  # a recurrent state
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # an attention of its own, distances counted from the mask
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},  # a fixed table of attentions
    "gpt_oss": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4},  # sinks
    "stablelm": {**SMALL, "num_key_value_heads": 2},  # keywords dropped on the way
}
DTYPE = {"gpt_oss": "float32"}
"""Where PyTorch's kernel for experts knows no float64."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Folders of tiny random models, made once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    @cache
    def of(family: str) -> Path:
        config = AutoConfig.for_model(
            family, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, **FAMILIES[family]
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
        at = tmp_path_factory.mktemp(family)
        model.save_pretrained(at)
        return at

    return of


def alone(model: Any, item: Item) -> Tensor:
    """Log-probabilities of the emitted tokens, by one unpadded row through the whole of transformers' model."""
    ids = torch.tensor([item.prompt + item.response])
    at = torch.tensor([len(item.prompt) + k for k, emitted in enumerate(item.mask) if emitted])
    table = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return table[at - 1].gather(1, ids[0, at, None])[:, 0]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_it_loads_with_the_familys_own_numbers(family: str, folder: Any) -> None:
    from transformers import AutoModelForCausalLM

    policy = load_policy(folder(family), dtype=DTYPE.get(family, "float64"))
    plain = AutoModelForCausalLM.from_pretrained(folder(family), dtype=next(policy.parameters()).dtype).eval()
    items = items_of_rows(rows())
    for layout in ("packed", "right", "left"):
        tokens = build(items, layout)  # type: ignore[arg-type]
        for found, item in zip(gather(policy(tokens, {"logp"}).logp, tokens), items, strict=True):
            torch.testing.assert_close(found, alone(plain, item).to(found), rtol=0, atol=1e-5)


def sft(model: Any, reference: Any, pairs: list[Pair]) -> Tensor:
    """-Σ log p / tokens."""
    logp = [alone(model, item) for item in items_of_rows(pairs)]
    return -torch.cat(logp).mean()


def dpo(model: Any, reference: Any, pairs: list[Pair]) -> Tensor:
    """Mean of -log σ(β Δ), Δ = (log p - log p_ref) of chosen - rejected."""

    def gain(item: Item) -> Tensor:
        return alone(model, item).sum() - alone(reference, item).sum().detach()

    return torch.stack([-F.logsigmoid(0.2 * (gain(p.chosen) - gain(p.rejected))) for p in pairs]).mean()


@pytest.mark.parametrize(
    ("case", "loss"), [(Case("sft", "sft"), sft), (Case("dpo", "dpo", {"beta": 0.2}), dpo)], ids=["sft", "dpo"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_that_of_single_sequences(family: str, case: Case, loss: Any, folder: Any) -> None:
    policy = load_policy(folder(family), dtype=DTYPE.get(family, "float64"))
    reference = bench.perturbed(policy, 0.03, 1).requires_grad_(False)
    pairs = [Pair(p.chosen, p.rejected) for p in rows()]
    models = bench.Models(policy, reference, reference)
    expected = loss(policy.inner, reference.inner, pairs)
    named = {f"policy.{n}": p for n, p in policy.named_parameters()}
    slopes = torch.autograd.grad(expected, list(named.values()), allow_unused=True)
    for cut in ([len(pairs)], [2, 3]):
        found = bench.measure(case, models, bench.micro_batches(case, models, pairs, cut))
        assert found.losses["policy"] == pytest.approx(expected.item(), abs=1e-6)
        for (name, p), slope in zip(named.items(), slopes, strict=True):
            truth = torch.zeros_like(p) if slope is None else slope
            torch.testing.assert_close(found.grads[name], truth, rtol=0, atol=1e-5 * float(truth.abs().max() + 1))


def test_it_says_so_once(folder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A policy, its reference, a second load and many steps: one warning."""
    case, pairs = Case("dpo", "dpo"), rows()
    _say_padded.cache_clear()
    with caplog.at_level(logging.WARNING, logger="alignloop"):
        policy = load_policy(folder("bloom"))
        load_policy(folder("bloom"))
        models = bench.Models(policy, policy, copy.deepcopy(policy).requires_grad_(False))
        for _ in range(3):
            bench.measure(case, models, bench.micro_batches(case, models, pairs, [2, 3]))
    (record,) = (r for r in caplog.records if r.name.startswith("alignloop"))
    assert record.getMessage() == "BloomForCausalLM does not take packed rows; its batches are padded instead"


def test_sampling_from_it_is_refused_with_the_way_out(folder: Any) -> None:
    policy: Policy = load_policy(folder("mamba"))
    with pytest.raises(ModelError, match=r"'tiny'.*serve other families with vLLM"):
        LocalEngine(policy.inner, lambda prompt: [3], str, (2,), "tiny")


def test_another_missing_key_is_not_taken_for_a_missing_attention(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no_such_family"}')
    with pytest.raises(ModelError, match="not a usable model"):
        load_policy(tmp_path)
