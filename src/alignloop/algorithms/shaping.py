"""From a sequence's score to per-token rewards: missing-EOS penalty, clip, normalisation, KL reward.

Ziegler et al. 2019, arXiv:1909.08593, section 2.2 (reward r - beta KL); Stiennon et al. 2020, arXiv:2009.01325;
Huang et al. 2024, arXiv:2403.17031 (missing-EOS handling).
Differs from the code of the latter: the score stands ON the last emitted token, not one place after it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignloop.algorithms.masked import rows
from alignloop.core.batch import TokenBatch
from alignloop.core.config import Config as Base
from alignloop.core.errors import TrainingError
from alignloop.core.protocols import World

PAPER = "2403.17031"


class Shaping(Base):
    """What happens to a score before it becomes a reward, in this order: end token, clip, normalisation."""

    missing_eos: Literal["none", "subtract", "replace"] = "subtract"
    """A response cut at the length limit: keep its score | subtract the penalty (TRL) | score = -penalty (Huang)."""
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Size of that penalty, in units of the score."""
    score_clip: float | None = Field(None, gt=0)
    """Clip scores to ±this; none: no clip."""
    normalise: Literal["none", "running"] = "none"
    """running: (score - mean) / sd with the statistics of all rollouts before this batch (of itself, for the first)."""
    normalised_clip: float | None = Field(None, gt=0)
    """Clip normalised scores to ±this; none: no clip."""
    whiten_rewards: bool = False
    """Token rewards to variance 1 over the rollout batch, their mean kept (Ziegler); TRL and Huang leave it off."""


@dataclass(frozen=True)
class Running:
    """Count, mean and sum of squared deviations of all scores seen so far."""

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def sd(self) -> float:
        """Standard deviation (n - 1); 1 where it is not known or 0, so that scores are only shifted."""
        sd = math.sqrt(self.m2 / (self.count - 1)) if self.count > 1 else 0.0
        return sd if sd > 1e-6 * max(1.0, abs(self.mean)) else 1.0

    def merged(self, count: float, mean: float, m2: float) -> Running:
        """These statistics and those of another set together (Chan's formula)."""
        total = self.count + count
        if total == 0:
            return self
        delta = mean - self.mean
        return Running(
            total, self.mean + delta * count / total, self.m2 + m2 + delta * delta * self.count * count / total
        )


def missing_eos(score: Tensor, truncated: Tensor, mode: str, penalty: float) -> Tensor:
    """Scores [N] with the penalty of responses that never ended.

    >>> missing_eos(torch.tensor([2.0, 2.0]), torch.tensor([False, True]), "subtract", 1.0)
    tensor([2., 1.])
    """
    if mode == "subtract":
        return torch.where(truncated, score - penalty, score)
    if mode == "replace":
        return torch.where(truncated, -penalty, score)
    return score


def clip(score: Tensor, limit: float | None) -> Tensor:
    """Scores within ±limit, as a new tensor: the caller's scores stay what the reward model said."""
    return score if limit is None else score.clamp(-limit, limit)


def shape_scores(
    score: Tensor, truncated: Tensor, cfg: Shaping, seen: Running, world: World | None = None
) -> tuple[Tensor, Running]:
    """Penalise, clip, normalise scores [N]; returns them and the statistics that now include this batch (all ranks)."""
    bad = ~torch.isfinite(score)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise TrainingError(f"the score of sequence {i} is {score[i].item()}: the reward must return a finite number")
    shaped = clip(missing_eos(score, truncated, cfg.missing_eos, cfg.missing_eos_penalty), cfg.score_clip)
    if cfg.normalise == "none":
        return shaped, seen
    x = shaped.double()
    first = torch.stack([x.sum(), x.new_tensor(float(x.numel()))])
    first = first if world is None else world.sum(first)
    mean = first[0] / first[1]
    m2 = (x - mean).square().sum()
    m2 = m2 if world is None else world.sum(m2)
    updated = seen.merged(float(first[1]), float(mean), float(m2))
    used = seen if seen.count > 1 else updated  # frozen for this batch: a score must not depend on later rollouts
    return clip((shaped - used.mean) / used.sd, cfg.normalised_clip), updated


def token_rewards(score: Tensor, kl: Tensor, tokens: TokenBatch, beta: float) -> Tensor:
    """r_t = -beta · kl_t, plus the score on the sequence's last masked token. score [N], kl [B,T] -> [B,T].

    Constants of the batch: nothing here carries a gradient. A sequence's rewards sum to score - beta · its KL.
    """
    r = rows(tokens)
    reward = -beta * r.dense(kl.detach())
    ends = r.count > 0
    reward[ends, r.count[ends] - 1] += score.detach().to(reward.dtype)[ends]
    return r.back(reward)
