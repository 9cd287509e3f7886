"""Direct Preference Optimization in one file: torch and transformers, nothing else.

    python dpo.py MODEL pairs.jsonl OUT      # rows {"prompt": "...", "chosen": "...", "rejected": "...", "p": 1.0}

Rafailov et al. 2023, arXiv:2305.18290, eq. 7; p below 1 is a soft label, LABEL_SMOOTHING is cDPO. The single-file twin
of alignloop/algorithms/dpo.py; a test holds both to the same losses.
"""

import copy
import json
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Row = tuple[list[int], list[int]]  # prompt ids, answer ids (its end token included)
Pair = tuple[Row, Row, float]  # chosen, rejected, probability that chosen is preferred

BETA, LABEL_SMOOTHING = 0.1, 0.0
LEARNING_RATE, BATCH, EPOCHS, MAX_GRAD_NORM = 1e-6, 8, 1, 1.0


def encode(tokenizer: Any, prompt: str, completion: str) -> Row:
    """Ids of the two parts, encoded apart so that the border between them is known; the answer ends with EOS."""
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return tokenizer(prompt)["input_ids"], [*answer, tokenizer.eos_token_id]


def collate(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """tokens i64[B,T], real bool[B,T], mask bool[B,T] (the answers), padded on the right; masks come from lengths."""
    width = max(len(p) + len(a) for p, a in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    real, mask = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        tokens[i, :n] = torch.tensor([*prompt, *answer])
        real[i, :n] = True
        mask[i, len(prompt) : n] = True
    return tokens, real, mask


def answer_logp(model: Any, tokens: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """f32[B]: log-probability of each whole answer. A SUM over its tokens: their mean is another method."""
    logits = model(input_ids=tokens, attention_mask=real.long(), use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(logits[:, :-1], dim=-1)  # position t-1 predicts token t
    picked = logp.gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return torch.where(mask[:, 1:], picked, 0.0).sum(dim=1)


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, p: Tensor) -> Tensor:
    """f32[P]: p' softplus(-β h) + (1 - p') softplus(β h), h = log π/ref of chosen - log π/ref of rejected."""
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    p = p * (1 - LABEL_SMOOTHING) + (1 - p) * LABEL_SMOOTHING
    return p * F.softplus(-BETA * h) + (1 - p) * F.softplus(BETA * h)


def train(model: Any, batches: Sequence[Sequence[Pair]], learning_rate: float = LEARNING_RATE) -> Iterator[float]:
    """One optimizer step a batch against a frozen copy of the model; yields the loss before each."""
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    model.eval()  # no dropout: policy and reference must be equal at the start
    for pairs in batches:
        rows = [chosen for chosen, _, _ in pairs] + [rejected for _, rejected, _ in pairs]
        tokens, real, mask = (x.to(model.device) for x in collate(rows))
        with torch.no_grad():
            ref_chosen, ref_rejected = answer_logp(reference, tokens, real, mask).chunk(2)
        chosen, rejected = answer_logp(model, tokens, real, mask).chunk(2)
        p = torch.tensor([p for _, _, p in pairs], dtype=chosen.dtype, device=chosen.device)
        loss = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, p).mean()
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
    pairs = [
        (
            encode(tokenizer, e["prompt"], e["chosen"]),
            encode(tokenizer, e["prompt"], e["rejected"]),
            float(e.get("p", 1.0)),
        )
        for e in examples
    ]
    batches = []
    for epoch in range(EPOCHS):
        random.Random(epoch).shuffle(pairs)
        batches += [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    for step, loss in enumerate(train(model, batches), 1):
        print(f"step {step}/{len(batches)}  loss {loss:.4f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
