"""`plan`: what a run will take, before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.model.forward import BatchCaller, Forward, count_rows, is_meta
from fastcap.model.sites import Sites, as_site_names, bind_sites
from fastcap.planning.assemble import Run, assemble
from fastcap.planning.costs import Into
from fastcap.planning.examples import BATCH_SIZE, batch_like
from fastcap.planning.machine import Machine, is_positive
from fastcap.planning.measure import PassSecs, measure_forward, measure_machine
from fastcap.planning.observe import observe
from fastcap.planning.place import opened_place
from fastcap.planning.plans import Plan
from fastcap.selection.per_sample import MaskOfBatch
from fastcap.spec import UNPADDED, Positions, Reduce, as_count, as_keeps_all, make_selection
from fastcap.transfer.budget import make_limits


def plan(
    model: nn.Module,
    example: Any,
    sites: Sites,
    *,
    n_samples: int,
    batch_size: int | None = None,
    n_tokens: int | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    calls: str = "last",
    into: Into = "memory",
    zero_copy: bool = False,
    folder: str | Path = ".",
    device: torch.device | str | int | None = None,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
    machine: Machine | None = None,
    forward_secs: float | None = None,
    measure: bool = False,
) -> Plan:
    """What a run will take: bytes, memory and time.

    One pass of the example runs, in eval mode and without gradients, and nothing is captured. A
    model on the meta device will do: its passes take no time and no memory. Training flags, buffers
    and random numbers are as before afterwards.

    Args:
        model: Any module.
        example: A batch as `stream` takes it. `None` for a model that is called with token ids
            alone, of `n_tokens` each.
        sites: As `stream` takes them.
        n_samples: Samples of the run.
        batch_size: Samples per pass; by default what the example has, and without one 32, which is
            what runs have. The example is repeated or cropped to it.
        n_tokens: Tokens per sample; by default what the example has. Likewise.
        positions: As `stream` takes them.
        reduce: Likewise.
        dtype: Likewise; the dtype to deliver.
        seq_dim: The dimension `positions` count along; 1 unless given.
        mask: A callable on the batch that says which tokens are real; by default the example's
            `attention_mask`.
        model_inputs: Keys of the example passed to the model by name beside `input_ids`.
        forward: `forward(model, batch)` replaces the call.
        calls: `"last"`, or `"all"` for every call of a module that is called several times.
        into: `"memory"` for `extract_representations`, `"loop"` for a loop over `stream`,
            `"archive"` for `extract`.
        zero_copy: Whether a loop is lent slots.
        folder: Where the archive would be.
        device: Where the run will be; by default where the model is. A model on the meta device is
            planned for an accelerator unless this is `"cpu"`; for another place than where the
            model is, plan it there (`copy.deepcopy(model).to("meta")`).
        staging_bytes: Staging memory on the accelerator, in bytes, as given to the run.
        pinned_bytes: Slot memory on the host, likewise.
        machine: Rates that are known. They go before measured ones.
        forward_secs: Seconds of one pass without hooks, if known; likewise.
        measure: Whether to measure this machine's rates, and the forward pass of a model that has
            data, which takes some seconds.

    Returns:
        A `Plan`; print it.

    Raises:
        SiteNotFoundError: A site is not a module of the model.
        ArgumentError, ArgumentTypeError: An argument out of range, or of the wrong type.
        SelectionError: The selection does not fit what a site produced.
        ResultError: Unless into a loop, a site whose first dimension is not the batch.
        ArchiveError: A dtype that files of an archive cannot hold.
        BatchError, MissingInputError, DeviceError: The model cannot be called with the example.
        SaveError: The disk was to be measured, and `folder` cannot be written.
        Whatever the model raises, unchanged.

    Example:
        >>> import torch, fastcap
        >>> with torch.device("meta"):
        ...     model = torch.nn.Sequential(
        ...         torch.nn.Embedding(32_000, 4096), *[torch.nn.Linear(4096, 4096)] * 2
        ...     )
        >>> plan = fastcap.plan(model, None, ["1", "2"], n_samples=2048, n_tokens=4096)
        >>> f"{plan.total_bytes:,}"
        '274,877,906,944'
        >>> small = fastcap.plan(
        ...     model, None, ["1", "2"], n_samples=2048, n_tokens=4096, positions=-1
        ... )
        >>> f"{small.total_bytes:,}"
        '67,108,864'
    """
    names = as_site_names(sites, model)
    if not names:
        raise ArgumentError("sites is empty: name at least one module, such as ['layers.0.mlp'].")
    n_samples = as_count("n_samples", n_samples)
    batch_size = None if batch_size is None else as_count("batch_size", batch_size)
    n_tokens = None if n_tokens is None else as_count("n_tokens", n_tokens)
    selection = make_selection(positions, reduce, dtype, seq_dim)
    run = Run(
        selection=selection,
        n_samples=n_samples,
        into=into,
        lends=zero_copy,
        keeps_all=as_keeps_all(calls),
        folder=_as_folder(folder),
        limits=make_limits(staging_bytes, pinned_bytes, zero_copy),
    )
    _check(run, forward_secs, machine)
    call = BatchCaller(model, device, model_inputs, forward, may_be_meta=True)
    batch = batch_like(example, _at_most(n_samples, batch_size, example), n_tokens)
    observed = observe(model, bind_sites(model, names), selection, mask, call, batch)
    rates, passes = machine or Machine(), PassSecs(forward_secs, None)
    with opened_place(call.device, device, measure) as place:
        if measure:
            rates = measure_machine(place.device, run.archive_folder, rates)
            if place.device is not None and forward_secs is None and not is_meta(model):
                passes = measure_forward(call, model, batch, place.device)
        # Token ids that were made up come with a mask, which a run over token ids has not.
        stored = batch["input_ids"] if example is None else batch
        return assemble(run, observed, stored, place, rates, passes)


def _at_most(n_samples: int, batch_size: int | None, example: Any) -> int | None:
    """Samples of one pass: a run with fewer than a batch has one smaller pass."""
    n_rows = batch_size or (BATCH_SIZE if example is None else count_rows(example))
    return None if n_rows is None else min(n_rows, n_samples)


def _as_folder(folder: Any) -> Path:
    try:
        return Path(folder)
    except TypeError as error:
        raise ArgumentTypeError(f"folder must be a path; got {folder!r}.") from error


def _check(run: Run, forward_secs: float | None, machine: Machine | None) -> None:
    if run.into not in ("memory", "loop", "archive"):
        raise ArgumentError(f"into must be 'memory', 'loop' or 'archive'; got {run.into!r}.")
    if run.lends and run.into != "loop":
        raise ArgumentError("zero_copy=True lends slots to a loop; it needs into='loop'.")
    if run.into != "loop" and run.keeps_all:
        raise ArgumentError(
            "calls='all' is for a loop over fastcap.stream(); results in memory and archives have "
            "the last call. Plan it with into='loop'."
        )
    if run.into == "memory" and run.selection.positions == UNPADDED:
        raise ArgumentError(
            "positions='unpadded' gives a row for each real token, and rows of a result in memory "
            "are samples. Plan it with into='loop', or select one row per sample "
            "(positions='last', reduce='mean')."
        )
    if machine is not None and not isinstance(machine, Machine):
        raise ArgumentTypeError(
            f"machine must be a fastcap.planning.Machine; got a {type(machine).__name__}."
        )
    if forward_secs is not None and not is_positive(forward_secs):
        raise ArgumentError(f"forward_secs must be a positive number; got {forward_secs!r}.")
