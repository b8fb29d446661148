"""`extract_representations`: from a dataset to one tensor per site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fastcap.consumers.memory import MemoryResult
from fastcap.consumers.out import check_out
from fastcap.devices import open_device
from fastcap.engine import Engine
from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.model.early_stop import EarlyStop, StopAfter
from fastcap.model.forward import BatchCaller, Forward, evaluation_mode
from fastcap.model.sites import Sites, as_site_names, bind_sites, either_name
from fastcap.progress import Progress, open_progress
from fastcap.selection.per_sample import MaskOfBatch, RowSource
from fastcap.spec import UNPADDED, Positions, Reduce, as_count, make_selection
from fastcap.streaming import Stream
from fastcap.transfer.budget import make_limits
from fastcap.warn import warn

PREFETCH = 1


def extract_representations(
    model: nn.Module,
    dataset: Any,
    layers: Sites | None = None,
    device: torch.device | str | int | None = None,
    batch_size: int = 32,
    max_samples: int | None = None,
    *,
    sites: Sites | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
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
    """Run a dataset through the model and collect what its sites produce.

    The model is in eval mode and under `no_grad` for the run; every module's flag is as before
    afterwards, also on an error.

    Args:
        model: Any module, on `device`.
        dataset: A map-style or iterable dataset, or a list, of dicts with `"input_ids"`.
        layers: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or modules
            of the model; see `docs/concepts.md`.
        device: Where batches are moved; by default where the model's parameters are.
        batch_size: Samples per pass.
        max_samples: Where to stop. The last batch is run whole and cropped afterwards, so values do
            not depend on it.
        sites: Another name for `layers`; one of them has to be given.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`;
            `"last"` for each sample's last real token; or the key of the batch that holds
            positions, `(batch,)` or `(batch, n_positions)`.
            What is not selected is never copied.
        reduce: A callable on the selected tensor, on its own device, before the copy; or `"mean"`
            over each sample's real tokens, accumulated in float32 (float64 for float64).
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension `positions` count along; 1 unless given.
        mask: A callable on the batch that says which tokens are real, `(batch, sequence)` of zeros
            and ones, such as `lambda batch: batch["input_ids"] != 0`. By default the batch's
            `attention_mask`, or else the one the model is called with.
        model_inputs: Keys of the batch passed to the model by name beside `input_ids`, such as
            `["attention_mask"]`.
        forward: `forward(model, batch)` replaces the call; batch tensors are on `device`.
        stop_after_last_site: Whether to end passes once every site has fired as often as in the
            first, which runs whole; `"once"` where each fires once in a pass, and the first ends
            early too. For models that call the same modules in every pass.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.
        progress: `True` for a bar on a terminal or in a notebook, or a callable that is given the
            number of samples done and the number expected (`None` if unknown).
        num_workers: Processes that load data, as in `torch.utils.data.DataLoader`.
        collate_fn: How samples become a batch, as in `torch.utils.data.DataLoader`.
        check_memory: Whether to refuse a result that cannot fit in the memory available.
        out: Where to write the result: a contiguous CPU tensor of shape `(n_samples, ...)` or with
            more rows per site, in the dtype that is delivered. It saves the first touch of fresh
            memory from the second time on, and an accelerator copies records of 1 MiB and more
            straight into pinned memory (`torch.empty(..., pin_memory=True)`), unless `dtype` widens
            them. It must be writable, and no memory that the run reads (its dataset, the model):
            neither can be seen from a tensor. After an error some rows may have been written;
            afterwards nothing writes to it any more.

    Returns:
        One tensor of shape `(n_samples, ...)` per site, in the order of `layers` (a pattern
        expands in place, in model order): CPU, contiguous,
        in the dtype the module produced unless asked otherwise. A site that never fired is left
        out, with a warning. With `out`, its tensors, or their first `n_samples` rows.

    Raises:
        SiteNotFoundError: A site is not a module of the model.
        ArgumentError, ArgumentTypeError: No sites, or a number out of range.
        MissingInputError, BatchError: A batch the model cannot be called with.
        SelectionError: The selection does not fit what a site produced.
        ResultError: A site whose first dimension is not the batch, or whose shape or dtype changes.
        ResultError: What `out` holds for a site does not fit it, or has too few rows for a dataset
            that does not say its length.
        ResultTooLargeError: The result cannot fit in memory; known after the first batch.
        DeviceError: The model is not on `device`.
        Whatever the model raises, unchanged.

    Example:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> dataset = [{"input_ids": torch.tensor([i, i + 1, i + 2])} for i in range(5)]
        >>> acts = fastcap.extract_representations(model, dataset, ["0", "1"], "cpu", batch_size=2)
        >>> acts["1"].shape
        torch.Size([5, 3, 2])
    """
    names = as_site_names(either_name(layers, sites), model)
    num_workers = as_count("num_workers", num_workers, at_least=0)
    if not names:
        raise ArgumentError("sites is empty: name at least one module, such as ['layers.0.mlp'].")
    batch_size = as_count("batch_size", batch_size)
    max_samples = None if max_samples is None else as_count("max_samples", max_samples)
    selection = make_selection(positions, reduce, dtype, seq_dim)
    if selection.positions == UNPADDED:
        raise ArgumentError(
            "positions='unpadded' gives a row for each real token, and rows of a result are "
            "samples. Receive it batch by batch with fastcap.stream(), or select one row per "
            "sample (positions='last', reduce='mean')."
        )
    limits = make_limits(staging_bytes, pinned_bytes)
    call = BatchCaller(model, device, model_inputs, forward)
    loader: DataLoader[Any] = DataLoader(
        as_dataset(dataset, num_workers),
        batch_size=batch_size,
        shuffle=False,
        num_workers=num_workers,
        collate_fn=collate_fn,
    )
    bound = bind_sites(model, names)
    found = [each.site.name for each in bound]
    result = MemoryResult(length_of(dataset), max_samples, check_memory)
    if out is not None:
        checked = check_out(out, found, result.n_expected)
        result.write_into(checked, open_device(call.device).reaches)
    early_stop = EarlyStop(model, found, stop_after_last_site)
    rows = RowSource(selection, mask_of_batch=mask)
    engine = Engine(model, bound, selection, limits, rows=rows)
    with (
        open_progress(progress, result.n_expected) as advance,
        evaluation_mode(model),
        Stream(
            _until_full(loader, result),
            engine,
            call,
            model,
            PREFETCH,
            early_stop,
            consumer=result,
        ) as run,
    ):
        for records in run:
            advance(min(records.samples.stop, result.n_done))
        acts = result.tensors()
    if result.n_done == 0:
        shown = ", ".join(map(repr, engine.site_names))
        warn(f"Nothing was captured at {shown}: the dataset gave no sample. The result is empty.")
    return {name: acts[name] for name in engine.site_names if name in acts}


def length_of(dataset: Any) -> int | None:
    """Samples of a dataset; `None` where it does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


class _Iterated(IterableDataset[Any]):
    """A generator, or anything else that can only be iterated, as `DataLoader` wants it."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self._samples)


def as_dataset(dataset: Any, num_workers: int) -> Any:
    """What a `DataLoader` accepts: the dataset, or something that iterates over it.

    Raises:
        ArgumentError: Several workers would give every sample of it.
        ArgumentTypeError: It is not a dataset.
    """
    if isinstance(dataset, IterableDataset) or hasattr(dataset, "__getitem__"):
        return dataset
    if isinstance(dataset, Iterable):
        if num_workers > 1:
            raise ArgumentError(
                f"Each of {num_workers} workers would give every sample of a "
                f"{type(dataset).__name__}, which can only be iterated. Pass num_workers=1, a "
                "list, or an IterableDataset that shares its samples out among workers."
            )
        return _Iterated(dataset)
    raise ArgumentTypeError(
        f"dataset must be a dataset or a list of samples; got {type(dataset).__name__}."
    )


def _until_full(loader: Iterable[Any], result: MemoryResult) -> Iterable[Any]:
    for batch in loader:
        yield batch
        if result.is_full:
            return
