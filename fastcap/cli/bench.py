"""`fastcap bench`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastcap.cli.command import STATUS_ERROR, command, to_stderr
from fastcap.cli.options import Device, Model, ModelInputs, SiteNames, move, parse_positions
from fastcap.errors import ArgumentError, FastcapError
from fastcap.formatting import counted, in_one_line

if TYPE_CHECKING:
    from torch import nn

    from fastcap.bench import Case


@command
def bench(
    model: Model,
    sites: SiteNames,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:attribute",
            help="The batch to run, or a function that returns one. Without it, random token ids.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of random token ids.")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="Random token ids of each sample.")] = 128,
    model_inputs: ModelInputs = None,
    positions: Annotated[
        str | None, typer.Option(help="An int, a slice a:b, or a list a,b,c. Otherwise all.")
    ] = None,
    device: Device = None,
    rounds: Annotated[int, typer.Option(min=2, help="Timed rounds.")] = 7,
    passes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Passes of one run. By default half a second of them, 2048 at most."
        ),
    ] = None,
    folder: Annotated[
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
    from fastcap.bench import charts, make_case, page, report
    from fastcap.bench.files import check_writable
    from fastcap.cli import locate

    taken = parse_positions(positions)
    if html is not None:
        charts.check_matplotlib()
    for path in filter(None, (html, trace)):
        check_writable(path)
    if folder is not None and not folder.is_dir():
        raise ArgumentError(f"--folder {str(folder)!r} is not a folder. Name one that exists.")
    with contextlib.redirect_stdout(sys.stderr):  # what models print is not part of the answer
        loaded = locate.load_model(model, with_weights=True)
        if device is not None:
            loaded = move(loaded, device)
        batch = _random_batch(loaded, batch_size, tokens) if example is None else None
        batch = locate.load_example(example) if example is not None else batch
        case = make_case(loaded, [batch], sites, positions=taken, model_inputs=model_inputs)
        _try_once(case)
        found = report.make_report(
            model, case, rounds=rounds, passes=passes, folder=folder, on_round=_show_round
        )
    typer.echo(report.as_json(found) if json else report.as_text(found))
    if html is not None:
        page.write(found, html)
    if trace is not None:
        found.timeline.write_trace(trace)
    if not found.is_equal:
        raise typer.Exit(STATUS_ERROR)


def _show_round(n_sites: int, index: int, secs: Mapping[str, float]) -> None:
    shown = ", ".join(f"{way} {elapsed:.3f} s" for way, elapsed in secs.items())
    to_stderr(f"{counted(n_sites, 'site')}, round {index + 1}: {shown}")


def _try_once(case: Case) -> None:
    from fastcap.bench.ways import check_sites_fire

    try:
        check_sites_fire(case)
    except FastcapError:
        raise
    except Exception as error:
        raise ArgumentError(
            f"Running the model on its batch failed with {in_one_line(error)}."
        ) from error


def _random_batch(model: nn.Module, batch_size: int, n_tokens: int) -> dict[str, Any]:
    import torch

    from fastcap.cli.locate import FORM
    from fastcap.cli.opening import vocabulary_size

    n_ids = vocabulary_size(model)
    if n_ids is None:
        raise ArgumentError(
            "The model does not say how many token ids it has, as models of transformers do. Give "
            f"a batch with --example {FORM}."
        )
    generator = torch.Generator().manual_seed(0)
    return {"input_ids": torch.randint(n_ids, (batch_size, n_tokens), generator=generator)}
