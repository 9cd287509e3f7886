"""Data sets out of the store as files that other tools read: JSONL or Parquet, a file a split, one row in memory.

Shape `trl` has the columns that TRL's trainers know and no others, so that `datasets.load_dataset(folder)` goes into a
trainer untouched; ties are left out, and `margin` comes only when asked for, since TRL applies it unasked. Shape `full`
has the rows of snapshots: soft labels, votes by pseudonym, marks, where each row comes from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from alignloop.core.errors import StoreError, nearest
from alignloop.core.overlap import HeldOut
from alignloop.store.ids import encoded
from alignloop.store.row_kinds import ROWS, Kind, Row
from alignloop.store.rows import FREE
from alignloop.store.selection import Selection, SnapshotSpec
from alignloop.store.snapshots import read_rows, read_snapshot
from alignloop.store.store import Store

if TYPE_CHECKING:
    import pyarrow

Announce = Callable[[Mapping[str, Any]], None]
BATCH = 1000  # rows of a Parquet row group
TRL_COLUMNS: dict[Kind, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "kto": ("prompt", "completion", "label"),
    "sft": ("prompt", "completion"),
}


@dataclass(frozen=True)
class Form:
    """How rows are written. margin: a `margin` column in shape trl. splits: only these; empty takes all."""

    kind: Kind = "pairs"
    shape: Literal["trl", "full"] = "trl"
    file: Literal["jsonl", "parquet"] = "jsonl"
    margin: bool = False
    splits: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.shape == "trl" and self.kind not in TRL_COLUMNS:
            raise StoreError(f"export of {self.kind}: TRL has no such data set; choose the shape full")
        if self.margin and (self.shape, self.kind) != ("trl", "pairs"):
            raise StoreError("export: a margin column belongs to pairs of shape trl; rows of shape full have it anyway")


def form_of(**words: Any) -> Form:
    """A form from words that somebody typed. Errors: StoreError with the nearest word."""
    known = {"kind": tuple(ROWS), "shape": ("trl", "full"), "file": ("jsonl", "parquet")}
    for name, choices in known.items():
        if words.get(name, choices[0]) not in choices:
            raise StoreError(f"export: {name} '{words[name]}': {nearest(words[name], choices)}")
    return Form(**words)


@dataclass(frozen=True)
class Exported:
    """What an export wrote: rows and hash of each file, by name. overlapping: rows left out, as `Selection` says."""

    path: Path
    rows: int
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    overlapping: int = 0

    def to_json(self) -> dict[str, Any]:
        """What an audit log keeps."""
        files = {name: dict(facts) for name, facts in self.files.items()}
        return {"path": str(self.path), "rows": self.rows, "files": files, "overlapping": self.overlapping}


def export_project(
    store: Store,
    spec: SnapshotSpec,
    out: str | Path,
    form: Form,
    announce: Announce = lambda about: None,
    *,
    without: HeldOut | None = None,
) -> Exported:
    """Write what a spec selects, as the store is now, into a new folder.

    without: prompts of benchmarks, which training rows must not share words with (`create_snapshot`).
    announce: told what is asked for before the first row is read, so that a log knows of an export that was cut off.
    Errors: StoreError if the folder holds something, or as `create_snapshot`.
    """
    announce({"spec": spec.model_dump(mode="json"), **asdict(form), "path": str(out)})
    with store.read() as session:
        selection = Selection(session, spec.model_copy(update={"kinds": (form.kind,)}), without)
        done = _write(_formed(selection.rows(form.kind), form), Path(out), form)
    return replace(done, overlapping=len(selection.overlaps))


def export_snapshot(path: str | Path, out: str | Path, form: Form, announce: Announce = lambda about: None) -> Exported:
    """Write the rows of a snapshot, verified first, into a new folder."""
    snapshot = read_snapshot(path)
    announce({"snapshot": snapshot.name, "sha256": snapshot.sha256, **asdict(form), "path": str(out)})
    return _write(_formed(read_rows(path, form.kind), form), Path(out), form)


def stream_project(store: Store, spec: SnapshotSpec, form: Form) -> Iterator[tuple[str, Row]]:
    """(split, row as it is written) of what a spec selects; the transaction lasts until the stream is closed."""
    with store.read() as session:
        selection = Selection(session, spec.model_copy(update={"kinds": (form.kind,)}))
        yield from _formed(selection.rows(form.kind), form)


def as_jsonl(rows: Iterable[tuple[str, Row]]) -> Iterator[bytes]:
    """Rows as lines of JSON, for a download."""
    for _, row in rows:
        yield (encoded(row) + "\n").encode("utf-8")


# Shapes


def _formed(rows: Iterable[Row], form: Form) -> Iterator[tuple[str, Row]]:
    to_trl = _ToTrl(form)
    for row in rows:
        if form.splits and row["split"] not in form.splits:
            continue
        made = row if form.shape == "full" else to_trl(row)
        if made is not None:
            yield row["split"], made


class _ToTrl:
    """Rows as TRL's trainers want them. Whether prompts are texts or messages is decided by the first row."""

    def __init__(self, form: Form) -> None:
        self.kind, self.margin, self.plain = form.kind, form.margin, None if form.shape == "trl" else False

    def __call__(self, row: Row) -> Row | None:
        if row.get("tie"):
            return None
        plain = all(m["role"] == "text" for m in row["prompt"])
        if self.plain is None:
            self.plain = plain
        if self.plain and not plain:
            raise StoreError(
                f"{self.kind} row '{row['id']}': is a conversation, and the rows before it are plain texts, which TRL "
                "cannot mix; export the projects one by one"
            )
        made = {name: self._value(name, row[name]) for name in TRL_COLUMNS[self.kind]}
        return made | {"margin": row["margin"]} if self.margin else made

    def _value(self, name: str, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        if self.plain:
            return "".join(m["content"] for m in value)
        role = "user" if name == "prompt" else "assistant"
        return [{"role": role if m["role"] == "text" else m["role"], "content": m["content"]} for m in value]


# Files


def _write(rows: Iterable[tuple[str, Row]], out: Path, form: Form) -> Exported:
    """A file a split (one for raw, which is no training data), each whole or not there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"export {out}: cannot make the folder ({error.strerror}); choose another place") from None
    if any(out.iterdir()):
        raise StoreError(f"export {out}: the folder is not empty, and nothing is overwritten; choose a new one")
    writers: dict[str, _Jsonl | _Parquet] = {}
    try:
        for split, row in rows:
            name = f"{'raw' if form.kind == 'raw' else split}.{form.file}"
            if name not in writers:
                columns = None if form.file == "jsonl" else schema_of(form, isinstance(row["prompt"], str))
                writers[name] = _Jsonl(out / name) if columns is None else _Parquet(out / name, columns)
            writers[name].add(row)
        hashes = {name: writer.finish() for name, writer in sorted(writers.items())}
    except BaseException:
        for writer in writers.values():
            writer.abandon()
        raise
    files = {name: {"rows": writers[name].rows, "sha256": sha} for name, sha in hashes.items()}
    return Exported(out, sum(writer.rows for writer in writers.values()), files)


class _Jsonl:
    """Canonical lines into a draft that gets its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft, self.rows = path, path.with_name(path.name + ".tmp"), 0
        self.file: IO[bytes] = self.draft.open("wb")

    def add(self, row: Row) -> None:
        self.file.write((encoded(row) + "\n").encode("utf-8"))
        self.rows += 1

    def finish(self) -> str:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return _name(self.draft, self.path)

    def abandon(self) -> None:
        self.file.close()
        self.draft.unlink(missing_ok=True)


class _Parquet:
    """Row groups of a thousand rows under a fixed schema; free-form objects (`extra`, `ratings`) become JSON texts."""

    def __init__(self, path: Path, columns: pyarrow.Schema) -> None:
        import pyarrow.parquet

        self.path, self.draft, self.rows = path, path.with_name(path.name + ".tmp"), 0
        self.schema = columns
        self.writer = pyarrow.parquet.ParquetWriter(self.draft, self.schema, compression="zstd")
        self.batch: list[Row] = []

    def add(self, row: Row) -> None:
        self.batch.append(row | {name: encoded(row[name]) for name in FREE if isinstance(row.get(name), dict)})
        self.rows += 1
        if len(self.batch) == BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self.writer.write_table(pyarrow.Table.from_pylist(self.batch, schema=self.schema))
        self.batch.clear()

    def finish(self) -> str:
        self._flush()
        self.writer.close()
        return _name(self.draft, self.path)

    def abandon(self) -> None:
        self.writer.close()
        self.draft.unlink(missing_ok=True)


def _name(draft: Path, path: Path) -> str:
    """Give a finished draft its name; returns its hash."""
    with draft.open("rb") as file:
        sha = hashlib.file_digest(file, "sha256").hexdigest()
    os.replace(draft, path)
    return sha


def schema_of(form: Form, plain: bool = False) -> pyarrow.Schema:
    """The columns of a Parquet file of this form. plain: shape trl of texts, not messages."""
    import pyarrow as pa

    word, number, truth, whole = pa.string(), pa.float64(), pa.bool_(), pa.int64()
    messages = pa.list_(pa.struct({"role": word, "content": word}))
    tiers = pa.list_(pa.list_(whole))
    named = {"id": word, "messages": messages, "author": word, "sample_id": word, "ended": truth}
    mark = {"criterion": word, "scale": word, "slot": whole, "value": whole}
    base = {"id": word, "prompt_id": word, "prompt": messages, "source": word, "split": word, "extra": word}
    answer = {"completion": messages, "completion_id": word, "author": word, "ended": truth, "n_votes": whole}
    side = {"": messages, "_id": word, "_author": word, "_sample": word, "_ended": truth}
    vote = {"a": word, "s": whole, "side": word, "ms": whole}
    full: dict[Kind, dict[str, Any]] = {
        "pairs": base
        | {f"{name}{part}": kind for name in ("chosen", "rejected") for part, kind in side.items()}
        | dict.fromkeys(("p", "margin", "weight", "strength"), number)
        | dict.fromkeys(("n_votes", "both_bad", "both_good"), whole)
        | dict.fromkeys(("tie", "disputed", "adjudicated"), truth)
        | dict.fromkeys(("group_id", "origin", "kind", "ratings"), word)
        | {"votes": pa.list_(pa.struct(vote))},
        "kto": base | answer | {"label": truth, "weight": number, "kind": word},
        "sft": base | answer | {"origin": word, "kind": word},
        "ranking": base
        | {"completions": pa.list_(messages), "completion_ids": pa.list_(word), "authors": pa.list_(word)}
        | {"tiers": tiers, "n_votes": whole, "kind": word}
        | {"votes": pa.list_(pa.struct({"a": word, "tiers": tiers, "ms": whole}))},
        "raw": base
        | dict.fromkeys(("project", "task", "judgement", "supersedes", "outcome", "annotator", "annotator_kind"), word)
        | dict.fromkeys(("skip_reason", "comment", "ui", "app_version", "guideline_sha256"), word)
        | dict.fromkeys(("revision", "strength", "active_ms", "wall_ms", "n_focus_loss", "at"), whole)
        | dict.fromkeys(("thumb", "both_bad", "both_good"), truth)
        | {"p": number}
        | {"completions": pa.list_(pa.struct(named)), "rewrite": pa.struct(named | {"of": word})}
        | {"ranking": tiers, "shown_order": pa.list_(whole), "ratings": pa.list_(pa.struct(mark))},
    }
    columns = full[form.kind]
    if form.shape == "full":
        return pa.schema(columns)
    asked = (*TRL_COLUMNS[form.kind], "margin") if form.margin else TRL_COLUMNS[form.kind]
    return pa.schema({name: word if plain and columns[name] == messages else columns[name] for name in asked})
