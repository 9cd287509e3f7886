"""`alignloop import`, `export`, `backup` and `db`: data into the store and out of it, and the store as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from alignloop.cli.stores import (
    JsonOption,
    RunOption,
    StoreOption,
    WithoutOption,
    open_store,
    overlapping,
    store_address,
)

if TYPE_CHECKING:
    from alignloop.pipeline.imports import Report

ACTOR = "cli"  # whoever may run commands on this machine
SHOWN = 20  # rejected rows that a report lists for people

db = typer.Typer(no_args_is_help=True, help="The database itself: copy it to another one, bring it up to date.")


def import_(
    file: Annotated[Path, typer.Argument(help="JSONL, JSON, CSV, TSV (also .gz), Parquet, or a folder of these.")],
    project: Annotated[str | None, typer.Option("--project", help="Where its tasks and votes go.")] = None,
    format: Annotated[str, typer.Option("--format", help="What its rows are; auto looks at the first.")] = "auto",
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="A column's name in the file.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Plain texts are turns of a conversation.")] = False,
    split: Annotated[
        Literal["keep", "train", "validation", "test"],
        typer.Option("--split", help="keep: the file's own, else 90/5/5 by hash."),
    ] = "keep",
    votes: Annotated[int | None, typer.Option("--votes", min=1, help="Votes wanted of each task without any.")] = None,
    max_bytes: Annotated[int | None, typer.Option("--max-bytes", min=1, help="Of the file, unpacked.")] = None,
    max_rows: Annotated[int | None, typer.Option("--max-rows", min=1, help="Of the file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every row and write nothing.")] = False,
    on_bad_row: Annotated[
        Literal["stop", "skip"], typer.Option("--on-bad-row", help="What a wrong row does: stop writes nothing at all.")
    ] = "stop",
    run: RunOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring prompts, answers or votes into the store; of one bad row, unless told otherwise, nothing is written."""
    from dataclasses import replace

    from alignloop.feedback.tasks import Overlap
    from alignloop.pipeline.imports import LIMITS, Request, check_import, import_file

    limits = replace(LIMITS, total_bytes=max_bytes or LIMITS.total_bytes, rows=max_rows or LIMITS.rows)
    request = Request(
        file,
        project,
        format,
        _mapping(column or []),
        "chat" if chat else "text",
        split,
        Overlap(votes=votes, slice=0, slice_votes=votes) if votes else Overlap(),
        limits,
    )
    with open_store(store, run, None) as opened:
        if dry_run:
            report = check_import(opened, request)
        else:
            report = import_file(opened, request, actor=ACTOR, skip_bad=on_bad_row == "skip")
    typer.echo(json.dumps(report.to_json(), indent=1) if as_json else _said(report, dry_run))


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="A new folder; a file a split is written.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; it stays in the audit log.")],
    project: Annotated[list[str] | None, typer.Option("--project", help="As it is now; may be given again.")] = None,
    snapshot: Annotated[Path | None, typer.Option("--snapshot", help="A snapshot's folder, instead.")] = None,
    kind: Annotated[str, typer.Option("--kind", help="pairs, kto, sft, ranking or raw.")] = "pairs",
    shape: Annotated[
        str | None, typer.Option("--shape", help="trl (its columns, no ties) or full (soft labels, votes, marks).")
    ] = None,
    file: Annotated[str, typer.Option("--file", help="jsonl or parquet.")] = "jsonl",
    margin: Annotated[bool, typer.Option("--margin", help="A margin column, which TRL then applies.")] = False,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only this split; may be given again.")] = None,
    use: Annotated[str, typer.Option("--use", help="reward, or dpo: without ties and both-bad pairs.")] = "reward",
    method: Annotated[str, typer.Option("--method", help="Method of aggregation.")] = "ordinal",
    without: WithoutOption = None,
    comments: Annotated[bool, typer.Option("--comments", help="With what annotators wrote (kind raw).")] = False,
    run: RunOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write judgements as data sets that TRL, `datasets` and other tools read. People appear as pseudonyms."""
    from alignloop.core.errors import ConfigError
    from alignloop.pipeline.exports import export as export_now
    from alignloop.pipeline.exports import export_frozen
    from alignloop.store.exports import TRL_COLUMNS, form_of
    from alignloop.store.selection import SnapshotSpec

    if (snapshot is None) == (not project):
        raise ConfigError("export: give either --project or --snapshot")
    if snapshot is not None and without:
        raise ConfigError("export: --without is for --project; a snapshot is written as it was frozen")
    shape = shape or ("trl" if kind in TRL_COLUMNS else "full")
    form = form_of(kind=kind, shape=shape, file=file, margin=margin, splits=tuple(split or ()))
    values: dict[str, Any] = {"projects": project or ["-"], "kinds": (kind,), "use": use, "method": method}
    spec = SnapshotSpec.parse(values | {"comments": comments}, where="export")
    if snapshot is not None and store is None and run is None:
        typer.echo("not recorded: no store was named (--store, --run)", err=True)
        done = export_frozen(None, snapshot, out, form, actor=ACTOR, reason=reason)
    else:
        with open_store(store, run, None) as opened:
            if snapshot is not None:
                done = export_frozen(opened, snapshot, out, form, actor=ACTOR, reason=reason)
            else:
                done = export_now(opened, spec, out, form, without=without or (), actor=ACTOR, reason=reason)
    if as_json:
        typer.echo(json.dumps(done.to_json(), indent=1))
        return
    for name, facts in done.files.items():
        typer.echo(f"{facts['rows']:>8,}  {done.path / name}")
    if not done.files:
        typer.echo("no rows")
    if done.overlapping:
        typer.echo(overlapping(done.overlapping))


def backup(
    to: Annotated[Path, typer.Argument(help="A new file.", show_default=False)],
    run: RunOption = None,
    store: StoreOption = None,
) -> None:
    """Copy the whole database to a file, while it is in use: SQLite as it is, PostgreSQL for `pg_restore`."""
    from alignloop.store.backup import backup as copy

    path = copy(store_address(store, run), to)
    typer.echo(f"{path.stat().st_size:,} bytes, checked: {path}")


@db.command("copy")
def copy(
    source: Annotated[str, typer.Argument(help="sqlite:///runs/tutor.db", show_default=False)],
    target: Annotated[str, typer.Argument(help="postgresql+psycopg://user@host/name, empty.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy every row into an empty database, from SQLite to PostgreSQL or back; the source stays as it is."""
    from alignloop.store import Store
    from alignloop.store.copy import copy_store
    from alignloop.store.database import require

    with Store(require(source)) as one, Store(target) as other:
        counts = copy_store(one, other)
    if as_json:
        typer.echo(json.dumps(counts, indent=1))
        return
    for name, count in counts.items():
        if count:
            typer.echo(f"{count:>9,}  {name}")
    typer.echo(f"{sum(counts.values()):>9,}  rows copied and counted")


