"""A real accelerator: the one module that names `torch.cuda` and `torch.accelerator`.

CUDA is the first citizen. What only some accelerators can do is looked up in `ABILITIES` and
nowhere else. Rules this file keeps (docs/exactness.md): the current stream is asked for every time
and never inside the copy stream's context (R1); copies go to pinned, contiguous bytes (R4);
lifetimes are held by references and events, never `record_stream`, and streams are ordered with
events, never `wait_stream` (R13); one copy stream per device, since there is one copy engine per
direction and torch's stream pool wraps around after 32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import Buffer, HostBuffer, Staging
from fastcap.devices.threaded import ThreadedDevice
from fastcap.errors import DeviceError, DeviceMemoryError, HostMemoryError
from fastcap.formatting import format_bytes

MOST_UPLOADED_BYTES = 64 << 20
"""Guessed. What is larger blocks the host: torch never gives pinned memory back to the system."""

Stream = Any  # torch.cuda.Stream and torch.Stream share no useful base class in torch 2.6
Event = Any


@dataclass(frozen=True, slots=True)
class Abilities:
    """How one kind of accelerator does what the seam asks for."""

    new_stream: Callable[[torch.device], Stream]
    new_event: Callable[[torch.device], Event]
    new_timing_event: Callable[[torch.device], Event]
    current_stream: Callable[[torch.device], Stream]
    lasting_stream: Callable[[torch.device], Stream]
    lasts: Callable[[Stream], bool]
    use_stream: Callable[[Stream], AbstractContextManager[Any]]
    current_index: Callable[[], int]
    set_index: Callable[[int], None]
    use_index: Callable[[int], AbstractContextManager[Any]]
    new_pinned: Callable[[int], Tensor]
    free_bytes: Callable[[torch.device], int | None]
    is_capturing: Callable[[], bool]


class _KnownStream(torch.cuda.Stream):
    """One of CUDA's streams, told apart by identity: a Stream's own hash takes a microsecond."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


MOST_KNOWN_STREAMS = 256  # guessed: a device has 1 + 32 per priority of torch's own
_known_streams: dict[tuple[int, int], _KnownStream] = {}


def _current_cuda_stream(device: torch.device) -> Stream:
    """`torch.cuda.current_stream`, at a tenth of its cost.

    The current stream is asked for every time (R1); what is kept is torch's wrapper of it. That is
    no more than a device and a handle, so it cannot be out of date: torch never destroys its own
    streams, and where an owner destroys a stream and the driver gives its handle to the next, the
    wrapper means the next, as would a new one. What such a stream was asked to do before is
    nobody's to know afterwards: see `lasts`.
    """
    index = torch._C._cuda_getDevice() if device.index is None else device.index
    handle = torch._C._cuda_getCurrentRawStream(index)
    return _known_streams.get((index, handle)) or _know_stream(
        handle, *torch._C._cuda_getCurrentStream(index)
    )


def _know_stream(handle: int, stream_id: int, index: int, kind: int) -> Stream:
    if len(_known_streams) >= MOST_KNOWN_STREAMS:
        _known_streams.clear()  # others' streams, made and destroyed: wrappers are made again
    stream = _KnownStream(stream_id=stream_id, device_index=index, device_type=kind)  # type: ignore[no-untyped-call]
    return _known_streams.setdefault((index, handle), stream)


