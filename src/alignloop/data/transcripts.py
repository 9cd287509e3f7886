r"""HH-RLHF transcripts: ``"\n\nHuman: ... \n\nAssistant: ..."`` as messages.

Bai et al. 2022, arXiv:2204.05862; the files of github.com/anthropics/hh-rlhf. Two rules that the files do not state:

1. An ``Assistant:`` marker that directly follows an assistant turn (and ``Human:`` a human one) does not open a turn:
   it was written by the model as part of its answer. The turn goes on, the marker stays in its text. Chat templates
   that insist on alternating roles accept the result, and the answer that people judged is kept whole.
2. The prompt is the longest common beginning of both transcripts after which both go on with an assistant turn. In
   nearly every row that leaves one assistant turn a side. Rows whose texts differ before the last ``Assistant:`` marker
   (5 of the 2,312 of harmless-base/test) are kept under these rules and counted as `differs_early`.
"""

from __future__ import annotations

import re

from alignloop.core.types import Message
from alignloop.data.schemas import BadField, Turns, shared_prompt

_MARKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_LAST = "\n\nAssistant:"


def is_transcript(value: object) -> bool:
    """True for a text that begins with a Human turn and holds an Assistant turn."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and _LAST in value


def parse_transcript(transcript: str, field: str) -> Turns:
    """The turns of a transcript, stripped of surrounding white space. Empty turns are refused."""
    found = list(_MARKER.finditer(transcript))
    if not found or transcript[: found[0].start()].strip():
        raise BadField(field, "is no transcript: it must begin with '\\n\\nHuman:'")
    turns: list[tuple[str, str]] = []
    for i, marker in enumerate(found):
        end = found[i + 1].start() if i + 1 < len(found) else len(transcript)
        role, words = _ROLES[marker[1]], transcript[marker.end() : end]
        if turns and turns[-1][0] == role:
            turns[-1] = (role, turns[-1][1] + marker[0] + words)
        else:
            turns.append((role, words))
    for role, words in turns:
        if not words.strip():
            raise BadField(field, f"the {role} turn is empty")
    return tuple(Message(role, words.strip()) for role, words in turns)


def parse_pair(chosen: str, rejected: str) -> tuple[Turns, Turns, Turns, bool]:
    """(prompt, chosen answer, rejected answer, differs_early) of two transcripts."""
    early = chosen.rpartition(_LAST)[0] != rejected.rpartition(_LAST)[0]
    turns = parse_transcript(chosen, "chosen"), parse_transcript(rejected, "rejected")
    for field, conversation in zip(("chosen", "rejected"), turns):
        if conversation[-1].role != "assistant":
            raise BadField(field, "ends with a human turn; the last turn must be the assistant's")
    if turns[0] == turns[1]:
        raise BadField("chosen", "equals rejected")
    return *shared_prompt(*turns, "chosen"), early
