"""The local engine: continuous batching over the Hugging Face module itself.

Prompts are prefilled once per group, packed into one row, and their keys and values copied to the slots of their
samples; all slots decode together, each at its own length; finished rows make room for those that wait, and once
nothing waits the batch shrinks. In float64 a row's tokens are the same for every number of slots, batch and order; in
float32 its log-probabilities agree to about 1e-5.

The trainer's own module is sampled from (no second copy of the weights), in eval mode, without gradients; its mode is
restored before every sample is handed out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignloop.core.errors import ConfigError, ModelError, TrainingError
from alignloop.core.types import Prompt, Sample, SamplingParams, content_id
from alignloop.models.attention import NO_MASK, supports_packing
from alignloop.models.packing import SlotPlan, plan_of
from alignloop.rollout.cache import RecordingCache, SlotCache
from alignloop.rollout.halved import halved
from alignloop.rollout.sampling import check_sampling, draw, uniforms
from alignloop.rollout.scheduler import Backlog, Group, groups

PREFILL_TOKENS = 8192
"""Prompt tokens of one prefill pass; a longer prompt has a pass of its own."""


def default_slots(model: Any) -> int:
    """Rows that decode together: as many as keep the cache of 1024-token rows below 1 GiB, between 8 and 96."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.finfo(next(model.parameters()).dtype).bits // 8
    row = 1024 * 2 * int(config.num_hidden_layers) * int(heads) * int(width) * size
    return max(8, min(96, 2**30 // row))


class Pace(NamedTuple):
    """Tokens per second."""

    reading: float
    """Of prompts, in one packed pass: what a pass of training is like."""
    decoding: float
    """Of answers, by rows that decode together."""


class LocalEngine:
    """Draws samples from a causal LM loaded with ``attn_implementation=ATTENTION`` (`core.protocols.Engine`).

    encode_prompt gives the ids a prompt starts from (template and BOS included); decode turns response ids, without the
    stop id, into text; stop_ids end a response and are part of it. `slots` rows decode together (None: by memory).
    compute_dtype: autocast to this type, as a Policy does (None: the weights' own).
    Raises ModelError where the family cannot take packed rows.
    """

    def __init__(
        self,
        model: Any,
        encode_prompt: Callable[[Prompt], Sequence[int]],
        decode: Callable[[Sequence[int]], str],
        stop_ids: Sequence[int],
        model_id: str,
        slots: int | None = None,
        version: int = 0,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        if not supports_packing(model):
            raise ModelError(
                f"model '{model_id}': the local engine needs a family whose attention takes packed rows, loaded with "
                "alignloop's attention (models.load does so); serve other families with vLLM"
            )
        if slots is not None and slots < 1:
            raise ConfigError(f"rollout.slots: must be at least 1 (got {slots})")
        self.model, self.model_id, self.version = model, model_id, version
        self.encode_prompt, self.decode = encode_prompt, decode
        self.compute_dtype = compute_dtype
        self.stop_ids = tuple(sorted({int(s) for s in stop_ids}))
        self.slots = slots if slots is not None else default_slots(model)
        self.context: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self._busy = 0

    def load(self, weights: Any = None, version: int = 0) -> None:
        """Take new weights (a state dict; None: the module is live and already holds them) under a new version.

        Raises TrainingError while samples are in flight: every sample has one policy version.
        """
        if self._busy:
            raise TrainingError("rollout: new weights while samples are in flight; use up or close generate() first")
        if isinstance(weights, nn.Module):
            weights = weights.state_dict()
        if isinstance(weights, Mapping):
            try:
                self.model.load_state_dict(weights)
            except RuntimeError as error:
                raise ModelError(f"model '{self.model_id}': these weights do not fit: {error}") from None
        elif weights is not None:
            raise ModelError(f"model '{self.model_id}': weights must be a state dict, not {type(weights).__name__}")
        self.version = version

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Iterator[Sample]:
        """n samples of every prompt, each as soon as it is finished (shortest first, roughly); checked before drawing.

        A prompt that occurs k times has k·n samples with indices that go on. Raises ConfigError (sampling), DataError
        (a prompt that leaves no room in the context), TrainingError (non-finite logits).
        """
        return (sample for _, sample in self._run(prompts, n, sampling))

    def generate_all(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> list[Sample]:
        """The same samples, in the order of the prompts and, within a prompt, of their indices."""
        return [sample for _, sample in sorted(self._run(prompts, n, sampling), key=lambda x: (x[0], x[1].index))]

    def pace(self, prompt: Prompt, places: int, rows: int, steps: int = 3) -> Pace:
        """How fast it reads and decodes `rows` rows of about `places` tokens, made of this prompt; none is kept.

        A pass is of at least 512 tokens. The best of two passes and of `steps` steps: what disturbs a measurement only
        ever makes it slower.
        """
        read, drawn = -(-512 // places), steps + 2  # the first two tokens are not timed
        ids = tuple(islice(cycle(self.encode_prompt(prompt)), places))
        work = groups([prompt] * read, [ids] * read, -(-rows // read), drawn, self.context)
        session = _Session(self, work, SamplingParams(max_new_tokens=drawn, min_new_tokens=drawn))
        with _evaluating(self.model), session.casting():
            passes = [_seconds(lambda: session._prefill(work)) for _ in range(2)]
            while session.active < rows:
                session._admit(rows - session.active)
            decoded = [_seconds(session._step) for _ in range(steps + 1)][1:]
        return Pace(read * places / min(passes), rows / min(decoded))

    def _run(self, prompts: Sequence[Prompt], n: int, sampling: SamplingParams) -> Iterator[tuple[int, Sample]]:
        check_sampling(sampling, n)
        work = groups(prompts, [self.encode_prompt(p) for p in prompts], n, sampling.max_new_tokens, self.context)
        return self._drain(work, sampling)

    def _drain(self, work: list[Group], sampling: SamplingParams) -> Iterator[tuple[int, Sample]]:
        if not work:
            return
        self._busy += 1
        session = _Session(self, work, sampling)
        try:
            while session.backlog or session.active:
                with (
                    _evaluating(self.model),
                    session.casting(),
                ):  # left before a sample is handed out: what follows is the caller's
                    done = session.advance()
                for row in done:
                    yield row.group.order, self._sample(row, sampling)
        finally:
            self._busy -= 1

    def _sample(self, row: _Finished, sampling: SamplingParams) -> Sample:
        prompt, start = row.group.prompt, len(row.group.ids)
        if not all(abs(x) < float("inf") for x in row.logp):  # NaN compares false
            raise TrainingError(
                f"rollout: model '{self.model_id}' version {self.version} gave non-finite logits on prompt "
                f"'{prompt.id}'; go back to an earlier checkpoint or lower the learning rate"
            )
        stopped = row.tokens[-1] in self.stop_ids
        text = self.decode(row.tokens[:-1] if stopped else row.tokens)
        cuts = [at for s in sampling.stop if (at := text.find(s)) >= 0]
        return Sample(
            id=content_id(self.model_id, self.version, prompt.id, sampling.seed, row.index),
            prompt_id=prompt.id,
            model_id=self.model_id,
            version=self.version,
            index=row.index,
            sampling=sampling,
            tokens=(*row.group.ids, *row.tokens),
            prompt_length=start,
            mask=(False,) * start + (True,) * len(row.tokens),
            logp=(0.0,) * start + tuple(row.logp),
            finish_reason="stop" if stopped or cuts else "length",
            text=text[: min(cuts)] if cuts else text,
            group=prompt.id,
        )


def _seconds(work: Callable[[], object]) -> float:
    start = perf_counter()
    work()
    return perf_counter() - start


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients; afterwards every module has the mode it had."""
    trained = [m for m in model.modules() if m.training]
    with torch.no_grad():
        for module in trained:
            module.training = False
        try:
            yield
        finally:
            for module in trained:
                module.training = True


@dataclass(frozen=True)
class _Finished:
    group: Group
    index: int
    tokens: list[int]
    logp: list[float]


class _Session:
    """One call of generate: the slots, and what waits. Rows [0, active) decode; the rest of the slots are free."""

    def __init__(self, engine: LocalEngine, work: list[Group], sampling: SamplingParams) -> None:
        self.engine, self.sampling = engine, sampling
        self.backlog, self.active, self.reads = Backlog(work), 0, 0
        self.slots = min(engine.slots, len(self.backlog))
        self.cache = SlotCache(self.slots, max(len(g.ids) + g.limit for g in work))
        half = engine.compute_dtype
        self.model = engine.model if half is None else halved(engine.model, half)
        self.rows: list[tuple[Group, int]] = []
        self.kept: dict[int, tuple[list[tuple[Tensor, Tensor]], Tensor]] = {}
        parameter = next(engine.model.parameters())
        device, self.device = parameter.device, parameter.device
        wide = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        most = max(g.limit for g in work)
        self.stops = torch.tensor(engine.stop_ids, dtype=torch.long, device=device)
        words = engine.model.get_output_embeddings().weight.shape[0]
        self.stopping = torch.zeros(words, dtype=torch.bool, device=device)  # to look up; a search is 2 % of a step
        self.stopping[self.stops] = True
        self.last = torch.zeros(self.slots, dtype=torch.long, device=device)
        self.length = torch.zeros(self.slots, dtype=torch.long, device=device)  # tokens in the cache
        self.count = torch.zeros(self.slots, dtype=torch.long, device=device)  # tokens drawn
        self.limit = torch.zeros(self.slots, dtype=torch.long, device=device)
        self.tokens = torch.zeros(self.slots, most, dtype=torch.long, device=device)
        self.logp = torch.zeros(self.slots, most, dtype=wide, device=device)
        self.uniform = torch.zeros(self.slots, most, dtype=torch.float64, device=device)
        self.state = (self.last, self.length, self.count, self.limit, self.tokens, self.logp, self.uniform)

    def casting(self) -> AbstractContextManager[Any]:
        """Autocast, where the engine computes in another type than that of the weights."""
        half = self.engine.compute_dtype
        return nullcontext() if half is None else torch.autocast(self.device.type, dtype=half, cache_enabled=False)

    def advance(self) -> list[_Finished]:
        """Admit and decode until at least one row is finished."""
        while True:
            free = self.slots - self.active
            # A prefill costs about one step: wait until an eighth of the slots is free.
            if self.backlog and (free >= max(1, self.slots // 8) or free >= len(self.backlog)):
                done = self._admit(free)
            else:
                done = self._step()
            if done:
                return done

    def _admit(self, free: int) -> list[_Finished]:
        """Fill free slots and draw their first tokens, from the logits at the end of their prompts."""
        taken = self.backlog.take(free, PREFILL_TOKENS)
        self._prefill([group for group, _, _ in taken if group.order not in self.kept])
        start, logits = self.active, []
        for group, first, count in taken:
            recorded, ends = self.kept[group.order]
            row = self.active
            self.cache.fill(row, count, recorded)
            logits.append(ends.expand(count, -1))
            self.length[row : row + count] = len(group.ids)
            self.limit[row : row + count] = group.limit
            for index in range(first, first + count):
                drawn = uniforms(self.sampling.seed, group.prompt.id, index, group.limit)
                self.uniform[len(self.rows), : group.limit] = torch.from_numpy(drawn)
                self.rows.append((group, index))
            self.active += count
            if first + count == group.first + group.n:
                del self.kept[group.order]
        self.count[start : self.active] = 0
        self.reads = int(self.length[: self.active].max())
        return self._accept(start, torch.cat(logits))

    def _prefill(self, new: list[Group]) -> None:
        """One packed forward over the prompts; each one's keys, values and last logits are kept for its samples."""
        if not new:
            return
        ends, spans, at = [], [], 0
        for group in new:
            spans.append((0, at, at + len(group.ids)))
            at += len(group.ids)
            ends.append(at - 1)
        cache = RecordingCache()
        logits = self.model(
            input_ids=torch.tensor([[t for g in new for t in g.ids]], device=self.device),
            position_ids=torch.tensor([[p for g in new for p in range(len(g.ids))]], device=self.device),
            attention_mask=NO_MASK,
            plan=plan_of(spans, [-1] * len(new), 1, at),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=self.device),
        ).logits[0]
        for group, (_, start, end), z in zip(new, spans, logits, strict=True):
            self.kept[group.order] = (cache.cut(start, end), z)

    def _step(self) -> list[_Finished]:
        """One token for every active row."""
        a, length = self.active, self.length[: self.active]
        self.reads += 1
        self.cache.aim(length, self.reads)
        logits = self.model(
            input_ids=self.last[:a, None],
            position_ids=length[:, None],
            attention_mask=NO_MASK,
            plan=SlotPlan(length.clone(), self.reads),
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        length += 1
        return self._accept(0, logits)

    def _accept(self, start: int, logits: Tensor) -> list[_Finished]:
        """Draw a token for rows [start, active) and note it; rows that end with it are taken out."""
        part, stops = slice(start, self.active), self.stops
        count = self.count[part]
        if self.sampling.min_new_tokens and len(stops):
            early = (count < self.sampling.min_new_tokens)[:, None]
            logits = logits.clone()
            logits[:, stops] = logits[:, stops].masked_fill(early, -torch.inf)
        place = count[:, None]
        tokens, logp = draw(logits, self.uniform[part].gather(1, place)[:, 0], self.sampling)
        self.tokens[part].scatter_(1, place, tokens[:, None])
        self.logp[part].scatter_(1, place, logp[:, None].to(self.logp.dtype))
        self.last[part] = tokens
        count += 1
        done = count >= self.limit[part]
        done |= self.stopping[tokens]
        if self.sampling.stop:
            done |= self._said(start)
        return self._retire((done.nonzero()[:, 0] + start).tolist()) if bool(done.any()) else []

    def _said(self, start: int) -> Tensor:
        """bool[active-start]: rows whose text holds a stop string. Decodes every row at every token: costly."""
        said = []
        for row in range(start, self.active):
            text = self.engine.decode(self.tokens[row, : int(self.count[row])].tolist())
            said.append(any(s in text for s in self.sampling.stop))
        return torch.tensor(said, device=self.device)

    def _retire(self, ended: list[int]) -> list[_Finished]:
        """Take rows out; the last rows move into the holes, so that the active ones stay in front."""
        done = []
        for row in ended:
            n = int(self.count[row])
            done.append(_Finished(*self.rows[row], self.tokens[row, :n].tolist(), self.logp[row, :n].tolist()))
        self.active -= len(ended)
        gone = set(ended)
        holes = [row for row in ended if row < self.active]
        tails = [row for row in range(self.active, self.active + len(ended)) if row not in gone]
        for hole, tail in zip(holes, tails, strict=True):
            self.rows[hole] = self.rows[tail]
        del self.rows[self.active :]
        if holes:
            source, target = torch.tensor(tails, device=self.device), torch.tensor(holes, device=self.device)
            for x in self.state:
                x[target] = x[source]
            self.cache.move(source, target, self.reads)
        self.reads = int(self.length[: self.active].max()) if self.active else 0
        return done
