"""A device with a virtual clock: how long a run would take on a machine with these rates.

Every operation's start and end are known when it is issued: it starts when its stream is free, the
host has issued it and what its stream waits for has ended. Nothing is moved, so full-size passes
cost nothing; values mean nothing either. The host's clock advances by what the host does: issuing,
waiting and copying.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcap.devices.base import (
    Buffer,
    Bytes,
    Destination,
    Device,
    HostBuffer,
    Staging,
    Ticket,
)

GB = 1e9


@dataclass(frozen=True, slots=True)
class SimulatedCosts:
    """A machine's rates.

    Attributes:
        link_bytes_per_sec: Of one copy between the device and pinned host memory, either way.
        copy_latency_secs: Added to every copy.
        memory_bytes_per_sec: Of device memory, reads and writes together.
        launch_secs: Of one kernel on the device.
        hook_secs: Of one capture on the host.
        host_bytes_per_sec: Of one worker, or the calling thread, into the destination.
        pageable_bytes_per_sec: Of a copy into pageable memory, as `.cpu()` makes it.
        n_workers: Host workers.
    """

    link_bytes_per_sec: float = 55 * GB
    copy_latency_secs: float = 5e-6
    memory_bytes_per_sec: float = 4300 * GB
    launch_secs: float = 4e-6
    hook_secs: float = 10e-6
    host_bytes_per_sec: float = 10 * GB
    pageable_bytes_per_sec: float = 5 * GB
    n_workers: int = 4


@dataclass(slots=True, eq=False)
class TimedStream:
    """A stream, and when it is free again, in seconds."""

    free_at: float = 0.0

    def run(self, not_before: float, secs: float) -> float:
        """Run something for `secs`; returns when it ends."""
        self.free_at = max(self.free_at, not_before) + secs
        return self.free_at


@dataclass(slots=True, eq=False)
class Moment:
    """An event: the time at which the work before its last mark ends."""

    at: float = 0.0


class TimedTicket:
    """A delivery that ends at a known time."""

    __slots__ = ("_device", "at")

    def __init__(self, device: TimedDevice, at: float) -> None:
        self._device = device
        self.at = at

    def done(self) -> bool:
        return self.at <= self._device.host_secs

    def wait(self) -> None:
        self._device.join(self)

    def error(self) -> BaseException | None:
        return None


class TimedDevice(Device[TimedStream, Moment]):
    """See the module.

    Args:
        costs: The machine.
        reaches_all: Whether results count as pinned.

    Attributes:
        host_secs: The host's clock.
        n_read_bytes: What the calling thread has copied out of slots.
    """

    def __init__(self, costs: SimulatedCosts | None = None, reaches_all: bool = False) -> None:
        super().__init__(torch.device("cpu"))
        self.costs = costs or SimulatedCosts()
        self._reaches_all = reaches_all
        self.host_secs = 0.0
        self.n_read_bytes = 0
        self.compute, self.copy_stream = TimedStream(), TimedStream()
        self.workers = [TimedStream() for _ in range(self.costs.n_workers)]

    # The model's side

    def launch(self, secs: float, host_secs: float = 0.0) -> None:
        """The model issues a kernel that runs for `secs`, which takes the host `host_secs`."""
        self.host_secs += host_secs
        self.compute.run(self.host_secs, secs)

    def synchronise(self) -> float:
        """Wait for the model; returns the time."""
        self.host_secs = max(self.host_secs, self.compute.free_at)
        return self.host_secs

    def now(self) -> float:
        return self.host_secs

    # Streams and events

    def current_stream(self) -> TimedStream:
        return self.compute

    def event(self) -> Moment:
        self.counters.events += 1
        return Moment()

    def record(self, event: Moment, stream: TimedStream) -> None:
        event.at = max(stream.free_at, self.host_secs)

    def wait_event(self, stream: TimedStream, event: Moment) -> None:
        self.counters.stream_waits += 1
        stream.free_at = max(stream.free_at, event.at)

    def query(self, event: Moment) -> bool:
        return event.at <= self.host_secs

    def synchronize(self, event: Moment) -> None:
        self._wait_until(event.at)

    def join(self, ticket: Ticket) -> None:
        assert isinstance(ticket, TimedTicket)
        before = self.counters.waited_secs
        self._wait_until(ticket.at)
        self.counters.joined_secs += self.counters.waited_secs - before

    def _wait_until(self, at: float) -> None:
        if at > self.host_secs:
            self.counters.waits += 1
            self.counters.waited_secs += at - self.host_secs
            self.host_secs = at

    def is_capturing(self) -> bool:
        return False

    # Memory: address space only

    def free_bytes(self) -> int | None:
        return None

    def staging(self, n_bytes: int) -> Staging:
        self.counters.device_allocations += 1
        self.counters.staging_bytes += n_bytes
        return Staging(torch.empty(n_bytes, dtype=torch.uint8, device="cpu"))

    def host(self, n_bytes: int) -> HostBuffer:
        self.counters.host_allocations += 1
        self.counters.pinned_bytes += n_bytes
        return HostBuffer(torch.empty(n_bytes, dtype=torch.uint8, device="cpu"))

    def release(self, buffer: Buffer, after: Iterable[Moment] = ()) -> None:
        if isinstance(buffer, Staging):
            self.counters.staging_bytes -= buffer.n_bytes
        else:
            self.counters.pinned_bytes -= buffer.n_bytes

    def reaches(self, memory: Tensor) -> bool:
        return self._reaches_all

    # Moving bytes: only time passes

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        costs = self.costs
        self.host_secs += costs.hook_secs
        moved_bytes = value.nbytes + value.numel() * dtype.itemsize
        secs = costs.launch_secs + moved_bytes / costs.memory_bytes_per_sec
        self.compute.run(self.host_secs, secs)

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[Moment],
        then: Iterable[Moment],
        offset: int = 0,
    ) -> None:
        ready = max([self.host_secs, *(event.at for event in after)])
        secs = self.costs.copy_latency_secs + n_bytes / self.costs.link_bytes_per_sec
        end = self.copy_stream.run(ready, secs)
        for event in then:
            event.at = end
        self.counters.copies += 1
        self.counters.copied_bytes += n_bytes

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        self.host_secs += target.nbytes / self.costs.host_bytes_per_sec
        self.n_read_bytes += target.nbytes

    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: Moment | None,
        worker: int,
    ) -> Ticket:
        ready = self.host_secs if after is None else max(self.host_secs, after.at)
        secs = target.nbytes / self.costs.host_bytes_per_sec
        self.counters.delivery_secs += secs
        stream = self.workers[worker % len(self.workers)]
        return TimedTicket(self, stream.run(ready, secs))

    def place(self, value: Tensor, dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        """What a synchronous hook does: wait for the model, then copy while it stands still."""
        self.synchronise()
        if target is None:
            target = torch.empty(value.shape, dtype=dtype, device="cpu")
        self.host_secs += target.nbytes / self.costs.pageable_bytes_per_sec
        return target

    def lend(self, slot: HostBuffer, offset: int, n_bytes: int) -> Bytes:
        return slot.bytes.numpy()[offset : offset + n_bytes]

    def take_back(self, slot: HostBuffer, offset: int, n_bytes: int) -> None:
        """Nothing to do."""

    def close(self) -> None:
        for stream in self.workers:
            self._wait_until(stream.free_at)
