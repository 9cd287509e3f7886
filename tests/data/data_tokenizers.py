"""Tiny tokenizers made in memory, one for each habit of real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Ends turns like Qwen: a line break follows the end token."""

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
"""No generation prompt, a space before the answer, and no place for other roles."""

PHI3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""Writes an eos after the last turn only: what follows the end token changes when a turn is added."""

REWRITES = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ 'older: ' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Changes an answer once a turn follows it (templates that drop earlier thoughts do)."""

TAGS = (
    "<s>{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Answers begin right after a special token, where SentencePiece-like tokenizers put a space."""

SENTENCES = [
    "Once upon a time there was a little fox. What is the colour of the sky? The sky is blue, and grass is green.",
    "User:\nHello there!\n\nAssistant:\nHi, how can I help?\n\nTool:\n42\n\n[INST] Question? [/INST] Probe7 system",
]


def byte_level(
    special: list[str], *, template: str | None = None, adds_bos: bool = False, **tokens: str
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, as of GPT-2, Qwen and Llama 3."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    if adds_bos:
        bos = tokens["bos_token"]
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return _wrapped(core, template, tokens)


def sentencepiece(template: str | None = None, *, metaspace: str = "") -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer that puts a space before texts: by its normaliser, or by Metaspace."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if metaspace:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=metaspace, split=False)
        core.decoder = decoders.Sequence(
            [decoders.Metaspace(prepend_scheme=metaspace), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        core.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=special[:3], show_progress=False)
    words = [w for s in SENTENCES * 3 for w in s.replace(" ", " |").split("|")]
    core.train_from_iterator(words, trainer)
    core.add_tokens([])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _wrapped(core, template, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def tagged() -> PreTrainedTokenizerFast:
    """Zephyr's habits: tags around turns, over a SentencePiece-like tokenizer."""
    tokenizer = sentencepiece(TAGS)
    tokenizer.add_tokens(["<|user|>", "<|assistant|>", "<|end|>"], special_tokens=True)
    return tokenizer


def _wrapped(core: Tokenizer, template: str | None, tokens: dict[str, Any]) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, **tokens)
    if template:
        wrapped.chat_template = template
    return wrapped


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    """Qwen's habits: ChatML, eos is the end of a turn, no BOS."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return byte_level(special, template=template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's habits: BOS both in the template and by the tokenizer, eos is not the end of a turn."""
    special = ["<|begin|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    return byte_level(special, template=LLAMA3, adds_bos=True, bos_token="<|begin|>", eos_token="<|end|>")


def base() -> PreTrainedTokenizerFast:
    """GPT-2's habits: no template, and one token for BOS, eos, unk and pad."""
    one = "<|endoftext|>"
    return byte_level([one], bos_token=one, eos_token=one, unk_token=one, pad_token=one)