class _UseCudaStream:
    """`torch.cuda.stream`, at a fifth of its cost: once per copy, and copies are one per site where
    values fill chunks.
    """

    __slots__ = ("_device", "_earlier", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __enter__(self) -> None:
        stream = self._stream
        self._device = torch._C._cuda_exchangeDevice(stream.device_index)
        self._earlier = torch._C._cuda_getCurrentStream(stream.device_index)
        _set_cuda_stream(stream.stream_id, stream.device_index, stream.device_type)

    def __exit__(self, *_: object) -> None:
        _set_cuda_stream(*self._earlier)
        # As torch has it: going back to a device nobody has used must not make a context there.
        torch._C._cuda_maybeExchangeDevice(self._device)


def _set_cuda_stream(stream_id: int, index: int, kind: int) -> None:
    torch._C._cuda_setStream(stream_id=stream_id, device_index=index, device_type=kind)


def _default_cuda_stream(device: torch.device) -> Stream:
    return _know_stream(0, *torch._C._cuda_getDefaultStream(device.index))


@contextlib.contextmanager
def _use_generic_index(index: int) -> Any:
    before = torch.accelerator.current_device_index()
    torch.accelerator.set_device_index(index)
    try:
        yield
    finally:
        torch.accelerator.set_device_index(before)


@contextlib.contextmanager
def _use_generic_stream(stream: Stream) -> Any:
    # Setting a stream also makes its device the current one: both devices' streams are restored.
    before = [torch.accelerator.current_stream(stream.device), torch.accelerator.current_stream()]
    torch.accelerator.set_stream(stream)
    try:
        yield
    finally:
        for earlier in before:
            torch.accelerator.set_stream(earlier)


def _new_pinned(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)


@cache
def _copy_stream(device: torch.device) -> Stream:
    return ABILITIES.get(device.type, GENERIC).new_stream(device)


GENERIC: Abilities = Abilities(
    new_stream=lambda device: torch.Stream(device),
    new_event=lambda device: torch.Event(device),
    new_timing_event=lambda device: torch.Event(device, enable_timing=True),
    current_stream=lambda device: torch.accelerator.current_stream(device),
    lasting_stream=lambda device: _copy_stream(device),
    lasts=lambda stream: True,
    use_stream=_use_generic_stream,
    current_index=lambda: torch.accelerator.current_device_index(),
    set_index=lambda index: torch.accelerator.set_device_index(index),
    use_index=_use_generic_index,
    new_pinned=_new_pinned,
    free_bytes=lambda device: None,
    is_capturing=lambda: False,
)
"""Whatever `torch.accelerator` covers (XPU, PrivateUse1 back ends)."""

ABILITIES: dict[str, Abilities] = {
    "cuda": Abilities(
        new_stream=lambda device: torch.cuda.Stream(device),  # type: ignore[no-untyped-call]
        # A blocking event lets a waiting host thread sleep instead of polling the driver's lock.
        new_event=lambda device: torch.cuda.Event(blocking=True),  # type: ignore[no-untyped-call]
        new_timing_event=lambda device: torch.cuda.Event(enable_timing=True),  # type: ignore[no-untyped-call]
        current_stream=_current_cuda_stream,
        lasting_stream=_default_cuda_stream,
        # The id of a stream that somebody else made is its handle; torch's own have small ids.
        lasts=lambda stream: stream.stream_id == 0 or stream.stream_id != stream.cuda_stream,
        use_stream=_UseCudaStream,
        current_index=getattr(torch._C, "_cuda_getDevice", torch.cuda.current_device),
        set_index=lambda index: torch.cuda.set_device(index),
        use_index=lambda index: torch.cuda.device(index),
        new_pinned=_new_pinned,
        free_bytes=lambda device: torch.cuda.mem_get_info(device)[0],
        is_capturing=getattr(
            torch._C, "_cuda_isCurrentStreamCapturing", torch.cuda.is_current_stream_capturing
        ),
    ),
}
"""Asked in every hook: the current index and stream and `is_capturing`, which are C functions where
torch was built for CUDA.
"""


class AcceleratorDevice(ThreadedDevice[Stream, Event]):
    """Streams, events and pinned memory of one torch device."""

    def __init__(self, torch_device: torch.device) -> None:
        self._can = can = ABILITIES.get(torch_device.type, GENERIC)
        index = torch_device.index
        self._index = index = can.current_index() if index is None else index
        # "cuda" is one of the devices with an index: one copy stream, and one name, for both.
        torch_device = torch.device(torch_device.type, index)
        # A thread begins with device 0 current, and the first call it makes there gives that
        # device a context of half a gigabyte, whatever event the call is about.
        super().__init__(torch_device, partial(can.set_index, index))
        self._copy_stream = _copy_stream(torch_device)
        # Staging belongs to a stream that nobody can destroy: it is given back in that one's order.
        self._lasting_stream = can.lasting_stream(torch_device)

    def current_stream(self) -> Stream:
        return self._can.current_stream(self.torch_device)

    def lasts(self, stream: Stream) -> bool:
        return self._can.lasts(stream)

    def event(self) -> Event:
        self.counters.events += 1
        return self._can.new_event(self.torch_device)

    def record(self, event: Event, stream: Stream) -> None:
        event.record(stream)

    def wait_event(self, stream: Stream, event: Event) -> None:
        stream.wait_event(event)
        self.counters.stream_waits += 1

    def query(self, event: Event) -> bool:
        # The driver answers from any device, and makes a context on the current one to do so.
        if self._can.current_index() == self._index:
            return bool(event.query())
        with self._can.use_index(self._index):
            return bool(event.query())

    def _block_until(self, event: Event) -> None:
        if self._can.current_index() == self._index:
            event.synchronize()
            return
        with self._can.use_index(self._index):
            event.synchronize()

    def is_capturing(self) -> bool:
        # Of this device's current stream: the value may be on another device than the current one.
        if self._can.current_index() == self._index:
            return self._can.is_capturing()
        with self._can.use_index(self._index):
            return self._can.is_capturing()

    def free_bytes(self) -> int | None:
        return self._can.free_bytes(self.torch_device)

    def staging(self, n_bytes: int) -> Staging:
        stream, lasting = self.current_stream(), self._lasting_stream
        is_there = stream is lasting
        try:
            with (
                torch.inference_mode(False),  # R10
                contextlib.nullcontext() if is_there else self._can.use_stream(lasting),
            ):
                memory = torch.empty(n_bytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"Cannot allocate {format_bytes(n_bytes)} of staging on {self.torch_device}. Free "
                "some memory there, use smaller batches, or pass a smaller staging_bytes=."
            ) from error
        if not is_there:  # what used the memory before may be at it still
            allocated = self._can.new_event(self.torch_device)
            allocated.record(lasting)
            stream.wait_event(allocated)
        self.counters.device_allocations += 1
        self.counters.staging_bytes += n_bytes
        return Staging(memory)

    def host(self, n_bytes: int) -> HostBuffer:
        try:
            with torch.inference_mode(False):
                memory = self._can.new_pinned(n_bytes)
        except (RuntimeError, MemoryError) as error:
            self._raise_if_broken(error)
            raise HostMemoryError(
                f"Cannot pin {format_bytes(n_bytes)} of host memory. Pass a smaller pinned_bytes=, "
                "or raise the limit on locked memory (ulimit -l, or the container's memory limit)."
            ) from error
        self.counters.host_allocations += 1
        self.counters.pinned_bytes += n_bytes
        return HostBuffer(memory)

    def _raise_if_broken(self, failure: Exception) -> None:
        """Tell a device that answers no call any more from one that is out of memory.

        An error inside a kernel is given to every call after it, whatever that is about.
        """
        try:
            self._copy_stream.query()
        except RuntimeError as error:
            found = str(error).strip().partition("\n")[0]
            raise DeviceError(
                f"{self.torch_device} answers every call with an error of earlier work: {found}. "
                "Nothing can be captured on it any more. Run again in a new process with "
                "CUDA_LAUNCH_BLOCKING=1, which raises the error where it happens."
            ) from failure

    def release(self, buffer: Buffer, after: Iterable[Event] = ()) -> None:
        if not isinstance(buffer, Staging):
            # torch's pinned allocator recorded every copy that used the block, and waits for them.
            self.counters.pinned_bytes -= buffer.n_bytes
            return
        # The allocator reuses a block in the order of the stream it was allocated on.
        for event in after:
            self._lasting_stream.wait_event(event)
        self.counters.staging_bytes -= buffer.n_bytes

    def reaches(self, memory: Tensor) -> bool:
        return memory.is_pinned()

    def upload(self, value: Tensor) -> Tensor:
        if not 0 < value.nbytes <= MOST_UPLOADED_BYTES:
            return value.to(self.torch_device)
        try:
            memory = self._can.new_pinned(value.nbytes)
        except (RuntimeError, MemoryError):  # slower, and as exact; an error of the device's own
            return value.to(self.torch_device)  # is raised here as what it is
        # In the layout that `.to` gives.
        like = value if value.is_contiguous() else torch.empty_like(value, device="meta")
        pinned = memory.view(value.dtype).as_strided(value.shape, like.stride())
        # Copied now, also if the value is pinned already: its owner may write to it at any time.
        # torch's pinned allocator records the second copy, and keeps the block until it is done.
        return pinned.copy_(value).to(self.torch_device, non_blocking=True)

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        staging.view(dtype, offset, value.shape).copy_(value, True)  # does not block the host

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[Event],
        then: Iterable[Event],
        offset: int = 0,
    ) -> None:
        for event in after:
            self._copy_stream.wait_event(event)
        with self._can.use_stream(self._copy_stream):
            source = staging.bytes[offset : offset + n_bytes]
            target.bytes[:n_bytes].copy_(source, non_blocking=True)
        for event in then:
            event.record(self._copy_stream)
        self.counters.copies += n_bytes > 0
        self.counters.copied_bytes += n_bytes


def own_device(device: str, local_rank: str) -> str:
    """The device of one of several processes on a machine, where its name has no index.

    `torchrun` says in LOCAL_RANK which of them this is. Each takes its own device, unless it sees
    no such one because `CUDA_VISIBLE_DEVICES` shows it only its own.
    """
    here = torch.accelerator.current_accelerator()
    if here is None or device != here.type or not local_rank.isdecimal():
        return device
    is_there = int(local_rank) < torch.accelerator.device_count()
    return f"{device}:{int(local_rank)}" if is_there else device


# For measuring only: nothing that captures waits for a whole device, or asks its name.


def synchronise(device: torch.device) -> None:
    """Block the host until everything queued on a device is done; on the CPU it is."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe(device: torch.device) -> tuple[str, int | None]:
    """A device's name, and the bytes of its memory where torch says so."""
    if device.type != "cuda":
        return device.type, None
    properties = torch.cuda.get_device_properties(device)
    return properties.name, properties.total_memory
