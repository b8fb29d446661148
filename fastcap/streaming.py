"""`stream`: run a model over batches and yield each batch's records while the next one runs."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import nn

from fastcap.batching.reuse import Held, Holder
from fastcap.consumers.base import Consumer
from fastcap.engine import Pass
from fastcap.errors import ArgumentError, ArgumentTypeError, BatchError
from fastcap.formatting import html_text
from fastcap.model.early_stop import CallsSeen, StopAfter
from fastcap.model.forward import Forward, evaluation_mode, uncompiled
from fastcap.model.hooks import detach
from fastcap.model.rows import count_rows
from fastcap.model.sites import Sites
from fastcap.records import BatchRecords, Record, Statistics
from fastcap.request import RunRequest, request_run
from fastcap.selection.batch_dimension import BatchDimension
from fastcap.selection.per_sample import MaskOfBatch
from fastcap.spec import Positions, Reduce, as_callable, as_count
from fastcap.warn import warn

CountSamples = Callable[[Any], int | None]
"""Samples in a batch, if that can be told."""


class _Finished(NamedTuple):
    """A pass that has run, and whose records are on their way."""

    held: Held
    pass_index: int
    samples: range
    captured: Pass


class Stream(Iterator[BatchRecords]):
    """What `stream` returns: an iterator of `BatchRecords`, and a context manager.

    It ends when the batches do, on an error, and when it is closed or garbage-collected. Its
    hooks are then removed.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        request: RunRequest,
        prefetch: int,
        consumer: Consumer | None = None,
        count: CountSamples = count_rows,
        batch_dimension: BatchDimension | None = None,
    ) -> None:
        self._batch_dimension = batch_dimension
        self._count = count
        self._batches = iter(batches)
        self._holder = Holder(batches, 0 if consumer is not None else prefetch)
        self._engine = engine = request.engine(request.bound)
        self._call = request.call
        self._model = request.model
        self._prefetch = prefetch
        self._zero_copy = request.zero_copy
        self._consumer = consumer
        self._early_stop = request.early_stop
        self._keeps_all = bool(request.keeps_all)
        self._tells_of_calls = request.keeps_all is None
        self._running: deque[_Finished] = deque()
        self._postponed: Exception | None = None
        self._n_passes = 0
        self._n_samples = 0
        self._ended = False
        self._is_closed = False
        weakref.finalize(self, detach, engine.handles).atexit = False
        engine.attach()

    def __next__(self) -> BatchRecords:
        try:
            while not self._ended and len(self._running) <= self._prefetch:
                self._run_next()
            if not self._running:
                self._end()
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
        held = self._holder.hold(batch, [finished.held for finished in self._running])
        try:
            self._running.append(self._run(batch, held))
        except Exception as error:  # noqa: BLE001 - raised unchanged, after delivery
            self._end_after_delivery(error)

    def _end(self) -> None:
        consumer, self._consumer = self._consumer, None
        try:
            if consumer is not None and not self._is_closed:
                consumer.drain()
        finally:  # the first error is the one to raise
            self._raise_postponed()

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

    def _run(self, batch: Any, held: Held) -> _Finished:
        prepared = self._call.prepare(batch)
        n_rows = self._count(batch)
        place = None
        if self._consumer is not None:
            if n_rows is None:
                raise BatchError(
                    "Cannot tell how many samples a batch has: it holds no tensor and no list. Let "
                    "the dataset or collate_fn= give a dict, tensor or list, or say it with "
                    "fastcap.stream(..., n_samples=)."
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
            self._check_batch_dimension(batch, n_rows)
            self._send(captured)
        except BaseException:
            captured.clear()  # a failed pass is not delivered
            raise
        self._engine.report_unfired()
        if self._tells_of_calls:
            self._engine.report_repeated(captured)
        samples = range(self._n_samples, self._n_samples + (n_rows or 0))
        finished = _Finished(held, self._n_passes, samples, captured)
        self._n_passes += 1
        self._n_samples = samples.stop
        return finished

    def _check_batch_dimension(self, batch: Any, n_rows: int | None) -> None:
        """Before a consumer takes the first dimension for samples."""
        check = self._batch_dimension
        if check is not None and n_rows is not None and check.is_settled(batch, n_rows):
            self._batch_dimension = None

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
            return BatchRecords(finished.held.batch, finished.pass_index, finished.samples, records)
        for site in self._engine.site_names:
            kept = captured.calls(site)
            first = captured.counts.n_calls.get(site, 0) - len(kept)
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
        return BatchRecords(finished.held.batch, finished.pass_index, finished.samples, records)

    def statistics(self) -> Statistics:
        """What capturing has cost so far."""
        return self._engine.statistics()

    def close(self) -> None:
        """Remove the hooks and free memory. Delivered records are not affected."""
        self._ended = self._is_closed = True
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
    batch_dim: int = 0,
    mask: MaskOfBatch = None,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    calls: str | None = None,
    stop_after_last_site: StopAfter = False,
    zero_copy: bool = False,
    staging_bytes: int | None = None,
    pinned_bytes: int | None = None,
    prefetch: int = 1,
    consumer: Consumer | None = None,
    n_samples: Callable[[Any], int] | None = None,
) -> Stream:
    """Run the model over batches and yield the values of its sites, batch by batch.

    Records arrive in order while the next pass is already running. The model is in eval mode and
    without gradients only during a pass; your loop body sees it as you left it.

    Args:
        model: Any module; it has hooks until the iterator ends.
        batches: Dicts with `input_ids`, tensors, or tuples of tensors; see `model_inputs`.
        sites: Module names such as `layers.15.mlp`, patterns such as `layers.{0..3}.*`, or module
            objects of the model; see `docs/concepts.md`.
        device: Where batches are moved; by default the device of the model's parameters.
        positions: `None`, an int (drops the dimension), a slice or a list of ints along `seq_dim`;
            `"last"` for the last real token of each sample; `"unpadded"` for all real tokens,
            concatenated (see `BatchRecords.lengths`); one list of ints per sample; or the batch key
            that holds positions, `(batch,)` or `(batch, n_positions)`.
        reduce: A callable applied to the selected tensor on its own device, before the copy; or
            `"mean"` over the real tokens of each sample, accumulated in float32 (float64 for
            float64).
        dtype: The dtype to deliver. Narrowing happens before the copy, widening after it.
        seq_dim: The dimension that `positions` index, counted with samples first; 1 by default.
        batch_dim: The dimension of a site's value that counts samples, such as 1 for a
            sequence-first `(sequence, batch, ...)`. It is moved to the front before anything else.
        mask: A callable that takes the batch and returns which tokens are real, `(batch, sequence)`
            of zeros and ones, such as `lambda batch: batch["input_ids"] != 0`. By default the
            batch's `attention_mask`, or else the one the model is called with.
        model_inputs: Keys of the batch passed to the model by name besides `input_ids`; of a tuple
            of several tensors, the name of each.
        forward: `forward(model, batch)` replaces the model call; batch tensors are on `device`.
        calls: `"last"` keeps the last call of a module that is called several times per pass;
            `"all"` keeps every call: `records.calls(site)`. By default the last, with a warning if
            there are others.
        stop_after_last_site: Whether to end each pass once every site has fired as often as in the
            first pass, which runs whole. `"once"` if each site fires once per pass; the first pass
            then ends early too. Only for models that call the same modules in every pass.
        zero_copy: Lend records out of pinned slots where they fill at least half of one, instead of
            copying them; the slot is reused when the tensor and all views of it are gone. A slot
            is pinned memory: if you copy from it with `non_blocking=True`, synchronise before you
            drop the tensor.
        staging_bytes: Staging memory on the accelerator, in bytes.
        pinned_bytes: Slot memory on the host, in bytes.
        prefetch: Passes to run ahead of the batch yielded; 0 if your loop changes the model.
        consumer: Receives what passes capture, in place of the records yielded, which are then
            empty; see `fastcap.Consumer`.
        n_samples: Takes a batch and returns how many samples it has, for batches that do not say:
            by default its token ids, else its `num_graphs`, first tensor or list. Records are
            numbered by it, and a `consumer` is told.

    Returns:
        An iterator of `BatchRecords` that is also a context manager.

    Raises:
        SiteNotFoundError: A site does not name a module of the model.
        ArgumentError: No sites, or an argument out of range.
        DeviceError: The model is not on `device`.
        Exception: Whatever a pass raises, unchanged, after the preceding batches are delivered.

    Examples:
        >>> import torch, fastcap
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 2))
        >>> batches = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5, 6]])]
        >>> for records in fastcap.stream(model, batches, ["1"], positions=-1):
        ...     print(records.pass_index, records["1"].shape)
        0 torch.Size([1, 2])
        1 torch.Size([1, 2])
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
        stop_after_last_site=stop_after_last_site,
        zero_copy=zero_copy,
        staging_bytes=staging_bytes,
        pinned_bytes=pinned_bytes,
    )
    if consumer is not None:
        _check_consumer(consumer, request)
    if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
        raise ArgumentTypeError(
            f"batches must be an iterable, such as a DataLoader; got {type(batches).__name__}."
        )
    count = _counted_by(n_samples)
    return Stream(batches, request, as_count("prefetch", prefetch, at_least=0), consumer, count)


def _counted_by(n_samples: Callable[[Any], int] | None) -> CountSamples:
    as_callable("n_samples", n_samples, "on the batch that returns how many samples it has")
    if n_samples is None:
        return count_rows
    return lambda batch: as_count("n_samples of a batch", n_samples(batch), at_least=0)


def _check_consumer(consumer: Any, request: RunRequest) -> None:
    if not isinstance(consumer, Consumer):
        raise ArgumentTypeError(
            f"consumer must be an instance of a subclass of fastcap.Consumer; got {consumer!r}."
        )
    if request.keeps_all or request.zero_copy:
        asked = "calls='all'" if request.keeps_all else "zero_copy=True"
        raise ArgumentError(
            f"{asked} is for a loop over the stream's records, and consumer= receives what they "
            "would hold. Leave one of them out."
        )
