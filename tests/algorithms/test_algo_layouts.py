"""No number depends on how a batch is laid out or cut: padding side and amount, packing, order, micro-batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignloop.algorithms import dpo, ppo, reward, sft
from alignloop.core.batch import TokenBatch
from alignloop.core.layout import Item, build, items_of
from tests.algorithms.algo_fakes import (
    F64,
    Alone,
    Bigram,
    V,
    choose,
    close,
    experience,
    items,
    law,
    metrics_of,
    pairs,
    values_of,
)

LENGTHS = [3, 5, 1, 4, 2, 6]
REFS = [-4.0, -2.0, -6.0, -3.0, -2.5, -9.0]
P, WEIGHT = [1.0, 0.7, 0.5], [1.0, 0.5, 2.0]

CASES: dict[str, tuple[Any, Any, str]] = {
    "sft": (sft, sft.Config(), "tokens"),
    "sft by sequence": (sft, sft.Config(reduction="seq_mean_token_mean"), "tokens"),
    "reward": (reward, reward.Config(center_rewards_coefficient=0.1), "pairs"),
    "dpo": (dpo, dpo.Config(label_smoothing=0.1), "pairs"),
    "ppo": (ppo, ppo.Config(c_h=0.1, kl={"placement": "loss", "beta": 0.2}, critic={"layout": "shared"}), "rollouts"),
    "ppo by sequence": (ppo, ppo.Config(reduction="seq_mean_token_mean"), "rollouts"),
}


def make(kind: str, tokens: TokenBatch) -> Any:
    if kind == "tokens":
        return tokens
    if kind == "pairs":
        return pairs(tokens, p=P, weight=WEIGHT, ref=REFS)
    return experience(tokens, seed=4)


def result(module: Any, cfg: Any, batches: list[Any]) -> tuple[Tensor, list[Tensor], dict[str, float]]:
    """Loss, gradients and metrics of one step over these micro-batches."""
    model = Bigram(seed=3)
    prepared = batches
    terms = [module.objective(model, batch, cfg) for batch in prepared]
    loss = law(terms, prepared)
    leaves = [model.table, model.value, model.head]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    sums: dict[str, Any] = {}
    for part in terms:
        for term in part:
            for name, (s, c) in term.metrics.items():
                a, b = sums.get(name, (0.0, 0.0))
                sums[name] = (a + float(s), b + float(c))
    metrics = {name: s / c for name, (s, c) in sums.items()}
    return loss.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads)], metrics


def same(a: Any, b: Any) -> None:
    close(a[0], b[0], 1e-10)
    for x, y in zip(a[1], b[1]):
        close(x, y, 1e-10)
    assert a[2].keys() == b[2].keys()
    for name in a[2]:
        close(a[2][name], b[2][name], 1e-10)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("observation", [False, True])
def test_layout(name: str, observation: bool) -> None:
    module, cfg, kind = CASES[name]
    sequences = items(LENGTHS, observation=observation)
    sequences[1] = Item(sequences[0].prompt, sequences[1].response, sequences[1].mask)  # two share a prompt
    base = result(module, cfg, [make(kind, build(sequences, "right"))])
    for other in (build(sequences, "left"), build(sequences, "packed"), build(sequences, "packed", share=False)):
        same(result(module, cfg, [make(kind, other)]), base)


def pad(tokens: TokenBatch, n: int) -> TokenBatch:
    """n more columns of padding on the right, holding arbitrary tokens."""

    def more(x: Tensor, fill: int) -> Tensor:
        return torch.cat([x, torch.full((len(x), n), fill, dtype=x.dtype)], 1)

    return replace(
        tokens,
        tokens=more(tokens.tokens, V - 1),
        positions=more(tokens.positions, 0),
        segment=more(tokens.segment, -1),
        prev=more(tokens.prev, -1),
        mask=more(tokens.mask, 0),
    )


@pytest.mark.parametrize("name", CASES)
def test_padding_amount(name: str) -> None:
    module, cfg, kind = CASES[name]
    tokens = build(items(LENGTHS), "right")
    same(result(module, cfg, [make(kind, pad(tokens, 7))]), result(module, cfg, [make(kind, tokens)]))


@pytest.mark.parametrize("name", CASES)
def test_micro_batches(name: str) -> None:
    """One batch of six, or any ragged cut of it, is the same step."""
    module, cfg, kind = CASES[name]
    whole = make(kind, build(items(LENGTHS), "right"))
    base = result(module, cfg, [whole])
    for cut in ([[0, 1], [2, 3], [4, 5]], [[0, 1, 2, 3], [4, 5]]):
        if kind == "pairs":
            parts = [cut_pairs(c) for c in cut]
        else:
            parts = [choose(whole, c) for c in cut]
        same(result(module, cfg, parts), base)
    if kind != "pairs":
        same(result(module, cfg, [choose(whole, [i]) for i in range(6)]), base)


def cut_pairs(index: list[int]) -> Any:
    tokens = choose(build(items(LENGTHS), "right"), index, "packed")
    which = [i // 2 for i in index[::2]]
    return pairs(tokens, p=[P[i] for i in which], weight=[WEIGHT[i] for i in which], ref=[REFS[i] for i in index])


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_row_order(name: str) -> None:
    module, cfg, kind = CASES[name]
    whole = make(kind, build(items(LENGTHS), "right"))
    same(result(module, cfg, [choose(whole, [4, 0, 5, 2, 1, 3])]), result(module, cfg, [whole]))


@pytest.mark.parametrize("observation", [False, True])
def test_prepare_in_every_layout(observation: bool) -> None:
    """Rewards, advantages, targets and metrics of PPO, sequence by sequence."""
    sequences = items(LENGTHS, observation=observation)
    cfg = ppo.Config(kl={"controller": "adaptive"}, shaping={"normalise": "running", "whiten_rewards": True})
    cut = torch.tensor([True, False, False, True, False, False])
    results = []
    for layout in ("right", "left", "packed"):
        tokens = build(sequences, layout)
        batch = experience(tokens, truncated=cut)
        made, state, metrics = ppo.prepare(batch, cfg, ppo.init_state(cfg), Alone())
        values = [values_of(getattr(made, name), tokens) for name in ("reward", "advantage", "target")]
        results.append((values, state, metrics))
    for values, state, metrics in results[1:]:
        for mine, base in zip(values, results[0][0]):
            for a, b in zip(mine, base):
                close(a, b, 1e-12)
        close(state.beta, results[0][1].beta, 1e-12)
        for key, value in metrics.items():
            close(value, results[0][2][key], 1e-10)


def test_prepare_permutes_with_the_rows() -> None:
    tokens = build(items(LENGTHS), "right")
    batch, cfg, order = experience(tokens), ppo.Config(), [4, 0, 5, 2, 1, 3]
    made, _, _ = ppo.prepare(batch, cfg, ppo.init_state(cfg), Alone())
    other, _, _ = ppo.prepare(choose(batch, order), cfg, ppo.init_state(cfg), Alone())
    base = values_of(made.advantage, tokens)
    for a, i in zip(values_of(other.advantage, other.tokens), order):
        close(a, base[i], 1e-12)


def test_prompt_labels_and_trailing_noise_count_for_nothing() -> None:
    """The last prompt token predicts; which tokens follow an answer or fill a prompt's start does not matter here."""
    tokens = build(items(LENGTHS), "right")
    base = result(sft, sft.Config(), [tokens])
    noisy = tokens.tokens.clone()
    outside = tokens.segment < 0
    noisy[outside] = torch.randint(0, V, (int(outside.sum()),))
    noisy[:, 0] = (noisy[:, 0] + 1) % V  # a prompt token that predicts another prompt token only
    same(result(sft, sft.Config(), [replace(tokens, tokens=noisy)]), base)


def test_the_end_token_is_an_action() -> None:
    """The last response token moves loss and gradient of every method."""
    sequences = items(LENGTHS)
    changed = [*sequences]
    last = (sequences[0].response[-1] + 1) % V
    changed[0] = Item(sequences[0].prompt, (*sequences[0].response[:-1], last), sequences[0].mask)
    for name, (module, cfg, kind) in CASES.items():
        a = result(module, cfg, [make(kind, build(sequences, "right"))])
        b = result(module, cfg, [make(kind, build(changed, "right"))])
        assert (a[0] - b[0]).abs() > 1e-6, name


def test_fakes_round_trip() -> None:
    tokens = build(items(LENGTHS, observation=True), "packed")
    assert [i.response for i in items_of(tokens)] == [i.response for i in items(LENGTHS, observation=True)]
    assert metrics_of([]) == {} and F64 is torch.float64
