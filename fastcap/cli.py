"""`fastcap`: the command line.

Each command is one function under `@command` that parses, calls the library and prints.
"""

from __future__ import annotations

import functools
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastcap import __version__
from fastcap.errors import FastcapError, SaveError

try:
    import rich.console
    import typer
except ImportError as error:
    missing: str | None = error.name
else:
    missing = None

TEXT_WIDTH = 80
STATUS_ERROR = 1
STATUS_INTERRUPTED = 130  # 128 + SIGINT, as shells count

commands: list[Callable[..., None]] = []


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a subcommand, whose errors are one message and whose Ctrl-C is quiet."""

    @functools.wraps(function)
    def run(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except FastcapError as error:
            # An OSError's text begins with its number, which says nothing to a reader.
            text = (isinstance(error, SaveError) and error.strerror) or str(error)
            typer.echo(f"fastcap: {text}", err=True)
            raise typer.Exit(STATUS_ERROR) from None
        except KeyboardInterrupt:
            raise typer.Exit(STATUS_INTERRUPTED) from None

    commands.append(run)
    return run


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for activations, docstrings and plot.")] = Path(
        "demo-output"
    ),
    limit: Annotated[int, typer.Option(min=3, help="Docstrings per package.")] = 150,
    seed: Annotated[int, typer.Option(help="Chooses docstrings and folds.")] = 0,
) -> None:
    """Probe every layer of a small trained text encoder, on the standard library's docstrings.

    Takes under two minutes on two cores, without network. Needs the demo extra and a checkpoint;
    if they are missing, the message has the commands that install them.
    """
    from fastcap.demo import report, run_demo

    result = run_demo(
        out, limit=limit, seed=seed, progress=sys.stderr.isatty(), announce=_to_stderr
    )
    rich.console.Console(highlight=False).print("\n", report.table(result), sep="")
    for paragraph in report.sentences(result):
        typer.echo("\n" + textwrap.fill(paragraph, TEXT_WIDTH))
    typer.echo("\nWritten:")
    for path in result.files:
        typer.echo(f"  {path}")
    typer.echo("\n" + report.seconds(result))


def _to_stderr(line: str) -> None:
    typer.echo(line, err=True)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"fastcap {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Exact activation capture for PyTorch models."""


def make_app() -> typer.Typer:
    """The command line with every command."""
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(_root)
    for function in commands:
        app.command()(function)
    return app


def main() -> None:
    """What the `fastcap` script runs."""
    if missing is not None:
        sys.exit(f"fastcap: needs {missing}. Install it with: pip install 'torch-fastcap[cli]'")
    make_app()()