@db.command("upgrade")
def upgrade(
    run: RunOption = None,
    store: StoreOption = None,
    keep: Annotated[
        Path | None, typer.Option("--backup", help="Where the copy goes (default: beside a SQLite file).")
    ] = None,
) -> None:
    """Bring a database to the present schema, after copying it."""
    from alignloop.store.backup import upgrade as bring

    before, after, path = bring(store_address(store, run), keep)
    kept = f"; the old one is kept: {path}" if path is not None else ""
    typer.echo(f"schema {after}: nothing to do" if before == after else f"schema {before} -> {after}{kept}")


def _mapping(pairs: list[str]) -> dict[str, str]:
    from alignloop.core.errors import ConfigError

    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--column {pair}: write NAME=COLUMN, such as prompt=question")
    return dict(pair.split("=", 1) for pair in pairs)


def _said(report: Report, dry_run: bool) -> str:
    found, written = report.found, report.written
    counts = ", ".join(f"{n:,} {name}" for name, n in found.items() if not name.startswith("split "))
    splits = ", ".join(f"{name.removeprefix('split ')} {n:,}" for name, n in found.items() if name.startswith("split "))
    lines = [f"{report.source}: {counts or 'nothing'}" + (f" ({splits})" if splits else "")]
    if not dry_run:
        lines.append("new: " + (", ".join(f"{n:,} {name}" for name, n in written.items() if n) or "nothing"))
    if report.rejected:
        lines.append(f"{len(report.rejected):,} rows {'cannot be imported' if dry_run else 'left out'}:")
        lines += [f"  row {s.row}, {s.field}: {s.reason}" for s in report.rejected[:SHOWN]]
        if len(report.rejected) > SHOWN:
            lines.append(f"  and {len(report.rejected) - SHOWN:,} more; list them all with --dry-run --json")
    return "\n".join(lines)
