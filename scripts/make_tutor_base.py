"""Make the demo's tiny base model: a tokenizer, a small Llama trained on the tutor's corpus, a card with its hash.

    python scripts/make_tutor_base.py                # writes src/alignloop/demo/assets/base
    python scripts/make_tutor_base.py --check        # only evaluate what is there, and the headroom above it

The corpus is endless and drawn from a seed, so every document is new. On the same machine, thread count and torch
version the weights are reproducible; elsewhere they differ in the last bits, and the card's hash says which they are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignloop.core.types import Demonstration, Prompt
from alignloop.demo.world import (
    BASE_MODEL,
    PARTS,
    SPLITS,
    Document,
    Split,
    corpus,
    demonstrations,
    gold,
    prompts,
    readability,
)

PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the tutor knows the roles system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
TOKENIZER_DOCUMENTS = 20_000


def make_tokenizer(seed: int, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer. No prefix space and no normaliser: decode(encode(text)) is text, byte for byte."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    documents = islice(corpus(seed), TOKENIZER_DOCUMENTS)
    core.train_from_iterator((m.content for document in documents for m in document), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        padding_side="right",
        model_max_length=512,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64 * round(hidden * 8 / 3 / 64),
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def render(document: Document) -> str:
    """A document as the model reads it: a conversation by the chat template, plain text as it is; both end."""
    if document[0].role == "text":
        return document[0].content + END
    return "".join(f"<|{message.role}|>{message.content}{END}" for message in document)


def batches(tokenizer: Any, documents: Iterator[Document], rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (ids, labels), one document a row, right-padded with label -100; rows of a batch are of like length."""
    rng = Random(0)
    while True:
        encoded = tokenizer([render(d) for d in islice(documents, 16 * rows)]).input_ids
        encoded.sort(key=len)
        groups = [encoded[i : i + rows] for i in range(0, len(encoded), rows)]
        rng.shuffle(groups)
        for group in groups:
            ids = torch.full((len(group), max(map(len, group))), tokenizer.pad_token_id)
            labels = torch.full_like(ids, -100)
            for row, tokens in enumerate(group):
                ids[row, : len(tokens)] = labels[row, : len(tokens)] = torch.tensor(tokens)
            yield ids, labels


def pretrain(model: LlamaForCausalLM, tokenizer: Any, args: argparse.Namespace) -> float:
    """AdamW with a warm-up and a cosine to zero, bfloat16 autocast. Returns the mean loss of the last 100 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.1)
    losses: list[float] = []
    start, seen = time.time(), 0
    model.train()
    for step, (ids, labels) in enumerate(islice(batches(tokenizer, corpus(args.seed), args.rows), args.steps)):
        rate = args.lr * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss  # causal and right-padded: no attention mask is needed
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seen += int((labels != -100).sum())
        if step % 100 == 99:
            speed = seen / (time.time() - start)
            print(f"step {step + 1}/{args.steps} loss {mean(losses[-100:]):.4f} {speed:,.0f} tokens/s", flush=True)
    return mean(losses[-100:])


@torch.no_grad()
def sample(
    model: Any, tokenizer: Any, questions: Sequence[Prompt], n: int, seed: int
) -> list[tuple[Prompt, str, bool]]:
    """(prompt, answer, truncated), n answers a prompt at temperature 1, at most 140 tokens."""
    torch.manual_seed(seed)
    model.eval()
    tokenizer.padding_side = "left"
    found: list[tuple[Prompt, str, bool]] = []
    for i in range(0, len(questions), 64):
        some = questions[i : i + 64]
        texts = [f"{USER}{prompt.text}{END}{ASSISTANT}" for prompt in some]
        encoded = tokenizer(texts, padding=True, return_tensors="pt")
        width = encoded.input_ids.shape[1]
        out = model.generate(
            input_ids=encoded.input_ids,
            attention_mask=encoded.attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=n,
            max_new_tokens=140,
        )
        for k, ids in enumerate(out[:, width:].tolist()):
            words = tokenizer.decode(ids, skip_special_tokens=True)
            found.append((some[k // n], words, tokenizer.eos_token_id not in ids))
    tokenizer.padding_side = "right"
    return found


def measure(model: Any, tokenizer: Any, split: Split, n: int = 8, seed: int = 0) -> dict[str, float]:
    """Gold, its parts, and how readable the answers to a split's prompts are."""
    answers = sample(model, tokenizer, prompts(split), n, seed)
    judged = [gold(prompt.extra["topic"], words, truncated) for prompt, words, truncated in answers]
    best = [max(g.total for g in judged[i : i + n]) for i in range(0, len(judged), n)]
    return {
        "gold": mean(g.total for g in judged),
        f"best_of_{n}": mean(best),
        **{part: mean(g.parts[part] for g in judged) for part in PARTS},
        "wrong_topic": mean(g.wrong_topic for g in judged),
        "garbled": mean(g.garbled for g in judged),
        "readability": mean(readability(g) for g in judged),
        "repeats": mean(g.repeats for g in judged),
        "sentences": mean(g.n for g in judged),
        "end_token": mean(1.0 - truncated for _, _, truncated in answers),
    }


