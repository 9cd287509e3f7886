"""The entry point: one table of commands, and one place where errors become one line.

Exit codes: 0 done, 1 a defect of alignloop (with a traceback), 2 something the user can mend, 3 waiting for people,
130 stopped with Ctrl-C.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

import typer

from alignloop import __version__
from alignloop.cli import annotate, data, demo, exchange, info, models, runs, simulate, stores, studio
from alignloop.core import allocator

app = typer.Typer(
    name="alignloop",
    help="Closes the loop of reinforcement learning from human feedback: SFT, samples, preferences, reward model, "
    "PPO and DPO, evaluation, next round.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
STOPPED = 130
COMPUTES = {"demo", "run", "train", "generate", "score", "eval", "unseen-people"}
"""Commands that train or sample: malloc is set up for them before anything is allocated."""
EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}

app.command(name="demo", rich_help_panel="Run")(demo.demo)
app.command(name="run", rich_help_panel="Run")(runs.run)
app.command(name="status", rich_help_panel="Run")(runs.status)
app.command(name="report", rich_help_panel="Run")(runs.report)
app.command(name="train", rich_help_panel="Models", context_settings=EXTRA)(models.train)
app.command(name="generate", rich_help_panel="Models")(models.generate)
app.command(name="score", rich_help_panel="Models")(models.score)
app.command(name="eval", rich_help_panel="Models")(models.evaluate)
app.command(name="unseen-people", rich_help_panel="Models", context_settings=EXTRA)(models.unseen_people)
app.command(name="studio", rich_help_panel="People")(studio.studio)
app.command(name="annotate", rich_help_panel="People")(annotate.annotate)
app.command(name="simulate", rich_help_panel="People")(simulate.simulate)
app.command(name="lineage", rich_help_panel="Records")(stores.lineage)
app.add_typer(stores.snapshot, name="snapshot", rich_help_panel="Records")
app.command(name="import", rich_help_panel="Records")(exchange.import_)
app.command(name="export", rich_help_panel="Records")(exchange.export)
app.command(name="backup", rich_help_panel="Records")(exchange.backup)
app.add_typer(exchange.db, name="db", rich_help_panel="Records")
app.add_typer(data.data, name="data", rich_help_panel="Records")
app.command(name="methods", rich_help_panel="About")(info.methods)
app.command(name="env", rich_help_panel="About")(info.env)

PACKAGE_EXTRAS = {
    **dict.fromkeys(("fastapi", "uvicorn", "multipart", "argon2", "markdown_it", "nh3", "httpx"), "web"),
    "psycopg": "postgres",
    "tensorboard": "trackers",
}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"alignloop {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_version, is_eager=True),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error (also ALIGNLOOP_DEBUG=1)."),
    no_allocator: bool = typer.Option(False, "--no-allocator", help="Leave malloc as it is (see `alignloop env`)."),
) -> None:
    """`main` reads `--debug` and `--no-allocator` before anything is parsed: they may stand anywhere in the line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit. An AlignloopError is one line on stderr and exit code 2, unless debugging."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or os.environ.get("ALIGNLOOP_DEBUG", "0") not in ("", "0")
    if "--no-allocator" in given:
        os.environ[allocator.SWITCH] = "off"
    if arguments is None and COMPUTES.intersection(given[:1]):
        allocator.restart()
    given = [a for a in given if a not in ("--debug", "--no-allocator")]
    try:
        code = app(args=given, prog_name="alignloop", standalone_mode=False)
        if code == STOPPED:  # typer turns Ctrl-C into this code by itself
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        _say("stopped. What was finished or saved is kept: start the same command again to go on.")
        sys.exit(STOPPED)
    except BrokenPipeError:  # `alignloop ... | head`: the reader has gone, and so may we
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        line = explain(error)
        if line is None or debug:
            raise
        _say(f"error: {line}")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: Exception) -> str | None:
    """The one line of an error that the user can mend, or None for a defect of alignloop."""
    from alignloop.core.errors import AlignloopError

    if isinstance(error, AlignloopError):
        return _one_line(str(error))
    if hasattr(error, "format_message"):  # usage errors of click, whichever copy of it typer brings
        context = getattr(error, "ctx", None)
        help_of = getattr(context, "command_path", "alignloop")
        return f"{_one_line(error.format_message())} (try: {help_of} --help)"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        place = f" ({error.filename})" if error.filename else ""
        return f"No space left on device{place}; free some and start the same command again: what was saved is whole"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ModuleNotFoundError):
        extra = PACKAGE_EXTRAS.get((error.name or "").split(".")[0])
        return f"this needs {error.name}: pip install 'alignloop[{extra}]'" if extra else None
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
