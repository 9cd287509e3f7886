"""Loading and saving: Hugging Face folders in and out, atomically, with a card that names the parents.

A policy is saved as an `AutoModelForCausalLM` folder (or a peft adapter folder), a reward model as
`AutoModelForSequenceClassification(num_labels=1)` whose raw scores equal ours, plus `alignloop.json`.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from alignloop.core.errors import ModelError, nearest
from alignloop.models.adapters import TRAINED, Lora, add_lora, has_adapter
from alignloop.models.attention import ATTENTION, register
from alignloop.models.heads import scalar_head
from alignloop.models.policy import Policy

FORMAT = 1
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str = "auto") -> torch.device:
    """`auto`: this process's CUDA device if there is one, else the CPU."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer of a model folder or hub id; one line of cure where there is none."""
    from transformers import AutoTokenizer

    _check_path(path)
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as error:
        raise ModelError(f"{path}: no usable tokenizer ({_first_line(error)}); copy tokenizer files there") from error


def load_policy(
    path: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora | None = None,
    value_head: bool = False,
    gradient_checkpointing: bool = False,
) -> Policy:
    """A causal LM from a folder, an adapter folder or a hub id.

    dtype: auto and float32 keep float32 weights; bfloat16 computes in bfloat16 with float32 weights (autocast).
    lora: add a fresh adapter; an adapter in `path` is merged first, and the result is then saved whole, because no
    folder holds the merged base. Without `lora`, a folder that is itself an adapter keeps training that adapter.
    """
    from transformers import AutoModelForCausalLM

    model = _load(AutoModelForCausalLM, path, dtype)
    rebased = lora is not None and has_adapter(model)
    if rebased:
        model = model.merge_and_unload()
    if lora is not None:
        model = add_lora(model, lora)
    policy = _finish(model, dtype, device, value_head=value_head, gradient_checkpointing=gradient_checkpointing)
    policy.rebased = rebased
    return policy


def load_reward(path: str | Path, *, dtype: str = "auto", device: str = "auto") -> Policy:
    """A trained reward model, with the offset that was stored beside it."""
    from transformers import AutoModelForSequenceClassification

    folder = Path(path)
    if folder.is_dir() and not _meta(folder).get("kind") == "reward" and not _is_classifier(folder):
        raise ModelError(f"{path} is not a reward model; train one: alignloop train reward --model {path} ...")
    policy = _finish(_load(AutoModelForSequenceClassification, path, dtype, num_labels=1), dtype, device)
    policy.offset = float(_meta(folder).get("offset", 0.0))
    policy.sd = float(_meta(folder).get("sd", 1.0))
    return policy


def init_scalar(
    path: str | Path,
    *,
    seed: int = 0,
    zero_head: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    lora: Lora | None = None,
    gradient_checkpointing: bool = False,
) -> Policy:
    """A reward model or critic whose body is the policy in `path` and whose head is new (seeded, or zero)."""
    from transformers import AutoModelForSequenceClassification

    model = _load(AutoModelForSequenceClassification, path, dtype, num_labels=1)
    if has_adapter(model):
        model = model.merge_and_unload().requires_grad_(True)  # peft froze what it adapted
    generator = torch.Generator().manual_seed(seed)
    head = scalar_head(model.score.in_features, zero=zero_head, generator=generator)
    with torch.no_grad():
        model.score.weight.copy_(head.weight)
    model.config.problem_type = None
    if lora is not None:
        model = add_lora(model, lora)
    return _finish(model, dtype, device, gradient_checkpointing=gradient_checkpointing)


