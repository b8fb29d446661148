"""What one pass captures, without keeping a byte of it: the engine's own selection, and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.devices.cpu import SynchronousDevice
from fastcap.errors import DeviceError, FastcapError
from fastcap.model.forward import unchanged, uncompiled
from fastcap.model.hooks import attach, detach, modes_off
from fastcap.model.parts import as_capturable, describe_miss, take_part
from fastcap.model.rows import count_rows
from fastcap.model.unfired import explain_unfired
from fastcap.planning.examples import tokens_per_sample
from fastcap.request import RunRequest
from fastcap.selection.per_sample import Rows
from fastcap.selection.reading import SiteReader
from fastcap.transfer.base import wire_dtype_for


@dataclass(frozen=True, slots=True)
class Call:
    """One captured value.

    Attributes:
        produced: The shape of what the site produced.
        shape: The shape after selection.
        selected_dtype: The dtype after positions and `reduce`.
        dtype: The dtype to deliver.
        device: Where the site's value is.
    """

    produced: tuple[int, ...]
    shape: tuple[int, ...]
    selected_dtype: torch.dtype
    dtype: torch.dtype
    device: torch.device

    @property
    def link_bytes(self) -> int:
        """Bytes that cross the link: narrowed before it, widened after it."""
        return prod(self.shape) * wire_dtype_for(self.selected_dtype, self.dtype).itemsize

    @property
    def read_bytes(self) -> int:
        """Bytes that a pack reads."""
        return prod(self.shape) * self.selected_dtype.itemsize

    @property
    def delivered_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Observed:
    """One pass.

    Attributes:
        n_rows: Samples in its batch; `None` where nothing says so.
        calls: What each site captured, call by call, in the order the sites were asked. Sites that
            captured nothing are not in it.
        in_order: The same, in the order they were captured in.
        silent: Why the others did not, in sentences.
        doubts: What the pass does not show, and may be meant otherwise, in sentences.
    """

    n_rows: int | None
    calls: dict[str, tuple[Call, ...]]
    in_order: tuple[Call, ...]
    silent: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def n_sites(self) -> int:
        """Sites that were asked for."""
        return len(self.calls) + len(self.silent)


def observe(request: RunRequest, batch: Any) -> Observed:
    """Run one pass and note what would be captured. The model is as before afterwards.

    Raises:
        SelectionError, UnsupportedTensorError: As the run would.
        DeviceError: A model without data cannot run this batch.
        Whatever the model raises, unchanged.
    """
    model, call = request.model, request.call
    observer = _Observer(request)
    prepared = call.prepare(batch)
    try:
        with unchanged(model, call.device), uncompiled(), torch.no_grad():
            observer.run(batch, lambda: call(prepared))
    except FastcapError:
        raise
    except Exception as error:
        if call.device.type != "meta":
            raise
        raise DeviceError(
            "The model is on the meta device, without data, and cannot run the example there: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}. Load its weights, or "
            "give an example whose pass looks at no values (leave attention_mask out of "
            "model_inputs=)."
        ) from error
    doubts = tuple(_doubts(model, batch, call.device.type == "meta"))
    return Observed(
        count_rows(prepared), observer.calls(), tuple(observer.in_order), observer.silent(), doubts
    )


def _doubts(model: nn.Module, batch: Any, is_shapes_only: bool) -> Iterator[str]:
    ids = batch.get("input_ids") if isinstance(batch, Mapping) else batch
    if isinstance(ids, Tensor) and ids.ndim == 1 and not ids.is_floating_point():
        yield (
            f"The example's token ids have one dimension: they are taken for {len(ids):,} samples. "
            "If they are one, give them as a batch: input_ids[None]."
        )
    if not is_shapes_only:  # a table of positions with data says itself that it is too short
        return
    n_tokens = tokens_per_sample(batch)
    n_positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if n_tokens and isinstance(n_positions, int) and n_tokens > n_positions:
        yield (
            f"The model's configuration has {n_positions:,} positions, and samples have "
            f"{n_tokens:,} tokens: a pass with data may fail."
        )


class _Observer:
    """Takes the engine's place behind the hooks; see `fastcap.model.hooks.Receiver`."""

    def __init__(self, request: RunRequest) -> None:
        selection = request.selection
        self._model = request.model
        self._bound = list(request.bound)
        self._dtype = selection.dtype
        self._rows = request.rows
        self._of_batch: Rows | None = None
        self._read = SiteReader(selection, request.rows)
        self._calls: list[list[Call]] = [[] for _ in self._bound]
        self._misses: dict[int, str] = {}
        self._n_turns = [0] * len(self._bound)
        self.in_order: list[Call] = []

    def run(self, batch: Any, forward: Any) -> None:
        """Call `forward` with hooks on the sites."""
        self._of_batch = self._rows.of_batch(batch)
        handles = self._read.before(self._model)
        try:
            handles += attach(self._bound, self)
            handles += self._read.after(self._model)
            forward()
        finally:
            detach(handles)

    def receive(self, index: int, value: Any) -> None:
        site = self._bound[index].site
        self._n_turns[index] += 1
        if not site.takes(self._n_turns[index] - 1):
            return
        tensor = take_part(value, site)
        if tensor is None:
            self._misses[index] = describe_miss(value, site)
            return
        with modes_off():
            call = self._call(index, tensor)
        self._calls[index].append(call)
        self.in_order.append(call)

    def _call(self, index: int, value: Tensor) -> Call:
        site = self._bound[index].site
        if not value.is_meta:
            value = as_capturable(value, site)
        selected, _ = self._read(value, site, self._of_batch, SynchronousDevice(value.device))
        dtype = self._dtype or selected.dtype
        return Call(
            tuple(value.shape), tuple(selected.shape), selected.dtype, dtype, selected.device
        )

    def calls(self) -> dict[str, tuple[Call, ...]]:
        return {
            bound.site.name: tuple(calls)
            for bound, calls in zip(self._bound, self._calls, strict=True)
            if calls
        }

    def silent(self) -> tuple[str, ...]:
        return tuple(
            self._misses.get(index)
            or explain_unfired(
                self._model, bound, True, 0 if bound.site.call is None else self._n_turns[index]
            )
            for index, bound in enumerate(self._bound)
            if not self._calls[index]
        )
