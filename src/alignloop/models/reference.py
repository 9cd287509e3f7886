"""The frozen anchor, four ways behind one call: `reference(tokens, want) -> Out`, never with gradients.

copy     a frozen copy of the policy (twice the memory, always right)
off      the policy with its adapter turned off (right only for a fresh adapter on the reference's weights)
adapter  the policy with a second, frozen adapter (SFT was LoRA too)
base     turn the adapter off even though it is trained: KL to the base model, only when asked by name
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Literal

import torch

from alignloop.core.batch import Out, TokenBatch
from alignloop.core.errors import ConfigError
from alignloop.models.adapters import FROZEN, TRAINED, activate, freeze_copy, has_adapter, is_fresh
from alignloop.models.policy import Policy

ReferenceKind = Literal["auto", "copy", "off", "adapter", "base"]
Reference = Callable[[TokenBatch, Iterable[str]], Out]


def make_reference(policy: Policy, kind: ReferenceKind = "auto") -> Reference:
    """Freeze the policy as it is NOW. "auto": `off` for a fresh adapter, `adapter` for a trained one, else `copy`."""
    if kind == "auto":
        kind = "copy" if not has_adapter(policy.model) else "off" if is_fresh(policy.model) else "adapter"
    if kind == "copy":
        return frozen(copy.deepcopy(policy))
    if not has_adapter(policy.model):
        raise ConfigError(f"reference_kind: '{kind}' needs a LoRA policy; use 'copy' or 'auto'")
    if kind == "off" and not is_fresh(policy.model):
        raise ConfigError("reference_kind: 'off' on a trained adapter gives the base model; use 'adapter' or 'base'")
    if kind == "adapter":
        freeze_copy(policy.model)
        return _second_adapter(policy)
    return _adapter_off(policy)


def frozen(policy: Policy) -> Reference:
    """A policy of its own as reference: parameters frozen, eval mode, no gradients."""
    policy.requires_grad_(False).eval()

    def reference(tokens: TokenBatch, want: Iterable[str]) -> Out:
        with torch.no_grad():
            out: Out = policy(tokens, want)
            return out

    return reference


def _adapter_off(policy: Policy) -> Reference:
    def reference(tokens: TokenBatch, want: Iterable[str]) -> Out:
        training = policy.training
        policy.eval()
        with torch.no_grad(), policy.model.disable_adapter():
            out: Out = policy(tokens, want)
        policy.train(training)
        return out

    return reference


def _second_adapter(policy: Policy) -> Reference:
    def reference(tokens: TokenBatch, want: Iterable[str]) -> Out:
        training = policy.training
        policy.eval()
        activate(policy.model, FROZEN)
        try:
            with torch.no_grad():
                out: Out = policy(tokens, want)
        finally:
            activate(policy.model, TRAINED)
            policy.train(training)
        return out

    return reference
