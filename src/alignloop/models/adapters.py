"""LoRA through peft (Hu et al., 2106.09685 §4.1): h = Wx + (alpha/r)·B·A·drop(x), A Kaiming-uniform, B zero.

The reference trap: "adapter off" is the BASE model. It equals the SFT reference only if the adapter is new and sits on
SFT weights. Where SFT was itself LoRA, `models.reference` keeps a frozen second adapter.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from pydantic import Field

from alignloop.core.config import Config
from alignloop.core.errors import ModelError

log = logging.getLogger(__name__)

TRAINED, FROZEN = "default", "ref"


class Lora(Config):
    """Low-rank adapters."""

    r: int = Field(16, gt=0)
    """Rank. A module of d_in x d_out gets r(d_in + d_out) parameters."""
    alpha: float = Field(32.0, gt=0)
    """Scale: the update is multiplied by alpha/r, in training and inference alike."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout before A. 0.05 is usual for SFT; reinforcement learning and DPO need 0."""
    target_modules: list[str] | None = None
    """Module names to adapt. None adapts every linear layer but the head, whatever the family calls them."""


def add_lora(model: Any, lora: Lora) -> Any:
    """Wrap a Hugging Face model with a fresh adapter; the adapted names are logged.

    Raises ModelError if no module matches.
    """
    from peft import LoraConfig, get_peft_model

    scalar = hasattr(model, "score")
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or "all-linear",
        modules_to_save=["score"] if scalar else None,
        exclude_modules=["score"] if scalar else None,
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
    )
    try:
        wrapped: Any = get_peft_model(model, config)
    except ValueError as error:
        names = sorted({name.rsplit(".", 1)[-1] for name, m in model.named_modules() if hasattr(m, "weight")})
        raise ModelError(f"lora.target_modules {lora.target_modules} match nothing; modules: {names}") from error
    adapted = sorted({name.rsplit(".", 1)[-1] for name in wrapped.base_model.targeted_module_names})
    log.info("LoRA r=%d alpha=%g on %s", lora.r, lora.alpha, ", ".join(adapted))
    return wrapped


def has_adapter(model: Any) -> bool:
    """True if `model` is wrapped by peft."""
    return hasattr(model, "get_base_model")


def is_fresh(model: Any) -> bool:
    """True if the trained adapter does nothing yet (every B is zero): turning it off gives the same model."""
    weights = [p for name, p in model.named_parameters() if "lora_B" in name and f".{TRAINED}." in name]
    return bool(weights) and all(not bool(p.any()) for p in weights)


def freeze_copy(model: Any) -> None:
    """Add a frozen second adapter that holds the trained adapter's present weights (the SFT reference)."""
    if FROZEN not in model.peft_config:
        model.add_adapter(FROZEN, model.peft_config[TRAINED])
    state = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in state.items():
            if f".{FROZEN}." in name:
                parameter.copy_(state[name.replace(f".{FROZEN}.", f".{TRAINED}.")])
    activate(model, TRAINED)


def activate(model: Any, name: str) -> None:
    """Make one adapter act; only the trained one ever takes gradients."""
    model.set_adapter(name)
    for key, parameter in model.named_parameters():
        if f".{FROZEN}." in key:
            parameter.requires_grad_(False)
        elif f".{TRAINED}." in key:
            parameter.requires_grad_(True)
