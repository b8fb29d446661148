"""`fastcap demo`."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from fastcap.cli.command import command, to_stderr

TEXT_WIDTH = 80


@command
def demo(
    folder: Annotated[
        Path, typer.Option(help="Folder for activations, docstrings and plot.")
    ] = Path("demo-output"),
    limit: Annotated[int, typer.Option(min=3, help="Docstrings per package.")] = 150,
    seed: Annotated[int, typer.Option(help="Chooses docstrings and folds.")] = 0,
) -> None:
    """Probe every layer of a small trained text encoder, on the standard library's docstrings.

    Takes under two minutes on two cores, without network. Needs the demo extra and a checkpoint;
    if they are missing, the message has the commands that install them.
    """
    import rich.console

    from fastcap.demo import report, run_demo

    result = run_demo(
        folder, limit=limit, seed=seed, progress=sys.stderr.isatty(), announce=to_stderr
    )
    rich.console.Console(highlight=False).print("\n", report.table(result), sep="")
    for paragraph in report.sentences(result):
        typer.echo("\n" + textwrap.fill(paragraph, TEXT_WIDTH))
    typer.echo("\nWritten:")
    for path in result.files:
        typer.echo(f"  {path}")
    typer.echo("\n" + report.seconds(result))
