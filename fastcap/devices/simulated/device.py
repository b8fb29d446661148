"""The simulated accelerator: CPU memory, streams, and an adversary who decides who runs when."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import Buffer, Bytes, Destination, Device, HostBuffer, Staging, Ticket
from fastcap.devices.simulated.order import HOST, OrderJudge
from fastcap.devices.simulated.runner import Runner
from fastcap.devices.simulated.schedule import Schedule
from fastcap.devices.simulated.streams import (
    Mark,
    SimulatedEvent,
    SimulatedStream,
    SimulatedTicket,
)
from fastcap.devices.simulated.watch import Allocations, ModelWatch
from fastcap.errors import DeviceMemoryError, HostMemoryError

POISON = 0xFB  # as bf16, fp16, fp32 and fp64 a large negative number that no test produces
N_WORKERS = 2


class SimulatedDevice(Device[SimulatedStream, SimulatedEvent]):
    """An accelerator on CPU memory, for any schedule one can name.

    The model's own operations run when the model runs them; what the engine asks for is queued, and
    runs when the schedule says so or when somebody waits for it. A pack snapshots its source when
    it is issued and writes staging when it runs; a copy reads staging and writes its slot when it
    runs. Memory that nothing has written holds poison, and so does memory that was given back, a
    lease that ended, and a slot whose next copy has been issued.

    Args:
        schedule: Who runs when.
        device_capacity_bytes: Staging that can be allocated at once; `None` for any.
        host_capacity_bytes: Slot memory that can be allocated at once; `None` for any.
        patience: Calls into the device after which it raises `StuckError`; `None` for any number.

    Attributes:
        judge: Finds pairs of accesses that no edge orders, whatever the schedule did.
        peak_device_bytes, peak_host_bytes: The most that was allocated at once.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        device_capacity_bytes: int | None = None,
        host_capacity_bytes: int | None = None,
        patience: int | None = None,
    ) -> None:
        super().__init__(torch.device("cpu"))
        self.schedule = schedule or Schedule()
        self.judge = OrderJudge()
        self.device_capacity_bytes = device_capacity_bytes
        self.host_capacity_bytes = host_capacity_bytes
        self.peak_device_bytes = 0
        self.peak_host_bytes = 0
        self.compute = SimulatedStream("compute")
        self.copy_stream = SimulatedStream("copy", "copy")
        self.workers = [SimulatedStream(f"worker {i}", "worker") for i in range(N_WORKERS)]
        self.capturing = False
        streams = [self.compute, self.copy_stream, *self.workers]
        self._runner = Runner(streams, self.schedule, patience, self.muted)
        self._names: dict[Buffer, str] = {}
        self._live: set[Buffer] = set()
        self._allocated_on: dict[Staging, SimulatedStream] = {}
        self._lent: list[tuple[HostBuffer, int, int]] = []
        self._pinned: dict[int, tuple[str, Tensor]] = {}
        self._allocations = Allocations()
        self._watch: ModelWatch | None = None
        self._of_thread = threading.local()

    # The model's side

    def new_stream(self, name: str, lasts: bool = True) -> SimulatedStream:
        """One more compute stream; whether it is there for good."""
        stream = SimulatedStream(name, lasts=lasts)
        self._runner.streams.append(stream)
        return stream

    def use_stream(self, stream: SimulatedStream) -> None:
        """Have this thread's model code use another compute stream, in no order with the others."""
        self._of_thread.stream = stream

    def join_streams(self) -> None:
        """What this thread's model code does next comes after all compute streams.

        As `wait_stream` in a model that is itself correct.
        """
        current = self.current_stream()
        with self._runner.turn():
            for stream in [q for q in self._runner.streams if q.kind == "compute"]:
                if stream is not current:
                    self._wait_on(current, SimulatedEvent(self._mark(stream)))

    def watching(self) -> AbstractContextManager[Any]:
        """See the model's own reads and writes in the block."""
        self._watch = ModelWatch(self._saw_model)
        return self._watch

    def muted(self) -> AbstractContextManager[None]:
        """What happens in the block is not the model's doing."""
        return nullcontext() if self._watch is None else self._watch.muted()

    def _saw_model(self, label: str, tensor: Tensor, is_write: bool) -> None:
        with self._runner.lock:
            stream = self.current_stream()
            self.judge.issue(stream)
            self._access_model(stream, label, tensor, is_write)

    def _access_model(
        self, stream: SimulatedStream, label: str, tensor: Tensor, is_write: bool
    ) -> None:
        memory = self._allocations.of(tensor)
        self.judge.access(stream, label, memory, 0, memory.n_bytes, is_write)

    # Streams and events

    def current_stream(self) -> SimulatedStream:
        return getattr(self._of_thread, "stream", self.compute)

    def lasts(self, stream: SimulatedStream) -> bool:
        return stream.lasts

    def event(self) -> SimulatedEvent:
        self.counters.events += 1
        return SimulatedEvent()

    def record(self, event: SimulatedEvent, stream: SimulatedStream) -> None:
        with self._runner.turn():
            event.last = self._mark(stream)

    def _mark(self, stream: SimulatedStream) -> Mark:
        stream.check_is_there(self.judge.note)
        self.judge.issue(stream)
        mark = Mark(stream, self.judge.snapshot(stream))

        def reach() -> None:
            mark.reached = True

        self._runner.give(stream, "mark", reach)
        return mark

    def wait_event(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        with self._runner.turn():
            self.counters.stream_waits += 1
            self._wait_on(stream, event)

    def _wait_on(self, stream: SimulatedStream, event: SimulatedEvent) -> None:
        stream.check_is_there(self.judge.note)
        if event.last is not None:
            self.judge.learn(stream, event.last.clock)
            self._runner.give(stream, "hold", lambda: None, waits_for=event.last)

    def query(self, event: SimulatedEvent) -> bool:
        with self._runner.turn():
            pass  # the schedule decides first, and so what the answer is
        return self._is_reached(event.last)

    def _is_reached(self, mark: Mark | None) -> bool:
        if mark is None:
            return True
        self.schedule.note(f"done {mark.reached}")
        if mark.reached:
            self.judge.learn(HOST, mark.clock)
        return mark.reached

    def synchronize(self, event: SimulatedEvent) -> None:
        if not self.query(event):
            self.counters.waits += 1
            self._wait_for(event.last)

    def join(self, ticket: Ticket) -> None:
        assert isinstance(ticket, SimulatedTicket)
        if not ticket.done():
            self.counters.waits += 1
            self._wait_for(ticket.mark)

    def _wait_for(self, mark: Mark | None) -> None:
        assert mark is not None
        self._runner.run_until(mark)
        self.judge.learn(HOST, mark.clock)

    def is_capturing(self) -> bool:
        return self.capturing

    # Memory

    def free_bytes(self) -> int | None:
        capacity = self.device_capacity_bytes
        return None if capacity is None else capacity - self.counters.staging_bytes

    def staging(self, n_bytes: int) -> Staging:
        capacity = self.device_capacity_bytes
        if capacity is not None and self.counters.staging_bytes + n_bytes > capacity:
            raise DeviceMemoryError(f"simulated: no {n_bytes} bytes left on the device")
        staging = Staging(self._poisoned(n_bytes))
        self.counters.device_allocations += 1
        self.counters.staging_bytes += n_bytes
        self.peak_device_bytes = max(self.peak_device_bytes, self.counters.staging_bytes)
        self._name(staging, "staging")
        current = self.current_stream()
        # As on a real one, memory belongs to a stream that is there when it is given back.
        self._allocated_on[staging] = stream = current if current.lasts else self.compute
        with self._runner.turn():
            # The allocator hands out what earlier work on this stream may still be using.
            self._access(stream, "allocation", staging, 0, n_bytes, is_write=True)
            if current is not stream:
                self._wait_on(current, SimulatedEvent(self._mark(stream)))
        return staging

    def host(self, n_bytes: int) -> HostBuffer:
        capacity = self.host_capacity_bytes
        if capacity is not None and self.counters.pinned_bytes + n_bytes > capacity:
            raise HostMemoryError(f"simulated: no {n_bytes} bytes can be pinned")
        slot = HostBuffer(self._poisoned(n_bytes))
        self.counters.host_allocations += 1
        self.counters.pinned_bytes += n_bytes
        self.peak_host_bytes = max(self.peak_host_bytes, self.counters.pinned_bytes)
        self._name(slot, "slot")
        return slot

    def pin(self, memory: Tensor) -> None:
        """Let copies write a host tensor, which is poisoned, as if it had been made pinned."""
        with self.muted():
            _poison(memory.view(-1).view(torch.uint8))
        self._pinned[memory.untyped_storage()._cdata] = (f"rows {len(self._pinned)}", memory)

    def reaches(self, memory: Tensor) -> bool:
        return memory.untyped_storage()._cdata in self._pinned

    def _name(self, buffer: Buffer, kind: str) -> None:
        self._names[buffer] = f"{kind} {len(self._names)}"
        self._live.add(buffer)

    def _access(
        self, actor: Hashable, label: str, buffer: Buffer, start: int, stop: int, is_write: bool
    ) -> None:
        """Tell the judge. Memory that only the host ever sees has no name and is not judged."""
        if actor != HOST:
            self.judge.issue(actor)
        name, origin = self._names.get(buffer), 0
        if name is None and self.reaches(buffer.bytes):
            storage = buffer.bytes.untyped_storage()._cdata
            (name, _), origin = self._pinned[storage], int(buffer.bytes.storage_offset())
        if name is not None:
            self.judge.access(actor, label, name, origin + start, origin + stop, is_write)

    def release(self, buffer: Buffer, after: Iterable[SimulatedEvent] = ()) -> None:
        with self._runner.turn():
            if buffer not in self._live:  # again, after an interrupt
                return
            self._live.discard(buffer)
            if isinstance(buffer, Staging):
                self._release_staging(buffer, after)
            else:
                self._release_slot(buffer, after)

    def _release_staging(self, staging: Staging, after: Iterable[SimulatedEvent]) -> None:
        self.counters.staging_bytes -= staging.n_bytes
        # The stream it was allocated on gets the memory: what comes later there overwrites it.
        stream = self._allocated_on.pop(staging)
        for event in after:
            self._wait_on(stream, event)
        self.judge.issue(stream)
        self.judge.forget(stream, "release", self._names[staging], staging.n_bytes)
        self._runner.give(stream, "reuse", lambda: _poison(staging.bytes))

    def _release_slot(self, slot: Buffer, after: Iterable[SimulatedEvent]) -> None:
        self.counters.pinned_bytes -= slot.n_bytes
        owner = "pinned allocator"
        self.judge.issue(owner)
        for event in after:
            if event.last is not None:
                self.judge.learn(owner, event.last.clock)
        if not any(slot is lent for lent, _, _ in self._lent):
            self.judge.forget(owner, "release", self._names[slot], slot.n_bytes)

    # Moving bytes

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        stream = self.current_stream()
        with self._runner.turn():
            self.judge.issue(stream)
            self._access_model(stream, "pack", value, is_write=False)
            with self.muted():
                source = value.clone()
                target = staging.view(dtype, offset, value.shape)
            stop = offset + target.nbytes
            self._access(stream, "pack", staging, offset, stop, is_write=True)
            self._runner.give(stream, "pack", lambda: target.copy_(source))

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[SimulatedEvent],
        then: Iterable[SimulatedEvent],
        offset: int = 0,
    ) -> None:
        stream = self.copy_stream
        with self._runner.turn(), self.muted():
            self._check_ends(staging, target, n_bytes)
            for event in after:
                self._wait_on(stream, event)
            self._access(stream, "copy", staging, offset, offset + n_bytes, is_write=False)
            self._access(stream, "copy", target, 0, n_bytes, is_write=True)
            source, landing = staging.bytes[offset : offset + n_bytes], target.bytes[:n_bytes]
            _poison(landing)
            self._runner.give(stream, "copy", lambda: landing.copy_(source))
            for event in then:
                event.last = self._mark(stream)
            self.counters.copies += n_bytes > 0
            self.counters.copied_bytes += n_bytes

    def _check_ends(self, staging: Staging, target: HostBuffer, n_bytes: int) -> None:
        """Copies go from staging to slots or pinned rows, and not into what is lent: asserted, not
        ordered.
        """
        is_known = target in self._live or self.reaches(target.bytes)
        if staging not in self._live or not is_known:
            self.judge.note("copy from or to memory that is neither staging nor a slot")
        if any(lent is target and offset < n_bytes for lent, offset, _ in self._lent):
            self.judge.note(f"write by copy on copy of {self._names[target]}: it is lent")

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        stop = offset + target.numel() * dtype.itemsize
        with self._runner.turn(), self.muted():
            self._access(HOST, "read", slot, offset, stop, is_write=False)
            target.copy_(slot.view(dtype, offset, target.shape))

    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: SimulatedEvent | None,
        worker: int,
    ) -> Ticket:
        ticket = SimulatedTicket(self._is_reached, self.join)

        def run() -> None:
            try:
                target.copy_(slot.view(dtype, offset, target.shape))
            except Exception as error:  # noqa: BLE001 - raised by whoever asks
                ticket.failure = error

        stream = self.workers[worker % N_WORKERS]
        stop = offset + target.numel() * dtype.itemsize
        with self._runner.turn():
            if after is not None:
                self._wait_on(stream, after)
            self._access(stream, "delivery", slot, offset, stop, is_write=False)
            self._runner.give(stream, "delivery", run)
            ticket.mark = self._mark(stream)
        return ticket

    def place(self, value: Tensor, dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        with self.muted():
            if target is None:
                return value.clone(memory_format=torch.contiguous_format).to(dtype)
            return target.copy_(value)

    def lend(self, slot: HostBuffer, offset: int, n_bytes: int) -> Bytes:
        with self._runner.turn():
            self._access(HOST, "lend", slot, offset, offset + n_bytes, is_write=False)
            self._lent.append((slot, offset, n_bytes))
        return slot.bytes.numpy()[offset : offset + n_bytes]

    def take_back(self, slot: HostBuffer, offset: int, n_bytes: int) -> None:
        with self._runner.turn(), self.muted():
            if (lease := (slot, offset, n_bytes)) in self._lent:  # else after an interrupt
                self._lent.remove(lease)
            self._access(HOST, "lend", slot, offset, offset + n_bytes, is_write=False)
            if lease not in self._lent:
                _poison(slot.bytes[offset : offset + n_bytes])

    def close(self) -> None:
        for worker in self.workers:
            self._wait_for(self._mark(worker))

    def now(self) -> float:
        """Operations run so far: the same in every run of the same seed."""
        return float(self._runner.n_steps)

    def _poisoned(self, n_bytes: int) -> Tensor:
        with self.muted(), torch.inference_mode(False):
            return torch.full((n_bytes,), POISON, dtype=torch.uint8, device="cpu")


def _poison(memory: Tensor) -> None:
    memory.fill_(POISON)
