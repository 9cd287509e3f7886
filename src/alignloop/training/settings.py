"""Settings of a training run that are no method's own. Flat keys in a recipe; blocks here, each with one concern.

Names are those of transformers and TRL. Defaults live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pydantic import Field

from alignloop.core.config import Config
from alignloop.core.errors import ConfigError, nearest
from alignloop.core.protocols import Method, Procedure
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
    micro_batch_tokens: int = Field(0, ge=0)
    """Cut a step's rows into passes of at most this many tokens, longest first, whatever their number: the memory of a
    pass is then known. 0 cuts by rows. Never changes a step."""
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
    ref_log_probs_cache: str | None = None
    """A folder in which what `precompute_ref_log_probs` found is kept, for all later runs with the same reference."""
    share_prompts: bool = True
    """Compute a prompt once for all its answers in a batch. Never changes a number."""
    append_eos: bool = True
    """Train the model to end its answers. False for models that never learnt an end token."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 takes one for a tiny model (up to 2 MiB of weights), else torch's choice, or what `measure` finds.
    A run that goes on takes the number that it began with."""


class Rollout(Config):
    """How online methods sample."""

    rollout_batch_size: int = Field(64, gt=0)
    """Prompts of one step, over all processes."""
    num_generations: int = Field(1, gt=0)
    """Answers drawn for each prompt. Where it is not set, what the method needs (`Method.num_generations`)."""
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
    """Answers in flight at once; 0 chooses: as many as 1 GiB of cache holds, from 8 to 96, or what `measure` finds."""
    measure: bool = True
    """On a CPU with 2 to 256 MiB of weights, time other numbers of threads and slots before the first step (about two
    seconds) and take one that is clearly faster. False: two runs of a seed are equal to the byte, however busy the
    machine."""
    max_lag: int = Field(0, ge=0)
    """Versions that an answer may be behind the policy that learns from it; an older one is refused."""
    draw_ahead: bool = False
    """Draw the answers of the next step in a second process while this one learns. They are then one version behind:
    needs max_lag: 1, and importance.mode: tis or mask."""
    stop_at_validation: bool = False
    """Keep the weights of the best validation evaluation (needs eval_prompts): a guard against over-optimisation."""


class ValuePretraining(Config):
    """A critic that learns before the policy moves (VC-PPO, arXiv:2503.01491 §4.1).

    Its targets are then the plain returns of the starting policy. A critic made of a reward model scores unfinished
    answers low, which would bias the first advantages.
    """

    value_pretraining_steps: int = Field(0, ge=0)
    """Steps in which only the critic learns, before the policy moves, at most."""
    value_pretraining_ev: float = Field(0.5, le=1)
    """They end once the critic explains this share of the variance of fresh returns (val/explained_variance)."""
    value_pretraining_patience: int = Field(10, gt=0)
    """They end, too, after this many steps without a gain."""


class PretrainingMix(Config):
    """PPO-ptx: γ · NLL of pretraining data beside the policy's loss (Ouyang et al. 2022, arXiv:2203.02155, eq. 2)."""

    ptx_coef: float = Field(0.0, ge=0)
    """γ; 0 is off. It depends on both reductions: choose it so that ptx/grad_ratio is near 1 (the paper: 27.8)."""
    ptx_batch_size: int = Field(32, gt=0)
    """Rows of pretraining data of one optimizer step, over all processes."""


