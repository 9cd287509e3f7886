"""Data set snapshots: immutable, hashed, and the same bytes whenever the same spec meets the same data.

A snapshot is a folder of one file a kind (`pairs.jsonl`: canonical JSON, one row a line, sorted by id, LF),
`manifest.json` (spec, aggregation, counts, hashes of the files) and a data set card. `manifest_sha256` leaves out name
and wall time. Training reads the folder and needs no store.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from alignloop import __version__
from alignloop.core.errors import StoreError
from alignloop.core.overlap import WORDS, HeldOut
from alignloop.core.types import Preference
from alignloop.store import tables as t
from alignloop.store.cards import card
from alignloop.store.ids import canonical, encoded, text_sha256
from alignloop.store.records import add_edges
from alignloop.store.row_kinds import Kind, Row
from alignloop.store.rows import Record, record_of
from alignloop.store.selection import Selection, SnapshotSpec, Tally
from alignloop.store.store import Store

__all__ = ["Difference", "Snapshot", "SnapshotSpec", "create_snapshot", "diff", "list_snapshots", "load_records"]
__all__ += ["load_rows", "load_snapshot", "read_rows", "read_snapshot", "verify"]

SCHEMA = 2
EXAMPLES = 5  # rows left out that a manifest names
MANIFEST, CARD = "manifest.json", "README.md"
_UNHASHED = ("name", "created", "alignloop", "manifest_sha256")
_LABELS = {"pairs": "chosen_id", "kto": "label", "sft": "completion_id", "ranking": "tiers", "raw": "outcome"}


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk: its folder and what its manifest says."""

    name: str
    path: Path
    manifest: dict[str, Any]
    id: str = ""

    @property
    def sha256(self) -> str:
        return str(self.manifest["manifest_sha256"])

    @property
    def n_rows(self) -> int:
        return int(self.manifest["rows"])

    @property
    def overlapping(self) -> int:
        """Training rows left out for the words that they share with held-out prompts."""
        return sum(self.manifest.get("overlap", {}).get("left_out", {}).values())

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(self.manifest["counts"])


