"""`fastcap`: the command line.

Each command is one function under `@command` that parses, calls the library and prints.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from torch import nn

from fastcap import __version__, locate, planning, site_tree
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


@command
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:attribute (a module, or a function that returns one), or a local "
            "folder that transformers can load; its weights are read with --measure only.",
        ),
    ],
    sites: Annotated[
        list[str], typer.Option(help="Names or patterns of modules: several values, in quotes.")
    ],
    samples: Annotated[int, typer.Option(help="Samples of the run.")],
    example: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:attribute",
            help="A batch, or a function that returns one; not needed with --tokens.",
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per sample.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples per pass.")] = None,
    positions: Annotated[
        str | None, typer.Option(help="-1, 0,5,-1, :64, last, unpadded, or a key of the batch.")
    ] = None,
    reduce: Annotated[str | None, typer.Option(help="mean.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The dtype to deliver: bfloat16.")] = None,
    seq_dim: Annotated[int | None, typer.Option(help="The dimension of positions.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(help="Key of the batch passed to the model by name; repeatable."),
    ] = None,
    into: Annotated[str, typer.Option(help="memory, loop or archive.")] = "memory",
    folder: Annotated[Path, typer.Option(help="Where the archive would be.")] = Path(),
    device: Annotated[str | None, typer.Option(help="Where the run will be: cpu, cuda.")] = None,
    machine: Annotated[
        Path | None, typer.Option(help="What --measure --json printed, here or elsewhere.")
    ] = None,
    forward_secs: Annotated[float | None, typer.Option(help="Of one pass without hooks.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Say what a run will take before it runs: bytes, memory, time and what bounds it.

    Bytes and memory need one pass of the example, and nothing else. Times need rates: measured in a
    few seconds with --measure, or given. What is not known is said to be. Give MODEL before
    --sites, which takes several values.
    """
    with contextlib.redirect_stdout(sys.stderr), _naming_the_model():
        found = planning.plan(
            locate.moved(
                locate.load_model(model, with_weights=measure and locate.has_weights(model)),
                device,
                keeps_data=measure,
            ),
            None if example is None else locate.load_example(example),
            sites,
            n_samples=samples,
            batch_size=batch,
            n_tokens=tokens,
            positions=None if positions is None else planning.read_positions(positions),
            reduce=cast(Any, reduce),
            dtype=None if dtype is None else planning.read_dtype(dtype),
            seq_dim=seq_dim,
            inputs=inputs,
            into=cast(Any, into),
            folder=folder,
            device=device,
            machine=None if machine is None else planning.read_machine(machine),
            forward_secs=forward_secs,
            measure=measure,
        )
    typer.echo(found.to_json() if json else str(found))


def _list(
    model: nn.Module, example: Any, patterns: list[str], inputs: list[str] | None
) -> Sequence[SiteInfo]:
    with _naming_the_model():
        return list_sites(model, example, sites=patterns, inputs=inputs)


@contextlib.contextmanager
def _naming_the_model() -> Iterator[None]:
    """Errors of the model's own become one line."""
    try:
        yield
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on the example failed with {locate.in_one_line(error)}."
        ) from error


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
