"""The seam between the engine and an accelerator.

A device has compute streams, which belong to the model; one copy stream, which belongs to fastcap;
and host workers. Work on one stream runs in the order it was given; work on two streams runs in any
order unless an event says otherwise. Everything the engine wants from an accelerator is asked here,
so that a simulated device can run the same engine under any schedule.

Requirements on a device, checked by one contract suite (`tests/test_device_contract.py`):

* An event that was never marked is done. Marking it again moves it; a wait captures the last mark
  at the time of the call.
* `copy` reads staging and writes slots, or rows of a result that it `reaches`, and does nothing
  else; it starts after the events it is given, in order with earlier copies, and marks the events
  it is given when the bytes have landed.
* `deliver` runs on a host worker after its event; deliveries to one worker run in order.
* `release` gives memory back without blocking the host, after the work that may still use it.
* Nothing here is called from a finalizer or at interpreter shutdown.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastcap.host_memory import normal_mode

StreamT = TypeVar("StreamT", bound=Hashable)
EventT = TypeVar("EventT")
Bytes: TypeAlias = np.ndarray[tuple[int], np.dtype[np.uint8]]


MOST_VIEWS = 256  # guessed, of one buffer: a chunk's records, and some that differ between passes


class Ticket(Protocol):
    """A delivery that a host worker has been given."""

    def done(self) -> bool:
        """Whether the bytes are in place, or the delivery failed."""

    def wait(self) -> None:
        """Block the host until it is done. Its error is not raised here."""

    def error(self) -> BaseException | None:
        """Why a delivery that is done failed; `None` when it did not."""


class Destination(Protocol):
    """Where a delivery ends that is not a tensor, such as a file: what devices use of a tensor."""

    @property
    def shape(self) -> torch.Size:
        """Of the values that are wanted."""

    @property
    def nbytes(self) -> int:
        """Of the values as they are kept."""

    def numel(self) -> int:
        """How many values."""

    def copy_(self, values: Tensor) -> object:
        """Take the values, which are not there any more when this returns."""

    def segment(self, first: int, last: int) -> Destination:
        """Where some of the values go, counted in order."""


class Buffer:
    """A run of device or host memory: `bytes` is its one-dimensional uint8 tensor."""

    __slots__ = ("_typed", "_views", "bytes", "n_bytes")

    def __init__(self, memory: Tensor) -> None:
        self.bytes = memory
        self.n_bytes = memory.numel()
        self._typed: dict[torch.dtype, Tensor] = {torch.uint8: memory}
        self._views: dict[tuple[torch.dtype, int, tuple[int, ...]], Tensor] = {}

    def view(self, dtype: torch.dtype, offset: int, shape: tuple[int, ...]) -> Tensor:
        """The dense tensor of `shape` whose first byte lies at `offset`, a multiple of itemsize.

        For fastcap's own use: the same tensor is given out again when it is asked for again, since
        passes mostly repeat, and making one takes the host as long as starting a copy.
        """
        key = dtype, offset, shape
        found = self._views.get(key)
        if found is None:
            typed = self._typed.get(dtype)
            if typed is None:
                typed = self._as(dtype)
            found = typed.as_strided(shape, dense_strides(shape), offset // dtype.itemsize)
            if len(self._views) >= MOST_VIEWS:
                self._views.clear()
            self._views[key] = found
        return found

    def _as(self, dtype: torch.dtype) -> Tensor:
        usable = self.n_bytes - self.n_bytes % dtype.itemsize
        with normal_mode():  # R10: a cached view must not be an inference tensor
            typed = self._typed[dtype] = self.bytes[:usable].view(dtype)
        return typed


class Staging(Buffer):
    """Device memory that packs write and copies read."""

    __slots__ = ()


class HostBuffer(Buffer):
    """Host memory that copies write and the host reads, pinned where that means something."""

    __slots__ = ()


@lru_cache(maxsize=4096)
def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous tensor of `shape`."""
    return tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))


@dataclass(slots=True)
class DeviceCounters:
    """What a device has done; `Statistics` explains each field."""

    copies: int = 0
    copied_bytes: int = 0
    waits: int = 0
    waited_secs: float = 0.0
    joined_secs: float = 0.0
    delivery_secs: float = 0.0
    stream_waits: int = 0
    device_allocations: int = 0
    staging_bytes: int = 0
    host_allocations: int = 0
    pinned_bytes: int = 0
    events: int = 0


