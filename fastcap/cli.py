"""`fastcap`: the command line.

Each command is one function under `@command` that parses, calls the library and prints.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from torch import nn

from fastcap import __version__, locate, site_tree
from fastcap.errors import ArgumentError, FastcapError, SaveError
from fastcap.listing import SiteInfo, list_sites

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


@command
def sites(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:attribute (a module, or a function that returns one), or a local "
            "folder that transformers can load.",
        ),
    ],
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
    inputs: Annotated[
        list[str] | None,
        typer.Option(help="Key of the batch passed to the model by name; repeatable."),
    ] = None,
    depth: Annotated[
        int | None, typer.Option(min=0, help="Show names of up to this many segments.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the modules of a model whose values can be captured.

    Numbered layers that look the same are one line, such as layers.{0..31}. Quote patterns: shells
    expand braces and stars. Give MODEL before --sites, which takes several values.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what models print is no part of the list
        found = locate.load_model(model, with_weights=example is not None)
        batch = None if example is None else locate.load_example(example)
        listed = _list(found, batch, sites or ["**"], inputs)
    shown = listed if depth is None else site_tree.at_most(listed, depth)
    if json:
        typer.echo(site_tree.to_json(shown))
        return
    for line in site_tree.to_lines(shown):
        typer.echo(line)
    if len(shown) < len(listed):
        _to_stderr(f"Not shown, deeper than --depth {depth}: {len(listed) - len(shown)}.")


def _list(
    model: nn.Module, example: Any, patterns: list[str], inputs: list[str] | None
) -> Sequence[SiteInfo]:
    try:
        return list_sites(model, example, sites=patterns, inputs=inputs)
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on --example failed with {locate.in_one_line(error)}."
        ) from error


@command
def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:attribute (a module, or a function that returns one), or a local "
            "folder that transformers can load.",
        ),
    ],
    sites: Annotated[
        list[str] | None,
        typer.Option(help="What to capture: several names or patterns, in quotes."),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:attribute",
            help="The batch to run, or a function that returns one. Without it, random token ids.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of random token ids.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Random token ids of each sample.")] = 128,
    inputs: Annotated[
        list[str] | None,
        typer.Option(help="Key of the batch passed to the model by name; repeatable."),
    ] = None,
    positions: Annotated[
        str, typer.Option(help="What to take of each value: all, -1, 0:64, or 0,5,-1.")
    ] = "all",
    device: Annotated[
        str | None, typer.Option(help="Where to move the model, such as cuda.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 7,
    passes: Annotated[
        int | None, typer.Option(min=1, help="Passes of one run. By default half a second of them.")
    ] = None,
    disk: Annotated[
        Path | None, typer.Option(help="Folder whose disk is measured as a floor.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures here.")] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write the timeline here, for ui.perfetto.dev.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Measure what capturing costs on a model: without capture, with a plain hook, with fastcap.

    The ways take turns in every round; each value is compared with the oracle's. Exit status 1 if
    one differs. Give MODEL before --sites, which takes several values.
    """
    from fastcap.bench import command, page, report

    question = command.Question(
        model,
        sites or (),
        example,
        batch_size,
        tokens,
        inputs,
        positions,
        device,
        rounds,
        passes,
        disk,
    )
    with contextlib.redirect_stdout(sys.stderr):  # what models print is no part of the report
        found = command.run_bench(question, draws=html is not None, announce=_to_stderr)
    if html is not None:
        page.write(found, html)
    if trace is not None:
        found.timeline.write_trace(trace)
    typer.echo(report.as_json(found) if json else report.as_text(found))
    if not found.is_equal:
        raise typer.Exit(STATUS_ERROR)


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
    make_app()(args=spread(sys.argv[1:]))


def spread(arguments: list[str]) -> list[str]:
    """Let `--sites` take several values: shells expand `layers.{0,1}` into words of their own.

    Example:
        >>> spread(["sites", "m:model", "--sites", "a", "b", "--json"])
        ['sites', 'm:model', '--sites', 'a', '--sites', 'b', '--json']
    """
    result: list[str] = []
    is_value = is_further = False
    for argument in arguments:
        is_option = argument.startswith("-") and not is_value
        if is_further and not is_option:
            result.append("--sites")
        result.append(argument)
        is_further = not is_option and (is_value or is_further)
        is_value = is_option and argument == "--sites"
    return result
