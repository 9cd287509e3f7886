"""`alignloop demo`: the whole loop on the embedded world."""

from __future__ import annotations

from pathlib import Path

import typer

from alignloop.cli.lazy import entry


def demo(
    out: Path = typer.Option(Path("runs/demo"), "--out", "-o", help="Folder of the run and its report."),
    seed: int = typer.Option(0, "--seed", min=0, help="Every random number follows from it."),
    fast: bool = typer.Option(False, "--fast", help="A short version, at most 90 seconds on two cores."),
    audit: bool = typer.Option(False, "--audit", help="Only print 20 random pairs with their gold reward, in parts."),
) -> None:
    """Run the whole loop on the embedded tutor: base, SFT, votes, reward model, PPO and DPO, report."""
    if audit:
        pairs = entry("alignloop.demo.world", "audit")(seed=seed)
        typer.echo(entry("alignloop.demo.world", "format_audit")(pairs), nl=False)
        return
    report = entry("alignloop.demo.run", "run_demo")(out=out, seed=seed, fast=fast)
    typer.echo(f"report: {report}")
