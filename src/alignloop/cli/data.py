"""`alignloop data`: one kind of feedback as another, and what training data shares with evaluation."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from alignloop.core.overlap import WORDS

SHOWN = 20  # rows that are listed for people

data = typer.Typer(no_args_is_help=True, help="Turn one kind of feedback into another; find leaks.")


@data.callback()
def _data() -> None:
    """Turn one kind of feedback into another; find leaks."""


@data.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A file of rows.", show_default=False)],
    to: Annotated[str, typer.Option("--to", help="labels, pairs or demonstrations; margins (with --grade).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of JSON lines; it must not exist.")],
    given: Annotated[
        str | None, typer.Option("--from", help="pairs, rankings or labels (default: what the columns say).")
    ] = None,
    grade: Annotated[str, typer.Option("--grade", help="The column of grades that margins come from.")] = "grade",
    table: Annotated[
        Literal["small", "large"], typer.Option("--margins", help="Llama 2's margins: up to 1, or up to 3.")
    ] = "small",
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="A column's name in the file.")
    ] = None,
    on_bad_row: Annotated[
        Literal["stop", "skip"], typer.Option("--on-bad-row", help="What a wrong row does.")
    ] = "stop",
) -> None:
    """Pairs to labels (KTO), rankings to pairs, labels to pairs, any of them to demonstrations, grades to margins."""
    from alignloop.core.errors import ConfigError
    from alignloop.data import export

    if out.exists():
        raise ConfigError(f"{out} exists; nothing is overwritten, choose another --out")
    read: dict[str, Any] = {"on_bad_row": on_bad_row, "columns": dict(_mapped(text) for text in column or [])}
    if to == "margins":
        if given is not None:
            raise ConfigError(f"--from {given}: margins are read off pairs, leave --from out")
        records, loaded = export.grade(source, grade, table, **read)
    else:
        records, loaded = export.convert(source, to, given, **read)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.writelines(export.lines(records))
    typer.echo(f"{loaded.report()}; {len(records)} {to}: {out}")


@data.command("overlap")
def overlap(
    source: Annotated[Path, typer.Argument(help="A file that is trained on.", show_default=False)],
    held: Annotated[list[Path], typer.Option("--with", help="Prompts that are evaluated on; may be given again.")],
    column: Annotated[
        list[str] | None, typer.Option("--column", metavar="NAME=COLUMN", help="A column's name in the training file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For other programs; lists every row.")] = False,
) -> None:
    """Find training rows that share 13 words in a row with an evaluation prompt. Exit code 1 if there are any."""
    from alignloop.data.leaks import leaks

    columns = dict(_mapped(text) for text in column or [])
    found = leaks(source, held, columns=columns)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        for row, words in found.rows[:SHOWN]:
            typer.echo(f"row {row}: {words}")
        if len(found.rows) > SHOWN:
            typer.echo(f"and {len(found.rows) - SHOWN:,} more; list them all with --json")
        typer.echo(
            f"{len(found.rows):,} of {found.read:,} rows share {WORDS} words in a row with one of {found.held:,} "
            f"prompts{'; leave them out with without: in the data of a recipe' if found.rows else ''}"
        )
        if found.unreadable:
            typer.echo(f"{found.unreadable:,} rows could not be read and were not looked at")
    raise typer.Exit(1 if found.rows else 0)


def _mapped(text: str) -> tuple[str, str]:
    from alignloop.core.errors import ConfigError

    name, equals, column = text.partition("=")
    if not (name and equals and column):
        raise ConfigError(f"--column {text}: write it NAME=COLUMN, as in --column prompt=question")
    return name, column
