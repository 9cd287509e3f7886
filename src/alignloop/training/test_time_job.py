"""Test-time preference optimisation of a file of prompts. All that is asked and scored is kept, piece by piece.

    answers.jsonl       the best answer to each prompt, a demonstration with its score, its round and what it cost
    traces.jsonl        every round of every prompt: the pair, the critique, the instructions, the candidates
    metrics.jsonl       one line for each depth, from 0
    depth-1/rollouts/   what was drawn, as shards (rollout/shards.py), each with a note of how much: answers/ (plain
                        draws), or critiques/, instructions/ and revisions/
    depth-1/scores/     the scores of the answers in them

Called again after a kill, it asks only for what is missing and ends with the same bytes. Processes share the pieces.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from alignloop.algorithms import best_of_n, test_time_po
from alignloop.core.errors import ConfigError, TrainingError
from alignloop.core.files import write_json, write_lines
from alignloop.core.tracking import JsonlTracker
from alignloop.core.types import Prompt, Sample, content_id
from alignloop.data.export import row_of
from alignloop.rollout.asked import LocalAsked
from alignloop.rollout.openai import OpenAIEngine
from alignloop.rollout.shards import ShardWriter, read_shard
from alignloop.training.build import score_function
from alignloop.training.criticism import Texts
from alignloop.training.drawing import Answer, Drawer, named
from alignloop.training.engines import model_key, open_engine
from alignloop.training.pieces import begin
from alignloop.training.procedures import Outcome
from alignloop.training.settings import TrainSettings
from alignloop.training.test_time import (
    ANSWERS,
    CRITIQUES,
    INSTRUCTIONS,
    REVISIONS,
    Candidate,
    Direct,
    Round,
    Scored,
    Search,
    fits,
    longest,
    search,
    text_for,
)
from alignloop.training.validation import check_prompts

if TYPE_CHECKING:
    from alignloop.training.train import Inputs

log = logging.getLogger(__name__)

ASKED = (ANSWERS, CRITIQUES, INSTRUCTIONS, REVISIONS)


def improve_all(settings: TrainSettings, inputs: Inputs, folder: Path, *, show: bool = True) -> Outcome:
    """The best answer to each prompt after D rounds, in answers.jsonl; nothing is trained."""
    run = _Run(settings, inputs, folder)
    run.begin()
    for k in range(run.world.rank, len(run.pieces), run.world.size):
        run.searches(k)
        log.info("test_time_po: piece %d of %d has its answers", k + 1, len(run.pieces))
    run.world.barrier()
    found = [s for k in range(len(run.pieces)) for s in run.searches(k)]
    depths = range(run.cfg.depth + 1)
    written = accumulate(run.tokens(depth) for depth in depths)
    lines = [_metrics(found, depth, tokens, run.cfg) for depth, tokens in zip(depths, written)]
    ties = best_of_n.ties_of(run.cfg.seed)
    path = folder / "answers.jsonl"
    if run.world.rank == 0:
        write_lines(folder / "traces.jsonl", map(_trace, found))
        write_lines(path, (_row(s, s.best(ties)) for s in found if s.cache()))
        tracker = JsonlTracker(folder / "metrics.jsonl", -1)
        for depth, line in enumerate(lines):
            tracker.log(depth, line)
        tracker.close()
    run.world.barrier()
    reasons = Counter(s.stopped for s in found if s.stopped)
    return Outcome(path, 0, lines[-1], notes={"stopped": dict(reasons), "asked": run.asked, "templates": run.texts.id})


class _Run:
    """The prompts in pieces, and what asks and scores for them: opened when something is missing."""

    def __init__(self, settings: TrainSettings, inputs: Inputs, folder: Path) -> None:
        self.cfg: test_time_po.Config = settings.method
        c = self.cfg
        model = settings.model.model_copy(update={"dtype": c.dtype, "device": c.device})
        self.settings, self.inputs, self.folder = replace(settings, model=model), inputs, folder
        self.texts = Texts.load(c.templates)
        self.drawer = Drawer(c, self.settings, inputs, c.seed)
        self.world = self.drawer.world
        self.pieces = self.drawer.pieces
        given = {name for name in ("dtype", "device") if name not in c.engine.model_fields_set}
        self.named = c.engine.model_copy(update={name: getattr(c, name) for name in given})
        self.asked = model_key(self.named, inputs.model)

    @cached_property
    def engine(self) -> LocalAsked | OpenAIEngine:
        return open_engine(self.named, self.inputs.model, append_eos=self.settings.model.append_eos)

    @cached_property
    def direct(self) -> Direct:
        chat = self.engine.chat if isinstance(self.engine, LocalAsked) else None
        reward = score_function(self.inputs.reward, self.settings, chat, "reward")
        second = self.inputs.eval_reward
        gold = None if second is None else score_function(second, self.settings, chat, "eval_reward")
        return Direct(self.engine, self.cfg, reward, gold)

    def begin(self) -> None:
        """Refuse a folder of other work, and prompts or texts for which the model has no room; before any compute.

        How a server is spoken to (retries, timeout, ...) may change between two attempts.
        """
        own = self.cfg.model_dump(exclude={"engine"}), self.named.dtype, self.named.device, self.asked, self.texts.id
        key = content_id(*own, self.inputs.describe(), self.drawer.reward_id)
        begin(self.folder, key, self.world, self._check_room)

    def _check_room(self) -> None:
        """DataError for a prompt without room for an answer; ConfigError where the texts alone leave too little."""
        engine, c = self.engine, self.cfg
        if not isinstance(engine, LocalAsked):
            return
        check_prompts(self.drawer.prompts, engine.chat, engine.engine.context)
        empty = dict.fromkeys(("chosen", "rejected", "critique", "instructions"), "")
        shortest = min(self.drawer.prompts, key=lambda p: len(p.text))
        for what in (CRITIQUES, INSTRUCTIONS, REVISIONS) if c.depth and c.mode != "bon" else ():
            text = text_for(what, c)
            if not fits(engine, self.texts.prompt(text, shortest, **empty), longest(what, c)):
                raise ConfigError(
                    f"test_time_po: the model's context of {engine.engine.context} tokens has no room for the text "
                    f"'{text}' and a reply of {longest(what, c)}; lower max_critique_length and max_completion_length, "
                    "shorten the text (templates), or name an engine with a longer context"
                )

    def searches(self, k: int) -> list[Search]:
        """The searches of a piece; asked for where nothing is kept."""
        return search(self.pieces[k], _Kept(self, k), self.cfg, self.texts)

    def tokens(self, depth: int) -> int:
        """Tokens that the model wrote at one depth."""
        notes = [n for what in ASKED for n in self.folder.glob(f"depth-{depth}/rollouts/{what}/[0-9]*.json")]
        return sum(json.loads(note.read_text(encoding="utf-8"))["tokens"] for note in notes)


@dataclass(frozen=True)
class _Kept:
    """`Means` of one piece of prompts: what was told before is read; what is missing is asked for, and kept."""

    run: _Run
    k: int

    def ask(self, what: str, depth: int, prompts: Sequence[Prompt], n: int, limit: int) -> dict[str, list[Sample]]:
        place = self.run.folder / f"depth-{depth}" / "rollouts" / what
        note, shard = place / f"{self.k:05d}.json", place / f"rollouts-{self.k:05d}.jsonl"
        if not note.exists() or (json.loads(note.read_text(encoding="utf-8"))["samples"] and not shard.exists()):
            written = self.run.engine.usage.completion_tokens
            found = self.run.direct.ask(what, depth, prompts, n, limit)
            samples = [s for replies in found.values() for s in replies]
            written = self.run.engine.usage.completion_tokens - written
            write_json(note, {"samples": len(samples), "tokens": written, "left_out": len(prompts) - len(found)})
            if samples:
                ShardWriter(place).write(samples, self.k)
            if len(found) < len(prompts):
                said = (depth, len(prompts) - len(found), len(prompts), what)
                log.warning("test_time_po, depth %d: no room in the model's context for %d of %d %s; their prompts "
                            "keep their best answer so far", *said)  # fmt: skip
        replies: dict[str, list[Sample]] = {}
        for sample in read_shard(shard) if shard.exists() else ():
            replies.setdefault(sample.prompt_id, []).append(sample)
        return replies

    def score(self, depth: int, prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[Scored]:
        file = self.run.folder / f"depth-{depth}" / "scores" / f"{self.k:05d}.json"
        if not file.exists():
            write_json(file, self.run.direct.score(depth, prompts, samples))
        return [(value, gold) for value, gold in json.loads(file.read_text(encoding="utf-8"))]


# What is told of a run


def _metrics(searches: Sequence[Search], depth: int, tokens: int, cfg: test_time_po.Config) -> dict[str, float]:
    """One line: the caches as they are after round `depth`, and what that round added. tokens: written until then."""
    answered = [s for s in searches if s.cache(0)]
    if not answered:
        raise TrainingError("test_time_po: the reward could score no answer; nothing can be chosen")
    ties = best_of_n.ties_of(cfg.seed)
    chosen = [s.best(ties, depth) for s in answered]
    spent = [r for s in searches for r in s.rounds if r.depth <= depth]
    rounds = [r for r in spent if r.depth == depth]
    added = [[c.score for c in r.candidates] for r in rounds if r.candidates]
    replies = sum(len(r.candidates) + r.unparsed + r.blank + r.unscorable for r in rounds)
    return {
        "depth": float(depth),
        "reward/best": fmean(c.score for c in chosen),
        **({"reward/mean": fmean(map(fmean, added)), "reward/worst": fmean(map(min, added))} if added else {}),
        **_gold(chosen, rounds),
        "improved": fmean(c.score > max(x.score for x in s.cache(0)) for s, c in zip(answered, chosen)),
        "distinct_candidates": fmean(len({c.text for c in s.cache(depth)}) for s in answered),
        "parse_failures": float(sum(r.unparsed for r in rounds)),
        "blank": float(sum(r.blank for r in rounds)),
        "unscorable": float(sum(r.unscorable for r in rounds)),
        "completions/clipped_ratio": sum(r.cut for r in rounds) / replies if replies else 0.0,
        "stopped": fmean(s.stopped_at is not None and s.stopped_at <= depth for s in searches),
        "unanswered": float(len(searches) - len(answered)),
        "calls": sum(r.calls for r in spent) / len(searches),
        "tokens": tokens / len(searches),
    }


def _gold(chosen: Sequence[Candidate], rounds: Sequence[Round]) -> dict[str, float]:
    """What the second reward says, of what the first one chooses and of what the round added."""
    best = [c.gold for c in chosen if c.gold is not None]
    added = [[c.gold for c in r.candidates if c.gold is not None] for r in rounds]
    means = [fmean(row) for row in added if row]
    return named("gold/best", fmean(best) if best else None) | named("gold/mean", fmean(means) if means else None)


def _row(one: Search, answer: Candidate) -> dict[str, Any]:
    """The best answer as a row of demonstrations, with what it was chosen from and what it cost."""
    return {
        **row_of(Answer(one.prompt, answer.sample, answer.score, 0).demonstration()),
        "prompt_id": one.prompt.id,
        "score": answer.score,
        **({} if answer.gold is None else {"gold": answer.gold}),
        "depth": answer.depth,
        "scores": [[c.score for c in r.candidates] for r in one.rounds],
        "calls": sum(r.calls for r in one.rounds),
        "parse_failures": sum(r.unparsed for r in one.rounds),
        "stopped": one.stopped,
    }


def _trace(one: Search) -> dict[str, Any]:
    """Every round of a prompt, in words."""
    rounds = [
        {
            "depth": r.depth,
            "chosen": r.chosen.text if r.chosen else None,
            "rejected": r.rejected.text if r.rejected else None,
            "critique": r.critique,
            "instructions": r.instructions,
            "candidates": [{"text": c.text, "score": c.score, "gold": c.gold} for c in r.candidates],
            "calls": r.calls,
            "parse_failures": r.unparsed,
            "blank": r.blank,
            "unscorable": r.unscorable,
        }
        for r in one.rounds
    ]
    return {"id": one.prompt.id, "prompt": one.prompt.text, "stopped": one.stopped, "rounds": rounds}
