"""PPO for a language model in one file: torch and transformers, nothing else.

    python ppo.py MODEL prompts.txt OUT      # one prompt a line; the reward is `score`, below: write your own

Schulman et al. 2017, arXiv:1707.06347; the KL reward of Ziegler et al. 2019, arXiv:1909.08593; a critic of its own. The
single-file twin of alignloop/algorithms/ppo.py; a test holds both to the same losses. Every per-token tensor is [B,T]
and entry t describes token t: logp[t] of drawing it, value[t] of the state before it.
"""

import copy
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = tuple[list[int], list[int]]  # prompt ids, answer ids (its end token, if it got that far, included)

KL_BETA, GAMMA, LAM = 0.05, 1.0, 0.95
EPS, EPS_VALUE, EPOCHS = 0.2, 0.2, 4
MISSING_EOS_PENALTY = 1.0
LEARNING_RATE, MAX_GRAD_NORM = 3e-6, 1.0
PROMPTS_A_STEP, STEPS, ANSWER_LENGTH = 32, 100, 48


def score(prompt: str, answer: str) -> float:
    """The reward. A stand-in that likes exclamation marks: replace it by a reward model or a rule."""
    return float(min(3, answer.count("!")))


@dataclass
class Batch:
    """Rollouts and all that is fixed before the first update on them."""

    tokens: Tensor  # i64[B,T], padded on the right
    real: Tensor  # bool[B,T]
    mask: Tensor  # bool[B,T]: the policy drew this token
    logp: Tensor  # f32[B,T] of the policy that drew them
    value: Tensor  # f32[B,T]
    advantage: Tensor  # f32[B,T], whitened
    target: Tensor  # f32[B,T] of the critic


def collate(rows: Sequence[Row], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    width = max(len(p) + len(a) for p, a in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    real, mask = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        n = len(prompt) + len(answer)
        tokens[i, :n] = torch.tensor([*prompt, *answer])
        real[i, :n] = True
        mask[i, len(prompt) : n] = True
    return tokens.to(device), real.to(device), mask.to(device)


def shift(x: Tensor) -> Tensor:
    """What position t-1 says about token t, moved to t. The only shift there is."""
    return torch.cat([torch.zeros_like(x[:, :1]), x], dim=1)


def token_logp(model: Any, tokens: Tensor, real: Tensor) -> Tensor:
    logits = model(input_ids=tokens, attention_mask=real.long(), use_cache=False).logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    logp = torch.log_softmax(logits[:, :-1], dim=-1)
    return shift(logp.gather(-1, tokens[:, 1:, None]).squeeze(-1))


def token_value(critic: Any, tokens: Tensor, real: Tensor) -> Tensor:
    hidden = critic.base_model(input_ids=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state
    return shift(critic.score(hidden[:, :-1]).squeeze(-1))


@torch.no_grad()
def prepare(policy: Any, reference: Any, critic: Any, rows: Sequence[Row], scores: Sequence[float]) -> Batch:
    """Rewards, advantages, targets: computed once, constants of every update on this batch."""
    tokens, real, mask = collate(rows, policy.device)
    logp, logp_ref = token_logp(policy, tokens, real), token_logp(reference, tokens, real)
    value = torch.where(mask, token_value(critic, tokens, real), 0.0)
    reward = torch.where(mask, -KL_BETA * (logp - logp_ref), 0.0)
    last = real.sum(dim=1) - 1  # the score stands ON the last token of each row, not in the last column
    reward[torch.arange(len(rows)), last] += torch.tensor(scores, dtype=reward.dtype, device=reward.device)
    advantage, running = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    following = torch.zeros_like(running)  # value of the state after the token: 0 past the end, whatever a pad holds
    for t in reversed(range(tokens.shape[1])):
        delta = reward[:, t] + GAMMA * following - value[:, t]
        running = torch.where(mask[:, t], delta + GAMMA * LAM * running, running)
        following = torch.where(mask[:, t], value[:, t], following)
        advantage[:, t] = torch.where(mask[:, t], running, 0.0)
    target, drawn = advantage + value, advantage[mask]
    advantage = (advantage - drawn.mean()) / (drawn.var() + 1e-8).sqrt()  # over drawn tokens alone
    return Batch(tokens, real, mask, logp, value, advantage, target)


def policy_loss(logp: Tensor, b: Batch) -> Tensor:
    """-min(ρ A, clip(ρ) A), mean over drawn tokens."""
    ratio = (logp - b.logp)[b.mask].clamp(-20, 20).exp()
    advantage = b.advantage[b.mask]
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - EPS, 1 + EPS) * advantage).mean()


def value_loss(value: Tensor, b: Batch) -> Tensor:
    """½ max((V - G)², (clipped V - G)²), mean over drawn tokens."""
    value, old, target = value[b.mask], b.value[b.mask], b.target[b.mask]
    clipped = old + (value - old).clamp(-EPS_VALUE, EPS_VALUE)
    return 0.5 * torch.maximum((value - target).square(), (clipped - target).square()).mean()


def optimizer_of(model: Any, learning_rate: float = LEARNING_RATE) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)


