"""The gold reward: what a good explanation for a ten-year-old is, computed exactly from the answer's text.

Every sentence is looked up among all that the grammar can say, so its kind and topic are known. Case, spacing and the
choice between "." and "!" do not matter; anything else that the grammar cannot say is garbled. Nothing is learned
from this reward: annotators vote by a noisy view of it, and reports show it as the truth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from alignloop.demo.world.grammar import (
    ANALOGIES,
    CHECKS,
    EASY_OPENERS,
    EXACT_OPENERS,
    EXCLAMATIONS,
    FILLERS,
    GREETINGS,
)
from alignloop.demo.world.knowledge import Topic, topic_of, topics
from alignloop.demo.world.knowledge import topic as topic_named

Kind = Literal[
    "technical",
    "simple",
    "analogy",
    "question",
    "greeting",
    "opener",
    "check",
    "exclamation",
    "filler",
    "wrong-topic",
    "garbled",
]
"""Openers ("It goes like this.") are worth nothing and cost nothing."""
PARTS = ("age_appropriateness", "engagement", "accuracy", "clarity", "interactivity")
ENOUGH_FACTS = 3
OFF_TOPIC_CAP = 0.5
"""What an answer without one true fact of its topic can earn at most for each of engagement, clarity, interactivity."""


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold reward of one answer. `parts` are 0..2 each and add up to `total`, 0..10.

    wrong_topic, garbled and repeats count sentences; `sentences` holds each sentence with its kind, in order.
    """

    total: float
    parts: Mapping[str, float] = field(hash=False)
    wrong_topic: int
    garbled: int
    repeats: int
    sentences: tuple[tuple[str, Kind], ...]

    @property
    def n(self) -> int:
        """The number of sentences."""
        return len(self.sentences)


@dataclass(frozen=True, slots=True)
class _Counts:
    """What the five parts are computed from."""

    kinds: tuple[Kind, ...]
    technical: int  # own facts, distinct
    simple: int
    analogies: int  # own analogies, distinct
    wrong: float  # sentences of other topics; a question weighs half
    repeats: int
    asked_last: bool  # an own question among the last two sentences
    checked_last: bool

    def of(self, kind: Kind) -> int:
        return self.kinds.count(kind)


def gold(topic: str, answer: str, truncated: bool = False) -> Gold:
    """The gold reward of an answer to a prompt about `topic` (a topic's name). `truncated`: it has no end token."""
    labelled = classify(topic_named(topic), answer)
    counts = _count(labelled)
    on_topic = counts.technical + counts.simple > 0
    cap = 2.0 if on_topic else OFF_TOPIC_CAP
    parts = {
        "age_appropriateness": _age(counts),
        "engagement": min(cap, _engagement(counts)),
        "accuracy": _accuracy(counts),
        "clarity": min(cap, _clarity(counts, truncated)),
        "interactivity": min(cap, _interactivity(counts)),
    }
    return Gold(
        total=sum(parts.values()),
        parts=parts,
        wrong_topic=counts.of("wrong-topic"),
        garbled=counts.of("garbled"),
        repeats=counts.repeats,
        sentences=tuple((sentence, kind) for sentence, kind, _ in labelled),
    )


def readability(judged: Gold) -> float:
    """Wrong-topic and garbled sentences of one answer; reports show the mean over answers. Lower reads better."""
    return float(judged.wrong_topic + judged.garbled)


def gold_scorer(
    prompts: Sequence[str],
    completions: Sequence[str],
    topic: Sequence[str | None] | None = None,
    truncated: Sequence[bool] | None = None,
    **columns: Any,
) -> list[float | None]:
    """The gold reward as a scorer. Topics come from the column `topic`, else from the prompt; None where unknown."""
    names = topic if topic is not None else [None] * len(prompts)
    cut = truncated if truncated is not None else [False] * len(prompts)
    scores: list[float | None] = []
    for prompt, completion, name, short in zip(prompts, completions, names, cut, strict=True):
        if name is None:
            found = topic_of(prompt)
            name = found.name if found else None
        scores.append(None if name is None else gold(name, completion, truncated=bool(short)).total)
    return scores


def split_sentences(answer: str) -> list[str]:
    """The sentences of an answer: cut at white space that follows ".", "!" or "?"."""
    return [part for part in re.split(r"(?<=[.!?])\s+", answer.strip()) if part]