class Device(ABC, Generic[StreamT, EventT]):
    """One accelerator as the engine sees it.

    Attributes:
        torch_device: Where the model's tensors live.
        direct: Whether a value can be placed straight into ordinary host memory at no loss,
            because there is nothing to overlap. Staging, copies and slots then go unused.
        counters: What has been done so far.
    """

    direct: bool = False

    def __init__(self, torch_device: torch.device) -> None:
        self.torch_device = torch_device
        self.counters = DeviceCounters()

    # Streams and events

    @abstractmethod
    def current_stream(self) -> StreamT:
        """The compute stream that the calling thread's model code is using right now (R1)."""

    def lasts(self, stream: StreamT) -> bool:
        """Whether a stream is there as long as the process is. Whoever made one that is not may end
        it once the model has run: then nothing may be asked of it, and another may have its name.
        """
        return True

    @abstractmethod
    def event(self) -> EventT:
        """A new event, not marked yet and therefore done."""

    @abstractmethod
    def record(self, event: EventT, stream: StreamT) -> None:
        """Move `event` to the end of everything given to `stream` so far."""

    @abstractmethod
    def wait_event(self, stream: StreamT, event: EventT) -> None:
        """Make `stream`, and not the host, wait for the last mark of `event`."""

    @abstractmethod
    def query(self, event: EventT) -> bool:
        """Whether the work before the last mark of `event` is finished."""

    @abstractmethod
    def synchronize(self, event: EventT) -> None:
        """Block the host until it is."""

    @abstractmethod
    def is_capturing(self) -> bool:
        """Whether this device's current stream is recording a graph instead of running."""

    # Memory

    @abstractmethod
    def free_bytes(self) -> int | None:
        """Device memory that could still be allocated; `None` where unknown."""

    @abstractmethod
    def staging(self, n_bytes: int) -> Staging:
        """Allocate staging, usable on the current stream at once and elsewhere after a hold.

        Raises:
            DeviceMemoryError: It does not fit.
        """

    @abstractmethod
    def host(self, n_bytes: int) -> HostBuffer:
        """Allocate host memory that copies can write without blocking the host (R4).

        Raises:
            HostMemoryError: It cannot be had, or cannot be pinned.
        """

    @abstractmethod
    def release(self, buffer: Buffer, after: Iterable[EventT] = ()) -> None:
        """Give a buffer up: its memory may be used again once `after` are done. Never blocks."""

    def reaches(self, memory: Tensor) -> bool:
        """Whether copies can write this host memory as they write slots (R4)."""
        return False

    # Moving bytes

    def upload(self, value: Tensor) -> Tensor:
        """A strided host tensor where values are, ready for the current stream and for no other.

        Laid out as `.to` lays it out. The host does not wait, and the tensor may be written to as
        soon as this returns.
        """
        return value.to(self.torch_device)

    @abstractmethod
    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        """Write `value` as dense `dtype` elements at `offset`, on the current stream."""

    @abstractmethod
    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[EventT],
        then: Iterable[EventT],
        offset: int = 0,
    ) -> None:
        """On the copy stream: wait for `after`, copy `n_bytes` from `offset` of staging to the
        beginning of a slot or of rows that copies `reach`, mark each of `then`. A copy of no bytes
        only waits and marks.
        """

    @abstractmethod
    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        """Copy landed elements of `dtype` at `offset` into `target`, now, in this thread."""

    @abstractmethod
    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: EventT | None,
        worker: int,
    ) -> Ticket:
        """Have a host worker copy landed elements into `target` once `after` is done."""

    @abstractmethod
    def join(self, ticket: Ticket) -> None:
        """Block the host until a delivery is done, failed or not."""

    @abstractmethod
    def place(self, value: Tensor, dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        """Copy `value` straight into host memory, and return when it is there.

        Args:
            value: On the device.
            dtype: The dtype to deliver.
            target: Where to, of that dtype; `None` for memory that torch allocates.
        """

    @abstractmethod
    def lend(self, slot: HostBuffer, offset: int, n_bytes: int) -> Bytes:
        """A fresh array over landed bytes, for somebody outside fastcap to keep."""

    @abstractmethod
    def take_back(self, slot: HostBuffer, offset: int, n_bytes: int) -> None:
        """Nobody holds that array any more."""

    # Time

    def now(self) -> float:
        """Seconds on the device's clock."""
        return time.perf_counter()

    def close(self) -> None:
        """End the host workers. Called when nothing is under way."""


AnyDevice: TypeAlias = Device[Any, Any]
