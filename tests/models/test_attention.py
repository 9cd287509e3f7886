"""Packed rows must give every sequence the numbers of its own unpadded forward: battery items 1-6 of the design."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignloop.core.batch import TokenBatch
from alignloop.core.errors import ModelError, TrainingError
from alignloop.models import attention as A
from alignloop.models import packing as P
from alignloop.models.tiny import FAMILIES, tiny_model

F64 = torch.float64


def batch(rows: list[list[tuple[list[int], int]]], length: int, left: int = 0) -> TokenBatch:
    """Rows of (ids, parent) segments, parents numbered over the whole batch; `left` pads before each row's first."""
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    positions, segment = torch.zeros_like(tokens), torch.full_like(tokens, -1)
    spans, parents, depth = [], [], []
    for r, row in enumerate(rows):
        at = left
        for ids, parent in row:
            s = len(spans)
            base = depth[parent] if parent >= 0 else 0
            tokens[r, at : at + len(ids)] = torch.tensor(ids)
            positions[r, at : at + len(ids)] = torch.arange(base, base + len(ids))
            segment[r, at : at + len(ids)] = s
            spans.append((r, at, at + len(ids)))
            parents.append(parent)
            depth.append(base + len(ids))
            at += len(ids)
    n = len(spans)
    return TokenBatch(
        tokens,
        positions,
        segment,
        torch.tensor(parents),
        torch.arange(n),
        torch.full_like(tokens, -1),
        torch.zeros_like(tokens, dtype=torch.bool),
        torch.ones(n),
        n,
        tuple(spans),
    )


def packed(model: Any, b: TokenBatch, **kwargs: Any) -> Tensor:
    plan = kwargs.pop("plan", None) or P.packed_plan(b, **kwargs)
    return model.base_model(
        input_ids=b.tokens, position_ids=b.positions, attention_mask=A.NO_MASK, plan=plan, use_cache=False
    ).last_hidden_state


def alone(model: Any, ids: list[int], implementation: str = "") -> Tensor:
    """The reference: one unpadded sequence through transformers' SDPA (Gemma 2, which has none: ours without a plan).

    Not eager attention, whose softmax is in float32 even in a float64 model.
    """
    model.set_attn_implementation(implementation or (A.ATTENTION if model.config.model_type == "gemma2" else "sdpa"))
    try:
        positions = torch.arange(len(ids))[None]
        return model.base_model(
            input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False
        ).last_hidden_state[0]
    finally:
        model.set_attn_implementation(A.ATTENTION)


def chain(b: TokenBatch, s: int) -> tuple[list[int], list[int]]:
    """Ids of segment s after those of its ancestors, and the places of its own tokens in that list."""
    row, start, end = b.spans[s]
    before: list[int] = []
    p = int(b.parent[s])
    while p >= 0:
        r, x, y = b.spans[p]
        before = b.tokens[r, x:y].tolist() + before
        p = int(b.parent[p])
    return before + b.tokens[row, start:end].tolist(), list(range(len(before), len(before) + end - start))


