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
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import Buffer, HostBuffer, Staging
from fastcap.devices.threaded import ThreadedDevice
from fastcap.errors import DeviceMemoryError, HostMemoryError
from fastcap.host_memory import format_bytes

Stream = Any  # torch.cuda.Stream and torch.Stream share no useful base class in torch 2.6
Event = Any


@dataclass(frozen=True, slots=True)
class Abilities:
    """How one kind of accelerator does what the seam asks for."""

    new_stream: Callable[[torch.device], Stream]
    new_event: Callable[[torch.device], Event]
    new_timing_event: Callable[[torch.device], Event]
    current_stream: Callable[[torch.device], Stream]
    use_stream: Callable[[Stream], AbstractContextManager[Any]]
    pinned_bytes: Callable[[int], Tensor]
    free_bytes: Callable[[torch.device], int | None]
    is_capturing: Callable[[], bool]


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


def _pinned_bytes(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)


GENERIC = Abilities(
    new_stream=lambda device: torch.Stream(device),
    new_event=lambda device: torch.Event(device),
    new_timing_event=lambda device: torch.Event(device, enable_timing=True),
    current_stream=lambda device: torch.accelerator.current_stream(device),
    use_stream=_use_generic_stream,
    pinned_bytes=_pinned_bytes,
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
        current_stream=lambda device: torch.cuda.current_stream(device),
        use_stream=lambda stream: torch.cuda.stream(stream),
        pinned_bytes=_pinned_bytes,
        free_bytes=lambda device: torch.cuda.mem_get_info(device)[0],
        is_capturing=lambda: torch.cuda.is_current_stream_capturing(),
    ),
}


class AcceleratorDevice(ThreadedDevice[Stream, Event]):
    """Streams, events and pinned memory of one torch device."""

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__(torch_device)
        self._can = ABILITIES.get(torch_device.type, GENERIC)
        self._copy_stream = _copy_stream(torch_device)
        self._allocated_on: dict[Staging, Stream] = {}

    def current_queue(self) -> Stream:
        return self._can.current_stream(self.torch_device)

    def fence(self) -> Event:
        self.counters.fences += 1
        return self._can.new_event(self.torch_device)

    def mark(self, fence: Event, queue: Stream) -> None:
        fence.record(queue)

    def hold(self, queue: Stream, fence: Event) -> None:
        queue.wait_event(fence)
        self.counters.holds += 1

    def done(self, fence: Event) -> bool:
        return bool(fence.query())

    def _block_until(self, fence: Event) -> None:
        fence.synchronize()

    def is_capturing(self) -> bool:
        return self._can.is_capturing()

    def free_bytes(self) -> int | None:
        return self._can.free_bytes(self.torch_device)

    def staging(self, n_bytes: int) -> Staging:
        try:
            with torch.inference_mode(False):  # R10
                memory = torch.empty(n_bytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"Cannot allocate {format_bytes(n_bytes)} of staging on {self.torch_device}. Free "
                "some memory there, use smaller batches, or pass a smaller device_bytes=."
            ) from error
        staging = Staging(memory)
        self._allocated_on[staging] = self.current_queue()
        self.counters.device_allocations += 1
        self.counters.device_bytes += n_bytes
        return staging

    def host(self, n_bytes: int) -> HostBuffer:
        try:
            with torch.inference_mode(False):
                memory = self._can.pinned_bytes(n_bytes)
        except (RuntimeError, MemoryError) as error:
            raise HostMemoryError(
                f"Cannot pin {format_bytes(n_bytes)} of host memory. Pass a smaller host_bytes=, "
                "or raise the limit on locked memory (ulimit -l, or the container's memory limit)."
            ) from error
        self.counters.host_allocations += 1
        self.counters.host_bytes += n_bytes
        return HostBuffer(memory)

    def release(self, buffer: Buffer, after: Iterable[Event] = ()) -> None:
        if not isinstance(buffer, Staging):
            # torch's pinned allocator recorded every copy that used the block, and waits for them.
            self.counters.host_bytes -= buffer.n_bytes
            return
        # The allocator reuses a block in the order of the stream it was allocated on.
        queue = self._allocated_on.pop(buffer)
        for fence in after:
            queue.wait_event(fence)
        self.counters.device_bytes -= buffer.n_bytes

    def reaches(self, memory: Tensor) -> bool:
        return memory.is_pinned()

    def upload(self, value: Tensor) -> Tensor:
        pinned = self._can.pinned_bytes(value.nbytes).view(value.dtype).view(value.shape)
        # torch's pinned allocator records this copy, and keeps the block until it is done.
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
        for fence in after:
            self._copy_stream.wait_event(fence)
        with self._can.use_stream(self._copy_stream):
            source = staging.bytes[offset : offset + n_bytes]
            target.bytes[:n_bytes].copy_(source, non_blocking=True)
        for fence in then:
            fence.record(self._copy_stream)
        self.counters.copies += n_bytes > 0
        self.counters.copied_bytes += n_bytes


@cache
def _copy_stream(device: torch.device) -> Stream:
    return ABILITIES.get(device.type, GENERIC).new_stream(device)


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
