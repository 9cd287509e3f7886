"""Supervised fine-tuning in one file: torch and transformers, nothing else.

    python sft.py MODEL demonstrations.jsonl OUT      # rows {"prompt": "...", "completion": "..."}

The single-file twin of alignloop/algorithms/sft.py; a test holds both to the same losses. It leaves out packing, chat
templates, resume, several processes: read it to see the method, use the library to train.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Row = tuple[list[int], list[int]]  # prompt ids, answer ids (its end token included)

LEARNING_RATE, BATCH, EPOCHS, MAX_GRAD_NORM = 2e-5, 8, 1, 1.0


def encode(tokenizer: Any, prompt: str, completion: str) -> Row:
    """Ids of the two parts, encoded apart so that the border between them is known; the answer ends with EOS."""
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"], [*answer, tokenizer.eos_token_id]


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens i64[B,T], real bool[B,T], mask bool[B,T], padded on the right. mask: the answers, which are trained on.

    The masks come from lengths: pad and end token may be the same id, and the end token is still trained.
    """
    width = max(len(p) + len(a) for p, a in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    real, mask = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        tokens[i, :n] = torch.tensor([*prompt, *answer])
        real[i, :n] = True
        mask[i, len(prompt) : n] = True
    return tokens, real, mask


def token_logp(model: Any, tokens: Tensor, real: Tensor) -> Tensor:
    """f32[B,T]: log-probability of token t given the tokens before it; 0 for the first. The only shift there is."""
    logits = model(input_ids=tokens, attention_mask=real.long(), use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(logits[:, :-1], dim=-1)  # position t-1 predicts token t
    picked = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.cat([torch.zeros_like(picked[:, :1]), picked], dim=1)


def sft_loss(logp: Tensor, mask: Tensor) -> Tensor:
    """-Σ log π / answer tokens: every token weighs the same."""
    return -logp[mask].mean()


def train(model: Any, batches: Sequence[Sequence[Row]], learning_rate: float = LEARNING_RATE) -> Iterator[float]:
    """One optimizer step a batch; yields the loss before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    for rows in batches:
        tokens, real, mask = (x.to(model.device) for x in collate(rows))
        loss = sft_loss(token_logp(model, tokens, real), mask)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        yield loss.item()


def main(name: str, data: str, out: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    with open(data, encoding="utf-8") as file:
        examples = [json.loads(line) for line in file if line.strip()]
    rows = [encode(tokenizer, e["prompt"], e["completion"]) for e in examples]
    batches = []
    for epoch in range(EPOCHS):
        random.Random(epoch).shuffle(rows)
        batches += [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    for step, loss in enumerate(train(model, batches), 1):
        print(f"step {step}/{len(batches)}  loss {loss:.4f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
