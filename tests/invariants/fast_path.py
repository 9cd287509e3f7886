"""Packed rows as a GPU computes them, on a CPU: by FlexAttention with its own derivative, in plain operations.

PyTorch refuses to differentiate it on a CPU, where its compiler has no kernel backward; the operator itself has one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as of_torch

from alignloop.models import attention, flex


def by_flex(patch: pytest.MonkeyPatch) -> list[int]:
    """From now on every packed row is one FlexAttention call a layer, in float64 too. The list counts the calls.

    Not for a soft-cap under gradient checkpointing, within which the uncompiled operator derives the cap wrongly.
    """
    calls: list[int] = []

    def kernel(*tensors: Tensor, **how: Any) -> Tensor:
        calls.append(1)
        found: Tensor = of_torch.flex_attention(*tensors, **how)
        return found

    patch.setattr(of_torch, "_validate_device", lambda *_: None)
    patch.setattr(of_torch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    patch.setattr(attention, "packed_kernel", lambda *_: kernel)
    return calls


def by_compiled_flex(patch: pytest.MonkeyPatch, backend: Any = "aot_eager") -> None:
    """The same by way of Dynamo and AOTAutograd, as on a GPU; only the code they hand on runs in plain operations."""
    make: Any = torch.compile
    torch._dynamo.reset()
    patch.setattr(torch, "compile", lambda f, **how: make(f, backend=backend, **how))
    patch.setattr(of_torch, "_validate_device", lambda *_: None)
    patch.setattr(flex, "_compiled", cache(flex._compiled.__wrapped__))
    patch.setattr(attention, "packed_kernel", lambda *_: flex.compiled)
