"""`fastcap plan`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fastcap.cli.command import command
from fastcap.cli.options import (
    BatchDim,
    Model,
    ModelInputs,
    PositionsText,
    ReduceText,
    SiteNames,
    move,
    parse_dtype,
    parse_positions,
)
from fastcap.errors import ArgumentError, FastcapError
from fastcap.formatting import in_one_line

if TYPE_CHECKING:
    from torch import nn


@command
def plan(
    model: Model,
    sites: SiteNames,
    samples: Annotated[int, typer.Option(help="Samples of the run.")],
    example: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:attribute",
            help="A batch, or a function that returns one; not needed with --tokens.",
        ),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens per sample.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples per pass; the example's, or 32.")
    ] = None,
    positions: PositionsText = None,
    reduce: ReduceText = None,
    dtype: Annotated[
        str | None, typer.Option(help="To deliver, such as float16; the model's unless given.")
    ] = None,
    seq_dim: Annotated[int | None, typer.Option(help="The dimension of positions.")] = None,
    batch_dim: BatchDim = 0,
    model_inputs: ModelInputs = None,
    into: Annotated[str, typer.Option(help="memory, loop or archive.")] = "memory",
    folder: Annotated[Path, typer.Option(help="Where the archive would be.")] = Path(),
    device: Annotated[
        str | None, typer.Option(help="Where the run will be, such as cuda; here unless given.")
    ] = None,
    machine: Annotated[
        Path | None, typer.Option(help="What --measure --json printed, here or elsewhere.")
    ] = None,
    forward_secs: Annotated[
        float | None, typer.Option(help="Seconds of one pass without hooks, if known.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure this machine, in some seconds.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print an object.")] = False,
) -> None:
    """Say what a run will take before it runs: bytes, memory, time and what bounds it.

    Bytes and memory need one pass of the example, and nothing else. Times need rates: measured with
    --measure, or given. What is not known is said to be. The weights of a folder are read with
    --measure only. Give MODEL before --sites, which takes several values.
    """
    from fastcap import planning
    from fastcap.cli import locate

    taken = parse_positions(positions), parse_dtype(dtype)
    rates = None if machine is None else planning.read_machine(machine)
    with contextlib.redirect_stdout(sys.stderr), _naming_the_model():
        loaded = locate.load_model(model, with_weights=measure and locate.has_weights(model))
        found = planning.plan(
            loaded if device is None else _placed(loaded, device, keeps_data=measure),
            None if example is None else locate.load_example(example),
            sites,
            n_samples=samples,
            batch_size=batch_size,
            n_tokens=tokens,
            positions=taken[0],
            reduce=cast(Any, reduce),
            dtype=taken[1],
            seq_dim=seq_dim,
            batch_dim=batch_dim,
            model_inputs=model_inputs,
            into=cast(Any, into),
            folder=folder,
            device=device,
            machine=rates,
            forward_secs=forward_secs,
            measure=measure,
        )
    typer.echo(found.to_json() if json else str(found))


def _placed(model: nn.Module, device: str, keeps_data: bool) -> nn.Module:
    """The model there; without data where the data would have to move and is not needed."""
    places = {tensor.device.type for tensor in model.parameters()}
    if "meta" in places or device.partition(":")[0] in places:
        return model
    return move(model, device if keeps_data else "meta")


@contextlib.contextmanager
def _naming_the_model() -> Iterator[None]:
    """Errors of the model's own become one line."""
    try:
        yield
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on the example failed with {in_one_line(error)}. Give "
            "--example a batch that it can be called with, and name its other keys with "
            "--model-inputs."
        ) from error