@dataclass(frozen=True)
class Difference:
    """Row ids: only in b, only in a, in both with another label (side chosen, thumb, tiers), in both with other votes.

    Where the snapshots hold several kinds an id is written kind:id.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]
    changed: tuple[str, ...]


def create_snapshot(
    store: Store,
    name: str,
    spec: SnapshotSpec,
    folder: str | Path,
    *,
    parent: str | None = None,
    without: HeldOut | None = None,
) -> Snapshot:
    """Freeze judgements into ``folder/name`` and record them, with an edge from every judgement used.

    without: prompts of benchmarks; training rows that share 13 words in a row with one are left out. The same name,
    spec, benchmarks and data again return the snapshot that exists. Errors: StoreError if the name holds other data, if
    votes have changed since they were aggregated, or if near-duplicate prompts stand in two splits.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise StoreError(f"snapshot '{name}': use letters, digits, '.', '-' and '_' only, at most 100")
    draft = _draft_folder(Path(folder), name)
    try:
        with store.read() as session:
            selection = Selection(session, spec, without)
            before = _find(session, parent) if parent is not None else None
            known = session.scalar(select(t.Snapshot).where(t.Snapshot.name == name))
            manifest = _write_files(selection, draft) | {"parent": before.manifest_sha256 if before else None}
            manifest["overlap"] = _overlap(selection, without)
        manifest["manifest_sha256"] = manifest_sha256(manifest)
        if known is not None and known.manifest_sha256 != manifest["manifest_sha256"]:
            raise StoreError(
                f"snapshot '{name}': exists with other data, and snapshots never change; choose a new name"
            )
        manifest |= {"name": name, "created": datetime.now(UTC).isoformat(timespec="seconds"), "alignloop": __version__}
        _write(draft / CARD, card(manifest))
        _write(draft / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        snapshot = _put(draft, Path(known.path) if known is not None else Path(folder) / name, manifest)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    row_id = known.id if known is not None else _record(store, snapshot, before, list(selection.judgements))
    return Snapshot(name, snapshot.path, snapshot.manifest, row_id)


def read_snapshot(path: str | Path) -> Snapshot:
    """A snapshot's manifest, unchecked. Errors: StoreError if the folder holds none."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"snapshot {path}: no {MANIFEST} here; give the folder that create_snapshot made") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"snapshot {path}: {MANIFEST} is damaged ({error}); make the snapshot again") from None
    return Snapshot(str(manifest.get("name", path.name)), path, manifest)


def verify(path: str | Path) -> Snapshot:
    """Check that a snapshot's files are what its manifest says. Errors: StoreError naming the file that is not."""
    snapshot = read_snapshot(path)
    schema = snapshot.manifest.get("schema")
    if schema != SCHEMA:
        cure = "make it again from its votes" if isinstance(schema, int) and schema < SCHEMA else "upgrade alignloop"
        raise StoreError(f"snapshot {path}: schema {schema} is not {SCHEMA}; {cure}")
    if manifest_sha256(snapshot.manifest) != snapshot.manifest.get("manifest_sha256"):
        raise StoreError(f"snapshot {path}: {MANIFEST} was changed; make the snapshot again")
    for name, sha in snapshot.manifest["files"].items():
        file = snapshot.path / name
        if not file.exists():
            raise StoreError(f"snapshot {path}: {name} is missing; make the snapshot again")
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != sha:
                raise StoreError(f"snapshot {path}: {name} was changed; make the snapshot again")
    return snapshot


def read_rows(path: str | Path, kind: Kind | None = None) -> Iterator[Row]:
    """The rows of a verified snapshot, one at a time. kind: may be left out where the snapshot has one only."""
    snapshot = verify(path)
    kind = _the_kind(snapshot, kind)
    with (snapshot.path / f"{kind}.jsonl").open("rb") as file:  # as bytes: a text may hold U+2028
        for line in file:
            yield json.loads(line)


def load_rows(path: str | Path, kind: Kind | None = None) -> list[Row]:
    """`read_rows` as a list, votes and all."""
    return list(read_rows(path, kind))


def load_records(path: str | Path, kind: Kind | None = None) -> list[Record]:
    """The training records of a verified snapshot, sorted by id: Preference, Label, Demonstration or Ranking."""
    kind = _the_kind(read_snapshot(path), kind)
    return [record_of(kind, row) for row in read_rows(path, kind)]


def load_snapshot(path: str | Path) -> list[Preference]:
    """The comparisons of a verified snapshot, sorted by id."""
    return cast("list[Preference]", load_records(path, "pairs"))


def diff(a: str | Path, b: str | Path) -> Difference:
    """What snapshot b has, lacks and says otherwise than snapshot a."""
    old, new = _labels(a), _labels(b)
    both = sorted(old.keys() & new.keys())
    turned = {key for key in both if old[key][0] != new[key][0]}
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        relabelled=tuple(sorted(turned)),
        changed=tuple(key for key in both if old[key] != new[key] and key not in turned),
    )


def list_snapshots(store: Store) -> list[t.Snapshot]:
    """Every snapshot the store knows, oldest first."""
    with store.read() as session:
        return list(session.scalars(select(t.Snapshot).order_by(t.Snapshot.id)))


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """The hash that names a snapshot: of its manifest without name, wall time and library version."""
    return text_sha256(canonical({k: v for k, v in manifest.items() if k not in _UNHASHED}))


def _the_kind(snapshot: Snapshot, kind: Kind | None) -> Kind:
    if kind is None and len(snapshot.kinds) == 1:
        return snapshot.kinds[0]
    if kind not in snapshot.kinds:
        wanted = f"no {kind}" if kind else "several kinds"
        raise StoreError(f"snapshot {snapshot.path}: holds {wanted}; it has {', '.join(snapshot.kinds)}")
    return kind


