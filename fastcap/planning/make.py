"""`plan`: what a run will take, before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.model.forward import Forward
from fastcap.model.placement import is_meta
from fastcap.model.rows import count_rows
from fastcap.model.sites import Sites
from fastcap.planning.assemble import PlannedRun, assemble
from fastcap.planning.costs import Into
from fastcap.planning.examples import batch_like
from fastcap.planning.machine import Machine, is_positive, opened_run_device
from fastcap.planning.measure import PassSecs, measure_forward, measure_machine
from fastcap.planning.observe import observe
from fastcap.planning.plans import Plan
from fastcap.request import request_run
from fastcap.selection.per_sample import MaskOfBatch
from fastcap.spec import BATCH_SIZE, UNPADDED, Positions, Reduce, as_count


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
    batch_dim: int = 0,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    calls: str | None = None,
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
    """Predict what a run will take: bytes, memory and time.

    One pass of the example runs, in eval mode and without gradients, and nothing is captured. A
    model on the meta device is enough, and its passes take no time or memory. Training flags,
    buffers and random-number state are restored afterwards.

    Args:
        model: Any module.
        example: A batch as for `stream`. `None` for a model that is called with token ids alone,
            `n_tokens` per sample.
        sites: As for `stream`.
        n_samples: Samples in the run.
        batch_size: Samples per pass; by default that of the example, or else 32, the default of
            runs. The example is repeated or cropped to it.
        n_tokens: Tokens per sample; by default those of the example, repeated or cropped likewise.
        positions: As for `stream`.
        reduce: As for `stream`.
        dtype: The dtype to deliver.
        seq_dim: The dimension that `positions` index, counted with samples first; 1 by default.
        batch_dim: The dimension of a site's value that counts samples, such as 1 for a
            sequence-first `(sequence, batch, ...)`. It is moved to the front before anything else.
        mask: A callable that takes the batch and returns which tokens are real; by default the
            example's `attention_mask`.
        model_inputs: Keys of the example passed to the model by name besides `input_ids`.
        forward: `forward(model, batch)` replaces the model call.
        calls: `"last"`, or `"all"` for every call of a module that is called several times.
        into: `"memory"` for `extract_representations`, `"loop"` for a loop over `stream`,
            `"archive"` for `extract`.
        zero_copy: Whether slots are lent to the loop.
        folder: Where the archive would be written.
        device: Where the run will take place; by default the model's device. A model on the meta
            device is planned for an accelerator unless this is `"cpu"`. To plan for a device the
            model is not on, use a meta copy (`copy.deepcopy(model).to("meta")`).
        staging_bytes: Staging memory on the accelerator, in bytes, as passed to the run.
        pinned_bytes: Slot memory on the host, in bytes, as passed to the run.
        machine: Known rates. They take precedence over measured ones.
        forward_secs: Seconds of one pass without hooks, if known; takes precedence as well.
        measure: Whether to measure this machine's rates, and the forward pass of a model that has
            weights. This takes a few seconds.

    Returns:
        A `Plan`; print it.

    Raises:
        SiteNotFoundError: A site does not name a module of the model.
        ArgumentError, ArgumentTypeError: An argument out of range, or of the wrong type.
        SelectionError: The selection does not fit what a site produced.
        ResultError: A site whose first dimension is not the batch, unless `into="loop"`.
        ArchiveError: A dtype that archives cannot store.
        BatchError, MissingInputError, DeviceError: The model cannot be called with the example.
        SaveError: The disk was to be measured, and `folder` cannot be written.
        Exception: Whatever the model raises, unchanged.

    Examples:
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
    request = request_run(
        model,
        sites,
        device=device,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        seq_dim=seq_dim,
        batch_dim=batch_dim,
        mask=mask,
        model_inputs=model_inputs,
        forward=forward,
        calls=calls,
        zero_copy=zero_copy,
        staging_bytes=staging_bytes,
        pinned_bytes=pinned_bytes,
        may_be_meta=True,
    )
    call = request.call
    n_samples = as_count("n_samples", n_samples)
    batch_size = None if batch_size is None else as_count("batch_size", batch_size)
    n_tokens = None if n_tokens is None else as_count("n_tokens", n_tokens)
    run = PlannedRun(
        selection=request.selection,
        n_samples=n_samples,
        into=into,
        lends=zero_copy,
        keeps_all=bool(request.keeps_all),
        folder=_as_folder(folder),
        limits=request.limits,
    )
    _check(run, forward_secs, machine)
    batch = batch_like(example, _at_most(n_samples, batch_size, example), n_tokens)
    observed = observe(request, batch)
    rates, passes = machine or Machine(), PassSecs(forward_secs, None)
    with opened_run_device(call.device, device, measure) as place:
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


def _check(run: PlannedRun, forward_secs: float | None, machine: Machine | None) -> None:
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