@dataclass(frozen=True)
class TrainSettings:
    """Everything a run is told, by concern: `method` is the paper's own, the rest is shared."""

    method: Any
    optim: Optim
    loop: Loop
    model: ModelSettings
    rollout: Rollout
    value_pretraining: ValuePretraining = field(default_factory=ValuePretraining)
    mix: PretrainingMix = field(default_factory=PretrainingMix)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as saved with the run."""
        return {f.name: getattr(self, f.name).model_dump() for f in fields(self)}


SHARED: dict[str, type[Config]] = {"optim": Optim, "loop": Loop, "model": ModelSettings}


def blocks_of(method: Method | Procedure) -> dict[str, type[Config]]:
    """The classes whose fields are the settings of a run of this method, by their name in `TrainSettings`."""
    if isinstance(method, Procedure):
        return {"method": method.config, **{name: SHARED[name] for name in method.blocks}}
    blocks: dict[str, type[Config]] = {"method": method.config, **SHARED}
    if method.data == "prompts":
        blocks |= {"rollout": Rollout, "mix": PretrainingMix}
    if "value" in method.needs:
        blocks["value_pretraining"] = ValuePretraining
    return blocks


def parse_settings(method: Method | Procedure, values: Mapping[str, Any], where: str = "") -> TrainSettings:
    """Sort flat keys into their blocks; an unknown key names the nearest known one.

    A method's own key wins where a name is in both (there is none today).
    """
    blocks = blocks_of(method)
    sorted_keys: dict[str, dict[str, Any]] = {name: {} for name in blocks}
    for key, value in values.items():
        home = next((name for name, block in blocks.items() if key in block.model_fields), None)
        if home is None:
            known = [name for block in blocks.values() for name in block.model_fields]
            place = f"{where}.{key}" if where else key
            raise ConfigError(f"{place}: unknown setting of method {method.name}, {nearest(key, known)}")
        sorted_keys[home][key] = value
    if isinstance(method, Method) and "rollout" in blocks:
        sorted_keys["rollout"].setdefault("num_generations", method.num_generations)
    parsed = {name: block.parse(sorted_keys[name], where) for name, block in blocks.items()}
    if "rollout" in parsed:
        parsed["method"] = _with_norm_length(parsed["method"], parsed["rollout"].max_completion_length)  # type: ignore[attr-defined]
    unused = {"optim": Optim(), "loop": Loop(), "model": ModelSettings(), "rollout": Rollout()}
    settings = TrainSettings(**{**unused, **parsed})  # type: ignore[arg-type]
    if isinstance(method, Method):
        _check_together(method, settings, f"{where}." if where else "")
    return settings


def _with_norm_length(method: Any, longest: int) -> Any:
    """A reduction that divides by a constant length takes the longest answer, where the settings name no other."""
    asks = getattr(method, "reduction", "") == "seq_mean_token_sum_norm" and method.norm_length is None
    return method.model_copy(update={"norm_length": longest}) if asks else method


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
    if method.num_generations > 1 and r.num_generations == 1:
        raise ConfigError(
            f"{where}num_generations: {method.name} compares the answers to one prompt, and 1 has none to be compared "
            f"with; set 2 or more (usual: {method.num_generations})"
        )
    if method.needs & {"ref", "old"} and lora is not None and lora.dropout > 0:
        raise ConfigError(
            f"{where}lora.dropout: {method.name} compares log-probabilities of two moments, and dropout is noise in "
            "one of them; set it to 0"
        )
    if r.draw_ahead:
        _check_ahead(method, settings, where)
    if settings.value_pretraining.value_pretraining_steps and method.shares_trunk(settings.method):
        raise ConfigError(
            f"{where}value_pretraining_steps: a critic on the policy's own trunk cannot learn while the policy stands "
            "still; set critic.layout: separate"
        )
    if settings.mix.ptx_coef and method.update is not None:
        raise ConfigError(
            f"{where}ptx_coef: {method.name} takes a step of its own kind, which adds no other loss; leave it at 0"
        )


def _check_ahead(method: Method, settings: TrainSettings, where: str) -> None:
    """Refuse answers of the version before where they would be refused later, or taken for the policy's own."""
    if settings.rollout.max_lag < 1:
        raise ConfigError(
            f"{where}draw_ahead: answers are then one version behind the policy that learns from them, and max_lag: 0 "
            "refuses those; set max_lag: 1, or leave draw_ahead out"
        )
    correction = getattr(settings.method, "importance", None)
    if "old" not in method.needed(settings.method) or (correction is not None and correction.mode != "none"):
        return
    cure = "leave it out" if correction is None else "set importance: {mode: tis}, or leave it out"
    raise ConfigError(
        f"{where}draw_ahead: answers are then of the policy before its last update, and {method.name} would take them "
        f"for its own; {cure}"
    )