def exact(model: Any) -> Any:
    """Norms in the model's own precision: transformers rounds them to float32, and gradients with them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        scale = 1 + self.weight if "Gemma" in type(self).__name__ else self.weight
        eps = getattr(self, "variance_epsilon", None) or self.eps
        return scale * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = forward.__get__(module)
    return model


def ids(*n: int, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 64, (k,), generator=g).tolist() for k in n]


def layouts() -> dict[str, TokenBatch]:
    a, b, c, d, e, f = ids(7, 4, 9, 1, 4, 4)
    return {
        "one": batch([[(c, -1)]], 9),
        "unrelated": batch([[(a, -1), (d, -1), (b, -1), (c, -1)]], 21),
        "equal": batch([[(b, -1), (e, -1), (f, -1), (a, -1)], [(b, -1), (a, -1), (d, -1)]], 20),
        "right": batch([[(a, -1)], [(d, -1)], [(b, -1)], [(e, -1)]], 9),
        "left": batch([[(a, -1)], [(b, -1)]], 12, left=3),
        "shared": batch([[(a, -1), (b, 0), (d, 0), (c, 0)]], 22),
        "tree": batch([[(a, -1), (b, 0), (d, 1), (c, 1), (e, 0), (b, -1), (e, 5)], [(d, -1), (c, 7), (a, 7)]], 34),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", list(layouts()))
def test_packed_equals_separate(family: str, layout: str) -> None:
    model, b = tiny_model(family, dtype=F64), layouts()[layout]
    with torch.no_grad():
        hidden = packed(model, b)
        for s, (row, start, end) in enumerate(b.spans):
            sequence, own = chain(b, s)
            torch.testing.assert_close(hidden[row, start:end], alone(model, sequence)[own], rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("twice", [False, True])
def test_gradients_of_shared_prompts_equal_those_of_separate_sequences(family: str, twice: bool) -> None:
    model, b = exact(tiny_model(family, dtype=F64)), layouts()["tree"]
    probe = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=F64)
    leaves = [s for s in range(b.n) if s not in b.parent.tolist()]

    def weight(h: Tensor) -> Tensor:  # an uneven sum, so that no place is like another
        return (h * probe[: h.shape[-1]] * torch.arange(1, h.shape[0] + 1, dtype=F64)[:, None]).sum()

    def grads(total: Tensor) -> list[Tensor]:
        given = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        return [torch.zeros(1, dtype=F64) if g is None else g for g in given]

    hidden = packed(model, b, twice=twice)
    one = grads(sum(weight(hidden[r, x:y]) for r, x, y in (b.spans[s] for s in leaves)))
    two = grads(sum(weight(alone(model, chain(b, s)[0])[chain(b, s)[1]]) for s in leaves))
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10 * float(q.abs().max() + 1))


def test_rows_of_one_length_are_one_call() -> None:
    assert P.plan_of([(0, 0, 4), (1, 0, 4)], [-1, -1], 2, 4).bands == (P.Band(0, 2, (P.Piece(0, 4),)),)


def test_first_child_joins_its_parent_and_others_read_its_keys() -> None:
    plan = P.plan_of([(0, 0, 3), (0, 3, 5), (0, 5, 6)], [-1, 0, 0], 1, 6)
    assert plan.bands[0].pieces == (P.Piece(0, 5), P.Piece(5, 6, ((0, 3),)))


def test_grandchildren_read_neighbouring_ancestors_as_one_span() -> None:
    plan = P.plan_of([(0, 0, 3), (0, 3, 5), (0, 5, 6), (0, 6, 9)], [-1, 0, 1, 1], 1, 9)
    assert plan.bands[0].pieces == (P.Piece(0, 6), P.Piece(6, 9, ((0, 5),)))


def test_equal_neighbours_are_batched() -> None:
    plan = P.plan_of([(0, 0, 2), (0, 2, 4), (0, 4, 6), (0, 7, 9)], [-1] * 4, 1, 9)
    assert plan.bands[0].pieces == (P.Piece(0, 6, (), 3), P.Piece(7, 9))


def test_an_empty_parent_does_not_join_a_stranger() -> None:
    plan = P.plan_of([(0, 0, 3), (0, 3, 3), (0, 3, 5)], [-1, -1, 1], 1, 5)
    assert plan.bands[0].pieces == (P.Piece(0, 3), P.Piece(3, 5))


def test_padding_is_zero_and_reads_nothing() -> None:
    q = torch.randn(2, 4, 5, 8)
    plan = P.plan_of([(0, 1, 3), (1, 0, 5)], [-1, -1], 2, 5)
    out, _ = A.attention(nn.Identity(), q, q, q, A.NO_MASK, plan=plan)
    assert out.shape == (2, 5, 4, 8)
    assert out[0, [0, 3, 4]].abs().sum() == 0
    torch.testing.assert_close(out[0, 1], q[0, :, 1])  # the first token of a segment sees itself only


@pytest.mark.parametrize(
    ("spans", "parent"),
    [
        ([(0, 0, 3), (0, 2, 5)], [-1, -1]),  # overlap
        ([(0, 0, 9)], [-1]),  # outside
        ([(0, 0, 2), (1, 2, 3)], [-1, 0]),  # parent in another row
        ([(0, 3, 5), (0, 0, 2)], [-1, 0]),  # child before its parent
        ([(0, 0, 2)], [-1, -1]),  # lengths differ
        ([(0, 0, 2)], [3]),  # no such parent
    ],
)
def test_broken_layouts_are_refused(spans: list[tuple[int, int, int]], parent: list[int]) -> None:
    with pytest.raises(TrainingError):
        P.plan_of(spans, parent, 2, 5)


def test_without_isolation_the_comparison_fails() -> None:
    """The mutation: one segment over the whole row is what leaking looks like; the test above must notice it."""
    for family in FAMILIES:
        model, b = tiny_model(family, dtype=F64), layouts()["unrelated"]
        leaking = P.plan_of([(0, 0, 21)], [-1], 1, 21)
        with torch.no_grad():
            assert (packed(model, b, plan=leaking) - packed(model, b))[0, 7:].abs().max() > 1e-3, family


def test_a_wrong_parent_changes_the_child() -> None:
    model, (a, b, c) = tiny_model("llama", dtype=F64), ids(5, 5, 3)
    right, wrong = batch([[(a, -1), (b, -1), (c, 0)]], 13), batch([[(a, -1), (b, -1), (c, 1)]], 13)
    with torch.no_grad():
        assert (packed(model, right) - packed(model, wrong))[0, 10:].abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_neighbours(family: str) -> None:
    model, (a, b, c, d) = tiny_model(family, dtype=F64), ids(6, 6, 6, 8)
    with torch.no_grad():
        one = packed(model, batch([[(a, -1), (b, -1)]], 14))[0, :6]
        two = packed(model, batch([[(a, -1), (d, -1)], [(c, -1), (c, -1)]], 14))[0, :6]
    torch.testing.assert_close(one, two, rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_forward_without_a_plan_does_not_leak(family: str, side: str) -> None:
    model, (a, b) = tiny_model(family, dtype=F64), ids(9, 6)
    pads = [0] * (len(a) - len(b))
    row = pads + b if side == "left" else b + pads
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6 if side == "left" else [1] * 6 + [0] * 3])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        h = model.base_model(
            input_ids=torch.tensor([a, row]), attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        torch.testing.assert_close(h[0], alone(model, a), rtol=0, atol=1e-10)
        torch.testing.assert_close(h[1][mask[1].bool()], alone(model, b), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_plan_it_is_eager_attention_to_float32(family: str) -> None:
    model, (a,) = tiny_model(family, dtype=F64), ids(12)
    with torch.no_grad():
        torch.testing.assert_close(alone(model, a, A.ATTENTION), alone(model, a, "eager"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_padded_generate_equals_generate_alone(family: str) -> None:
    model, (a, b) = tiny_model(family, dtype=F64), ids(7, 5)
    given = torch.tensor([a, [0, 0, *b]])
    mask = torch.tensor([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    kwargs: Any = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    both = model.generate(given, attention_mask=mask, **kwargs)
    model.set_attn_implementation("eager" if family == "gemma2" else "sdpa")
    for row, sequence in zip(both, (a, b), strict=True):
        one = model.generate(torch.tensor([sequence]), attention_mask=torch.ones(1, len(sequence)), **kwargs)[0]
        assert row[7:].tolist() == one[len(sequence) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_supports_packing_and_keeps_its_mode(family: str) -> None:
    model = tiny_model(family)
    model.train()
    model.base_model.eval()
    assert A.supports_packing(model)
    assert model.training
    assert not model.base_model.training


def test_a_family_that_drops_the_plan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda plan=None, **kwargs: forward(**kwargs))
    assert not A.supports_packing(model)
    with pytest.raises(ModelError, match="plan was lost"):
        packed(model, layouts()["unrelated"])


def test_a_family_that_ignores_positions_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    forward = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda position_ids=None, **kwargs: forward(**kwargs))
    assert not A.supports_packing(model)


def test_other_attention_does_not_support_packing() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("sdpa")
    assert not A.supports_packing(model)


def test_a_window_left_to_the_mask_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mistral")
    model.config.sliding_window = 64  # longer than the trial: only the note of the windows can tell
    assert A.supports_packing(model)
    monkeypatch.setattr(
        A, "How", lambda scaling, rate, softcap, window, twice=False: _How(scaling, rate, softcap, None)
    )
    assert not A.supports_packing(model)


_How = A.How


def test_unknown_arguments_are_refused() -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ModelError, match="s_aux"):
        A.attention(nn.Identity(), q, q, q, s_aux=torch.zeros(2))
    A.attention(nn.Identity(), q, q, q, s_aux=None, position_ids=torch.arange(3), output_attentions=False)


def test_plan_of_another_batch_is_refused() -> None:
    q = torch.randn(1, 2, 3, 4)
    with pytest.raises(ModelError, match="1 x 5"):
        A.attention(nn.Identity(), q, q, q, A.NO_MASK, plan=P.plan_of([(0, 0, 5)], [-1], 1, 5))


def test_dropout_only_in_training() -> None:
    q, plan = torch.randn(1, 2, 6, 4), P.plan_of([(0, 0, 6)], [-1], 1, 6)
    layer = nn.Identity().eval()
    still, _ = A.attention(layer, q, q, q, A.NO_MASK, plan=plan, dropout=0.5)
    torch.testing.assert_close(still, A.attention(layer, q, q, q, A.NO_MASK, plan=plan)[0])
    layer.train()
    assert not torch.allclose(still, A.attention(layer, q, q, q, A.NO_MASK, plan=plan, dropout=0.5)[0])


def test_hand_computed_softcap_and_window() -> None:
    """Scores 0, 4: capped at 2 they are 0 and 2·tanh(2) = 1.928055; window 1 leaves the token itself."""
    q = torch.tensor([[[[0.0], [2.0]]]], dtype=F64)
    v = torch.tensor([[[[1.0], [0.0]]]], dtype=F64)
    plan = P.plan_of([(0, 0, 2)], [-1], 1, 2)
    out, _ = A.attention(nn.Identity(), q, q, v, A.NO_MASK, plan=plan, scaling=1.0, softcap=2.0)
    assert out[0, 1, 0, 0].item() == pytest.approx(0.1269660, abs=1e-6)  # 1 / (1 + e^1.928055)
    out, _ = A.attention(nn.Identity(), q, q, v, A.NO_MASK, plan=plan, scaling=1.0, sliding_window=1)
    assert out[0, 1, 0, 0].item() == 0.0


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
def test_second_derivatives(family: str) -> None:
    """A Hessian-vector product through packed attention equals the difference quotient of gradients."""
    model, b = exact(tiny_model(family, dtype=F64)), layouts()["shared"]
    parameters = [p for n, p in model.named_parameters() if "attn" in n and p.dim() > 1]
    g = torch.Generator().manual_seed(3)
    v = [torch.randn(p.shape, generator=g, dtype=F64) * 0.1 for p in parameters]

    def gradient(create: bool) -> list[Tensor]:
        loss = packed(model, b, twice=True).sin().mean()
        return list(torch.autograd.grad(loss, parameters, create_graph=create))

    inner = sum((x * y).sum() for x, y in zip(gradient(True), v, strict=True))
    product = torch.autograd.grad(inner, parameters)
    step, shifted = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.add_(d, alpha=sign * step)
        shifted.append(gradient(False))
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.sub_(d, alpha=sign * step)
    for h, up, down in zip(product, *shifted, strict=True):
        quotient = (up - down) / (2 * step)
        torch.testing.assert_close(h, quotient, rtol=0, atol=1e-6 * float(quotient.abs().max()))


def test_gradient_checkpointing_carries_the_plan() -> None:
    model, b = tiny_model("llama", dtype=F64), layouts()["shared"]
    one = torch.autograd.grad(packed(model, b).sin().sum(), list(model.base_model.parameters()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    two = torch.autograd.grad(packed(model, b).sin().sum(), list(model.base_model.parameters()))
    for p, q in zip(one, two, strict=True):
        torch.testing.assert_close(p, q)


def test_bfloat16_runs() -> None:
    model, b = tiny_model("gemma2", dtype=torch.bfloat16), layouts()["tree"]
    with torch.no_grad():
        assert torch.isfinite(packed(model, b).float()).all()
