"""`extract_representations`: from a dataset to one tensor per site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastcap.consumers.memory import MemoryResult
from fastcap.consumers.out import check_out
from fastcap.devices import open_device
from fastcap.errors import ArgumentError
from fastcap.formatting import counted
from fastcap.model.early_stop import StopAfter
from fastcap.model.forward import Forward, evaluation_mode
from fastcap.model.sites import Sites, either_name
from fastcap.progress import Progress, open_progress
from fastcap.request import request_run
from fastcap.selection.per_sample import MaskOfBatch
from fastcap.spec import BATCH_SIZE, UNPADDED, Positions, Reduce, as_count
from fastcap.streaming import Stream
from fastcap.warn import warn

if TYPE_CHECKING:
    from fastcap.batching.collation import Batched

PREFETCH = 1


def extract_representations(
    model: nn.Module,
    dataset: Any,
    layers: Sites | None = None,
    device: torch.device | str | int | None = None,
    batch_size: int = BATCH_SIZE,
    max_samples: int | None = None,
    *,
    sites: Sites | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    stop_after_last_site: StopAfter = False,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
    progress: Progress = False,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    check_memory: bool = True,
    out: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Run a dataset through the model and collect the values of its sites.

    The model runs in eval mode under `no_grad`. Every module's training flag is restored
    afterwards, even on an error.

    Args:
        model: Any module, on `device`.
        dataset: A map-style or iterable dataset, or a list, of dicts with `"input_ids"`; or a dict
            of columns, such as a tokenizer returns, whose rows are the samples. A
            `DataLoader` is run as it is: its batches, workers and `collate_fn`; if it shuffles,
            rows are in the order in which it gives samples, with a warning.
        layers: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or module
            objects of the model; see `docs/concepts.md`.
        device: Where batches are moved; by default the device of the model's parameters.
        batch_size: Samples per pass.
        max_samples: Stop after this many samples. The last batch runs whole and is cropped
            afterwards, so values do not depend on it.
        sites: Another name for `layers`; give one of them.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`;
            `"last"` for the last real token of each sample; or the batch key that holds positions,
            `(batch,)` or `(batch, n_positions)`. What is not selected is never copied.
        reduce: A callable applied to the selected tensor on its own device, before the copy; or
            `"mean"` over the real tokens of each sample, accumulated in float32 (float64 for
            float64).
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension that `positions` index, counted with samples first; 1 by default.
        batch_dim: The dimension of a site's value that counts samples, such as 1 for a
            sequence-first `(sequence, batch, ...)`. It is moved to the front before anything else.
            If another dimension is as long as the batch, the first batch runs once more with one
            sample fewer, to tell them apart.
        mask: A callable that takes the batch and returns which tokens are real, `(batch, sequence)`
            of zeros and ones, such as `lambda batch: batch["input_ids"] != 0`. By default the
            batch's `attention_mask`, or else the one the model is called with.
        model_inputs: Keys of the batch passed to the model by name besides `input_ids`, such as
            `["attention_mask"]`; of a tuple of several tensors, the name of each.
        forward: `forward(model, batch)` replaces the model call; batch tensors are on `device`.
        stop_after_last_site: Whether to end each pass once every site has fired as often as in the
            first pass, which runs whole. `"once"` if each site fires once per pass; the first pass
            then ends early too. Only for models that call the same modules in every pass.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.
        progress: `True` for a progress bar on a terminal or in a notebook, or a callable that takes
            the number of samples done and the number expected (`None` if unknown).
        num_workers: Data-loading processes, as in `torch.utils.data.DataLoader`.
        collate_fn: Makes a batch of samples, as in `torch.utils.data.DataLoader`. If it drops
            some, the result has fewer rows, with a warning.
        check_memory: Whether to refuse a result that cannot fit in available memory.
        out: Where to write the result: a contiguous CPU tensor of shape `(n_samples, ...)` or with
            more rows per site, in the dtype delivered. Reusing it saves the first touch of fresh
            memory, and an accelerator copies records of 1 MiB and more directly into pinned memory
            (`torch.empty(..., pin_memory=True)`) unless `dtype` widens them. It must be writable
            and must not alias the dataset or the weights; this cannot be checked. After an error
            some rows may have been written; nothing writes to it after the call.

    Returns:
        One tensor of shape `(n_samples, ...)` per site, in the order of `layers` (a pattern
        expands in place, in model order): on the CPU,
        contiguous, in the dtype the module produced unless `dtype` was given. A site that never
        fired is left out, with a warning. With `out`, these are its tensors, or their first
        `n_samples` rows.

    Raises:
        SiteNotFoundError: A layer does not name a module of the model.
        ArgumentError, ArgumentTypeError: No layers, or an argument out of range.
        MissingInputError, BatchError: The model cannot be called with a batch.
        SelectionError: The selection does not fit what a site produced.
        ResultError: A site whose dimension `batch_dim` is not the batch, or whose shape or dtype
            changes.
        ResultError: A tensor in `out` does not fit its site, or has too few rows for a dataset
            without a length.
        ResultTooLargeError: The result cannot fit in memory; raised after the first batch.
        DeviceError: The model is not on `device`.
        Exception: Whatever the model raises, unchanged.

    Examples:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> dataset = [{"input_ids": torch.tensor([i, i + 1, i + 2])} for i in range(5)]
        >>> acts = fastcap.extract_representations(model, dataset, ["0", "1"], "cpu", batch_size=2)
        >>> acts["1"].shape
        torch.Size([5, 3, 2])
    """
    # Loads torch.utils.data, which takes as long as the rest of fastcap.
    from fastcap.batching.source import make_source

    source = make_source(dataset, batch_size, num_workers, collate_fn)
    request = request_run(
        model,
        either_name(layers, sites),
        device=device,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        seq_dim=seq_dim,
        batch_dim=batch_dim,
        mask=mask,
        model_inputs=model_inputs,
        forward=forward,
        stop_after_last_site=stop_after_last_site,
        staging_bytes=staging_bytes,
        pinned_bytes=pinned_bytes,
    )
    if request.selection.positions == UNPADDED:
        raise ArgumentError(
            "positions='unpadded' gives a row for each real token, and rows of a result are "
            "samples. Receive it batch by batch with fastcap.stream(), or select one row per "
            "sample (positions='last', reduce='mean')."
        )
    source.warn_of_other_order()
    max_samples = None if max_samples is None else as_count("max_samples", max_samples)
    result = MemoryResult(source.n_samples, max_samples, check_memory)
    batches = source.batches()
    if out is not None:
        checked = check_out(out, request.site_names, result.n_expected)
        result.write_into(checked, open_device(request.call.device).reaches)
    with (
        open_progress(progress, result.n_expected) as advance,
        evaluation_mode(model),
        Stream(
            _until_full(batches, result),
            request,
            PREFETCH,
            result,
            batches.count,
            request.batch_dimension(),
        ) as run,
    ):
        for records in run:
            advance(min(records.samples.stop, result.n_done))
        acts = result.tensors()
    if result.n_done == 0:
        shown = ", ".join(map(repr, request.site_names))
        warn(f"Nothing was captured at {shown}: the dataset gave no sample. The result is empty.")
    return {name: acts[name] for name in request.site_names if name in acts}


def _until_full(batches: Batched, result: MemoryResult) -> Iterable[Any]:
    is_told = False
    for batch in batches:
        if not is_told and (is_told := batches.lacks_samples(batch)):
            n_samples = counted(batches.n_made_of or 0, "sample")
            warn(
                f"{n_samples} became a batch of {batches.count(batch)}: rows of the result are "
                "those of the batches, and are not numbered as the samples. Let collate_fn keep "
                "every sample, as one row."
            )
        yield batch
        if result.is_full:
            return
