"""Tiny random models of every family, for tests and teaching: two layers, seconds on a CPU, nothing downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5, "head_dim": 8},
    "gemma": {"num_key_value_heads": 1, "head_dim": 8},
    "gemma2": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 8,
    },
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 8,
    },
    "gpt2": {},
    "opt": {"word_embed_proj_dim": 16},
    "opt_postnorm": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "gpt_neox": {},
    "phi": {},
    "phi3": {"num_key_value_heads": 2, "sliding_window": 5},
}


def tiny_model(family: str = "llama", *, vocab: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A random causal LM: width 32, 2 layers, 4 heads, context 128, attention by alignloop, dropout off."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignloop.models.attention import ATTENTION, register

    register()
    name = family.split("_")[0] if family.startswith("opt") else family
    sizes: dict[str, Any] = {
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64},
        "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64},
    }.get(name, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64})
    if name != "gpt2":
        sizes = {**sizes, "max_position_embeddings": 128}
    dropout = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "layerdrop"), 0.0)
    gpt2 = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = AutoConfig.for_model(
        name,
        vocab_size=vocab,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
        **(gpt2 if name == "gpt2" else dropout if name == "opt" else {}),
        **FAMILIES[family],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build: Any = AutoModelForCausalLM.from_config
        model = build(config, attn_implementation=ATTENTION)
        _roughen(model)
    return model.to(dtype).eval()


def _roughen(model: Any) -> None:
    """Spread the weights: an initialisation of 0.02 would hide a misplaced mask below the tolerance of a test."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)


def tiny_tokenizer() -> Any:
    """Characters as tokens: <pad> 0, <s> 1, </s> 2, then lower-case letters and a little punctuation."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", *"0123456789", *" .,:!?\n'-"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    build: Any = PreTrainedTokenizerFast
    return build(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128)


def save_tiny(folder: str | Path, family: str = "llama", *, seed: int = 0) -> Path:
    """A tiny random model with its character tokenizer as a Hugging Face folder."""
    folder = Path(folder)
    tiny_model(family, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
