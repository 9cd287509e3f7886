"""Prompts of `stories.yaml`: the first tokens of real TinyStories, split into train, validation and test by story.

Many stories open alike ("Once upon a time, there was a"): most of the held-out stories begin as some training story
does. `unseen` are the test stories that do not.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer

from alignloop.core.errors import ConfigError, DataError
from alignloop.core.types import Prompt, text

Split = Literal["train", "validation", "test", "unseen"]

TEST, VALIDATION = 256, 128
"""Stories held out; all others are for training."""


def prompts(stories: str, tokenizer: str, split: Split, tokens: int = 8, distinct: bool = False) -> list[Prompt]:
    """The first `tokens` tokens of every story of a split, as plain text, in an order that the stories' hashes fix.

    stories: a file of JSON lines with `id` and `text`; tokenizer: a model's folder. A prompt's id names its story, so
    that stories which open alike stay apart; with `distinct` every opening comes once. Raises ConfigError for a split
    that there is not, DataError without stories enough.
    """
    splits = split_stories(read_stories(Path(stories)))
    chosen = "test" if split == "unseen" else split
    if chosen not in splits:
        raise ConfigError(f"prompts.split: '{split}' is none of {', '.join(splits)}, unseen")
    encode = AutoTokenizer.from_pretrained(tokenizer)
    found = [_prompt(row, encode, tokens, split) for row in splits[chosen]]
    if distinct:
        found = list({p.text: p for p in reversed(found)}.values())[::-1]
    if split != "unseen":
        return found
    known = {_prompt(row, encode, tokens, split).text for row in (*splits["train"], *splits["validation"])}
    return [p for p in found if p.text not in known]


def read_stories(path: Path) -> list[dict[str, Any]]:
    """Rows with `id` and `text`."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise DataError("no such file; set ALIGNLOOP_DATA to the data folder", file=str(path)) from None


def split_stories(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Stories in the order of their hashes: test first, then validation, then training."""
    if len(rows) < 2 * (TEST + VALIDATION):
        raise DataError(f"{len(rows)} stories are too few to hold out {TEST + VALIDATION}")
    ordered = sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    return {
        "test": ordered[:TEST],
        "validation": ordered[TEST : TEST + VALIDATION],
        "train": ordered[TEST + VALIDATION :],
    }


def _prompt(row: dict[str, Any], tokenizer: Any, tokens: int, split: str) -> Prompt:
    ids = tokenizer(row["text"][: 16 * tokens], add_special_tokens=False)["input_ids"][:tokens]
    return Prompt(f"story-{row['id']}", text(tokenizer.decode(ids)), "tinystories", split, {"story": row["id"]})
