"""Building a run from its settings: models, rows, streams, references, critics, engines. Everything that can be wrong
with the inputs is found here, before the first step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.protocols import Method
from alignloop.core.types import Prompt
from alignloop.data.chat import ChatFormat
from alignloop.data.collate import (
    Row,
    collate_labels,
    collate_pairs,
    collate_tokens,
    demonstration_rows,
    label_rows,
    pair_rows,
)
from alignloop.data.readers import load_demonstrations, load_labels, load_preferences, load_prompts
from alignloop.data.splits import split_by_prompt
from alignloop.models.load import init_scalar, load_policy, load_reward, load_tokenizer
from alignloop.models.policy import Policy
from alignloop.models.reference import Reference, frozen, make_reference
from alignloop.rewards.load import load_scorer
from alignloop.rewards.model import RewardModelScorer
from alignloop.rollout.local import LocalEngine
from alignloop.rollout.shards import ShardWriter, forget_from
from alignloop.training.fit import Watch
from alignloop.training.learner import Learner
from alignloop.training.loader import Stream, offline_stream
from alignloop.training.offline import ReferenceSums, Source, evaluate_offline, offline, precompute
from alignloop.training.online import Online, online
from alignloop.training.scoring import (
    RewardModel,
    ScoreSamples,
    called,
    columns_of,
    from_reward_model,
    from_scorer,
    open_chat,
    score_items,
)
from alignloop.training.settings import TrainSettings
from alignloop.training.state import TrainState
from alignloop.training.validation import check_prompts, mean_reward
from alignloop.training.world import AnyWorld

if TYPE_CHECKING:
    from alignloop.training.train import Inputs

log = logging.getLogger(__name__)

READERS: dict[str, Callable[..., Any]] = {
    "demonstrations": load_demonstrations,
    "pairs": load_preferences,
    "labels": load_labels,
    "prompts": load_prompts,
}
ROWS: dict[str, Callable[..., list[Row]]] = {
    "demonstrations": demonstration_rows,
    "pairs": pair_rows,
    "labels": label_rows,
}
COLLATE: dict[str, Callable[..., Any]] = {
    "demonstrations": collate_tokens,
    "pairs": collate_pairs,
    "labels": collate_labels,
}


@dataclass
class Job:
    """A run ready to start: its state, its driver, its evaluation."""

    state: TrainState
    total: int
    steps: Callable[[], Iterator[tuple[int, dict[str, float]]]]
    tokenizer: Any
    chat: ChatFormat
    epochs_a_step: float = 0.0
    watch: Watch | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    normalise: Callable[[], None] = lambda: None
    begin: Callable[[], None] = lambda: None
    """Called once the state stands where the run starts: at its beginning, or at a checkpoint."""


def assemble(method: Method, settings: TrainSettings, inputs: Inputs, folder: Path, world: AnyWorld) -> Job:
    """The run that `method` needs: offline for fixed data, online for prompts (whose rollouts are kept in `folder`)."""
    wanted = "prompts" if method.data == "prompts" else "data"
    if getattr(inputs, wanted) is None:
        raise ConfigError(f"method {method.name} needs {wanted}: give {method.data} (a file, a hub id or records)")
    if method.data == "prompts":
        return _online_job(method, settings, inputs, folder, world)
    return _offline_job(method, settings, inputs, world)


def _offline_job(method: Method, settings: TrainSettings, inputs: Inputs, world: AnyWorld) -> Job:
    tokenizer = load_tokenizer(inputs.model)
    chat = open_chat(inputs.model, tokenizer, append_eos=settings.model.append_eos)
    records, held, notes = _records(method, settings, inputs)
    if settings.loop.early_stopping_patience and not held:
        raise ConfigError("early_stopping_patience: nothing is held out; give eval_data or validation_fraction")
    policy = _trained_policy(method, settings, inputs)
    limit = max_length(settings, policy)
    encode = ROWS[method.data]
    rows, held_rows = encode(records, chat, limit), encode(held, chat, limit) if held else []
    notes |= {"rows": len(rows), "tokens": sum(r.tokens for r in rows), "rows_cut": sum(r.cut for r in rows)}
    if notes["rows_cut"]:
        log.warning("%d of %d rows were longer than %s tokens and were cut", notes["rows_cut"], len(rows), limit)

    def collate(batch: Sequence[Row]) -> Any:
        return COLLATE[method.data](batch, share=settings.model.share_prompts)

    stream = offline_stream(rows, settings.loop, world)
    micro = settings.loop.per_device_train_batch_size
    reference = None
    if "ref" in method.needs:
        live = _reference(policy, settings, inputs)
        both = [*rows, *held_rows]
        once = settings.model.precompute_ref_log_probs
        reference = precompute(live, both, collate, micro, policy.device) if once else ReferenceSums(live)
    source = Source(method, settings.method, stream, collate, micro, reference=reference)
    learner = Learner(policy, settings.optim, stream.steps, world)
    state = TrainState(learner)
    watch = None
    if held_rows:
        watch = Watch(
            lambda: evaluate_offline(state, source, held_rows),
            "eval_loss",
            larger_is_better=False,
            every=settings.loop.eval_steps,
            keep_best=settings.loop.early_stopping_patience > 0,
            patience=settings.loop.early_stopping_patience,
        )

    def steps() -> Iterator[tuple[int, dict[str, float]]]:
        return offline(state, [source], stream.steps)

    job = Job(state, stream.steps, steps, tokenizer, chat, stream.epochs_a_step, watch, notes)
    if method.name == "reward":
        job.normalise = lambda: normalise(policy, rows, notes)
    return job


def normalise(policy: Policy, rows: Sequence[Row], notes: dict[str, Any], most: int = 512) -> None:
    """Fix a reward model's free constants: mean 0 and standard deviation 1 on the answers it was trained on.

    Bradley–Terry determines scores up to a constant only. The affine map is recorded in `notes` and alignloop.json.
    """
    items = [item for row in rows[:most] for item in row.items]
    scores = score_items(policy, items)
    mean = sum(scores) / len(scores)
    sd = (sum((s - mean) ** 2 for s in scores) / max(1, len(scores) - 1)) ** 0.5
    policy.scale, policy.offset = (1 / sd, mean / sd) if sd > 1e-8 else (1.0, mean)
    notes["normalised_on"] = {"answers": len(items), "raw_mean": mean, "raw_sd": sd}


def _online_job(method: Method, settings: TrainSettings, inputs: Inputs, folder: Path, world: AnyWorld) -> Job:
    tokenizer = load_tokenizer(inputs.model)
    chat = open_chat(inputs.model, tokenizer, append_eos=settings.model.append_eos)
    prompts, notes = read_records("prompts", inputs.prompts, inputs.read)
    if not chat.plain and all(p.messages[-1].role == "text" for p in prompts):
        log.warning("the model has a chat template and the prompts are plain text; strings: chat makes them user turns")
    shared = "value" in method.needs and settings.method.critic.layout == "shared"
    policy = _trained_policy(method, settings, inputs, value_head=shared)
    policy.detach_values = shared and settings.method.critic.detach_trunk
    check_prompts(prompts, chat, context(policy))
    score = score_function(inputs.reward, settings, chat, "reward")
    rollout = settings.rollout
    stream = Stream(
        prompts, rollout.rollout_batch_size, settings.loop.num_train_epochs, settings.loop.seed, settings.loop.max_steps
    )
    reference = _reference(policy, settings, inputs) if "ref" in method.needs else None
    engine = local_engine(policy, chat, inputs.model, slots=rollout.slots)
    shards = ShardWriter(folder / "rollouts" / f"rank-{world.rank}")
    run = Online(
        method=method,
        config=settings.method,
        rollout=rollout,
        prompts=stream,
        engine=engine,
        score=score,
        reference=reference,
        micro=settings.loop.per_device_train_batch_size,
        seed=settings.loop.seed,
        keep=shards.write,
    )
    total = stream.steps
    updates = max(1, (total - rollout.value_pretraining_steps) * run.updates_per_step)
    critic = None
    if "value" in method.needs and not shared:
        rate = settings.optim.critic_learning_rate
        critic = Learner(_critic(settings, inputs), settings.optim, total * run.updates_per_step, world, rate)
    learner = Learner(policy, settings.optim, updates, world)
    prepared = method.init_state(settings.method) if method.init_state else None
    state = TrainState(learner, critic, prepared=prepared)
    watch = None if inputs.eval_prompts is None else _online_watch(settings, inputs, chat, engine, context(policy))
    notes |= {"prompts": len(prompts)}

    def steps() -> Iterator[tuple[int, dict[str, float]]]:
        return online(state, run, total)

    job = Job(state, total, steps, tokenizer, chat, stream.epochs_a_step, watch, notes)

    def begin() -> None:
        engine.load(None, state.version)
        forget_from(shards.folder, state.step)

    job.begin = begin
    return job


def _online_watch(
    settings: TrainSettings, inputs: Inputs, chat: ChatFormat, engine: LocalEngine, longest: int | None
) -> Watch:
    """The evaluation of an online run: the mean reward of answers to prompts that it does not train on."""
    held, _ = read_records("prompts", inputs.eval_prompts, inputs.read)
    check_prompts(held, chat, longest)
    judge = score_function(inputs.eval_reward or inputs.reward, settings, chat, "eval_reward")
    return Watch(
        lambda: mean_reward(engine, held, judge, settings.rollout, settings.loop.seed),
        "eval_reward",
        larger_is_better=True,
        every=settings.loop.eval_steps,
        keep_best=settings.rollout.stop_at_validation,
        patience=settings.loop.early_stopping_patience,
    )


def read_records(kind: str, source: Any, read: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Records of a file, or the records themselves; and what the reader has to say of them."""
    if isinstance(source, str | Path):
        loaded = READERS[kind](source, **read)
        log.log(logging.WARNING if loaded.skipped else logging.INFO, "%s", loaded.report())
        notes = {"report": loaded.report(), "skipped": [list(s) for s in loaded.skipped]}
        records = list(loaded.records)
    else:
        records, notes = list(source), {}
    if not records:
        raise DataError(f"no {kind} to train on", file=str(source) if isinstance(source, str | Path) else None)
    return records, notes


