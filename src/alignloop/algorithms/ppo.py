"""Proximal Policy Optimization for language models.

Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; for language models Ouyang et al. 2022, arXiv:2203.02155; the
details that matter from Huang et al. 2024, arXiv:2403.17031; dual clip from Ye et al. 2019, arXiv:1912.09729.
    ρ = π/π_old     L_π = -min(ρ A, clip(ρ, 1-ε_low, 1+ε_high) A)
    L_V = ½ max((V-G)², (V_old + clip(V-V_old, ±ε_v) - G)²)
    minimised: L_π + c_v L_V - c_h H   (+ β KL where the KL is in the loss)
Differs from the papers: the entropy H is exact, not sampled; every mean is over emitted tokens only (the papers' code
averages some of its metrics over padding); two clip widths; no pretraining mix (the driver adds objectives up).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alignloop.algorithms import kl as kls
from alignloop.algorithms.advantages import GAE, explained_variance, gae
from alignloop.algorithms.kl import KL
from alignloop.algorithms.masked import check_finite, check_nonempty, reduce_tokens, safe_exp, whiten
from alignloop.algorithms.shaping import Running, Shaping, shape_scores, token_rewards
from alignloop.core.batch import Experience, PolicyFn, Term, per_sequence
from alignloop.core.config import Config as Base
from alignloop.core.errors import TrainingError
from alignloop.core.protocols import Method, World

PAPER = "1707.06347"

Metrics = dict[str, tuple[Tensor, Tensor | float]]


class Clip(Base):
    """Trust region of the ratio and of the value."""

    eps_low: float = Field(0.2, gt=0, lt=1)
    """A ratio below 1 - this gains nothing more."""
    eps_high: float = Field(0.2, gt=0, lt=1)
    """A ratio above 1 + this gains nothing more. Above eps_low: more exploration (DAPO .28)."""
    dual: float | None = Field(None, gt=1)
    """Where A < 0 the loss is at most this times |A| (Ye et al.: 3); none: no bound."""
    value: float | None = Field(0.2, gt=0)
    """A value may gain nothing by moving further than this in one update; none: no clip."""


class Critic(Base):
    """Where values come from."""

    layout: Literal["separate", "shared"] = "separate"
    """separate: a network of its own, with its own optimizer | shared: a head on the policy's trunk."""
    c_v: float = Field(0.1, gt=0)
    """Weight of the value loss beside the policy loss (shared only: a separate critic has its own learning rate)."""
    detach_trunk: bool = False
    """shared: the value loss trains the head only, not the trunk."""


class Config(Base):
    """Settings of PPO."""

    kl: KL = KL()
    """Penalty that holds the policy near the reference."""
    gae: GAE = GAE()
    """Advantages."""
    shaping: Shaping = Shaping()
    """From scores to rewards."""
    clip: Clip = Clip()
    """Trust region."""
    critic: Critic = Critic()
    """The value function."""
    num_ppo_epochs: int = Field(4, ge=1)
    """Passes over one rollout batch. The batch is not used again after them."""
    num_mini_batches: int = Field(1, ge=1)
    """Optimizer steps of one pass, of equal size as far as the rollout batch divides."""
    c_h: float = Field(0.0, ge=0)
    """Weight of the exact entropy, which keeps the policy exploring."""
    reduction: Literal["token_mean", "seq_mean_token_mean"] = "token_mean"
    """Every token weighs the same | every answer weighs the same, however long. For all terms alike."""
    target_kl: float | None = Field(None, gt=0)
    """Stop the passes over a batch once KL(old‖policy) per token exceeds 1.5 times this; none: never."""


@dataclass(frozen=True)
class State:
    """What lasts from one rollout batch to the next: the KL coefficient and the statistics of all scores."""

    beta: float
    scores_count: float = 0.0
    scores_mean: float = 0.0
    scores_m2: float = 0.0


def init_state(cfg: Config) -> State:
    """The state before the first rollout."""
    return State(beta=cfg.kl.beta)


