"""Data out of the store, with a reason that stays on record: what the command line and the studio both call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignloop.core.errors import ConfigError
from alignloop.core.overlap import HeldOut
from alignloop.data.overlap import held_out
from alignloop.data.readers import load_prompts
from alignloop.feedback import audit
from alignloop.feedback.aggregate import AggregateConfig, aggregate
from alignloop.store import Store
from alignloop.store.exports import Exported, Form, as_jsonl, export_project, export_snapshot, stream_project
from alignloop.store.selection import SnapshotSpec
from alignloop.store.snapshots import Snapshot, create_snapshot
from alignloop.store.votes import iter_votes, project_row


def freeze(
    store: Store,
    name: str,
    spec: SnapshotSpec,
    folder: str | Path,
    *,
    parent: str | None = None,
    without: Sequence[Path] = (),
    actor: str,
) -> Snapshot:
    """Aggregate the projects of a spec as they are now, make a snapshot, and put it on record.

    without: files of prompts that are evaluated on, which training rows must not share words with.
    """
    _aggregate(store, spec)
    made = create_snapshot(store, name, spec, folder, parent=parent, without=benchmarks(without))
    after = {"rows": made.n_rows, "sha256": made.sha256, "projects": list(spec.projects)}
    audit.record(store, actor=actor, action="snapshot", object_type="snapshot", object_id=name, after=after)
    return made


def export(
    store: Store,
    spec: SnapshotSpec,
    out: str | Path,
    form: Form,
    *,
    without: Sequence[Path] = (),
    actor: str,
    reason: str,
) -> Exported:
    """Write what a spec selects, as the store is now. The log says who asked for what and why, and what left.

    Errors: ConfigError without a reason, StoreError as `store.exports.export_project`.
    """
    _check_reason(reason)
    if form.kind == "pairs":
        _aggregate(store, spec)
    where = ",".join(spec.projects)
    announce = _announce(store, actor, "project", where, reason)
    done = export_project(store, spec, out, form, announce, without=benchmarks(without))
    _finished(store, actor, "project", where, done)
    return done


def export_frozen(
    store: Store | None, path: str | Path, out: str | Path, form: Form, *, actor: str, reason: str
) -> Exported:
    """Write the rows of a snapshot. Without its store there is no log to write to, only the snapshot's folder."""
    _check_reason(reason)
    name = Path(path).name
    announce = _announce(store, actor, "snapshot", name, reason) if store is not None else lambda about: None
    done = export_snapshot(path, out, form, announce)
    if store is not None:
        _finished(store, actor, "snapshot", name, done)
    return done


def download(store: Store, spec: SnapshotSpec, form: Form, *, actor: str, reason: str) -> Iterator[bytes]:
    """The lines of a JSONL export, for a page to pass on; it is on record before the first."""
    _check_reason(reason)
    if form.kind == "pairs":
        _aggregate(store, spec)
    _announce(store, actor, "project", ",".join(spec.projects), reason)({"spec": spec.model_dump(mode="json")})
    return as_jsonl(stream_project(store, spec, form))


def benchmarks(files: Sequence[Path]) -> HeldOut | None:
    """The prompts of files, None for no file. Errors: DataError for a file without a prompt that can be read."""
    return held_out(*(load_prompts(file, on_bad_row="skip").records for file in files)) if files else None


def _aggregate(store: Store, spec: SnapshotSpec) -> None:
    """Bring the aggregations of projects that have comparisons up to date."""
    if "pairs" not in spec.kinds:
        return
    config = AggregateConfig.parse({"method": spec.method}, where="snapshot")
    for slug in spec.projects:
        with store.read() as session:
            compared = next(iter_votes(session, project_row(session, slug)), None) is not None
        if compared:
            aggregate(store, slug, config)


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise ConfigError("export: say why, with --reason; it stays in the audit log")


def _announce(store: Store, actor: str, what: str, name: str, reason: str) -> Callable[[Mapping[str, Any]], None]:
    def announce(about: Mapping[str, Any]) -> None:
        asked = dict(about)
        audit.record(
            store, actor=actor, action="export", object_type=what, object_id=name[:200], after=asked, reason=reason
        )

    return announce


def _finished(store: Store, actor: str, what: str, name: str, done: Exported) -> None:
    audit.record(store, actor=actor, action="export.done", object_type=what, object_id=name[:200], after=done.to_json())