def save_policy(policy: Policy, tokenizer: Any, folder: str | Path, *, card: str = "") -> Path:
    """Write a causal LM (or its adapter) with tokenizer, generation config and model card, atomically."""

    model, adapter = policy.model, has_adapter(policy.model)
    if adapter and policy.rebased:
        model, adapter = copy.deepcopy(model).merge_and_unload(), False

    def write(at: Path) -> None:
        with _quiet():
            model.save_pretrained(at, **({"selected_adapters": [TRAINED]} if adapter else {}))
        tokenizer.save_pretrained(at)
        generation = getattr(policy.inner, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(at)
        _write_meta(at, {"kind": "policy"})
        (at / "README.md").write_text(card or "# A policy trained by alignloop\n", encoding="utf-8")

    return atomic_folder(folder, write)


def save_reward(policy: Policy, tokenizer: Any, folder: str | Path, *, card: str = "", **meta: Any) -> Path:
    """Write a reward model: `scale` is folded into the head, `offset` kept in alignloop.json.

    `sd` there is 1/scale: a difference of scores times it is the Δ that was trained, whose σ(Δ) is a probability.

    Hugging Face finds the last token by looking for pads, so the pad id must not be a token that ends an answer: a pad
    token is added if need be. An adapter is merged first, for the same scores from a plain folder.
    """
    model = policy.model
    if has_adapter(model):
        model = copy.deepcopy(model).merge_and_unload()
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    sd = 1.0 / policy.scale
    with torch.no_grad():
        model.score.weight.mul_(policy.scale)
    if model is policy.model:
        policy.scale = 1.0

    def write(at: Path) -> None:
        with _quiet():
            model.save_pretrained(at)
        tokenizer.padding_side = "right"
        tokenizer.save_pretrained(at)
        _write_meta(at, {"kind": "reward", "offset": policy.offset, "scale": 1.0, "sd": sd, **meta})
        (at / "README.md").write_text(card or "# A reward model trained by alignloop\n", encoding="utf-8")

    return atomic_folder(folder, write)


def atomic_folder(folder: str | Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, then put it in place of `folder`. On any failure the old folder survives."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    recover_folder(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        write(fresh)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):  # safetensors wraps the system's errors in its own
            reason = getattr(error, "strerror", None) or _first_line(error)
            raise ModelError(f"cannot save {folder}: {reason}; what was there before is kept") from error
        raise
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def recover_folder(folder: str | Path) -> Path:
    """Finish an `atomic_folder` that a crash cut between its two renames: the old folder comes back."""
    folder = Path(folder)
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        os.replace(old, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _load(cls: Any, path: str | Path, dtype: str, **options: Any) -> Any:
    _check_path(path)
    register()
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype '{dtype}' is unknown; {nearest(dtype, ['auto', *DTYPES])}")
    weights = torch.float64 if dtype == "float64" else torch.float32
    adapter = Path(path) / "adapter_config.json"
    if adapter.is_file():
        from peft import PeftConfig, PeftModel

        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        model = _load(cls, base, dtype, **options)
        config = PeftConfig.from_pretrained(str(path))
        if "num_labels" in options:  # a policy's adapter on a scalar model: peft's wrapper for language models fails
            config.task_type = None
        return PeftModel.from_pretrained(model, str(path), config=config, is_trainable=True)
    try:
        with _quiet():
            return _with_attention(partial(cls.from_pretrained, str(path), dtype=weights, **options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{path}: not a usable model ({_first_line(error)}); copy or save it again") from error


def _with_attention(make: Callable[..., Any]) -> Any:
    """A model with our attention, or with its family's own where that comes from a fixed table."""
    try:
        return make(attn_implementation=ATTENTION)
    except KeyError as error:
        if error.args != (ATTENTION,):
            raise
        return make()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and load reports: a new scalar head is meant, and no news."""
    import transformers

    hf: Any = transformers.logging
    level, bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
    hf.set_verbosity_error()
    hf.disable_progress_bar()
    try:
        yield
    finally:
        hf.set_verbosity(level)
        if bars:
            hf.enable_progress_bar()


def _finish(
    model: Any, dtype: str, device: str, *, value_head: bool = False, gradient_checkpointing: bool = False
) -> Policy:
    model = model.to(resolve_device(device))
    if gradient_checkpointing:
        inner = model.get_base_model() if has_adapter(model) else model
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    compute = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype)
    policy = Policy(model, value_head=value_head, compute_dtype=compute)
    return policy.eval()


def _check_path(path: str | Path) -> None:
    """A path that looks local must exist: a typo must not turn into a download. NAME and OWNER/NAME may be hub ids."""
    folder, words = Path(path), str(path)
    hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", words) and not (
        folder.parent != Path(".") and folder.parent.exists()
    )
    if folder.exists() or hub:
        return
    beside = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
    hint = nearest(folder.name, beside) if beside else ""
    if hint.startswith("known") and len(beside) > 5:
        hint = f"beside it: {', '.join(beside[:5])} and {len(beside) - 5} more"
    raise ModelError(f"model folder {path} does not exist" + (f"; {hint}" if hint else ""))


def _is_classifier(folder: Path) -> bool:
    config = folder / "config.json"
    names = json.loads(config.read_text(encoding="utf-8")).get("architectures") if config.is_file() else None
    return any("SequenceClassification" in name for name in names or [])


def _meta(folder: Path) -> Mapping[str, Any]:
    file = folder / "alignloop.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _write_meta(folder: Path, meta: Mapping[str, Any]) -> None:
    (folder / "alignloop.json").write_text(json.dumps({"format": FORMAT, **meta}, indent=2) + "\n", encoding="utf-8")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
