"""`fastcap extract`."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastcap
from fastcap.cli.command import command
from fastcap.cli.inspect import summarise
from fastcap.cli.options import (
    BatchDim,
    Device,
    Model,
    ModelInputs,
    PositionsText,
    ReduceText,
    SiteNames,
    move,
    parse_dtype,
    parse_positions,
)
from fastcap.errors import ArgumentError
from fastcap.formatting import format_bytes

if TYPE_CHECKING:
    from torch import nn

    from fastcap.archive.reader import Archive


@command
def extract(
    model: Model,
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH|package.module:attribute",
            help="Token ids (.npy, or raw .bin), texts (.txt, .jsonl), or a dataset of your own.",
        ),
    ],
    sites: SiteNames,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="The archive, new or to go on with.")],
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="For texts; MODEL unless given.")
    ] = None,
    text_key: Annotated[str, typer.Option(help="Key of the text or chat in a .jsonl.")] = "text",
    columns: Annotated[
        list[str] | None,
        typer.Option(help="Key of the samples stored beside the activations; repeatable."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Where to cut texts.")] = None,
    padding_side: Annotated[str, typer.Option(help="right or left, for texts.")] = "right",
    context_length: Annotated[
        int | None, typer.Option(help="Tokens per sample, of one long row of token ids.")
    ] = None,
    token_dtype: Annotated[
        str | None, typer.Option(help="uint16 or uint32, of raw token ids.")
    ] = None,
    positions: PositionsText = None,
    reduce: ReduceText = None,
    batch_dim: BatchDim = 0,
    dtype: Annotated[
        str | None, typer.Option(help="To store, such as float16; the model's unless given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per pass.")] = 32,
    max_samples: Annotated[int | None, typer.Option(help="Where to stop.")] = None,
    device: Device = None,
    model_inputs: ModelInputs = None,
    check: Annotated[
        str,
        typer.Option(help="values or fingerprint: what of an archive that is there is compared."),
    ] = "values",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an archive of another run.")
    ] = False,
    num_workers: Annotated[int, typer.Option(help="Processes that load the data.")] = 0,
    rank: Annotated[int, typer.Option(envvar="RANK", help="Which process this is.")] = 0,
    world_size: Annotated[
        int, typer.Option(envvar="WORLD_SIZE", help="How many share the work.")
    ] = 1,
    group_bytes: Annotated[
        int | None, typer.Option(help="Bytes per commit: what a crash can cost.")
    ] = None,
) -> None:
    """Run a dataset through a model, and write what its sites produce to an archive.

    The same command goes on where an earlier one was stopped, once the first batch that is there
    has come out the same again. Ctrl-C, SIGTERM and SIGUSR1 stop a
    run after the pass under way, with what is complete saved (exit codes 130, 143 and 138). Give
    MODEL before --sites, which takes several values, and quote patterns.
    """
    from fastcap.cli import locate
    from fastcap.cli.opening import open_dataset, vocabulary_size
    from fastcap.devices.accelerator import own_device

    taken = parse_positions(positions), parse_dtype(dtype)
    if device is not None:
        device = own_device(device, os.environ.get("LOCAL_RANK", ""))
    if world_size > 1:  # RANK and WORLD_SIZE may be left over from something else
        place = "" if device is None else f" on {device}"
        typer.echo(
            f"Process {rank} of {world_size}{place}: extracts its share of the samples, not all. "
            "--rank and --world-size, or RANK and WORLD_SIZE of the environment, say so.",
            err=True,
        )
    with contextlib.redirect_stdout(sys.stderr):  # what models print is not part of the answer
        loaded = locate.load_model(model, with_weights=True)
        if device is not None:
            loaded = move(loaded, device)
        texts = _Texts(model, tokenizer, text_key, columns or [], max_tokens, padding_side)
        dataset = open_dataset(
            data,
            text_key=text_key,
            columns=columns or (),
            context_length=context_length,
            token_dtype=token_dtype,
            vocabulary_size=vocabulary_size(loaded),
        )
        collate_fn, own_inputs = texts.collator(loaded, dataset)
        archive = fastcap.extract(
            loaded,
            dataset,
            sites,
            folder,
            device=device,
            batch_size=batch_size,
            max_samples=max_samples,
            positions=taken[0],
            reduce=reduce,  # type: ignore[arg-type]
            dtype=taken[1],
            batch_dim=batch_dim,
            model_inputs=[*own_inputs, *(model_inputs or [])],
            columns=columns or (),
            check=check,
            overwrite=overwrite,
            num_workers=num_workers,
            collate_fn=collate_fn,
            progress=True,
            rank=rank,
            world_size=world_size,
            group_bytes=group_bytes,
        )
    _tell(archive)


def _tell(archive: Archive) -> None:
    found = summarise(archive, None)
    of_all = "" if found["n_expected"] is None else f" of {found['n_expected']}"
    n_sites = len(archive.sites)
    typer.echo(
        f"{found['path']} has {found['n_samples']}{of_all} samples of {n_sites} "
        f"site{'' if n_sites == 1 else 's'}: {format_bytes(found['bytes'])}."
    )
    typer.echo(f"To look at it: fastcap inspect {shlex.quote(found['path'])}")


@dataclass(frozen=True)
class _Texts:
    """How texts become batches, where the data is texts."""

    model_name: str
    tokenizer: str | None
    text_key: str
    columns: list[str]
    max_tokens: int | None
    padding_side: str

    def collator(
        self, model: nn.Module, dataset: Any
    ) -> tuple[Callable[[list[Any]], Any] | None, list[str]]:
        """The `collate_fn` for a dataset, and the model's inputs that it makes."""
        from fastcap.datasets import ColumnCollator, LineFile
        from fastcap.huggingface import Collator

        if not isinstance(dataset, LineFile) and self.tokenizer is None:
            self._refuse_options()
            return None, []
        collator = Collator(
            model,
            self._load_tokenizer(),
            max_tokens=self.max_tokens,
            padding_side=self.padding_side,
        )
        if not isinstance(dataset, LineFile) and not isinstance(dataset[0], Mapping):
            return collator, collator.model_inputs
        labelled = ColumnCollator(collator, text_key=self.text_key, columns=self.columns)
        return labelled, collator.model_inputs

    def _load_tokenizer(self) -> Any:
        from fastcap.huggingface.loading import load_tokenizer

        name = self.tokenizer
        if name is None:
            if not Path(self.model_name).is_dir():
                raise ArgumentError(
                    "Texts need a tokenizer, and MODEL is not a folder that could have one. Give "
                    "--tokenizer DIR, or token ids."
                )
            name = self.model_name
        return load_tokenizer(name, local_files_only=True)

    def _refuse_options(self) -> None:
        for option, is_given in (
            ("--max-tokens", self.max_tokens is not None),
            ("--padding-side", self.padding_side != "right"),
        ):
            if is_given:
                raise ArgumentError(
                    f"{option} is for texts: give --tokenizer DIR where --data is a dataset of "
                    "texts, or leave it out."
                )
