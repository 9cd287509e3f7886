"""Adapters, references and precision: 21, 32, 37 of the battery. Raises AssertionError."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alignloop.core.batch import TokenBatch
from alignloop.core.layout import build
from alignloop.models.adapters import Lora
from alignloop.models.load import load_policy, save_policy
from alignloop.models.policy import Policy
from alignloop.models.reference import ReferenceKind, make_reference
from alignloop.models.tiny import tiny_tokenizer
from tests.invariants import bench, loop

LORA = Lora(r=4, alpha=8.0)


def tokens() -> TokenBatch:
    return build(bench.items_of_rows(bench.rows()))


@torch.no_grad()
def logp(policy: Any, **how: Any) -> Tensor:
    found = policy(tokens(), {"logp"}, **how).logp
    assert found is not None
    return found


def shaken(policy: Policy, seed: int = 0) -> Policy:
    """An adapter that has learned something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if "lora_B" in name and p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=generator).to(p) * 0.1)
    return policy


def sft_adapter() -> Any:
    """SFT was LoRA: an adapter folder on the tiny base, made once."""
    folder = loop.root() / "sft-lora"
    if not folder.exists():
        policy = shaken(load_policy(loop.folder("gpt2"), dtype="float64", lora=LORA))
        save_policy(policy, tiny_tokenizer(), folder)
    return folder


def adapter_starts_as_nothing() -> None:
    """A fresh adapter changes no logit, and its first gradient moves B alone (A has B = 0 before it)."""
    base = load_policy(loop.folder("gpt2"), dtype="float64")
    policy = load_policy(loop.folder("gpt2"), dtype="float64", lora=LORA)
    assert torch.equal(logp(policy), logp(base))
    out = policy(tokens(), {"logp"}).logp
    out.sum().backward()
    norms = {n: float(p.grad.norm()) for n, p in policy.named_parameters() if p.grad is not None}
    assert norms and all((norm > 0) == ("lora_B" in name) for name, norm in norms.items())
    modules = {n.rsplit(".lora_", 1)[0] for n in norms}
    sizes = {n: p.shape for n, p in policy.named_parameters() if "lora_" in n}
    assert sum(p.numel() for p in policy.trainable()) == sum(
        LORA.r * (sizes[f"{m}.lora_A.default.weight"][1] + sizes[f"{m}.lora_B.default.weight"][0]) for m in modules
    )


def adapter_off_is_the_base() -> None:
    """21: a fresh adapter's reference is the model it stands on, and stays it while the adapter learns."""
    base = logp(load_policy(loop.folder("gpt2"), dtype="float64"))
    for kind in ("auto", "off", "adapter", "copy"):
        policy = load_policy(loop.folder("gpt2"), dtype="float64", lora=LORA)
        reference = make_reference(policy, kind)  # type: ignore[arg-type]
        assert torch.equal(logp(reference), base), kind
        shaken(policy)
        assert not torch.allclose(logp(policy), base)
        assert torch.equal(logp(reference), base), f"{kind}: the reference moved"
        assert not any(p.requires_grad for n, p in policy.named_parameters() if "lora" not in n or ".ref." in n), kind
        assert all(p.requires_grad for n, p in policy.named_parameters() if ".default." in n), kind


def reference_of_trained_adapter_is_sft() -> None:
    """21: where SFT was LoRA too, the reference of the RL run is SFT, whichever way it is held, and not the base."""
    base = logp(load_policy(loop.folder("gpt2"), dtype="float64"))
    sft = logp(load_policy(sft_adapter(), dtype="float64"))
    assert float((sft - base).abs().max()) > 0.1
    for kind in ("auto", "adapter", "copy"):
        policy = load_policy(sft_adapter(), dtype="float64")
        _anchored(policy, kind, sft)
    for kind in ("auto", "off", "adapter", "copy"):  # a fresh adapter on merged SFT weights
        _anchored(load_policy(sft_adapter(), dtype="float64", lora=LORA), kind, sft)
    policy = load_policy(sft_adapter(), dtype="float64")
    assert torch.allclose(logp(make_reference(policy, "base")), base, atol=1e-10), "asked for by name: the base"


def _anchored(policy: Policy, kind: Any, sft: Tensor) -> None:
    reference = make_reference(policy, kind)
    torch.testing.assert_close(logp(reference), sft, rtol=0, atol=1e-8)
    before = logp(reference)
    torch.testing.assert_close(logp(policy), sft, rtol=0, atol=1e-8)
    shaken(policy, seed=9)
    assert float((logp(policy) - sft).abs().max()) > 0.1
    assert torch.equal(logp(reference), before), f"{kind}: the reference learned"


