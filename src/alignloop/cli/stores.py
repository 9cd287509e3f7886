"""`alignloop lineage` and `snapshot`: what the store knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignloop.core.overlap import WORDS

if TYPE_CHECKING:
    from alignloop.store import Store

StoreOption = Annotated[str | None, typer.Option("--store", metavar="URL", help="Database (default: that of the run).")]
RunOption = Annotated[
    str | None, typer.Option("--run", help="Run folder or name (default: the model's own, or the latest).")
]
WithoutOption = Annotated[
    list[Path] | None,
    typer.Option("--without", help="Prompts of a benchmark: training rows that share 13 words in a row stay out."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="For other programs.")]
KINDS = ("prompt", "completion", "judgement", "snapshot", "run", "file")

snapshot = typer.Typer(no_args_is_help=True, help="Freeze votes into data sets that never change, and check them.")


RECORD = "A model's name, folder or id; with --forward also prompt:ID, completion:ID, judgement:ID, snapshot:NAME."


def lineage(
    name: Annotated[str, typer.Argument(metavar="MODEL", help=RECORD)],
    forward: Annotated[
        bool, typer.Option("--forward", help="What was made from it, not what it was made from.")
    ] = False,
    run: RunOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Walk from a model to the judgements behind it, or forward from any record to the models made of it."""
    from alignloop.store.lineage import descendants
    from alignloop.store.lineage import lineage as ancestors

    kind, colon, ref = name.partition(":")
    is_record = bool(colon) and kind in KINDS
    with open_store(store, run, None if is_record else name) as opened:
        if is_record:
            if not forward:
                _refuse(f"{name}: only a model has what it was made from; add --forward")
            node = descendants(opened, kind, ref)
        else:
            known = _known_as(opened, name)
            node = descendants(opened, "model", known) if forward else ancestors(opened, known)
    typer.echo(json.dumps(node.to_json(), indent=1, default=str) if as_json else node.to_text())


@snapshot.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Letters, digits, '.', '-' and '_'.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder in which the snapshot's own is made.")],
    project: Annotated[
        list[str] | None, typer.Option("--project", help="Whose judgements; may be given again.")
    ] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="YAML with the settings of a SnapshotSpec.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="pairs, kto, sft, ranking or raw; may be given again.")
    ] = None,
    use: Annotated[str | None, typer.Option("--use", help="reward, or dpo: without ties and both-bad pairs.")] = None,
    method: Annotated[str | None, typer.Option("--method", help="Method of aggregation.")] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Only prompts of this split.")] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="KIND", help="ties, disputed or both_bad; may be given again.")
    ] = None,
    parent: Annotated[str | None, typer.Option("--parent", help="The snapshot that this one follows.")] = None,
    without: WithoutOption = None,
    run: RunOption = None,
    store: StoreOption = None,
) -> None:
    """Aggregate the judgements of projects as they are now and freeze them. Options win over --spec."""
    from alignloop.core.errors import nearest
    from alignloop.pipeline.exports import freeze
    from alignloop.pipeline.recipe_file import read_recipe
    from alignloop.store.selection import SnapshotSpec

    droppable = ("ties", "disputed", "both_bad")
    for what in drop or []:
        if what not in droppable:
            _refuse(f"--drop {what}: {nearest(what, droppable)}")
    given = {"projects": project, "kinds": kind, "use": use, "method": method, "splits": split}
    values = (read_recipe(spec) if spec is not None else {}) | {k: v for k, v in given.items() if v}
    wanted = SnapshotSpec.parse({**values, **dict.fromkeys(drop or [], "drop")}, where="snapshot")
    with open_store(store, run, None) as opened:
        made = freeze(opened, name, wanted, out, parent=parent, without=without or (), actor="cli")
    typer.echo(f"{made.n_rows} rows, sha256 {made.sha256}: {made.path}")
    if made.overlapping:
        typer.echo(overlapping(made.overlapping))


@snapshot.command("list")
def list_(run: RunOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show the snapshots that a store knows, oldest first."""
    from alignloop.store.snapshots import list_snapshots

    with open_store(store, run, None) as opened:
        found = list_snapshots(opened)
    facts = [
        {"name": s.name, "kind": s.kind, "rows": s.n_rows, "sha256": s.manifest_sha256, "path": s.path} for s in found
    ]
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for s in found:
        typer.echo(f"{s.name:30} {s.kind:8} {s.n_rows:>9,}  {s.manifest_sha256[:12]}  {s.path}")


@snapshot.command("verify")
def verify(path: Annotated[Path, typer.Argument(help="A snapshot's folder.", show_default=False)]) -> None:
    """Check that a snapshot's files are what its manifest says."""
    from alignloop.store.snapshots import verify as check

    found = check(path)
    typer.echo(f"{found.name}: {found.n_rows} rows, sha256 {found.sha256}: as recorded")


@snapshot.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(help="A snapshot's folder.", show_default=False)],
    new: Annotated[Path, typer.Argument(help="Another one.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show which rows were added, removed, turned round or changed."""
    from dataclasses import asdict

    from alignloop.store.snapshots import diff as compare

    found = asdict(compare(old, new))
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for kind, ids in found.items():
        typer.echo(f"{kind:12} {len(ids):6}  {' '.join(ids[:5])}{' ...' if len(ids) > 5 else ''}")


def overlapping(n: int) -> str:
    """What to say of training rows that were left out."""
    rows = "row shares" if n == 1 else "rows share"
    return f"{n:,} training {rows} {WORDS} words in a row with a held-out prompt: left out"


def open_store(url: str | None, run: str | None, model: str | None) -> Store:
    """The store at `store_address`."""
    from alignloop.store import Store

    return Store(store_address(url, run, model))


def store_address(url: str | None, run: str | None, model: str | None = None) -> str:
    """The database given, else that of the run given, of the run in whose folder the model lies, or of the latest."""
    from alignloop.pipeline.launch import run_folder
    from alignloop.pipeline.state import read_status

    if url is not None:
        return url
    if run is None and model is not None and Path(model).exists():
        homes = [p for p in Path(model).resolve().parents if (p / "run.json").is_file()]
        run = str(homes[0]) if homes else None
    return read_status(run_folder(run)).store


def _known_as(store: Store, name: str) -> str:
    """How the store calls a model whose folder may be written in another way than when it was recorded."""
    if not Path(name).exists():
        return name
    folder = Path(name).resolve()
    for row in store.models():
        if row.path and Path(row.path).resolve() == folder:
            return str(row.id)
    return name


def _refuse(text: str) -> None:
    from alignloop.core.errors import ConfigError

    raise ConfigError(text)
