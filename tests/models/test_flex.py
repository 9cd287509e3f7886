"""One FlexAttention call a layer: the mask of a plan, the numbers of every family, and a kernel that must prove itself.

A CPU runs it uncompiled, in float64 too; the compiled kernel and its gradients are compared where there is a GPU.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from tests.invariants.bench import exact, scalar_model
from tests.invariants.fast_path import by_compiled_flex, by_flex
from tests.invariants.rows import items_of_rows, rows
from torch import Tensor
from transformers import AutoModelForCausalLM

from alignloop.core.layout import build, gather
from alignloop.models import attention, flex
from alignloop.models.packing import How, PackedPlan, plan_of
from alignloop.models.policy import Policy
from alignloop.models.tiny import FAMILIES, tiny_model

F64 = torch.float64
CPU = torch.device("cpu")
PLAIN = How(None, 0.0, None, None)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention has no backward pass on a CPU")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return by_flex(monkeypatch)


def grown(seed: int) -> PackedPlan:
    """A random forest over two rows of 24 places: gaps, empty segments, children far from their parents."""
    draw = random.Random(seed)
    spans: list[tuple[int, int, int]] = []
    parent: list[int] = []
    for row in (0, 1):
        at, first = draw.randint(0, 3), len(spans)
        while at < 24:
            end = min(24, at + draw.randint(0, 6))
            parent.append(draw.choice([-1, *range(first, len(spans))]))
            spans.append((row, at, end))
            at = end + draw.choice([0, 0, 0, 2]) + (end == at)
    order = draw.sample(range(len(spans)), len(spans))  # their numbers say nothing about their places
    new = {old: i for i, old in enumerate(order)}
    return plan_of([spans[i] for i in order], [new.get(parent[i], -1) for i in order], 2, 24)


def by_hand(plan: PackedPlan, window: int | None) -> Tensor:
    """bool[B,T,T]: each segment's own places behind those of its ancestors, and every place reads back from its own."""
    seen = torch.zeros(plan.rows, plan.length, plan.length, dtype=torch.bool)
    for s, (row, start, end) in enumerate(plan.spans):
        chain, above = list(range(start, end)), plan.parent[s]
        while above >= 0:
            chain, above = [*range(*plan.spans[above][1:]), *chain], plan.parent[above]
        for i in range(len(chain) - (end - start), len(chain)):
            seen[row, chain[i], chain[max(0, i + 1 - (window or len(chain))) : i + 1]] = True
    return seen


@pytest.mark.parametrize("window", [None, 1, 5])
@pytest.mark.parametrize("seed", range(40))
def test_the_mask_of_a_random_forest(seed: int, window: int | None) -> None:
    plan = grown(seed)
    row, query, key = torch.meshgrid(*(torch.arange(n) for n in (2, 24, 24)), indexing="ij")
    found = flex.reads(*flex.places(plan), window)(row, torch.tensor(0), query, key)
    assert torch.equal(found, by_hand(plan, window))


def test_numbers_of_a_tree() -> None:
    """Segments 1 and 3 below 0, 2 below 1; depth first 0, 3, 1, 2 (or 0, 1, 2, 3); place 7 is padding."""
    plan = plan_of([(0, 0, 2), (0, 2, 4), (0, 4, 5), (0, 5, 7)], [-1, 0, 1, 0], 1, 8)
    enter, leave, position = (x[0] for x in flex.places(plan))
    assert position.tolist() == [0, 1, 2, 3, 4, 2, 3, -1]
    assert (enter[0], leave[0]) == (0, 4)
    assert leave[2] - enter[2] == 2 and leave[4] - enter[4] == 1 and leave[5] - enter[5] == 1
    assert enter[2] < enter[4] < leave[2] and enter[7] == leave[7] == -1


