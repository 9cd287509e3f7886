"""What the tutor can talk about: 27 topics in three disjoint splits, read from ``assets/topics.yaml``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

import yaml

from alignloop.core.errors import ConfigError, DataError, nearest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
ASSETS = Path(__file__).resolve().parent.parent / "assets"
TOPICS_FILE = ASSETS / "topics.yaml"
BASE_MODEL = ASSETS / "base"
_COUNTS = {"technical": 6, "simple": 6, "analogies": 3, "questions": 2, "asks": 2}


@dataclass(frozen=True, slots=True)
class Topic:
    """One thing to explain. Fact j of `technical` and fact j of `simple` stand at the same place of an answer."""

    name: str
    split: Split
    asks: tuple[str, ...]
    technical: tuple[str, ...]
    simple: tuple[str, ...]
    analogies: tuple[str, ...]
    questions: tuple[str, ...]


@cache
def topics() -> tuple[Topic, ...]:
    """All topics, in the order of the file."""
    return parse_topics(yaml.safe_load(TOPICS_FILE.read_text(encoding="utf-8")), str(TOPICS_FILE))


def parse_topics(rows: Sequence[Mapping[str, Any]], file: str) -> tuple[Topic, ...]:
    """Checked topics: the right number of sentences each, and no sentence that belongs to two topics."""
    found: list[Topic] = []
    owner: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row.get("split") not in SPLITS:
            raise DataError(f"must be one of {', '.join(SPLITS)}", file=file, row=number, field="split")
        parts: dict[str, tuple[str, ...]] = {}
        for name, count in _COUNTS.items():
            parts[name] = tuple(str(sentence) for sentence in row.get(name, ()))
            if len(parts[name]) != count:
                raise DataError(f"needs {count} entries, has {len(parts[name])}", file=file, row=number, field=name)
            for sentence in parts[name]:
                if owner.setdefault(sentence, str(row["name"])) != row["name"]:
                    raise DataError(f"'{sentence}' is also in '{owner[sentence]}'", file=file, row=number, field=name)
        found.append(Topic(name=str(row["name"]), split=cast(Split, row["split"]), **parts))
    return tuple(found)


def topics_of(split: Split) -> tuple[Topic, ...]:
    """The topics of one split: "train", "validation" or "test"."""
    if split not in SPLITS:
        raise ConfigError(f"split '{split}': {nearest(split, SPLITS)}")
    return tuple(topic for topic in topics() if topic.split == split)


@cache
def topic(name: str) -> Topic:
    """The topic of that name, else a ConfigError with the nearest name."""
    for found in topics():
        if found.name == name:
            return found
    raise ConfigError(f"topic '{name}': {nearest(name, [t.name for t in topics()])}")


def topic_of(prompt: str) -> Topic | None:
    """The topic that a prompt asks for: by its own phrasing, else by the longest name that it contains, else None."""
    words = _folded(prompt)
    for found in topics():
        if any(words == _folded(ask) for ask in found.asks):
            return found
    named = [t for t in topics() if re.search(rf"\b{re.escape(_folded(t.name))}\b", words)]
    return max(named, key=lambda t: len(t.name), default=None)


def _folded(words: str) -> str:
    return " ".join(words.casefold().split())
