"""Settings of a training run that are no method's own. Flat keys in a recipe; blocks here, each with one concern.

Names are those of transformers and TRL. Defaults live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from alignloop.core.config import Config
from alignloop.core.errors import ConfigError, nearest
from alignloop.core.protocols import Method
from alignloop.models.adapters import Lora


class Optim(Config):
    """AdamW and its schedule."""

    learning_rate: float = Field(1e-4, ge=0)
    """Peak learning rate. Full fine-tuning 1e-6 to 2e-5, LoRA 1e-5 to 2e-4, tiny models up to 1e-3."""
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"
    """Shape of the decay after warm-up."""
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    """Share of all steps during which the rate rises linearly from 0."""
    min_lr_ratio: float = Field(0.0, ge=0, le=1)
    """The rate at the end, as a share of the peak."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay on matrices (norms and biases are left alone)."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment. PPO's reference runs used 1e-5."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    critic_learning_rate: float | None = None
    """A separate critic's own rate; None takes learning_rate."""


class Loop(Config):
    """How much data, how often saved and looked at."""

    per_device_train_batch_size: int = Field(8, gt=0)
    """Rows of one forward and backward pass (a micro-batch), in each process."""
    gradient_accumulation_steps: int = Field(1, gt=0)
    """Micro-batches of one optimizer step. The loss equals that of the one big batch."""
    num_train_epochs: float = Field(1.0, gt=0)
    """Passes over the data, where max_steps is not given. For online methods: passes over the prompts."""
    max_steps: int = -1
    """Optimizer steps (online methods: rollout steps); -1 counts by epochs."""
    seed: int = 0
    """Fixes data order, head initialisation, dropout and sampling."""
    save_every: int = Field(-1, ge=-1)
    """Steps between checkpoints from which a killed run continues; -1 saves ten times in a run, 0 never."""
    save_total_limit: int = Field(2, gt=0)
    """Checkpoints kept."""
    eval_steps: int = Field(0, ge=0)
    """Steps between evaluations on the validation split; 0 evaluates at the end only."""
    early_stopping_patience: int = Field(0, ge=0)
    """Stop after this many evaluations without improvement, keep the best weights; 0 never stops early."""
    validation_fraction: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts held out to evaluate on, where no eval_data is given."""
    report_to: Literal["none", "tensorboard"] = "none"
    """Besides metrics.jsonl, which is always written."""


class ModelSettings(Config):
    """How models are held."""

    dtype: Literal["auto", "float32", "float64", "bfloat16"] = "auto"
    """auto is float32. bfloat16 computes in bfloat16 over float32 weights."""
    device: str = "auto"
    """auto takes CUDA where there is one."""
    lora: Lora | None = None
    """Train a low-rank adapter instead of all weights."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    max_length: int | None = None
    """Longest row in tokens; None takes the model's context. Prompts are cut on the left, then answers on the right."""
    reference_kind: Literal["auto", "copy", "off", "adapter", "base"] = "auto"
    """How the frozen reference is held (models/reference.py)."""
    precompute_ref_log_probs: bool = False
    """Run the reference once over all rows before training and free it."""
    share_prompts: bool = True
    """Compute a prompt once for all its answers in a batch. Never changes a number."""
    append_eos: bool = True
    """Train the model to end its answers. False for models that never learnt an end token."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 leaves torch's choice. Resume takes the number the run was started with."""


class Rollout(Config):
    """How online methods sample."""

    rollout_batch_size: int = Field(64, gt=0)
    """Prompts of one step, over all processes."""
    num_generations: int = Field(1, gt=0)
    """Answers drawn for each prompt."""
    max_completion_length: int = Field(128, gt=0)
    """Longest answer in tokens, end token included."""
    temperature: float = Field(1.0, gt=0)
    """Of sampling, and of every log-probability of the method."""
    top_k: int = Field(0, ge=0)
    """0 is off. Anything else samples from another distribution than the policy's: refused by on-policy methods."""
    top_p: float = Field(1.0, gt=0, le=1)
    """1 is off; as top_k."""
    min_new_tokens: int = Field(0, ge=0)
    """0 is off; as top_k."""
    slots: int = Field(0, ge=0)
    """Answers in flight at once; 0 chooses."""
    value_pretraining_steps: int = Field(0, ge=0)
    """Steps in which only the critic learns, before the policy moves."""
    stop_at_validation: bool = False
    """Keep the weights of the best validation evaluation (needs eval_prompts): a guard against over-optimisation."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything a run is told, by concern: `method` is the paper's own, the rest is shared."""

    method: Any
    optim: Optim
    loop: Loop
    model: ModelSettings
    rollout: Rollout

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as saved with the run."""
        return {name: getattr(self, name).model_dump() for name in ("method", "optim", "loop", "model", "rollout")}


def parse_settings(method: Method, values: Mapping[str, Any], where: str = "") -> TrainSettings:
    """Sort flat keys into their blocks; an unknown key names the nearest known one.

    A method's own key wins where a name is in both (there is none today).
    """
    blocks: dict[str, type[Config]] = {
        "method": method.config,
        "optim": Optim,
        "loop": Loop,
        "model": ModelSettings,
        "rollout": Rollout,
    }
    if method.data != "prompts":
        blocks.pop("rollout")
    sorted_keys: dict[str, dict[str, Any]] = {name: {} for name in blocks}
    for key, value in values.items():
        home = next((name for name, block in blocks.items() if key in block.model_fields), None)
        if home is None:
            known = [field for block in blocks.values() for field in block.model_fields]
            place = f"{where}.{key}" if where else key
            raise ConfigError(f"{place}: unknown setting of method {method.name}, {nearest(key, known)}")
        sorted_keys[home][key] = value
    parsed = {name: block.parse(sorted_keys[name], where) for name, block in blocks.items()}
    settings = TrainSettings(rollout=parsed.pop("rollout", Rollout()), **parsed)  # type: ignore[arg-type]
    _check_together(method, settings, f"{where}." if where else "")
    return settings


def _check_together(method: Method, settings: TrainSettings, where: str) -> None:
    """Settings that are sound by themselves and not with this method."""
    r, lora = settings.rollout, settings.model.lora
    off = {"top_k": r.top_k != 0, "top_p": r.top_p != 1.0, "min_new_tokens": r.min_new_tokens != 0}
    for name, changed in off.items():
        if changed and "old" in method.needs:  # its log-probabilities must be of the distribution that was sampled
            raise ConfigError(
                f"{where}{name}: {method.name} learns from its own distribution, and {name} samples from another "
                "(known symptom: negative KL); leave it at its default"
            )
    if method.needs & {"ref", "old"} and lora is not None and lora.dropout > 0:
        raise ConfigError(
            f"{where}lora.dropout: {method.name} compares log-probabilities of two moments, and dropout is noise in "
            "one of them; set it to 0"
        )
