"""Which rows of a training file share words with evaluation prompts: a look, for `alignloop data overlap`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignloop.data.ballots import read_ballots
from alignloop.data.overlap import asked, held_out
from alignloop.data.readers import Skipped, load_prompts


@dataclass(frozen=True)
class Leaks:
    """rows: (row of the file, first words of the evaluation prompt). read, held: rows read, prompts they were compared
    with; unreadable: rows that could not be read and so were not looked at."""

    rows: tuple[tuple[int, str], ...]
    read: int
    held: int
    unreadable: int


def leaks(source: str | Path, evaluated: Sequence[str | Path], *, columns: Mapping[str, str] | None = None) -> Leaks:
    """Every row of a file, of any format that an import reads, whose prompt or answers share 13 words in a row.

    Errors: DataError for a file of which nothing can be read.
    """
    held = held_out(*(load_prompts(file, on_bad_row="skip").records for file in evaluated))
    bad: list[Skipped] = []
    ballots = list(read_ballots(source, columns=columns or {}, on_bad=bad.append))
    held = held.among(asked(ballot.prompt) for _, ballot in ballots)
    found = ((place.row, held.match(asked(b.prompt), (a.text for a in b.answers))) for place, b in ballots)
    rows = dict.fromkeys((row, words) for row, words in found if words is not None)
    return Leaks(tuple(rows), len({place.row for place, _ in ballots}), len(held), len(bad))
