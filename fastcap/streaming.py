"""`stream`: passes over batches, and their records one batch at a time, while the next one runs."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from fastcap.devices.base import Destination
from fastcap.engine import Engine, Pass
from fastcap.errors import ArgumentError, BatchError
from fastcap.formatting import html_text
from fastcap.model.early_stop import CallsSeen, EarlyStop, StopAfter
from fastcap.model.forward import (
    BatchCaller,
    Forward,
    count_rows,
    evaluation_mode,
    uncompiled,
)
from fastcap.model.hooks import detach
from fastcap.model.sites import Sites, as_site_names, bind_sites
from fastcap.records import BatchRecords, Record, Statistics
from fastcap.selection.per_sample import MaskOfBatch, RowSource
from fastcap.spec import Positions, Reduce, as_count, as_keeps_all, make_selection
from fastcap.transfer.budget import make_limits
from fastcap.warn import warn


class Consumer(Protocol):
    """Who receives what a pass captured, when it is not the caller's loop."""

    def begin(self, n_batch: int) -> None:
        """A pass over `n_batch` samples is about to run."""

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor | Destination | None]:
        """See `fastcap.engine.Place`."""

    def end(self, finished: Pass) -> None:
        """The pass is over. Nobody else asks for what it captured."""


class _Finished(NamedTuple):
    """A pass that has run, and whose records are on their way."""

    batch: Any
    pass_index: int
    samples: range
    captured: Pass