def every_reference_gives_the_same_run() -> None:
    """21, in the loop: DPO and PPO on an SFT adapter end with the same weights whichever way the reference is held."""
    from tests.training import toys

    runs: dict[str, dict[str, Any]] = {
        "dpo": {"data": toys.preferences(), "max_steps": 3},
        "ppo": {**loop.PPO, "kl": {"beta": 0.5}},
    }
    kinds: tuple[ReferenceKind, ...] = ("adapter", "copy")
    for method, values in runs.items():
        found = []
        for kind in kinds:
            ready, steps = loop.run(method, model=sft_adapter(), reference_kind=kind, **values)
            found.append((loop.weights(ready.state.learner.policy), steps))
        (one, a), (two, b) = found
        for name, p in two.items():
            torch.testing.assert_close(one[name], p, rtol=0, atol=1e-9, msg=lambda m, n=(method, name): f"{n}: {m}")
        assert a[0].keys() == b[0].keys()
        assert any("lora_B" in name for name in two)


def merged_is_unmerged() -> None:
    """37: merging an adapter changes no logit, and taking it out again restores the base's bits."""
    import copy

    policy = shaken(load_policy(loop.folder("gpt2"), lora=LORA))
    merged = Policy(copy.deepcopy(policy.model).merge_and_unload()).eval()
    torch.testing.assert_close(logp(merged), logp(policy), rtol=0, atol=1e-5)
    base = load_policy(loop.folder("gpt2"))
    assert float((logp(base) - logp(policy)).abs().max()) > 0.1
    with policy.model.disable_adapter():
        assert torch.equal(logp(policy), logp(base))


def bfloat16_keeps_wide_logp() -> None:
    """32: a model computing in bfloat16 has float32 log-probabilities and float32 master weights, gradients and
    optimizer states, and its log-probabilities are off by a bfloat16's worth, not more."""
    for family in ("llama", "gpt2"):
        wide, narrow = (load_policy(loop.folder(family), dtype=d, value_head=True) for d in ("float32", "bfloat16"))
        want = {"logp", "entropy", "values", "scores"}
        with torch.no_grad():
            a, b = wide(tokens(), want), narrow(tokens(), want)
        assert all(x.dtype == torch.float32 for x in (b.logp, b.entropy, b.values, b.scores))
        assert all(p.dtype == torch.float32 for p in narrow.parameters())
        difference = (a.logp - b.logp)[tokens().mask].abs()
        assert 1e-4 < float(difference.mean()) < 0.3, float(difference.mean())
        # what a bfloat16 log-softmax would have cost: its values lie on a grid
        assert not torch.equal(b.logp, b.logp.bfloat16().float())
    ready, steps = loop.run("ppo", **loop.PPO, dtype="bfloat16")
    learner = ready.state.learner
    states = [x for s in learner.optimizer.state.values() for x in s.values()]
    assert states and all(x.dtype == torch.float32 for x in states)
    assert all(p.dtype == torch.float32 for p in learner.policy.parameters())
    assert 0 < steps[0]["sampling/sampling_logp_difference/mean"] < 0.3, "the difference is reported"


def precomputed_is_live() -> None:
    """Reference sums computed once give the run that computes them at every step."""
    runs = []
    for once in (False, True):
        values = {**loop.RUNS["dpo"][1], "max_steps": 3, "precompute_ref_log_probs": once, "validation_fraction": 0.2}
        runs.append(loop.weights(loop.run("dpo", **values)[0].state.learner.policy))
    for name, p in runs[1].items():
        torch.testing.assert_close(runs[0][name], p, rtol=0, atol=1e-5)


def sharing_prompts_changes_nothing() -> None:
    """Computing a prompt once for all its answers gives the run that computes it for each."""
    model = loop.folder("gpt2")
    runs = []
    for share in (False, True):
        values = {**loop.RUNS["dpo"][1], "max_steps": 3, "share_prompts": share, "dtype": "float64"}
        runs.append(loop.weights(loop.run("dpo", model=model, **values)[0].state.learner.policy))
    for name, p in runs[1].items():
        torch.testing.assert_close(runs[0][name], p, rtol=0, atol=1e-9)


def accumulation_is_the_big_batch() -> None:
    """One batch of eight and four of two, through settings and driver: the same weights after three steps."""
    for name in ("sft", "reward", "dpo"):
        method, values = loop.RUNS[name]
        runs = []
        for micro, many in ((8, 1), (2, 4)):
            how = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": many, "max_steps": 3}
            ready, _ = loop.run(method, model=loop.folder("gpt2"), **values, **how, dtype="float64")
            runs.append(loop.weights(ready.state.learner.policy))
        for key, p in runs[1].items():
            torch.testing.assert_close(runs[0][key], p, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
    values = loop.PPO
    runs = []
    for micro in (8, 3):
        ready, _ = loop.run(
            "ppo", model=loop.folder("gpt2"), **values | {"per_device_train_batch_size": micro}, dtype="float64"
        )
        runs.append(loop.weights(ready.state.learner.policy))
    for key, p in runs[1].items():
        torch.testing.assert_close(runs[0][key], p, rtol=0, atol=1e-9)


CHECKS = [
    adapter_starts_as_nothing,
    adapter_off_is_the_base,
    reference_of_trained_adapter_is_sft,
    every_reference_gives_the_same_run,
    merged_is_unmerged,
    bfloat16_keeps_wide_logp,
    precomputed_is_live,
    sharing_prompts_changes_nothing,
    accumulation_is_the_big_batch,
]
