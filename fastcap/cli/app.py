"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from fastcap import __version__
from fastcap.cli.bench import bench
from fastcap.cli.command import spread
from fastcap.cli.demo import demo
from fastcap.cli.extract import extract
from fastcap.cli.inspect import inspect
from fastcap.cli.plan import plan
from fastcap.cli.repair import repair
from fastcap.cli.sites import sites

COMMANDS = (bench, demo, extract, inspect, plan, repair, sites)


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
    for function in COMMANDS:
        app.command()(function)
    return app


def run(arguments: list[str]) -> None:
    """Run what was typed behind `fastcap`, and exit."""
    make_app()(args=spread(arguments))
