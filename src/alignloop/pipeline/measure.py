"""Measuring one model: its answers to held-out prompts, what they score, how far it has moved, how well it predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from alignloop.core.layout import Item, build, gather
from alignloop.core.types import Demonstration, Preference, Prompt, Sample, SamplingParams
from alignloop.data.collate import Row, demonstration_rows, pair_rows
from alignloop.evaluation.drift import kl_to_reference
from alignloop.evaluation.perplexity import Perplexity, corpus_perplexity
from alignloop.evaluation.reward_accuracy import RewardAccuracy, reward_accuracy
from alignloop.evaluation.rouge import corpus_rouge
from alignloop.models.load import load_policy, load_tokenizer
from alignloop.models.policy import Policy
from alignloop.training.build import context, local_engine
from alignloop.training.scoring import RewardModel, by_tokens, open_chat, sample_item, score_items

Score = Callable[..., list[float | None]]
"""(prompts, texts, **columns) -> one score each."""


@dataclass(frozen=True)
class Answers:
    """What one model said: samples in the order of prompts and indices, n to a prompt."""

    model: str
    prompts: tuple[Prompt, ...]
    samples: tuple[Sample, ...]
    n: int

    @property
    def texts(self) -> list[str]:
        return [s.text for s in self.samples]

    @property
    def asked(self) -> list[Prompt]:
        """The prompt of each sample."""
        return [p for p in self.prompts for _ in range(self.n)]

    def by_prompt(self, values: Sequence[Any]) -> list[list[Any]]:
        """One list of n values for each prompt."""
        return [list(values[i : i + self.n]) for i in range(0, len(values), self.n)]


class Measured:
    """A model on the bench. Everything it is asked goes through one loaded copy."""

    def __init__(self, name: str, path: str, *, dtype: str = "auto", device: str = "auto", append_eos: bool = True):
        self.name, self.path = name, path
        self.policy = load_policy(path, dtype=dtype, device=device)
        self.chat = open_chat(path, load_tokenizer(path), append_eos=append_eos)

    def answer(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Answers:
        """n answers to each prompt; the same random numbers for every model."""
        engine = local_engine(self.policy, self.chat, self.path)
        return Answers(self.name, tuple(prompts), tuple(engine.generate_all(prompts, n, sampling)), n)

    def perplexity(self, records: Sequence[Demonstration]) -> Perplexity:
        """Over every answer token of the demonstrations, end tokens included; bits per byte of the answers."""
        rows = demonstration_rows(records, self.chat, context(self.policy))
        pieces = by_tokens([row.items[0] for row in rows], 8192)
        batches = (build(piece).to(self.policy.device) for piece in pieces)
        return corpus_perplexity(self.policy, batches, sum(len(r.completion.text.encode()) for r in records))

    def rouge(self, records: Sequence[Demonstration], max_new_tokens: int) -> dict[str, float]:
        """Greedy answers to the demonstrations' prompts against the demonstrations."""
        by_id = {r.prompt.id: r for r in records}
        sampling = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens)
        answers = self.answer([r.prompt for r in by_id.values()], 1, sampling)
        return corpus_rouge(answers.texts, [r.completion.text for r in by_id.values()])

    def logp(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probability of every token of some samples, at their temperature."""
        return token_logp(self.policy, [sample_item(s) for s in samples])


def token_logp(policy: Policy, items: Sequence[Item], budget: int = 8192) -> list[list[float]]:
    """Log-probability of every masked token of each sequence, without gradients."""
    policy.eval()
    out: list[list[float]] = []
    with torch.no_grad():
        for piece in by_tokens(items, budget):
            tokens = build(piece).to(policy.device)
            out += [row.tolist() for row in gather(policy(tokens, {"logp"}).logp, tokens)]
    return out


def kl_between(model: Measured, reference: Measured, answers: Answers) -> dict[str, float]:
    """k1 sum in nats per sequence of the model's own answers against the reference, SE over prompts; and
    `reference_nats`: how unlikely a token of these answers is to the reference, on average."""
    ref = reference.logp(answers.samples)
    found = kl_to_reference(model.logp(answers.samples), ref, groups=[p.id for p in answers.asked])
    tokens = [x for row in ref for x in row]
    return {**asdict(found), "reference_nats": -sum(tokens) / len(tokens)}


def votes_accuracy(model: RewardModel, votes: Sequence[Preference]) -> RewardAccuracy:
    """A reward model on held-out votes: accuracy, calibration of σ(Δ) on the Δ that was trained, length habits.

    Ties (p = .5) name no side and are left out.
    """
    rows, chosen, rejected = pair_scores(model, [v for v in votes if v.p > 0.5])
    return reward_accuracy(
        chosen,
        rejected,
        chosen_length=[len(row.items[0].response) for row in rows],
        rejected_length=[len(row.items[1].response) for row in rows],
    )


def pair_scores(model: RewardModel, pairs: Sequence[Preference]) -> tuple[list[Row], list[float], list[float]]:
    """Comparisons as token ids, and the scores of their chosen and rejected answers, on the scale that was trained."""
    rows = pair_rows(pairs, model.chat, context(model.policy))
    sd = model.policy.sd
    chosen, rejected = ([s * sd for s in score_items(model.policy, [r.items[k] for r in rows])] for k in (0, 1))
    return rows, chosen, rejected
