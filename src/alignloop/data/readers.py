"""Files into records: `load_demonstrations`, `load_preferences`, `load_labels`, `load_prompts`, `load_rankings`,
`load_steps`.

Each takes a source (`alignloop.data.sources`), finds the format (`alignloop.data.formats`), checks every row, and gives
a `Loaded`: the records and every row that was left out, with file, row, field and reason. Nothing is dropped silently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from alignloop.core.errors import ConfigError, DataError, nearest
from alignloop.core.overlap import WORDS, HeldOut
from alignloop.core.types import Completion, Demonstration, Label, Preference, Prompt, Ranking, Steps, content_id
from alignloop.data.formats import Format, Kind, Parts, Strings, find_format
from alignloop.data.overlap import held_out, overlaps
from alignloop.data.schemas import BadField, key, make_completion, make_prompt, number
from alignloop.data.sources import Row, Source, describe, read_rows

R = TypeVar("R")
OnBadRow = Literal["stop", "skip"]
Without = Source | Sequence[Source]

_COMMON = ("id", "weight")
_OWN_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "demonstrations": _COMMON,
    "preferences": (*_COMMON, "margin", "p", "group"),
    "labels": _COMMON,
    "prompts": ("id",),
    "rankings": ("id",),
    "steps": ("id",),
}


class Skipped(NamedTuple):
    """A row that was left out, and why."""

    file: str
    row: int
    field: str
    reason: str


@dataclass(frozen=True)
class Loaded(Generic[R]):
    """Records of one source, what was left out, and what deserves a note (counted)."""

    records: list[R]
    skipped: list[Skipped] = field(default_factory=list)
    source: str = ""
    kind: str = "records"
    format: str = ""
    notes: Mapping[str, int] = field(default_factory=dict)

    def report(self) -> str:
        """One line: how many, of which format, what was noted, which rows were skipped and why (the first five)."""
        parts = [f"{len(self.records):,} {self.kind} from {self.source} (format {self.format})"]
        parts += [f"{count:,} {note}" for note, count in self.notes.items()]
        if self.skipped:
            shown = ", ".join(f"row {s.row} {s.field}: {s.reason}" for s in self.skipped[:5])
            more = f", and {len(self.skipped) - 5:,} more" if len(self.skipped) > 5 else ""
            parts.append(f"{len(self.skipped):,} rows skipped ({shown}{more})")
        return "; ".join(parts)


@dataclass(frozen=True)
class _Request(Generic[R]):
    kind: Kind
    build: Callable[[Parts, Mapping[str, Any], Prompt, str], tuple[R, tuple[str, ...]]]
    format: str
    columns: Mapping[str, str]
    on_bad_row: OnBadRow
    limit: int | None
    split: str | None
    strings: Strings
    without: Without | None


def load_demonstrations(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Demonstration]:
    """Answers to imitate, from `messages`, `prompt`+`completion`, Alpaca, Dolly, ShareGPT `conversations` or `text`.

    columns: what a format calls a column -> its name in the file, as ``{"prompt": "question"}``. strings="chat" makes
    plain prompts user turns and plain answers assistant turns. limit: records to load at most. without: a source of
    prompts, or several, that are evaluated on; rows that share 13 words in a row with one are left out and listed in
    `Loaded.skipped`. Raises DataError with file, row, field and reason on a bad row, unless on_bad_row="skip" (then it
    is listed there too).
    """
    ask = _Request("demonstrations", _demonstration, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


def load_preferences(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Preference]:
    """Comparisons: `chosen`, `rejected` with or without `prompt`, HH-RLHF transcripts, Alpaca with both sides.

    Optional columns: `p` (probability that chosen is preferred; below .5 the sides are swapped, counted in the notes),
    `margin` >= 0, `weight` > 0, `id`, `group`. Equal sides are refused unless p = .5. Otherwise as
    `load_demonstrations`.
    """
    ask = _Request("preferences", _preference, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


def load_labels(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Label]:
    """Thumbs: `prompt`, `completion`, `label` (true for good). Otherwise as `load_demonstrations`."""
    ask = _Request("labels", _label, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


def load_prompts(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Prompt]:
    """Prompts, further columns in `extra`: `prompt`, `messages`, `conversations`, `instruction`, or `text`.

    A conversation that ends with a turn to be answered is the prompt as a whole; of one that ends with an answer the
    turns before the first answer are. Otherwise as `load_demonstrations`.
    """
    ask = _Request("prompts", _prompt, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


def load_rankings(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Ranking]:
    """K distinct answers in order: `prompt`, `completions`, and `tiers` (indices, best first) or dense `ranks`."""
    ask = _Request("rankings", _ranking, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


def load_steps(
    source: Source,
    *,
    format: str = "auto",
    columns: Mapping[str, str] = {},
    on_bad_row: OnBadRow = "stop",
    limit: int | None = None,
    split: str | None = None,
    strings: Strings = "text",
    without: Without | None = None,
) -> Loaded[Steps]:
    """Answers in steps (TRL's stepwise supervision): `prompt`, `completions` (the steps), `labels` (right or wrong)."""
    ask = _Request("steps", _steps, format, columns, on_bad_row, limit, split, strings, without)
    return _load(source, ask)


# The reader


def _load(source: Source, ask: _Request[R]) -> Loaded[R]:
    if ask.on_bad_row not in ("stop", "skip"):
        raise ConfigError(f"on_bad_row: '{ask.on_bad_row}' is neither stop nor skip")
    if ask.limit is not None and ask.limit < 1:
        raise ConfigError(f"limit: {ask.limit} records were asked for; give 1 or more, or leave it out")
    records: list[R] = []
    places: list[tuple[str, int]] = []
    skipped: list[Skipped] = []
    notes: Counter[str] = Counter()
    seen: set[str] = set()
    name, layout = ask.format, None

    def unreadable(error: DataError) -> None:
        skipped.append(Skipped(error.file or "", error.row or 0, "line", error.reason))

    for row in read_rows(source, split=ask.split, on_bad=unreadable if ask.on_bad_row == "skip" else None):
        try:
            values = _renamed(row, ask.columns)
            if layout is None:
                name, layout = find_format(ask.kind, ask.format, values, row.file)
            record, remarks = _record(row, values, layout, ask, seen)
        except BadField as bad:
            if layout is None and bad.field in ask.columns.values():  # the mapping is wrong, not a row
                raise DataError(bad.reason, file=row.file, field=bad.field) from None
            if ask.on_bad_row == "stop":
                raise DataError(_cured(bad), file=row.file, row=row.number, field=bad.field) from None
            skipped.append(Skipped(row.file, row.number, bad.field, bad.reason))
            continue
        records.append(record)
        places.append((row.file, row.number))
        notes.update(remarks)
        if len(records) == ask.limit:
            break
    if (held := _evaluated_on(source, ask)) is not None:
        shared = overlaps(records, held)  # type: ignore[arg-type]
        reason = f"shares {WORDS} words in a row, or all, with the held-out prompt"
        skipped += [Skipped(*places[i], "prompt", f"{reason} {name!r}") for i, name in shared.items()]
        records = [record for i, record in enumerate(records) if i not in shared]
    if not records:
        first = f" (row {skipped[0].row} {skipped[0].field}: {skipped[0].reason})" if skipped else ""
        raise DataError(f"no usable row: all {len(skipped):,} were skipped{first}", file=describe(source))
    return Loaded(records, skipped, describe(source), ask.kind, name, dict(notes))


def _evaluated_on(source: Source, ask: _Request[Any]) -> HeldOut | None:
    """The prompts of `without`; None where there are none. No source is compared with itself."""
    given = ask.without
    several = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if several and isinstance(several[0], Mapping):  # rows, not sources
        several = [given]
    found = [load_prompts(one, on_bad_row="skip").records for one in several if one is not None and one != source]
    return held_out(*found) if found else None


def _cured(bad: BadField) -> str:
    return f"{bad.reason}; mend the row, or set on_bad_row: skip to leave such rows out"


def _renamed(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """The row under the names that formats know. A column that is mapped loses its own name."""
    if not columns:
        return row.values
    for wanted, given in columns.items():
        if given not in row.values:
            hint = nearest(given, row.values)
            raise BadField(given, f"is no column of the file (columns: {{{wanted}: {given}}}), {hint}")
    values = {k: v for k, v in row.values.items() if k not in columns.values()}
    return values | {wanted: row.values[given] for wanted, given in columns.items()}


def _record(
    row: Row, values: Mapping[str, Any], layout: Format, ask: _Request[R], seen: set[str]
) -> tuple[R, tuple[str, ...]]:
    parts = layout.parse(values, ask.strings)
    own = {*layout.needs, *layout.optional, *_OWN_COLUMNS[ask.kind]}
    file = Path(row.file).name
    prompt = make_prompt(parts.prompt, file, {k: v for k, v in values.items() if k not in own})
    identity = key(values, "id")
    if identity in seen:
        raise BadField("id", f"'{identity}' was used by an earlier row; ids must be unique")
    record, remarks = ask.build(parts, values, prompt, file)
    # Same content, same id; a row that repeats an earlier one word for word is told apart by a count.
    name = identity or _unused(record.id, seen)  # type: ignore[attr-defined]
    seen.add(name)
    if name != record.id:  # type: ignore[attr-defined]
        record = _with_id(record, name)
    return record, (*parts.notes, *remarks)


def _unused(identity: str, seen: set[str]) -> str:
    count, name = 1, identity
    while name in seen:
        count += 1
        name = f"{identity}-{count}"
    return name


def _with_id(record: R, name: str) -> R:
    return replace(record, id=name)  # type: ignore[type-var]


def _weight(values: Mapping[str, Any]) -> float:
    weight = number(values, "weight", 1.0)
    if weight <= 0:
        raise BadField("weight", f"must be above 0, got {weight}; leave the row out instead")
    return weight


def _completions(parts: Parts, prompt: Prompt, file: str) -> tuple[Completion, ...]:
    return tuple(make_completion(prompt, answer, file) for answer in parts.answers)


def _demonstration(
    parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str
) -> tuple[Demonstration, tuple[str, ...]]:
    (answer,) = _completions(parts, prompt, file)
    return Demonstration(content_id("demonstration", answer.id), prompt, answer, _weight(values)), ()


def _preference(
    parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str
) -> tuple[Preference, tuple[str, ...]]:
    chosen, rejected = _completions(parts, prompt, file)
    p, margin = number(values, "p", 1.0), number(values, "margin", 0.0)
    remarks: tuple[str, ...] = ()
    if not 0 <= p <= 1:
        raise BadField("p", f"must be between 0 and 1, got {p}")
    if margin < 0:
        raise BadField("margin", f"must not be negative, got {margin}; swap chosen and rejected instead")
    if chosen.id == rejected.id and p != 0.5:
        raise BadField("chosen", "equals rejected; only a tie (p = 0.5) may have equal sides")
    if p < 0.5:
        if margin > 0:
            raise BadField("margin", f"favours chosen while p = {p} favours rejected; give one of them")
        chosen, rejected, p, remarks = rejected, chosen, 1 - p, ("with sides swapped (p < .5)",)
    identity = content_id("preference", chosen.id, rejected.id, p, margin)
    group = key(values, "group") or prompt.id
    return Preference(identity, prompt, chosen, rejected, p, margin, _weight(values), group), remarks


def _label(parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str) -> tuple[Label, tuple[str, ...]]:
    (answer,) = _completions(parts, prompt, file)
    assert parts.good is not None
    return Label(content_id("label", answer.id, parts.good), prompt, answer, parts.good, _weight(values)), ()


def _prompt(parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str) -> tuple[Prompt, tuple[str, ...]]:
    return prompt, ()


def _ranking(parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str) -> tuple[Ranking, tuple[str, ...]]:
    answers = _completions(parts, prompt, file)
    identity = content_id("ranking", [a.id for a in answers], parts.tiers)
    return Ranking(identity, prompt, answers, parts.tiers), ()


def _steps(parts: Parts, values: Mapping[str, Any], prompt: Prompt, file: str) -> tuple[Steps, tuple[str, ...]]:
    identity = content_id("steps", prompt.id, parts.steps, parts.correct)
    return Steps(identity, prompt, parts.steps, parts.correct), ()


READERS: Mapping[str, Callable[..., Loaded[Any]]] = {
    "demonstrations": load_demonstrations,
    "pairs": load_preferences,
    "labels": load_labels,
    "rankings": load_rankings,
    "steps": load_steps,
    "prompts": load_prompts,
}
"""By what methods learn from (`core.protocols.DataKind`)."""