def fine_tune(
    model: Any, tokenizer: Any, examples: Sequence[Demonstration], lr: float = 2.5e-4, rows: int = 16
) -> None:
    """One epoch of SFT on the answers alone: enough to see what the demo will start from."""
    torch.manual_seed(0)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    steps = len(examples) // rows
    for step in range(steps):
        some = examples[step * rows : (step + 1) * rows]
        heads = [f"{USER}{d.prompt.text}{END}{ASSISTANT}" for d in some]
        encoded = tokenizer(
            [head + d.completion.text + END for head, d in zip(heads, some, strict=True)],
            padding=True,
            return_tensors="pt",
        )
        labels = encoded.input_ids.masked_fill(encoded.attention_mask == 0, -100)
        for row, head in enumerate(heads):
            labels[row, : len(tokenizer(head).input_ids)] = -100
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 6) * (1 - step / steps)
        model(input_ids=encoded.input_ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def show(title: str, figures: dict[str, float]) -> None:
    print(f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in figures.items()), flush=True)


def load(folder: Path) -> tuple[LlamaForCausalLM, Any]:
    """The saved model, in float32, and its tokenizer."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, PreTrainedTokenizerFast.from_pretrained(folder)


def check(folder: Path) -> None:
    """Measure the saved model, then what a trial SFT makes of it, on every split; print unpicked samples."""
    model, tokenizer = load(folder)
    for stage in ("base", "after SFT"):
        if stage == "after SFT":
            fine_tune(model, tokenizer, demonstrations(1000, 0))
        for split in SPLITS:
            show(f"{stage}, {split} topics", measure(model, tokenizer, split, n=4))
        for prompt, words, _ in sample(model, tokenizer, prompts("validation", 5) + prompts("test", 5), 1, 1):
            print(f"  {prompt.text}\n    {words}")


@torch.no_grad()
def sharpen(model: LlamaForCausalLM, factor: float) -> None:
    """Multiply all logits by `factor` (through the last norm): sampling at temperature 1 is then at 1/factor before.

    A small model spreads a little probability over thousands of wrong tokens; over the 60 tokens of an answer that is
    a garbled sentence in every fifth. A factor of 1.25 removes three quarters of them and keeps the choices of style.
    """
    model.model.norm.weight.mul_(factor)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, factor: float) -> None:
    """The folder that AutoModelForCausalLM and AutoTokenizer load; weights as bfloat16 safetensors, sharpened."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, max_new_tokens=140
    )
    model.bfloat16()
    sharpen(model, factor)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def write_card(folder: Path, args: argparse.Namespace, loss: float, figures: dict[str, float], seconds: float) -> None:
    """README.md: what the model is, how it was made, its figures and the hash of its weights."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    size = LlamaForCausalLM.from_pretrained(folder).num_parameters()
    config = json.loads((folder / "config.json").read_text())
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in figures.items())
    card = CARD.format(
        digest=digest, size=size, loss=loss, figures=rows, seconds=seconds, torch=torch.__version__,
        args=args, config=config,
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


CARD = """---
license: apache-2.0
language: en
library_name: transformers
tags: [alignloop, demo]
---
# The tutor's base model
A Llama with {size:,} parameters (hidden {config[hidden_size]}, {config[num_hidden_layers]} layers,
vocabulary {config[vocab_size]}, tied embeddings, bfloat16), trained from scratch on the closed grammar of
`alignloop.demo.world`: 27 topics told by an encyclopedia, a children's corner and question-answer pages of mostly poor
quality. It is where `alignloop demo` starts and is of no other use: it knows nothing but these topics, and it has seen
texts of up to about 170 tokens.

- chat template: `<|user|>QUESTION<|end|><|assistant|>ANSWER<|end|>`; the end token is `<|end|>`, padding `<|pad|>`
- made by: `python scripts/make_tutor_base.py --seed {args.seed} --steps {args.steps} --rows {args.rows} --lr {args.lr}
  --sharpen {args.sharpen}` in {seconds:.0f} s with torch {torch} on a shared two-core CPU
- loss of the last 100 steps: {loss:.4f} nats per token; then all logits were multiplied by {args.sharpen}, so that
  sampling at temperature 1 garbles little
- sha256 of model.safetensors: `{digest}`

Answers sampled at temperature 1 to every validation prompt (8 each); gold is 0..10, its parts 0..2, the rest are
counts per answer:

| figure | value |
|---|---|
{figures}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=BASE_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rows", type=int, default=24, help="documents a step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--sharpen", type=float, default=1.25, help="multiply the trained model's logits by this")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--check", action="store_true", help="train nothing; evaluate the model that --out holds")
    args = parser.parse_args()
    if args.check:
        check(args.out)
        return
    start = time.time()
    tokenizer = make_tokenizer(args.seed, args.vocabulary)
    model = make_model(tokenizer, args.hidden, args.layers, args.seed)
    print(f"{model.num_parameters():,} parameters, vocabulary {len(tokenizer)}", flush=True)
    loss = pretrain(model, tokenizer, args)
    seconds = time.time() - start
    save(model, tokenizer, args.out, args.sharpen)
    write_card(args.out, args, loss, measure(*load(args.out), "validation"), seconds)


if __name__ == "__main__":
    main()
