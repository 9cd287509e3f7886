"""Data set snapshots: immutable, hashed, and the same bytes whenever the same spec meets the same data.

A snapshot is a folder of `rows.jsonl` (canonical JSON, one row a line, sorted by id, LF) and `manifest.json` (spec,
aggregation, counts, hash of the rows). `manifest_sha256` leaves out name and wall time. Training reads the folder and
needs no store.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from alignloop import __version__
from alignloop.core.config import Config
from alignloop.core.errors import StoreError
from alignloop.core.types import Preference, prompt_hash
from alignloop.store import tables as t
from alignloop.store.ids import canonical, text_sha256, write_atomically
from alignloop.store.records import add_edges, messages_of
from alignloop.store.rows import preference_of, preference_rows
from alignloop.store.store import Store
from alignloop.store.votes import load_votes, project_row

SCHEMA = 1
ROWS, MANIFEST = "rows.jsonl", "manifest.json"
_UNHASHED = ("name", "created", "alignloop", "manifest_sha256")


class SnapshotSpec(Config):
    """What a snapshot holds."""

    projects: tuple[str, ...] = Field(min_length=1)
    """Projects whose votes are taken, together."""
    method: str = "ordinal"
    """Method of aggregation; the newest of each project by this method is taken, and it must be up to date."""
    splits: tuple[str, ...] = ()
    """Splits of the prompts taken; empty takes all."""
    ties: Literal["keep", "drop"] = "keep"
    """Pairs on which every vote was a tie (p = .5)."""
    disputed: Literal["keep", "drop"] = "keep"
    """Pairs whose three or more votes are split; most disagreement is taste, not noise (arXiv:2410.14632)."""
    both_bad: Literal["keep", "drop"] = "keep"
    """Pairs that most annotators called both bad: fit for a reward model, not to be learned from by DPO or SFT."""


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


@dataclass(frozen=True)
class Difference:
    """Row ids: only in b, only in a, in both with another side chosen, in both with other votes or labels."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]
    changed: tuple[str, ...]


def create_snapshot(
    store: Store, name: str, spec: SnapshotSpec, folder: str | Path, *, parent: str | None = None
) -> Snapshot:
    """Freeze votes into ``folder/name`` and record them, with an edge from every judgement used.

    The same name, spec and data again return the snapshot that exists. Errors: StoreError if the name holds other
    data, if votes have changed since they were aggregated, or if a prompt stands in two splits.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise StoreError(f"snapshot '{name}': use letters, digits, '.', '-' and '_' only, at most 100")
    path = Path(folder) / name
    with store.read() as session:
        rows, sources, judgements = _collect(session, spec)
        before = _parent(session, parent)
    _check_splits(rows)
    body = "".join(canonical(row) + "\n" for row in rows)
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "preference",
        "spec": spec.model_dump(mode="json"),
        "sources": sources,
        "rows": len(rows),
        "splits": dict(sorted(Counter(row["split"] for row in rows).items())),
        "kinds": dict(sorted(Counter(row["kind"] for row in rows).items())),
        "ties": sum(row["tie"] for row in rows),
        "votes": sum(row["n_votes"] for row in rows),
        "files": {ROWS: text_sha256(body)},
        "parent": before.manifest_sha256 if before is not None else None,
    }
    manifest["manifest_sha256"] = manifest_sha256(manifest)
    with store.read() as session:
        known = session.scalar(select(t.Snapshot).where(t.Snapshot.name == name))
    if known is not None:
        if known.manifest_sha256 != manifest["manifest_sha256"]:
            raise StoreError(
                f"snapshot '{name}': exists with other data, and snapshots never change; choose a new name"
            )
        path = Path(known.path)
    if not (path / MANIFEST).exists():
        manifest |= {"name": name, "created": datetime.now(UTC).isoformat(timespec="seconds"), "alignloop": __version__}
        _write(path, body, manifest)
    snapshot = read_snapshot(path)
    if snapshot.sha256 != manifest["manifest_sha256"]:
        raise StoreError(f"snapshot {path}: the folder holds other data; choose a new name or folder")
    row_id = known.id if known is not None else _record(store, snapshot, before, judgements)
    return Snapshot(name, path, snapshot.manifest, row_id)


def read_snapshot(path: str | Path) -> Snapshot:
    """A snapshot's manifest, unchecked. Errors: StoreError if the folder holds none."""
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"snapshot {path}: no {MANIFEST} here; give the folder that create_snapshot made") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"snapshot {path}: {MANIFEST} is damaged ({error}); make the snapshot again") from None
    return Snapshot(str(manifest.get("name", path.name)), path, manifest)


def verify(path: str | Path) -> Snapshot:
    """Check that a snapshot's files are what its manifest says. Errors: StoreError naming the file that is not."""
    snapshot = read_snapshot(path)
    if snapshot.manifest.get("schema") != SCHEMA:
        raise StoreError(
            f"snapshot {path}: schema {snapshot.manifest.get('schema')} is not {SCHEMA}; upgrade alignloop"
        )
    if manifest_sha256(snapshot.manifest) != snapshot.manifest.get("manifest_sha256"):
        raise StoreError(f"snapshot {path}: {MANIFEST} was changed; make the snapshot again")
    for name, sha in snapshot.manifest["files"].items():
        file = snapshot.path / name
        if not file.exists():
            raise StoreError(f"snapshot {path}: {name} is missing; make the snapshot again")
        if text_sha256(_text(file)) != sha:
            raise StoreError(f"snapshot {path}: {name} was changed; make the snapshot again")
    return snapshot


