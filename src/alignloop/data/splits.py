"""Train, validation and test by prompt: no prompt, in whatever case or spacing, stands in two of them.

A prompt's place depends on its hash (`core.types.prompt_hash`) and the salt alone, so it never moves when data is
added: what was held out in one round is held out in the next. Shares are therefore met on average, not exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import Demonstration, Label, Preference, Prompt, Ranking, normalised, plain, prompt_hash

Record = Demonstration | Preference | Label | Ranking | Prompt
R = TypeVar("R", Demonstration, Preference, Label, Ranking, Prompt)

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.9, "validation": 0.05, "test": 0.05}


def split_key(record: Record) -> str:
    """The hash a record is split by: its prompt's; its text's where the prompt is empty (language modelling)."""
    prompt = prompt_of(record)
    if isinstance(record, (Demonstration, Label)) and not normalised(plain(prompt.messages)):
        return prompt_hash(record.completion.messages)
    return prompt_hash(prompt.messages)


def prompt_of(record: Record) -> Prompt:
    """The prompt of any record."""
    return record if isinstance(record, Prompt) else record.prompt


def split_by_prompt(
    records: Iterable[R], fractions: Mapping[str, float] = DEFAULT_FRACTIONS, salt: str = ""
) -> dict[str, list[R]]:
    """Records by split, in their order; the `split` of their prompts is set. Every name of `fractions` is present.

    A prompt goes where u = sha256(salt, prompt hash) / 2^64 in [0, 1) falls among the cumulated fractions. A split may
    come out empty where there are few prompts. Raises ConfigError unless the fractions are positive and add up to 1.
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        raise ConfigError(f"splits: fractions must be positive and add up to 1, got {dict(fractions)}")
    out: dict[str, list[R]] = {name: [] for name in fractions}
    for record in records:
        name = _place(_salted(split_key(record), salt) / 2**64, fractions)
        out[name].append(_marked(record, name))
    return out


def folds(records: Sequence[R], k: int, salt: str = "") -> list[tuple[list[R], list[R]]]:
    """k (train, test) pairs: every prompt is in exactly one test part, and the parts differ by at most one prompt.

    Raises DataError where there are fewer distinct prompts than folds.
    """
    if k < 2:
        raise ConfigError(f"folds: {k} folds were asked for; give 2 or more")
    keys = [split_key(r) for r in records]
    ordered = sorted(set(keys), key=lambda key: (_salted(key, salt), key))
    if len(ordered) < k:
        raise DataError(f"{len(ordered)} distinct prompts cannot be split into {k} folds")
    fold = {key: i % k for i, key in enumerate(ordered)}
    parts = []
    for i in range(k):
        train = [_marked(r, "train") for r, key in zip(records, keys) if fold[key] != i]
        parts.append((train, [_marked(r, "test") for r, key in zip(records, keys) if fold[key] == i]))
    return parts


def assert_disjoint(splits: Mapping[str, Iterable[Record]]) -> None:
    """Raise DataError naming a prompt that stands in two splits."""
    seen: dict[str, str] = {}
    for name, records in splits.items():
        for record in records:
            other = seen.setdefault(split_key(record), name)
            if other != name:
                words = prompt_of(record).text[:60]
                raise DataError(f"the prompt {words!r} stands in both {other} and {name}; split with split_by_prompt")


def _salted(key: str, salt: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{salt}\n{key}".encode()).digest()[:8], "big")


def _place(u: float, fractions: Mapping[str, float]) -> str:
    total = 0.0
    for name, share in fractions.items():
        total += share
        if u < total:
            return name
    return name


def _marked(record: R, split: str) -> R:
    if isinstance(record, Prompt):
        return replace(record, split=split)
    return replace(record, prompt=replace(record.prompt, split=split))