def classify(topic: Topic, answer: str) -> list[tuple[str, Kind, str]]:
    """(sentence, kind, key) of each sentence, seen from `topic`; equal keys are the same sentence."""
    found: list[tuple[str, Kind, str]] = []
    for sentence in split_sentences(answer):
        key = sentence_key(sentence)
        kind, owner = _bank().get(key, ("garbled", None))
        found.append((sentence, kind if owner in (None, topic.name) else "wrong-topic", key))
    return found


def sentence_key(sentence: str) -> str:
    """What makes two sentences the same one: letter case, spacing and "!" for "." do not."""
    words = " ".join(sentence.casefold().split())
    return words[:-1] + "." if words.endswith("!") else words


@cache
def _bank() -> dict[str, tuple[Kind, str | None]]:
    """Every sentence that the grammar can say -> its kind, and the topic that it belongs to (None: any)."""
    bank: dict[str, tuple[Kind, str | None]] = {}
    for topic in topics():
        bank |= {sentence_key(s): ("technical", topic.name) for s in topic.technical}
        bank |= {sentence_key(s): ("simple", topic.name) for s in topic.simple}
        bank |= {sentence_key(s): ("question", topic.name) for s in topic.questions}
        bank |= {sentence_key(o.format(analogy=a)): ("analogy", topic.name) for a in topic.analogies for o in ANALOGIES}
    free: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("greeting", GREETINGS),
        ("opener", EASY_OPENERS + EXACT_OPENERS),
        ("check", CHECKS),
        ("exclamation", EXCLAMATIONS),
        ("filler", FILLERS),
    )
    for kind, sentences in free:
        bank |= {sentence_key(s): (kind, None) for s in sentences}
    return bank


def _count(labelled: Sequence[tuple[str, Kind, str]]) -> _Counts:
    kinds = tuple(kind for _, kind, _ in labelled)
    distinct = Counter(kind for kind, _ in {(kind, key) for _, kind, key in labelled})
    wrong = sum(0.5 if key.endswith("?") else 1.0 for _, kind, key in labelled if kind == "wrong-topic")
    return _Counts(
        kinds=kinds,
        technical=distinct["technical"],
        simple=distinct["simple"],
        analogies=_distinct_analogies(labelled),
        wrong=wrong,
        repeats=len(labelled) - len({key for _, _, key in labelled}),
        asked_last="question" in kinds[-2:],
        checked_last="check" in kinds[-2:],
    )


def _distinct_analogies(labelled: Sequence[tuple[str, Kind, str]]) -> int:
    """The same picture led in by other words is one analogy: its last three words are the same."""
    return len({tuple(key.rstrip(".").split()[-3:]) for _, kind, key in labelled if kind == "analogy"})


def _cut(value: float) -> float:
    return max(0.0, min(2.0, value))


def _accuracy(c: _Counts) -> float:
    """Three true facts are enough; each sentence of another topic costs a point."""
    return _cut(2 * min(c.technical + c.simple, ENOUGH_FACTS) / ENOUGH_FACTS - c.wrong)


def _age(c: _Counts) -> float:
    """The share of simple facts among the facts told about the topic, scaled down below `ENOUGH_FACTS` facts."""
    facts = c.technical + c.simple
    return _cut(2 * c.simple / max(facts, ENOUGH_FACTS))


def _engagement(c: _Counts) -> float:
    """A greeting first (.6), an analogy (1), a second one (.2), an exclamation (.2); too much of it costs."""
    greeted = bool(c.kinds) and c.kinds[0] == "greeting"
    earned = 0.6 * greeted + 1.0 * (c.analogies > 0) + 0.2 * (c.analogies > 1) + 0.2 * (c.of("exclamation") > 0)
    excess = max(0, c.of("greeting") - 1) + max(0, c.of("analogy") - 2) + max(0, c.of("exclamation") - 1)
    return _cut(earned - 0.4 * excess)


def _interactivity(c: _Counts) -> float:
    """Own question at the end 1.3, elsewhere .6; check at the end .7, elsewhere .3; each one over two costs .5."""
    asked = 1.3 if c.asked_last else 0.6 if c.of("question") else 0.0
    checked = 0.7 if c.checked_last else 0.3 if c.of("check") else 0.0
    return _cut(asked + checked - 0.5 * max(0, c.of("question") + c.of("check") - 2))


def _clarity(c: _Counts, truncated: bool) -> float:
    """2, less .8 for each filler, repeat and garbled sentence and for under three in all; over nine costs too."""
    n = len(c.kinds) - c.of("opener")
    mess = 0.8 * (c.of("filler") + c.repeats + c.of("garbled"))
    length = 0.8 * (n < 3) + 0.5 * (n > 9) + 0.3 * max(0, n - 9)
    return _cut(2.0 - mess - length - 1.0 * truncated)