def _labels(path: str | Path) -> dict[str, tuple[str, str]]:
    """(label, hash) of every row of a verified snapshot, by id."""
    snapshot = verify(path)
    found = {}
    for kind in snapshot.kinds:
        for row in read_rows(path, kind):
            key = row["id"] if len(snapshot.kinds) == 1 else f"{kind}:{row['id']}"
            found[key] = (canonical(row[_LABELS[kind]]), text_sha256(canonical(row)))
    return found


def _write_files(selection: Selection, folder: Path) -> dict[str, Any]:
    """Write a file a kind; returns the manifest but for its parent."""
    spec = selection.spec
    files, counts = {}, {}
    for kind in sorted(set(spec.kinds)):
        digest, tally = hashlib.sha256(), Tally(kind)
        with (folder / f"{kind}.jsonl").open("wb") as file:
            for row in selection.rows(kind):
                line = (encoded(row) + "\n").encode("utf-8")
                file.write(line)
                digest.update(line)
                tally.add(row)
            file.flush()
            os.fsync(file.fileno())
        files[f"{kind}.jsonl"], counts[kind] = digest.hexdigest(), tally.facts()
    return {
        "schema": SCHEMA,
        "spec": spec.model_dump(mode="json"),
        "sources": selection.sources,
        "rows": sum(facts["rows"] for facts in counts.values()),
        "counts": counts,
        "files": files,
    }


def _overlap(selection: Selection, without: HeldOut | None) -> dict[str, Any]:
    """What was left out for the words that it shares with held-out prompts."""
    left_out = Counter(kind for kind, _ in selection.overlaps)
    examples = [[kind, key, name] for (kind, key), name in list(selection.overlaps.items())[:EXAMPLES]]
    facts = {"words": WORDS, "left_out": dict(sorted(left_out.items())), "examples": examples}
    return facts | {"benchmarks": without.sha256 if without else None}


def _draft_folder(folder: Path, name: str) -> Path:
    """A folder of this attempt's own, beside the place where its content will stand."""
    draft = folder / f".{name}.{secrets.token_hex(4)}.tmp"
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise StoreError(
            f"snapshot {folder}: cannot make the folder ({error.strerror}); choose another place"
        ) from None
    return draft


def _put(draft: Path, path: Path, manifest: dict[str, Any]) -> Snapshot:
    """Move a whole draft to its place; a snapshot that stands there already stays, and must be the same."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(draft, path)  # one rename: nobody sees half a snapshot
    found = read_snapshot(path)
    if found.sha256 != manifest["manifest_sha256"]:
        raise StoreError(f"snapshot {path}: the folder holds other data; choose a new name or folder")
    return verify(path)


def _write(path: Path, words: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(words)
        file.flush()
        os.fsync(file.fileno())


def _find(session: Session, name: str) -> t.Snapshot:
    row = session.scalar(select(t.Snapshot).where((t.Snapshot.name == name) | (t.Snapshot.id == name)))
    if row is None:
        raise StoreError(f"snapshot '{name}': not in the store; name an existing parent")
    return row


def _record(store: Store, snapshot: Snapshot, parent: t.Snapshot | None, judgements: Sequence[str]) -> str:
    with store.write() as session:
        row = t.Snapshot(
            name=snapshot.name,
            kind=snapshot.kinds[0] if len(snapshot.kinds) == 1 else "mixed",
            spec=snapshot.manifest["spec"],
            n_rows=snapshot.n_rows,
            manifest_sha256=snapshot.sha256,
            parent_id=parent.id if parent is not None else None,
            path=str(snapshot.path),
        )
        session.add(row)
        session.flush()
        add_edges(session, [("judgement", j, "snapshot", row.id, "vote") for j in judgements])
        if parent is not None:
            add_edges(session, [("snapshot", parent.id, "snapshot", row.id, "parent")])
    return row.id