class Stream(Iterator[BatchRecords]):
    """What `stream` returns: an iterator of `BatchRecords`, and a context manager.

    Ends by itself when the batches do, on an error, and when it is closed or dropped; its hooks
    are gone then.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        engine: Engine,
        call: BatchCaller,
        model: nn.Module,
        prefetch: int,
        early_stop: EarlyStop,
        zero_copy: bool = False,
        consumer: Consumer | None = None,
        keeps_all: bool = False,
    ) -> None:
        self._batches = iter(batches)
        self._engine = engine
        self._call = call
        self._model = model
        self._prefetch = prefetch
        self._zero_copy = zero_copy
        self._consumer = consumer
        self._early_stop = early_stop
        self._keeps_all = keeps_all
        self._running: deque[_Finished] = deque()
        self._postponed: Exception | None = None
        self._n_passes = 0
        self._n_samples = 0
        self._ended = False
        engine.attach()
        weakref.finalize(self, detach, engine.handles).atexit = False

    def __next__(self) -> BatchRecords:
        try:
            while not self._ended and len(self._running) <= self._prefetch:
                self._run_next()
            if not self._running:
                self._raise_postponed()
                raise StopIteration
            return self._deliver(self._running.popleft())
        except BaseException:
            self.close()
            raise

    def _run_next(self) -> None:
        """Run one more pass. An error waits until the passes before it are delivered."""
        try:
            batch = next(self._batches)
        except StopIteration:
            self._ended = True
            return
        except Exception as error:  # noqa: BLE001 - raised unchanged, after delivery
            self._end_after_delivery(error)
            return
        try:
            self._running.append(self._run(batch))
        except Exception as error:  # noqa: BLE001 - raised unchanged, after delivery
            self._end_after_delivery(error)

    def _raise_postponed(self) -> None:
        error, self._postponed = self._postponed, None
        if isinstance(error, StopIteration):
            # Here it would look like the end of the batches, as in a generator.
            raise RuntimeError("the forward pass raised StopIteration") from error
        if error is not None:
            raise error

    def _end_after_delivery(self, error: Exception) -> None:
        self._ended = True
        self._postponed = error
        self._engine.detach()

    def _run(self, batch: Any) -> _Finished:
        prepared = self._call.prepare(batch)
        n_rows = count_rows(prepared)
        place = None
        if self._consumer is not None:
            if n_rows is None:
                raise BatchError(
                    "Cannot tell how many samples a batch has: it holds no tensor and no list. Let "
                    "the dataset or collate_fn= give a dict, tensor or list."
                )
            self._consumer.begin(n_rows)
            place = self._consumer.place
        if self._n_passes:
            self._engine.replan()
        calls_seen = self._early_stop.begin()
        captured = Pass(place, calls_seen, self._keeps_all, self._engine.rows_of(batch))
        try:
            with self._engine.running(captured):
                self._forward(prepared, calls_seen)
            self._send(captured)
        except BaseException:
            captured.clear()  # a failed pass is not delivered
            raise
        self._engine.report_unfired()
        samples = range(self._n_samples, self._n_samples + (n_rows or 0))
        finished = _Finished(batch, self._n_passes, samples, captured)
        self._n_passes += 1
        self._n_samples = samples.stop
        return finished

    def _forward(self, prepared: Any, calls_seen: CallsSeen | None) -> None:
        try:
            with evaluation_mode(self._model), uncompiled(), torch.no_grad():
                self._call(prepared)
        except Exception:
            if calls_seen is None or not calls_seen.is_stopped:
                raise
            return  # the stop, or what the model made of it
        if calls_seen is not None and self._early_stop.learn(calls_seen):
            warn(
                "stop_after_last_site: the model caught the exception that ends a pass, and "
                "ran on. Values are those of the calls before it; passes run whole from here on."
            )

    def _send(self, captured: Pass) -> None:
        """Put everything on its way, so that it travels while the next pass runs."""
        for transfer in self._engine.transfers():
            transfer.flush()
        if self._consumer is not None:
            self._consumer.end(captured)
        else:
            for transfer, capture in captured.all():
                transfer.deliver(capture, lend=self._zero_copy)

    def _deliver(self, finished: _Finished) -> BatchRecords:
        captured = finished.captured
        records: list[Record] = []
        if self._consumer is not None:
            return BatchRecords(finished.batch, finished.pass_index, finished.samples, records)
        for site in self._engine.site_names:
            kept = captured.calls(site)
            first = captured.n_calls.get(site, 0) - len(kept)
            for call_index, (transfer, capture) in enumerate(kept, first):
                tensor = transfer.result(capture, lend=self._zero_copy)
                assert tensor is not None  # this pass's captures are nobody else's to drop
                records.append(
                    Record(
                        site,
                        tensor,
                        finished.pass_index,
                        call_index,
                        finished.samples,
                        capture.lengths,
                    )
                )
        return BatchRecords(finished.batch, finished.pass_index, finished.samples, records)

    def statistics(self) -> Statistics:
        """What capturing has cost so far."""
        return self._engine.statistics()

    def close(self) -> None:
        """Remove the hooks and give memory back. Records already delivered stay as they are."""
        self._ended = True
        self._running.clear()
        self._engine.close()

    def __repr__(self) -> str:
        state = "ended" if self._ended and not self._running else "open"
        n_handed_out = self._n_passes - len(self._running)
        return (
            f"Stream({type(self._model).__name__}, {state}, batches handed out: {n_handed_out}, "
            f"sites: {list(self._engine.site_names)})"
        )

    def _repr_html_(self) -> str:
        return html_text(repr(self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream(
    model: nn.Module,
    batches: Iterable[Any],
    sites: Sites,
    *,
    device: torch.device | str | int | None = None,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    calls: str = "last",
    stop_after_last_site: StopAfter = False,
    zero_copy: bool = False,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
    prefetch: int = 1,
) -> Stream:
    """Run the model over batches and hand out what its sites produced, batch by batch.

    Records arrive in order while the following pass already runs: the model is in eval mode and
    without gradients during each pass only, and your loop body in between sees it as you left it.

    Args:
        model: Any module; hooks are on it until the stream ends.
        batches: Dicts with `input_ids`, tensors, or tuples of tensors (the positional arguments).
        sites: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or modules
            of the model; see `docs/concepts.md`.
        device: Where batches are moved; by default where the model's parameters are.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`;
            `"last"` for each sample's last real token; `"unpadded"` for all real tokens, one after
            another (see `BatchRecords.lengths`); one list of ints per sample; or the key of the
            batch that holds positions, `(batch,)` or `(batch, n_positions)`.
        reduce: A callable on the selected tensor, on its own device, before the copy; or `"mean"`
            over each sample's real tokens, accumulated in float32 (float64 for float64).
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension `positions` count along; 1 unless given.
        mask: A callable on the batch that says which tokens are real, `(batch, sequence)` of zeros
            and ones, such as `lambda batch: batch["input_ids"] != 0`. By default the batch's
            `attention_mask`, or else the one the model is called with.
        model_inputs: Keys of the batch passed to the model by name beside `input_ids`.
        forward: `forward(model, batch)` replaces the call; batch tensors are on `device`.
        calls: `"last"` keeps the last call of a module that is called several times in a pass;
            `"all"` keeps each: `records.calls(site)`.
        stop_after_last_site: Whether to end passes once every site has fired as often as in the
            first, which runs whole; `"once"` where each fires once in a pass, and the first ends
            early too. For models that call the same modules in every pass.
        zero_copy: Lend records out of pinned slots where they fill at least half of one, instead of
            copying them; the slot is used again when the tensor and every view of it are gone. A
            slot is pinned memory: if you copy from one with `non_blocking=True` on another stream
            or to another device, synchronise that before you drop the tensor.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.
        prefetch: Passes run ahead of the batch handed out. 0 if your loop changes the model.

    Returns:
        An iterator of `BatchRecords`, which also is a context manager.

    Raises:
        SiteNotFoundError: A site is not a module of the model.
        ArgumentError: No sites, or an argument out of range.
        DeviceError: The model is not on `device`.
        Whatever a pass raises, unchanged, after the batches before it were handed out.

    Example:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> batches = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])]
        >>> for records in fastcap.stream(model, batches, ["1"], positions=-1):
        ...     print(records.pass_index, records["1"].shape)
        0 torch.Size([1, 2])
        1 torch.Size([1, 2])
    """
    names = as_site_names(sites, model)
    if not names:
        raise ArgumentError("sites is empty: name at least one module, such as ['layers.0.mlp'].")
    selection = make_selection(positions, reduce, dtype, seq_dim)
    limits = make_limits(staging_bytes, pinned_bytes, zero_copy)
    prefetch = as_count("prefetch", prefetch, at_least=0)
    keeps_all = as_keeps_all(calls)
    call = BatchCaller(model, device, model_inputs, forward)
    bound = bind_sites(model, names)
    early_stop = EarlyStop(model, [each.site.name for each in bound], stop_after_last_site)
    rows = RowSource(selection, mask_of_batch=mask)
    engine = Engine(model, bound, selection, limits, rows=rows)
    return Stream(
        batches,
        engine,
        call,
        model,
        prefetch,
        early_stop,
        zero_copy,
        keeps_all=keeps_all,
    )