def policy_loss(ratio: Tensor, advantage: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
    """-min(ρA, clip(ρ)A), with dual clip -max(that, cA) where A < 0. Returns (loss, was it clipped), unreduced.

    >>> policy_loss(torch.tensor([1.5]), torch.tensor([2.0]), Clip())[0]
    tensor([-2.4000])
    """
    plain = ratio * advantage
    clipped = ratio.clamp(1.0 - clip.eps_low, 1.0 + clip.eps_high) * advantage
    surrogate = torch.minimum(plain, clipped)
    if clip.dual is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, clip.dual * advantage), surrogate)
    return -surrogate, surrogate != plain


def value_loss(value: Tensor, old: Tensor, target: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """½ max((V-G)², (clip(V, V_old ± ε)-G)²). Returns (loss, was it clipped), unreduced.

    >>> value_loss(torch.tensor([1.5]), torch.tensor([1.0]), torch.tensor([2.0]), 0.2)[0]
    tensor([0.3200])
    """
    plain = (value - target).square()
    if clip is None:
        return 0.5 * plain, torch.zeros_like(plain, dtype=torch.bool)
    bounded = (old + (value - old).clamp(-clip, clip) - target).square()
    return 0.5 * torch.maximum(plain, bounded), bounded > plain


def objective(policy: PolicyFn, batch: Experience, cfg: Config) -> list[Term]:
    """Clipped surrogate; entropy bonus, KL and (shared trunk) value loss where the settings have them."""
    _check_constants(batch)
    shared = cfg.critic.layout == "shared"
    mask = batch.tokens.mask
    out = policy(batch.tokens, want={"logp", "entropy", "values"} if shared else {"logp", "entropy"})
    assert out.logp is not None and out.entropy is not None
    logp, logp_old, entropy = out.logp[mask], batch.logp_old[mask], out.entropy[mask]
    log_ratio = logp - logp_old
    ratio = safe_exp(log_ratio)
    loss, clipped = policy_loss(ratio, batch.advantage[mask], cfg.clip)
    total, unit = reduce_tokens(loss, batch.tokens, cfg.reduction)
    metrics = _policy_metrics(log_ratio.detach(), ratio.detach(), clipped, entropy.detach())
    metrics["loss/policy_avg"] = (total.detach(), _count(batch, unit))
    terms = [Term(total, unit, metrics=metrics)]
    if cfg.c_h > 0:
        terms.append(Term(*reduce_tokens(-entropy, batch.tokens, cfg.reduction), coef=cfg.c_h))
    if cfg.kl.placement == "loss" and cfg.kl.beta > 0:
        penalty = kls.loss_penalty(cfg.kl.estimator, logp, batch.logp_ref[mask], logp_old)
        total, unit = reduce_tokens(penalty, batch.tokens, cfg.reduction)
        terms.append(Term(total, unit, cfg.kl.beta, {"loss/kl_avg": (total.detach(), _count(batch, unit))}))
    if shared:
        assert out.values is not None
        terms.append(_value_term(out.values[mask], batch, cfg, coef=cfg.critic.c_v))
    return terms


def critic(policy: PolicyFn, batch: Experience, cfg: Config) -> list[Term]:
    """The value loss of a separate critic, which `policy` is here."""
    _check_constants(batch)
    values = policy(batch.tokens, want={"values"}).values
    assert values is not None
    return [_value_term(values[batch.tokens.mask], batch, cfg, coef=1.0)]


@torch.no_grad()
def prepare(batch: Experience, cfg: Config, state: State, world: World) -> tuple[Experience, State, dict[str, float]]:
    """Rewards from scores, advantages, targets; then the KL controller. Once per rollout batch, before any update.

    Reads score, truncated, logp_old, logp_ref, logp_sampler, value (and bootstrap); writes reward, advantage, target.
    Statistics are of the whole batch over all processes. With gae.truncation = mask, cut responses leave the mask.
    """
    _check_rollout(batch, cfg)
    assert batch.value is not None
    tokens = batch.tokens
    seen = Running(state.scores_count, state.scores_mean, state.scores_m2)
    score, seen = shape_scores(batch.score, batch.truncated, cfg.shaping, seen, world)
    d = torch.where(tokens.mask, batch.logp_old - batch.logp_ref, 0.0)
    in_reward = cfg.kl.placement == "reward"
    penalty = kls.ESTIMATORS[cfg.kl.estimator](d) if in_reward else torch.zeros_like(d)
    reward = token_rewards(score, penalty, tokens, state.beta)
    metrics = _rollout_metrics(batch, d, score, per_sequence(reward, tokens) - score, world)
    if cfg.shaping.whiten_rewards:
        reward = whiten(reward, tokens.mask, keep_mean=True, world=world)
    last = torch.where(batch.truncated, batch.bootstrap, 0.0) if batch.bootstrap is not None else None
    advantage = gae(
        reward,
        batch.value,
        tokens,
        gamma=cfg.gae.gamma,
        lam=cfg.gae.lam,
        last=last if cfg.gae.truncation == "bootstrap" else None,
    )
    target = torch.where(tokens.mask, advantage + batch.value, 0.0)
    if cfg.gae.truncation == "mask":
        cut = batch.truncated[tokens.sequence_of_token()] & tokens.mask
        tokens = replace(tokens, mask=tokens.mask & ~cut)
        advantage, target = torch.where(cut, 0.0, advantage), torch.where(cut, 0.0, target)
    metrics["val/explained_variance"] = explained_variance(batch.value, target, tokens.mask, world)
    if cfg.gae.whiten:
        advantage = whiten(advantage, tokens.mask, world=world)
    metrics["kl_coef"] = state.beta
    beta = state.beta
    if cfg.kl.controller == "adaptive":
        n = int(world.sum(torch.tensor(float(tokens.n), dtype=torch.float64, device=tokens.mask.device)))
        beta = kls.adapt(beta, metrics["objective/kl"], n, target=cfg.kl.target, horizon=cfg.kl.horizon)
    prepared = replace(batch, tokens=tokens, reward=reward, advantage=advantage, target=target)
    return prepared, State(beta, seen.count, seen.mean, seen.m2), metrics


def stop_early(metrics: Mapping[str, float], cfg: Config) -> bool:
    """Whether the passes over this batch should end: mean k3 of KL(old‖policy) above 1.5 · target_kl."""
    return cfg.target_kl is not None and metrics["policy/kl_old"] > 1.5 * cfg.target_kl


def _value_term(values: Tensor, batch: Experience, cfg: Config, coef: float) -> Term:
    if batch.value is None or batch.target is None:
        raise TrainingError("ppo: the experience has no values; run `prepare` on rollouts that a critic has scored")
    mask = batch.tokens.mask
    loss, clipped = value_loss(values, batch.value[mask], batch.target[mask], cfg.clip.value)
    total, unit = reduce_tokens(loss, batch.tokens, cfg.reduction)
    metrics: Metrics = {
        "loss/value_avg": (total.detach(), _count(batch, unit)),
        "val/clipfrac_avg": (clipped.sum(), float(clipped.numel())),
    }
    return Term(total, unit, coef, metrics)


def _policy_metrics(log_ratio: Tensor, ratio: Tensor, clipped: Tensor, entropy: Tensor) -> Metrics:
    """Per token: approxkl ½ (log ρ)², kl_old = ρ - 1 - log ρ, and ratio_var = (ρ - 1)², around its expectation 1."""
    n = float(ratio.numel())
    return {
        "policy/approxkl_avg": (0.5 * log_ratio.square().sum(), n),
        "policy/kl_old": (kls.k3(-log_ratio).sum(), n),
        "policy/clipfrac_avg": (clipped.sum(), n),
        "policy/entropy_avg": (entropy.sum(), n),
        "val/ratio": (ratio.sum(), n),
        "val/ratio_var": ((ratio - 1.0).square().sum(), n),
    }


def _rollout_metrics(batch: Experience, d: Tensor, score: Tensor, non_score: Tensor, world: World) -> dict[str, float]:
    """Means over the rollout batch of all processes; objective/* per SEQUENCE, kl_token per token.

    objective/kl is the summed k1, kl_se its standard error: a mean below -2 of them says that sampling and scoring
    do not use the same distribution. objective/entropy is the sampled -Σ log π.
    """
    tokens = batch.tokens
    kl = per_sequence(d.double(), tokens)
    one = torch.ones_like(kl)
    columns = {
        "n": one,
        "objective/kl": kl,
        "kl²": kl.square(),
        "objective/kl_k3": per_sequence(kls.k3(d.double()), tokens),
        "objective/entropy": -per_sequence(batch.logp_old, tokens),
        "objective/scores": batch.score,
        "scores²": batch.score.double().square(),
        "objective/non_score_reward": non_score,
        "objective/rlhf_reward": non_score + score,
        "tokens": tokens.count(),
        "val/num_eos_tokens": (~batch.truncated).double(),
    }
    total = world.sum(torch.stack([column.double().sum() for column in columns.values()])).tolist()
    sums = dict(zip(columns, total))
    n, length = sums.pop("n"), sums.pop("tokens")
    ended = sums.pop("val/num_eos_tokens")
    mean = {name: value / n for name, value in sums.items()}
    kl_var = max(0.0, mean.pop("kl²") - mean["objective/kl"] ** 2)
    score_var = max(0.0, mean.pop("scores²") - mean["objective/scores"] ** 2)
    return {
        **mean,
        "objective/kl_se": (kl_var / n) ** 0.5,
        "objective/kl_token": mean["objective/kl"] * n / length,
        "objective/scores_std": score_var**0.5,
        "val/num_eos_tokens": ended,
    }


def _count(batch: Experience, unit: str) -> Tensor | float:
    return batch.tokens.mask.sum() if unit == "token" else float(batch.tokens.n)


def _check_constants(batch: Experience) -> None:
    """What the rollout fixed must not learn: a gradient through one of these trains the wrong thing, silently."""
    for name in ("logp_old", "logp_ref", "logp_sampler", "advantage", "reward", "value", "target"):
        x = getattr(batch, name)
        if x is not None and x.requires_grad:
            raise TrainingError(f"ppo: {name} carries a gradient; it is a constant of the rollout batch: detach it")


def _check_rollout(batch: Experience, cfg: Config) -> None:
    check_nonempty(batch.tokens)
    if batch.value is None:
        raise TrainingError("ppo: no values; a critic must score the rollouts before `prepare`")
    for name in ("logp_old", "logp_ref", "logp_sampler", "value"):
        check_finite(name, getattr(batch, name), batch.tokens)
    for name in ("logp_old", "logp_ref", "logp_sampler"):
        above = batch.tokens.mask & (getattr(batch, name) > 1e-4)
        if above.any():
            row, column = above.nonzero()[0].tolist()
            value = getattr(batch, name)[row, column].item()
            raise TrainingError(f"{name} is {value} at row {row}, token {column}: a log-probability is at most 0")
    if batch.score.shape != (batch.tokens.n,) or batch.truncated.shape != (batch.tokens.n,):
        raise TrainingError(f"ppo: scores and truncated must be one per sequence ({batch.tokens.n})")
    if cfg.gae.truncation == "bootstrap" and batch.bootstrap is None and bool(batch.truncated.any()):
        raise TrainingError("gae.truncation: bootstrap needs the critic's value after cut responses; there is none")
    if batch.bootstrap is not None and not bool(torch.isfinite(batch.bootstrap[batch.truncated]).all()):
        raise TrainingError("gae.truncation: the critic's value after a cut response is not finite")
    if cfg.gae.truncation == "mask" and bool(batch.truncated.all()):
        raise TrainingError("gae.truncation: mask leaves nothing, every response was cut; allow longer answers")


METHOD = Method(
    name="ppo",
    paper=PAPER,
    config=Config,
    data="prompts",
    objective=objective,
    summary="Sample answers, score them, raise what scored better than the critic expected, in small clipped steps.",
    when="You have a reward (a model or a rule) and want the policy to explore beyond the answers you collected.",
    needs=frozenset({"ref", "value", "old"}),
    critic=critic,
    prepare=prepare,
    init_state=init_state,
    stop_early=stop_early,
)