def local_engine(policy: Policy, chat: ChatFormat, model_id: str, *, slots: int = 0) -> LocalEngine:
    """The engine that samples from a live policy."""
    return LocalEngine(
        policy.model,
        encode_prompt=lambda prompt: chat.prompt_ids(prompt.messages),
        decode=chat.decode,
        stop_ids=chat.stop_ids,
        model_id=model_id,
        slots=slots or None,
    )


def score_function(spec: Any, settings: TrainSettings, chat: ChatFormat, where: str) -> ScoreSamples:
    """A reward of any form as a function of samples. A reward-model folder scores the samples' own tokens."""
    if spec is None:
        raise ConfigError(f"{where}: missing; name a reward-model folder, a rule, or a function (file.py:function)")

    def open_model(path: Path) -> RewardModel:
        m = settings.model
        return RewardModel.load(path, dtype=m.dtype, device=m.device, append_eos=m.append_eos)

    if isinstance(spec, str | Path) and Path(spec).is_dir():
        return from_reward_model(open_model(Path(spec)), chat.fingerprint)
    return from_scorer(load_scorer(spec, where=where, open_model=_model_scorer(open_model)), where)


def reward_function(
    spec: Any, where: str, *, dtype: str = "auto", device: str = "auto", append_eos: bool = True
) -> Callable[..., list[float | None]]:
    """A reward of any form as a function of prompts, texts and further columns, for annotation and evaluation."""

    def open_model(path: Path) -> RewardModel:
        return RewardModel.load(path, dtype=dtype, device=device, append_eos=append_eos)

    scorer = load_scorer(spec, where=where, open_model=_model_scorer(open_model))

    def score(prompts: Sequence[Prompt], texts: Sequence[str], **columns: Any) -> list[float | None]:
        known = {**columns_of(prompts), "prompt_records": list(prompts), **columns}
        return called(scorer, where, [p.text for p in prompts], list(texts), **known)

    return score