def load_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a verified snapshot, votes and all."""
    snapshot = verify(path)
    return [json.loads(line) for line in _text(snapshot.path / ROWS).split("\n")[:-1]]  # text may hold U+2028


def load_snapshot(path: str | Path) -> list[Preference]:
    """The training records of a verified snapshot, sorted by id."""
    return [preference_of(row) for row in load_rows(path)]


def diff(a: str | Path, b: str | Path) -> Difference:
    """What snapshot b has, lacks and says otherwise than snapshot a."""
    old, new = ({row["id"]: row for row in load_rows(path)} for path in (a, b))
    both = sorted(old.keys() & new.keys())
    turned = tuple(k for k in both if old[k]["chosen_id"] != new[k]["chosen_id"])
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        relabelled=turned,
        changed=tuple(k for k in both if old[k] != new[k] and k not in set(turned)),
    )


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """The hash that names a snapshot: of its manifest without name, wall time and library version."""
    return text_sha256(canonical({k: v for k, v in manifest.items() if k not in _UNHASHED}))


def _collect(session: Session, spec: SnapshotSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Rows by id, the aggregations they come from, and the ids of the judgements behind them."""
    rows: list[dict[str, Any]] = []
    sources: list[dict[str, Any]] = []
    judgements: list[str] = []
    for slug in spec.projects:
        project = project_row(session, slug)
        newest = (
            select(t.Aggregation)
            .where(t.Aggregation.project_id == project.id, t.Aggregation.method == spec.method)
            .order_by(t.Aggregation.id.desc())
            .limit(1)
        )
        aggregation = session.scalar(newest)
        if aggregation is None:
            raise StoreError(f"project '{slug}': not aggregated by '{spec.method}' yet; aggregate its votes first")
        kept = [row for row in preference_rows(session, project, aggregation) if _wanted(row, spec)]
        tasks = {row["id"] for row in kept}
        rows += kept
        judgements += [v.judgement_id for v in load_votes(session, project) if v.task in tasks]
        facts = ("alpha", "agreement", "position_bias", "temperature")
        sources.append(
            {
                "project": project.slug,
                "method": aggregation.method,
                "params": aggregation.params,
                "votes_sha256": aggregation.votes_sha256,
                "guideline_sha256": _guidelines(session, project.id),
                "report": {name: aggregation.report.get(name) for name in facts},
            }
        )
    return sorted(rows, key=lambda row: str(row["id"])), sources, judgements


def _wanted(row: dict[str, Any], spec: SnapshotSpec) -> bool:
    if spec.splits and row["split"] not in spec.splits:
        return False
    if spec.ties == "drop" and row["tie"]:
        return False
    if spec.disputed == "drop" and row["disputed"]:
        return False
    return not (spec.both_bad == "drop" and 2 * row["both_bad"] > row["n_votes"])


def _guidelines(session: Session, project_id: str) -> list[str]:
    query = select(t.Guideline.sha256).where(t.Guideline.project_id == project_id).order_by(t.Guideline.version)
    return list(session.scalars(query))


def _check_splits(rows: Sequence[dict[str, Any]]) -> None:
    """Refuse a prompt that stands in two splits, in other case or spacing."""
    seen: dict[str, tuple[str, str]] = {}
    for row in rows:
        split, key = seen.setdefault(prompt_hash(messages_of(row["prompt"])), (row["split"], row["prompt_id"]))
        if split != row["split"]:
            raise StoreError(
                f"prompts '{key}' ({split}) and '{row['prompt_id']}' ({row['split']}) are the same but for case or "
                "spacing; put both in one split"
            )


def _parent(session: Session, name: str | None) -> t.Snapshot | None:
    if name is None:
        return None
    row = session.scalar(select(t.Snapshot).where((t.Snapshot.name == name) | (t.Snapshot.id == name)))
    if row is None:
        raise StoreError(f"snapshot '{name}': not in the store; name an existing parent")
    return row


def _write(path: Path, body: str, manifest: dict[str, Any]) -> None:
    """Rows first, manifest last: a folder without a manifest is not a snapshot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"snapshot {path}: cannot make the folder ({error.strerror}); choose another place") from None
    write_atomically(path / ROWS, body.encode("utf-8"))
    write_atomically(path / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode("utf-8"))


def _text(file: Path) -> str:
    """A file's text with its line ends as they are."""
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise StoreError(f"{file}: is not UTF-8, so not what was written; make the snapshot again") from None


def _record(store: Store, snapshot: Snapshot, parent: t.Snapshot | None, judgements: Sequence[str]) -> str:
    with store.write() as session:
        row = t.Snapshot(
            name=snapshot.name,
            kind=snapshot.manifest["kind"],
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
