"""Training records that share words with what is evaluated on, by `core.overlap`: found here, left out by the readers.

A prompt counts without its system messages, which are often one for all; of a training record the answers count too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from alignloop.core.overlap import HeldOut
from alignloop.core.types import Demonstration, Label, Preference, Prompt, Ranking, Steps

AnyRecord = Demonstration | Preference | Label | Ranking | Steps | Prompt


def held_out(*sources: Iterable[AnyRecord]) -> HeldOut:
    """The prompts of records as texts to keep out of training, named by their first words."""
    texts = (asked(record) for record in chain(*sources))
    return HeldOut((" ".join(text.split())[:60], text) for text in texts)


def overlaps(training: Sequence[AnyRecord], held: HeldOut) -> dict[int, str]:
    """Index of each training record that shares words with a held-out text -> the name of that text."""
    held = held.among(asked(record) for record in training)
    found = ((i, held.match(asked(record), answered(record))) for i, record in enumerate(training))
    return {i: name for i, name in found if name is not None}


def asked(record: AnyRecord) -> str:
    """What a record's prompt says, without system messages."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    return "\n\n".join(m.content for m in prompt.messages if m.role != "system")


def answered(record: AnyRecord) -> list[str]:
    """The answers of a record."""
    if isinstance(record, Prompt):
        return []
    if isinstance(record, Preference):
        return [record.chosen.text, record.rejected.text]
    if isinstance(record, Ranking):
        return [answer.text for answer in record.completions]
    return ["\n".join(record.steps)] if isinstance(record, Steps) else [record.completion.text]