def _model_scorer(open_model: Callable[[Path], RewardModel]) -> Callable[[Path], RewardModelScorer]:
    return lambda path: RewardModelScorer(path.name, open_model(path).score_texts)


def _records(method: Method, settings: TrainSettings, inputs: Inputs) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """(training records, held-out records, notes)."""
    records, notes = read_records(method.data, inputs.data, inputs.read)
    if inputs.eval_data is not None:
        return records, read_records(method.data, inputs.eval_data, inputs.read)[0], notes
    share = settings.loop.validation_fraction
    if share == 0:
        return records, [], notes
    parts = split_by_prompt(records, {"train": 1 - share, "validation": share}, salt=str(settings.loop.seed))
    if not parts["train"] or not parts["validation"]:
        raise DataError(f"validation_fraction {share} leaves one side of the split empty; there are too few prompts")
    return parts["train"], parts["validation"], notes


def _trained_policy(method: Method, settings: TrainSettings, inputs: Inputs, *, value_head: bool = False) -> Policy:
    m = settings.model
    common = {"dtype": m.dtype, "device": m.device, "lora": m.lora, "gradient_checkpointing": m.gradient_checkpointing}
    if method.name == "reward":
        return init_scalar(inputs.model, seed=settings.loop.seed, **common)  # type: ignore[arg-type]
    noiseless = bool(method.needs & {"ref", "old"})
    policy = load_policy(inputs.model, value_head=value_head, **common)  # type: ignore[arg-type]
    return policy.without_dropout() if noiseless else policy


def _critic(settings: TrainSettings, inputs: Inputs) -> Policy:
    """A separate critic starts from the reward model where there is one, else from the policy with a zero head."""
    m = settings.model
    if isinstance(inputs.reward, str | Path) and Path(inputs.reward).is_dir():
        critic = load_reward(inputs.reward, dtype=m.dtype, device=m.device)
        critic.offset = 0.0
        return critic.without_dropout()
    return init_scalar(inputs.model, zero_head=True, dtype=m.dtype, device=m.device).without_dropout()


def _reference(policy: Policy, settings: TrainSettings, inputs: Inputs) -> Reference:
    if inputs.reference is not None and inputs.reference != inputs.model:
        m = settings.model
        return frozen(load_policy(inputs.reference, dtype=m.dtype, device=m.device))
    return make_reference(policy, settings.model.reference_kind)


def max_length(settings: TrainSettings, policy: Policy) -> int | None:
    """The longest row allowed: the setting, else the model's context."""
    longest, wanted = context(policy), settings.model.max_length
    if wanted is not None and longest is not None and wanted > longest:
        raise ConfigError(f"max_length: {wanted} is longer than the model's context of {longest} tokens")
    return wanted or longest


def context(policy: Policy) -> int | None:
    """The model's context in tokens, where its config names one."""
    found = getattr(policy.inner.config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)