def test_masks_are_made_once_per_window() -> None:
    plan = plan_of([(0, 0, 5)], [-1], 1, 5)
    assert flex.block_mask(plan, 3, CPU) is flex.block_mask(plan, 3, CPU) is not flex.block_mask(plan, 2, CPU)
    assert flex.block_mask(plan, None, CPU) is flex.block_mask(plan, 5, CPU)  # a window as long as the row is none


def test_blocks_that_nobody_reads_are_left_out() -> None:
    """Two strangers of two blocks each: 3 of 4 blocks of 128 keys each, below and on the diagonal."""
    mask = flex.block_mask(plan_of([(0, 0, 256), (0, 256, 512)], [-1, -1], 1, 512), None, CPU)
    assert mask.to_dense()[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_a_mask_made_in_bands_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = [(0, 3, 300), (0, 300, 400), (0, 410, 700), (1, 0, 90), (1, 90, 600)]
    masks = []
    for pairs in (2**28, 1):  # all at once; a block of queries at a time
        monkeypatch.setattr(flex, "PAIRS", pairs)
        masks.append(flex.block_mask(plan_of(spans, [-1, 0, 0, -1, 3], 2, 700), 400, CPU))
    one, two = masks
    assert torch.equal(one.to_dense(), two.to_dense()) and one.shape == two.shape == (2, 1, 700, 700)
    assert torch.equal(one.kv_num_blocks, two.kv_num_blocks) and torch.equal(one.q_num_blocks, two.q_num_blocks)
    assert torch.equal(one.full_kv_num_blocks, two.full_kv_num_blocks) and bool(one.full_kv_num_blocks.any())


@pytest.mark.parametrize("how", [PLAIN, PLAIN._replace(window=3), PLAIN._replace(softcap=2.0, scaling=0.7)], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_it_is_one_call_per_segment(eager: list[int], seed: int, how: How) -> None:
    """Values and gradients, zeros on padding included."""
    plan, draw = grown(seed), torch.Generator().manual_seed(seed)
    inputs = [torch.randn(2, h, 24, 8, generator=draw, dtype=F64).requires_grad_() for h in (4, 2, 2)]
    slope = torch.randn(2, 24, 4, 8, generator=draw, dtype=F64)

    def outcome(run: flex.Packed) -> list[Tensor]:
        query, key, value = inputs
        out = run(plan, query, key, value, how)
        return [out.detach(), *torch.autograd.grad(out, inputs, slope)]

    for found, truth in zip(outcome(attention._packed), outcome(attention._by_segment), strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)
    assert eager == [1]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_numbers_of_single_sequences(family: str, eager: list[int]) -> None:
    """Transformers' own, in float64; prompts shared by pairs and by a group, padding on the left."""
    items = items_of_rows(rows())
    speaks, judges = Policy(exact(tiny_model(family, dtype=F64)), value_head=True), Policy(exact(scalar_model(family)))
    torch.nn.init.normal_(speaks.value_head.weight)  # type: ignore[union-attr]
    for layout in ("packed", "left"):
        eager.clear()
        tokens = build(items, layout)  # type: ignore[arg-type]
        out, scores = speaks(tokens, {"logp", "entropy", "values"}), judges(tokens, {"scores"}).scores
        assert len(eager) == 4  # two models of two layers
        for i, item in enumerate(items):
            ids = torch.tensor([item.prompt + item.response])
            for model in (speaks.inner, judges.inner):  # which transformers' SDPA cannot run with a soft-cap
                model.set_attn_implementation(attention.ATTENTION if family == "gemma2" else "sdpa")
            states = speaks.inner.base_model(ids, use_cache=False).last_hidden_state[0]
            table = speaks._project(states).log_softmax(-1)
            truth = judges.inner.base_model(ids, use_cache=False).last_hidden_state[0, -1]
            for model in (speaks.inner, judges.inner):
                model.set_attn_implementation(attention.ATTENTION)
            read = torch.tensor([len(item.prompt) + k for k, emitted in enumerate(item.mask) if emitted])
            expected = {
                "logp": table[read - 1].gather(1, ids[0, read, None])[:, 0],
                "entropy": -(table.exp() * table).sum(-1)[read - 1],
                "values": speaks.value_head(states)[read - 1, 0],  # type: ignore[misc]
            }
            for name, numbers in expected.items():
                torch.testing.assert_close(gather(getattr(out, name), tokens)[i], numbers, rtol=0, atol=1e-9)
            if item.mask[-1]:
                torch.testing.assert_close(scores[i], judges.inner.score(truth)[0], rtol=0, atol=1e-9)


def test_who_keeps_one_call_per_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices but CUDA, float64, heads that are too narrow or wide, dropout, second derivatives; the others do not."""
    monkeypatch.setattr(flex, "proven", lambda *_: True)

    class OnCuda:
        device = torch.device("cuda", 0)

        def __init__(self, width: int = 64, dtype: torch.dtype = torch.float32):
            self.shape, self.dtype = (1, 4, 9, width), dtype

    def chosen(x: Any, how: How = PLAIN) -> bool:
        return flex.packed_kernel(x, x, x, how, attention._by_segment) is not None

    assert chosen(OnCuda()) and chosen(OnCuda(dtype=torch.bfloat16)) and chosen(OnCuda(96), PLAIN._replace(window=9))
    assert not chosen(torch.zeros(1, 4, 9, 64))
    assert not any(chosen(x) for x in (OnCuda(dtype=F64), OnCuda(8), OnCuda(512)))
    assert not chosen(OnCuda(), PLAIN._replace(dropout=0.1)) and not chosen(OnCuda(), PLAIN._replace(twice=True))


def differentiable(query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, **how: Any) -> Tensor:
    """What a GPU's kernel has to be, in plain operations under the same mask."""
    row, at, other = torch.meshgrid(*(torch.arange(n) for n in (1, 310, 310)), indexing="ij")
    seen = block_mask.mask_mod(row, torch.tensor(0), at, other)[:, None]
    asked = How(how["scale"], 0.0, 3.0 if how["score_mod"] else None, None)
    return attention._eager(query, key, value, seen, asked) * seen.any(-1, keepdim=True)


def wrong_backward(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    return differentiable(query, key.detach() + 0 * key, value, **how)


def nan_backward(query: Tensor, key: Tensor, value: Tensor, **how: Any) -> Tensor:
    out = differentiable(query, key, value, **how)
    return out + (0 * query[:, :, 300:, :]).sqrt().sum()


def not_compiled(*tensors: Tensor, **how: Any) -> Tensor:
    raise RuntimeError("out of resource: shared memory\nand much more")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [PLAIN, PLAIN._replace(softcap=3.0, scaling=0.2)], ids=str)
def test_a_right_kernel_is_proven(dtype: torch.dtype, how: How, caplog: pytest.LogCaptureFixture) -> None:
    kind = flex.Kind(CPU, dtype, 4, 2, 16, 32, how)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):  # of the caller: they are none of the trial's
        assert flex.proven(kind, differentiable, attention._by_segment)
    assert not caplog.records


@pytest.mark.parametrize(
    ("kernel", "said"), [(wrong_backward, "off by"), (nan_backward, "nan"), (not_compiled, "shared memory;")]
)
def test_any_other_is_not_used_and_that_is_said_once(
    kernel: flex.Kernel, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = flex.Kind(CPU, torch.float32, 4, 2, 16, 16, PLAIN)
    with caplog.at_level(logging.WARNING):
        assert not any(flex.proven(kind, kernel, attention._by_segment) for _ in range(3))
    (record,) = caplog.records
    assert said in record.getMessage() and "one attention call per segment" in record.getMessage()


def test_one_compiled_kernel_serves_batches_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's graphs, counted: lengths, trees and windows make no new one; another scale, cap or type does."""
    graphs: list[int] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(1)
        return graph.forward

    by_compiled_flex(monkeypatch, backend)
    for length, cut, window, how in [
        (300, 120, None, PLAIN),
        (517, 3, None, PLAIN),
        (200, 120, 64, PLAIN),
        (260, 100, 9, PLAIN._replace(scaling=0.3)),
        (310, 100, 9, PLAIN._replace(softcap=2.0)),
        (400, 250, None, PLAIN._replace(softcap=2.0)),
    ]:
        plan, asked = plan_of([(0, 0, cut), (0, cut, length)], [-1, 0], 1, length), how._replace(window=window)
        query, key, value = (torch.randn(1, h, length, 16) for h in (4, 2, 2))
        with torch.no_grad():
            found = attention._packed(plan, query, key, value, asked)
            truth = attention._by_segment(plan, query, key, value, asked)
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)
    assert len(graphs) == 3  # the first three rows, the scale, the cap


DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
"""A GPU with its compiled kernel, and a CPU without, which shows that the comparison is sound."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [PLAIN, PLAIN._replace(window=40), PLAIN._replace(window=40, softcap=5.0)], ids=str)
@pytest.mark.parametrize("heads", [(8, 2, 64), (7, 1, 96)], ids=str)
def test_values_and_gradients(
    dtype: torch.dtype, how: How, heads: tuple[int, int, int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one call per segment in float64, with shared prompts, over two rows with padding."""
    if device == "cpu":
        by_flex(monkeypatch)
    many, few, width = heads
    tree = [(0, 0, 200), (0, 200, 330), (0, 330, 390), (0, 400, 500), (1, 5, 300), (1, 300, 420)]
    plan, draw = plan_of(tree, [-1, 0, 0, -1, -1, 4], 2, 512), torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, h, 512, width, generator=draw).to(device, dtype) for h in (many, few, few)]
    slope = torch.randn(2, 512, many, width, generator=draw).to(device, dtype)

    def outcome(run: flex.Packed, kind: torch.dtype) -> list[Tensor]:
        query, key, value = given = [x.detach().to(kind).requires_grad_() for x in inputs]
        out = run(plan, query, key, value, how)
        return [out.detach(), *torch.autograd.grad(out, given, slope.to(kind))]

    fast = outcome(attention._packed, dtype)
    for found, truth in zip(fast, outcome(attention._by_segment, F64), strict=True):
        assert found.dtype == dtype and (found.double() - truth).norm() < flex.TOLERANCE[dtype] * truth.norm()
    assert not fast[0][1, 420:].any() and not fast[0][0, 390:400].any()
    query, key, value = inputs
    assert device == "cpu" or flex.packed_kernel(query, key, value, how, attention._by_segment) is flex.compiled


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("family", "dtype"), [("gemma2", None), ("gemma2", torch.bfloat16), ("llama", torch.bfloat16)])
def test_training(family: str, dtype: torch.dtype | None, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy's log-probabilities and gradients, prompts shared, activations recomputed, against no kernel."""
    if device == "cpu":
        by_compiled_flex(monkeypatch)
    config: Any = tiny_model(family).config
    config.hidden_size, config.head_dim = 64, 16  # no narrower for a GPU
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention.ATTENTION)
    policy = Policy(model.to(device).train(), compute_dtype=dtype)
    policy.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tokens = build(items_of_rows(rows())).to(device)

    def outcome() -> list[Tensor]:
        logp = policy(tokens, {"logp"}).logp
        given = torch.autograd.grad(logp.sum(), policy.trainable(), allow_unused=True)
        return [logp.detach(), torch.cat([g.flatten() for g in given if g is not None])]

    fast = outcome()
    monkeypatch.setattr(attention, "packed_kernel", lambda *_: None)
    for found, truth in zip(fast, outcome(), strict=True):
        assert (found - truth).norm() <= (0.03 if dtype else 1e-3) * truth.norm()
