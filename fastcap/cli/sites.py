"""`fastcap sites`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastcap
from fastcap.cli.command import command, to_stderr
from fastcap.cli.options import Model, ModelInputs
from fastcap.errors import ArgumentError, FastcapError
from fastcap.formatting import in_one_line

if TYPE_CHECKING:
    from torch import nn

    from fastcap.model.site_tree import SiteInfo


@command
def sites(
    model: Model,
    sites: Annotated[
        list[str] | None,
        typer.Option(help="Only modules of these names or patterns: several values, in quotes."),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:attribute",
            help="A batch, or a function that returns one: run it, and show calls, shapes, dtypes.",
        ),
    ] = None,
    model_inputs: ModelInputs = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Show names of up to this many segments.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the modules of a model whose values can be captured.

    Numbered layers that look the same are one line, such as layers.{0..31}. Quote patterns: shells
    expand braces and stars. Give MODEL before --sites, which takes several values.
    """
    from fastcap.cli import locate
    from fastcap.model import site_tree

    with contextlib.redirect_stdout(sys.stderr):  # what models print is not part of the list
        found = locate.load_model(model, with_weights=example is not None)
        batch = None if example is None else locate.load_example(example)
        listed = _list(found, batch, sites or ["**"], model_inputs)
    shown = listed if depth is None else site_tree.at_most(listed, depth)
    if json:
        typer.echo(site_tree.to_json(shown))
        return
    for line in site_tree.to_lines(shown):
        typer.echo(line)
    if len(shown) < len(listed):
        to_stderr(f"Not shown, deeper than --depth {depth}: {len(listed) - len(shown)}.")


def _list(
    model: nn.Module, example: Any, patterns: list[str], model_inputs: list[str] | None
) -> Sequence[SiteInfo]:
    try:
        return fastcap.list_sites(model, example, sites=patterns, model_inputs=model_inputs)
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on --example failed with {in_one_line(error)}."
        ) from error
