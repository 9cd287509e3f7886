"""A Bradley-Terry reward model in one file: torch and transformers, nothing else.

    python reward.py MODEL pairs.jsonl OUT      # rows {"prompt": "...", "chosen": "...", "rejected": "...", "p": 1.0}

Christiano et al. 2017, arXiv:1706.03741; p below 1 is a soft label. The single-file twin of
alignloop/algorithms/reward.py; a test holds both to the same losses.
"""

import json
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Row = list[int]  # prompt and answer ids, end token included
Pair = tuple[Row, Row, float]  # chosen, rejected, probability that chosen is preferred

CENTRING = 0.0  # η of the penalty η (r_c + r_r)², which holds the level of rewards at 0; .01 is usual
LEARNING_RATE, BATCH, EPOCHS, MAX_GRAD_NORM = 1e-5, 8, 1, 1.0


def encode(tokenizer: Any, prompt: str, completion: str) -> Row:
    """Prompt and answer, encoded apart, and the end token: the score is read there, in training and ever after."""
    answer = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return [*tokenizer(prompt)["input_ids"], *answer, tokenizer.eos_token_id]


def scores(model: Any, rows: Sequence[Row]) -> Tensor:
    """f32[N]: the head on the last real token of each row, found by its length and not by looking for a pad id."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
    length = torch.tensor([len(row) for row in rows], device=model.device)
    real = torch.arange(width, device=model.device)[None, :] < length[:, None]
    hidden = model.base_model(input_ids=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state
    last = hidden[torch.arange(len(rows), device=model.device), length - 1]
    out = model.score(last).squeeze(-1)
    return out if out.dtype == torch.float64 else out.float()


def reward_loss(chosen: Tensor, rejected: Tensor, p: Tensor) -> Tensor:
    """f32[P]: p softplus(-Δ) + (1 - p) softplus(Δ) + η (r_c + r_r)²,  Δ = r_c - r_r."""
    delta = chosen - rejected
    return p * F.softplus(-delta) + (1 - p) * F.softplus(delta) + CENTRING * (chosen + rejected).square()


def train(
    model: Any, batches: Sequence[Sequence[Pair]], learning_rate: float = LEARNING_RATE
) -> Iterator[tuple[float, float]]:
    """One optimizer step a batch; yields loss and accuracy before each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    model.eval()  # no dropout: a comparison of two answers must not depend on which units were dropped
    for pairs in batches:
        rows = [chosen for chosen, _, _ in pairs] + [rejected for _, rejected, _ in pairs]
        chosen, rejected = scores(model, rows).chunk(2)
        p = torch.tensor([p for _, _, p in pairs], dtype=chosen.dtype, device=chosen.device)
        loss = reward_loss(chosen, rejected, p).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        yield loss.item(), (chosen > rejected).double().mean().item()


def main(name: str, data: str, out: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32)
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
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
    for step, (loss, accuracy) in enumerate(train(model, batches), 1):
        print(f"step {step}/{len(batches)}  loss {loss:.4f}  accuracy {accuracy:.2f}")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
