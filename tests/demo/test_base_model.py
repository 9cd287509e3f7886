"""The shipped base model: what a user of `transformers` gets from the folder, its limits, and its card."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignloop.demo.world import BASE_MODEL, demonstrations, gold, prompts, readability

pytestmark = pytest.mark.skipif(not (BASE_MODEL / "config.json").exists(), reason="run scripts/make_tutor_base.py")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)


def test_it_is_small(model: Any) -> None:
    assert model.num_parameters() <= 3_000_000
    assert sum(f.stat().st_size for f in BASE_MODEL.parent.rglob("*") if f.is_file()) <= 8_000_000
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings == 512


def test_the_card_tells_the_hash_of_the_weights() -> None:
    card = (BASE_MODEL / "README.md").read_text(encoding="utf-8")
    told = re.search(r"sha256 of model.safetensors: `([0-9a-f]{64})`", card)
    assert told and told[1] == hashlib.sha256((BASE_MODEL / "model.safetensors").read_bytes()).hexdigest()
    assert "python scripts/make_tutor_base.py --seed" in card


def test_special_tokens(model: Any, tokenizer: Any) -> None:
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<|pad|>"
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == model.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_the_template_is_prefix_consistent_and_text_comes_back(tokenizer: Any) -> None:
    for example in demonstrations(50, 0):
        user = {"role": "user", "content": example.prompt.text}
        reply = {"role": "assistant", "content": example.completion.text}
        head = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        full = tokenizer.apply_chat_template([user, reply], return_dict=False)
        told = tokenizer(example.completion.text, add_special_tokens=False).input_ids
        assert full == head + told + [tokenizer.eos_token_id]
        assert tokenizer.decode(told) == example.completion.text
        more = tokenizer.apply_chat_template([user, reply, user], return_dict=False)
        assert more[: len(full)] == full
    odd = "  Spaces , and ünïcode\n\ttabs 汉字 .  "
    assert tokenizer.decode(tokenizer(odd).input_ids) == odd


def test_the_template_refuses_unknown_roles(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_it_speaks_of_what_it_is_asked(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    asked = prompts("validation", 20)
    chats = [[{"role": "user", "content": p.text}] for p in asked]
    tokenizer.padding_side = "left"
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**encoded, do_sample=True, top_k=0, max_new_tokens=140, num_return_sequences=4)
    texts = tokenizer.batch_decode(out[:, encoded.input_ids.shape[1] :], skip_special_tokens=True)
    judged = [gold(asked[i // 4].extra["topic"], words) for i, words in enumerate(texts)]
    assert sum(readability(g) for g in judged) / len(judged) <= 0.2
    assert sum(g.total for g in judged) / len(judged) > 3.0