def update(policy: Any, critic: Any, optimizers: Sequence[Any], b: Batch) -> Iterator[tuple[float, float]]:
    """EPOCHS passes over the batch; yields policy and value loss before each step."""
    for _ in range(EPOCHS):
        losses = (
            policy_loss(token_logp(policy, b.tokens, b.real), b),
            value_loss(token_value(critic, b.tokens, b.real), b),
        )
        for model, optimizer, loss in zip((policy, critic), optimizers, losses):
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
        yield losses[0].item(), losses[1].item()


@torch.no_grad()
def rollout(policy: Any, tokenizer: Any, prompts: Sequence[str]) -> list[Row]:
    """Draw from the policy itself: temperature 1, no top-k, no top-p, or the log-probabilities would be of another."""
    encoded = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(policy.device)
    width, eos = encoded["input_ids"].shape[1], tokenizer.eos_token_id
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": ANSWER_LENGTH}
    drawn = policy.generate(**encoded, **sampling, pad_token_id=tokenizer.pad_token_id).tolist()
    rows = []
    for ids, real in zip(drawn, encoded["attention_mask"].sum(dim=1).tolist()):
        answer = ids[width:]
        end = answer.index(eos) + 1 if eos in answer else len(answer)
        rows.append((ids[width - real : width], answer[:end]))
    return rows


def main(name: str, data: str, out: str) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # masks come from lengths: never mistaken
    policy = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()  # eval: no dropout anywhere
    reference = copy.deepcopy(policy).requires_grad_(False)
    critic = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32).eval()
    torch.nn.init.zeros_(critic.score.weight)
    optimizers = [optimizer_of(policy), optimizer_of(critic)]
    with open(data, encoding="utf-8") as file:
        prompts = [line.strip() for line in file if line.strip()]
    for step in range(1, STEPS + 1):
        chosen = random.Random(step).sample(prompts, min(PROMPTS_A_STEP, len(prompts)))
        rows = rollout(policy, tokenizer, chosen)
        scores = []
        for prompt, (_, answer) in zip(chosen, rows):
            ended = answer[-1] == tokenizer.eos_token_id
            text = tokenizer.decode(answer, skip_special_tokens=True)
            scores.append(score(prompt, text) - (0.0 if ended else MISSING_EOS_PENALTY))
        batch = prepare(policy, reference, critic, rows, scores)
        losses = list(update(policy, critic, optimizers, batch))
        kl = (batch.logp - token_logp(reference, batch.tokens, batch.real))[batch.mask].sum().item() / len(rows)
        print(f"step {step}  score {sum(scores) / len(scores):.3f}  kl {kl:.3f}  value loss {losses[-1][1]:.4f}")
    policy.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
