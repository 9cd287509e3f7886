"""The bugs that the battery is there for. Each is put in by hand, and the named check must fail on it.

A mutant is a function that patches one place of the package; `check` is a property of the bench (with the case it is
tried on) or a check of the loop. A check that no mutant fails would be idle: see `test_mutations.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignloop.algorithms import dpo, ppo
from alignloop.core import layout
from alignloop.core.batch import TokenBatch, per_sequence
from alignloop.models import adapters, policy, reference
from alignloop.models.attention import PackedPlan, plan_of
from alignloop.models.policy import Policy
from alignloop.training import assemble, experience, offline, online, scoring
from alignloop.training.experience import Minibatches
from alignloop.training.learner import Learner
from tests.invariants import distributed, loop_checks, properties, references, reward_paths
from tests.invariants.bench import BY_NAME, EOS

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutant:
    """A bug, how to put it in, and the check that must notice."""

    bug: str
    put: Callable[[Patch], None]
    check: Callable[[], Any]
    about: Callable[..., Any]


def _bench(prop: Callable[..., None], case: str = "sft") -> dict[str, Any]:
    return {"check": partial(prop, BY_NAME[case]), "about": prop}


def _loop(check: Callable[..., None], *args: Any) -> dict[str, Any]:
    return {"check": partial(check, *args), "about": check}


# Layout


def _rebuilt(change: Callable[[TokenBatch], TokenBatch]) -> Callable[[Patch], None]:
    """Every batch that is laid out comes out changed."""

    def put(patch: Patch) -> None:
        finish = layout._finish
        patch.setattr(layout, "_finish", lambda *given: change(finish(*given)))

    return put


def _prev_moved(by: int) -> Callable[[TokenBatch], TokenBatch]:
    def change(t: TokenBatch) -> TokenBatch:
        return replace(t, prev=torch.where(t.prev >= 0, (t.prev + by).clamp(0, t.tokens.shape[1] - 1), -1))

    return change


def _prompt_masked_in(t: TokenBatch) -> TokenBatch:
    """One more token in front of every answer is trained on."""
    mask = t.mask.clone()
    rows, columns = t.mask.nonzero(as_tuple=True)
    before = t.prev[rows, columns]
    own = (t.segment[rows, before] == t.segment[rows, columns]) & (t.prev[rows, before] >= 0)
    mask[rows[own], before[own]] = True
    return replace(t, mask=mask)


def _after_eos_masked_in(t: TokenBatch) -> TokenBatch:
    """The mask goes on to the end of the sequence once it has begun."""
    mask = t.mask.clone()
    for row, start, end in t.spans:
        here = mask[row, start:end].nonzero()
        if len(here):
            mask[row, start + int(here[0]) : end] = True
    return replace(t, mask=mask)


def _positions_by_column(t: TokenBatch) -> TokenBatch:
    return replace(t, positions=torch.arange(t.tokens.shape[1]).expand_as(t.tokens))


def _eos_masked_out(t: TokenBatch) -> TokenBatch:
    return replace(t, mask=t.mask & (t.tokens != EOS))


# Attention


def _plan(make: Callable[[TokenBatch], PackedPlan]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(policy, "packed_plan", make)


def _pads_attend(t: TokenBatch) -> PackedPlan:
    """A row is one segment, padding included."""
    rows, length = t.tokens.shape
    return plan_of([(r, 0, length) for r in range(rows)], [-1] * rows, rows, length)


def _siblings_attend(t: TokenBatch) -> PackedPlan:
    """The second answer to a prompt also sees the first."""
    parents = t.parent.tolist()
    last: dict[int, int] = {}
    out = []
    for s, parent in enumerate(parents):
        out.append(last.get(parent, parent) if parent >= 0 else -1)
        last[parent] = s
    return plan_of(t.spans, out, *t.tokens.shape)


# Learner


def _mean_of_means(patch: Patch) -> None:
    """Each micro-batch divided by its own count, then averaged (transformers#34191)."""
    step_counts = Learner._step_counts

    def update(self: Learner, parts: Sequence[Any]) -> Any:
        many = len(parts[0].batches)
        self._step_counts = lambda batches: {}  # type: ignore[method-assign]
        objective = parts[0].objective

        def scaled(module: Any, batch: Any, config: Any) -> Any:
            counts = step_counts(self, [batch])
            return [replace(t, total=t.total / counts[t.per] / many) for t in objective(module, batch, config)]

        ones = {unit: torch.ones((), dtype=torch.float64) for unit in ("token", "sequence", "pair")}
        self._step_counts = lambda batches: ones  # type: ignore[method-assign, assignment]
        return plain(self, [replace(parts[0], objective=scaled)])

    plain = Learner.update
    patch.setattr(Learner, "update", update)


def _no_world_factor(patch: Patch) -> None:
    loss = Learner._loss
    patch.setattr(Learner, "_loss", lambda self, *given: loss(self, *given) / self.world.size)


def _local_counts(patch: Patch) -> None:
    """Denominators of this process, scaled by the number of processes."""

    def counts(self: Learner, batches: Sequence[Any]) -> Any:
        alone = replace(self, world=experience_world())
        return {unit: n * self.world.size for unit, n in Learner_counts(alone, batches).items()}

    Learner_counts = Learner._step_counts
    patch.setattr(Learner, "_step_counts", counts)


def experience_world() -> Any:
    from alignloop.training.world import Alone

    return Alone()


def _whitened_per_process(patch: Patch) -> None:
    whiten = ppo.whiten
    patch.setattr(ppo, "whiten", lambda x, mask, *, world=None, **how: whiten(x, mask, **how))


# Heads and forward


def _score_at_last_column(patch: Patch) -> None:
    def scores(self: Policy, hidden: Tensor, batch: TokenBatch) -> Tensor:
        rows = torch.tensor([batch.spans[(batch.sequence == i).nonzero()[0, 0]][0] for i in range(batch.n)])
        return self._scalar_head()(hidden[rows, -1]).squeeze(-1)  # type: ignore[no-any-return]

    patch.setattr(Policy, "_scores", scores)


def _detached_entropy(patch: Patch) -> None:
    token_logp = policy.token_logp

    def detached(*given: Any, **how: Any) -> Any:
        logp, entropy = token_logp(*given, **how)
        return logp, None if entropy is None else entropy.detach()

    patch.setattr(policy, "token_logp", detached)


def _no_temperature(patch: Patch) -> None:
    token_logp = policy.token_logp
    patch.setattr(
        policy, "token_logp", lambda h, t, tau, *rest, **how: token_logp(h, t, torch.ones_like(tau), *rest, **how)
    )


def _values_of_the_action(patch: Patch) -> None:
    """V of the state AFTER the action, read at the token itself."""
    values = Policy._values

    def after(self: Policy, before: Tensor, batch: TokenBatch, where: Any) -> Tensor:
        return values(self, self._hidden(batch)[where], batch, where)

    patch.setattr(Policy, "_values", after)


def _hidden_randomness(patch: Patch) -> None:
    """A number that depends on torch's global random state."""
    token_logp = policy.token_logp

    def noisy(*given: Any, **how: Any) -> Any:
        logp, entropy = token_logp(*given, **how)
        return logp * (1 + 1e-6 * torch.randn_like(logp)), entropy

    patch.setattr(policy, "token_logp", noisy)


def _narrow_logp(patch: Patch) -> None:
    """A log-softmax in the type of the logits."""
    token_logp = policy.token_logp

    def narrow(*given: Any, **how: Any) -> Any:
        logp, entropy = token_logp(*given, **how)
        return logp.bfloat16().float() if logp.dtype == torch.float32 else logp, entropy

    patch.setattr(policy, "token_logp", narrow)


# References and dropout


def _head_of_the_living(patch: Patch) -> None:
    """A copied reference that still projects through the policy's own LM head: a closure is not copied."""
    init = Policy.__init__

    def closed(self: Policy, *given: Any, **how: Any) -> None:
        init(self, *given, **how)
        if not self.scalar:
            head = self.inner.get_output_embeddings()
            self._project = lambda hidden: head(hidden)  # type: ignore[method-assign]

    patch.setattr(Policy, "__init__", closed)


def _reference_is_base(patch: Patch) -> None:
    """'Adapter off' whatever the adapter has learned."""

    def make(live: Policy, kind: str = "auto") -> Any:
        return plain(live, "base") if reference.has_adapter(live.model) else plain(live, kind)  # type: ignore[arg-type]

    plain = reference.make_reference
    patch.setattr(references, "make_reference", make)


def _reference_left_out(patch: Patch) -> None:
    """DPO against nothing."""
    patch.setattr(dpo, "_reference", lambda batch: torch.zeros_like(batch.ref))


def _reference_in_training_mode(patch: Patch) -> None:
    def loud(live: Policy) -> Any:
        quiet = frozen(live)
        live.train()
        return quiet

    frozen = reference.frozen
    patch.setattr(reference, "frozen", loud)


def _reference_is_the_policy(patch: Patch) -> None:
    """No copy: the anchor moves with what it should hold."""
    patch.setattr(
        loop_checks, "make_reference", lambda live, kind: torch.no_grad()(lambda tokens, want: live(tokens, want))
    )


def _second_adapter_learns(patch: Patch) -> None:
    patch.setattr(adapters, "activate", lambda model, name: model.set_adapter(name))
    patch.setattr(reference, "activate", lambda model, name: None)


def _dropout_while_learning(patch: Patch) -> None:
    patch.setattr(Policy, "without_dropout", lambda self: self)


def _no_eval_mode(patch: Patch) -> None:
    patch.setattr(Policy, "eval", lambda self: self)


# Experience and loop


def _gradients_through_experience(patch: Patch) -> None:
    patch.setattr(experience, "torch", SimpleNamespace(**{**vars(torch), "no_grad": contextlib.nullcontext}))


def _whitened_per_micro_batch(patch: Patch) -> None:
    pack = Minibatches.pack

    def again(self: Minibatches, index: Any) -> Any:
        e = pack(self, index)
        return replace(e, advantage=ppo.whiten(e.advantage, e.tokens.mask))

    patch.setattr(Minibatches, "pack", again)


def _advantages_of_the_neighbour(patch: Patch) -> None:
    pack = Minibatches.pack

    def mixed(self: Minibatches, index: Any) -> Any:
        rows = self.per_token["advantage"]
        swapped = [rows[(i + 1) % len(rows)].mean().expand_as(rows[i]) for i in range(len(rows))]
        return pack(replace(self, per_token={**self.per_token, "advantage": swapped}), index)

    patch.setattr(Minibatches, "pack", mixed)


def _order_of_the_row(patch: Patch) -> None:
    """`gather` in the order of places, which packing does not keep."""
    gather = layout.gather

    def wrong(x: Tensor, t: TokenBatch) -> list[Tensor]:
        lengths = [len(v) for v in gather(x, t)]
        return list(torch.split(x[t.mask], lengths))

    patch.setattr(experience, "gather", wrong)


def _old_after_the_update(patch: Patch) -> None:
    """log π_old read from weights other than those that answered."""
    pack = Minibatches.pack

    def stale(self: Minibatches, index: Any) -> Any:
        e = pack(self, index)
        return replace(e, logp_old=torch.where(e.tokens.mask, e.logp_old - 1e-3, 0.0))

    patch.setattr(Minibatches, "pack", stale)


def _policy_learns_in_pretraining(patch: Patch) -> None:
    update = online._update
    patch.setattr(online, "_update", lambda state, run, micro, learn: update(state, run, micro, True))


def _reward_model_learns(patch: Patch) -> None:
    def moved(live: Policy, items: Any, **how: Any) -> Any:
        with torch.no_grad():
            for p in live.parameters():
                p.mul_(1.0001)
        return plain(live, items, **how)

    plain = scoring.score_items
    patch.setattr(scoring, "score_items", moved)


def _noise_is_signal(patch: Patch) -> None:
    """Whitening divides a spread of 0 by its own float noise."""

    def white(x: Tensor, mask: Tensor, **_: Any) -> Tensor:
        values = x[mask] + torch.arange(int(mask.sum())).to(x) * 1e-12
        out = torch.zeros_like(x)
        out[mask] = (values - values.mean()) / values.std()
        return out

    patch.setattr(ppo, "whiten", white)


def _kl_turned_round(patch: Patch) -> None:
    prepare = ppo.METHOD.prepare
    assert prepare is not None

    def swapped(batch: Any, *given: Any) -> Any:
        return prepare(replace(batch, logp_old=batch.logp_ref, logp_ref=batch.logp_old), *given)

    patch.setitem(ppo_methods(), "ppo", replace(ppo.METHOD, prepare=swapped))


def ppo_methods() -> Any:
    from alignloop.algorithms import METHODS

    return METHODS


def _kl_per_token_as_sequence(patch: Patch) -> None:
    def mean(x: Tensor, t: TokenBatch) -> Tensor:
        return per_sequence(x, t) / t.count().clamp(min=1).to(x)

    patch.setattr(ppo, "per_sequence", mean)


def _unseeded_sampling(patch: Patch) -> None:
    sampling = online.Online.sampling
    patch.setattr(
        online.Online, "sampling", lambda self, step: replace(sampling(self, step), seed=int(torch.seed() % 2**31))
    )


def _one_answer_a_prompt(patch: Patch) -> None:
    share = online.my_share
    patch.setattr(online, "my_share", lambda rows, world: list({p.id: p for p in share(rows, world)}.values()))


def _counts_of_every_term(patch: Patch) -> None:
    """Two terms of one unit counted under one name."""
    add = offline._add
    patch.setattr(offline, "_add", lambda sums, name, *given: add(sums, "1 term" if " term" in name else name, *given))


def _penalty_forgotten(patch: Patch) -> None:
    add = offline._add
    patch.setattr(offline, "_add", lambda sums, name, *given: None if name == "1 term" else add(sums, name, *given))


def _length_of_one_process(patch: Patch) -> None:
    metrics = online._sample_metrics
    patch.setattr(online, "_sample_metrics", lambda s, n, world: metrics(s, n, experience_world()))


# Reward paths, adapters


def _text_without_end(patch: Patch) -> None:
    item = scoring.RewardModel._item
    patch.setattr(scoring.RewardModel, "_item", lambda self, p, c, ended=True: item(self, p, c, ended=False))


def _cut_answers_get_an_end(patch: Patch) -> None:
    item = scoring.RewardModel._item
    patch.setattr(scoring.RewardModel, "_item", lambda self, p, c, ended=True: item(self, p, c, ended=True))


def _template_forgotten(patch: Patch) -> None:
    patch.setattr(reward_paths, "open_chat", lambda path, tokenizer: _bare(path, tokenizer))


def _bare(path: Any, tokenizer: Any) -> Any:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return scoring.open_chat(path, tokenizer)


def _offset_forgotten(patch: Patch) -> None:
    def load(*given: Any, **how: Any) -> Policy:
        found = plain(*given, **how)
        found.offset = 0.0
        return found

    plain = scoring.load_reward
    patch.setattr(scoring, "load_reward", load)


def _adapter_scale_doubled(patch: Patch) -> None:
    from peft.tuners.lora.layer import Linear

    delta = Linear.get_delta_weight
    patch.setattr(Linear, "get_delta_weight", lambda self, name: 2 * delta(self, name))


def _seed_ignored(patch: Patch) -> None:
    """Rows in the order of the file, whatever the seed."""
    from alignloop.training import loader

    patch.setattr(loader, "permutation", lambda n, *key: torch.arange(n).numpy())


def _accumulates_twice(patch: Patch) -> None:
    """Every micro-batch divided by the number of micro-batches once more."""
    loss = Learner._loss
    patch.setattr(Learner, "_loss", lambda self, terms, counts, coef: loss(self, terms, counts, coef) * _rows(terms))


def _rows(terms: Sequence[Any]) -> float:
    return float(terms[0].total.detach().abs().clamp(max=1.0)) + 0.5


def _stale_precomputed(patch: Patch) -> None:
    sums = offline.ReferenceSums.sums

    def shifted(self: Any, batch: Any) -> Tensor:
        found = sums(self, batch)
        return found if torch.is_inference_mode_enabled() else found.roll(1)

    precompute = offline.precompute

    def once(*given: Any) -> Any:
        offline.ReferenceSums.sums = shifted  # type: ignore[method-assign]
        try:
            return precompute(*given)
        finally:
            offline.ReferenceSums.sums = sums  # type: ignore[method-assign]

    patch.setattr(assemble, "precompute", once)


def _fresh_adapter_acts(patch: Patch) -> None:
    """Both factors of a new adapter random: it changes the model before it has learned anything."""
    from tests.invariants import references as here

    load = here.load_policy

    def loud(*given: Any, **how: Any) -> Policy:
        found = load(*given, **how)
        with torch.no_grad():
            for name, p in found.named_parameters():
                if "lora_B" in name and not p.any():
                    p.add_(0.01)
        return found

    patch.setattr(here, "load_policy", loud)


def _checkpointing_forgets_dropout_rng(patch: Patch) -> None:
    """Recomputed activations that are not those of the forward pass: here, the plan is lost on the way."""
    plan = policy.packed_plan
    seen: list[int] = []

    def forgetful(t: TokenBatch) -> PackedPlan:
        seen.append(1)
        return plan(t) if len(seen) <= 2 else _pads_attend(t)

    patch.setattr(policy, "packed_plan", forgetful)


PPO, SHARED = "ppo, separate critic", "ppo, shared critic"
MUTANTS = [
    Mutant("prev one too late", _rebuilt(_prev_moved(1)), **_bench(properties.shift_alignment)),
    Mutant("prev one too early", _rebuilt(_prev_moved(-1)), **_bench(properties.shift_alignment, "dpo")),
    Mutant("value of the state after the action", _values_of_the_action, **_bench(properties.shift_alignment, PPO)),
    Mutant("score at the last column, table", _score_at_last_column, **_bench(properties.shift_alignment, "reward")),
    Mutant("mask includes the prompt", _rebuilt(_prompt_masked_in), **_bench(properties.shift_alignment, "sft")),
    Mutant("end token masked out", _rebuilt(_eos_masked_out), **_bench(properties.eos_is_an_action, "dpo")),
    Mutant("mask goes on after the end", _rebuilt(_after_eos_masked_in), **_bench(properties.after_eos_noise, "sft")),
    Mutant("RM reads after the end", _rebuilt(_after_eos_masked_in), **_bench(properties.after_eos_noise, "reward")),
    Mutant("positions by column", _rebuilt(_positions_by_column), **_bench(properties.padding_side, "dpo")),
    Mutant("pads attend", _plan(_pads_attend), **_bench(properties.padding_side, "sft")),
    Mutant("score at the last column", _score_at_last_column, **_bench(properties.padding_amount, "reward")),
    Mutant("segments of a row attend to each other", _plan(_pads_attend), **_bench(properties.packing, "sft")),
    Mutant("answers to one prompt attend to each other", _plan(_siblings_attend), **_bench(properties.packing, "dpo")),
    Mutant("neighbours leak", _plan(_pads_attend), **_bench(properties.batch_mates, "reward")),
    Mutant("mean of micro-batch means", _mean_of_means, **_bench(properties.micro_batches, "sft")),
    Mutant("mean of micro-batch means, pairs", _mean_of_means, **_bench(properties.micro_batches, "dpo")),
    Mutant("whitened per micro-batch", _whitened_per_micro_batch, **_bench(properties.micro_batches, PPO)),
    Mutant("advantages of a neighbour", _advantages_of_the_neighbour, **_bench(properties.micro_batches, SHARED)),
    Mutant("values in the order of places", _order_of_the_row, **_bench(properties.micro_batches, PPO)),
    Mutant("positions by column, permuted", _rebuilt(_positions_by_column), **_bench(properties.row_permutation, "sft")),
    Mutant("old log-probabilities are stale", _old_after_the_update, **_bench(properties.ratio_one, PPO)),
    Mutant("experience carries gradients", _gradients_through_experience, **_bench(properties.no_gradient_leaks, PPO)),
    Mutant("entropy bonus detached", _detached_entropy, **_bench(properties.finite_differences, PPO)),
    Mutant("recomputed with other neighbours", _checkpointing_forgets_dropout_rng, **_bench(properties.gradient_checkpointing)),
    Mutant("prompt in the mask", _rebuilt(_prompt_masked_in), **_bench(properties.prompt_contributes_nothing, "dpo")),
    Mutant("reference left out", _reference_left_out, **_bench(properties.at_the_start, "dpo")),
    Mutant("hidden randomness", _hidden_randomness, **_bench(properties.repeated, "sft")),
    Mutant("KL turned round", _kl_turned_round, **_loop(loop_checks.kl_is_positive)),
    Mutant("temperature left out by the trainer", _no_temperature, **_loop(loop_checks.sampler_agrees)),
    Mutant("dropout while learning", _dropout_while_learning, **_loop(loop_checks.ratio_one_in_the_loop)),
    Mutant("scoring in training mode", _no_eval_mode, **_loop(loop_checks.scoring_is_deterministic)),
    Mutant("reference in training mode", _reference_in_training_mode, **_loop(loop_checks.scoring_is_deterministic)),
    Mutant("reference with the policy's head", _head_of_the_living, **_loop(loop_checks.references_stay)),
    Mutant("reference is the policy", _reference_is_the_policy, **_loop(loop_checks.references_stay)),
    Mutant("policy learns in pretraining", _policy_learns_in_pretraining, **_loop(loop_checks.only_the_critic_learns)),
    Mutant("reward model drifts", _reward_model_learns, **_loop(loop_checks.reward_model_stays)),
    Mutant("noise whitened to a signal", _noise_is_signal, **_loop(loop_checks.zero_signal)),
    Mutant("KL per token logged per sequence", _kl_per_token_as_sequence, **_loop(loop_checks.metrics_are_honest)),
    Mutant("sampling without a seed", _unseeded_sampling, **_loop(loop_checks.same_seed_same_run, PPO)),
    Mutant("seed ignored", _seed_ignored, **_loop(loop_checks.same_seed_same_run, "sft")),
    Mutant("a repeated prompt drawn once", _one_answer_a_prompt, **_loop(loop_checks.every_prompt_is_drawn)),
    Mutant("two terms under one count", _counts_of_every_term, **_loop(loop_checks.evaluation_is_the_loss, "reward")),
    Mutant("centring left out of evaluation", _penalty_forgotten, **_loop(loop_checks.evaluation_is_the_loss, "reward")),
    Mutant("a fresh adapter acts", _fresh_adapter_acts, **_loop(references.adapter_starts_as_nothing)),
    Mutant("second adapter learns", _second_adapter_learns, **_loop(references.adapter_off_is_the_base)),
    Mutant("reference is the base", _reference_is_base, **_loop(references.reference_of_trained_adapter_is_sft)),
    Mutant("merged with twice the scale", _adapter_scale_doubled, **_loop(references.merged_is_unmerged)),
    Mutant("log-probabilities in bfloat16", _narrow_logp, **_loop(references.bfloat16_keeps_wide_logp)),
    Mutant("reference sums of another row", _stale_precomputed, **_loop(references.precomputed_is_live)),
    Mutant("answers attend to each other, run", _plan(_siblings_attend), **_loop(references.sharing_prompts_changes_nothing)),
    Mutant("accumulation divides again", _accumulates_twice, **_loop(references.accumulation_is_the_big_batch)),
    Mutant("no world-size factor", _no_world_factor, **_loop(distributed.one_and_two_processes_agree, "sft")),
    Mutant("denominators of one process", _local_counts, **_loop(distributed.one_and_two_processes_agree, "reward")),
    Mutant("whitened per process", _whitened_per_process, **_loop(distributed.one_and_two_processes_agree, PPO)),
    Mutant("lengths of one process", _length_of_one_process, **_loop(distributed.whole_runs_agree, PPO)),
]  # fmt: skip
PATHS = [
    ("texts scored without their end", _text_without_end, "texts"),
    ("cut answers scored with an end", _cut_answers_get_an_end, "samples"),
    ("chat template forgotten", _template_forgotten, "template"),
    ("offset forgotten", _offset_forgotten, "texts"),
]
