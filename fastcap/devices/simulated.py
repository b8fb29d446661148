"""An accelerator simulated on CPU memory: the same seam, under any schedule one can name.

Queues are first-in first-out lists of operations that run when a `Schedule` says so, or when the
host waits for them. Packs snapshot their source when they are issued (the model's own operations
run at once) and write staging when they run; copies read staging and write slots when they run.
Fences have CUDA's semantics. Memory that nothing has written holds poison, and so does memory that
was given back and a slot whose next copy has been issued.

What is not simulated: the speed of anything, and the model's own reads and writes.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastcap.devices.base import Buffer, Bytes, Device, HostBuffer, Staging, Ticket
from fastcap.errors import DeviceMemoryError, HostMemoryError

POISON = 0xFB  # as bf16, fp16, fp32 and fp64 a large negative number that no test produces
N_WORKERS = 2
QUEUE_KINDS = ("compute", "copy", "worker")


@dataclass(slots=True, eq=False)
class Mark:
    """One recording of a fence: reached when its queue gets there."""

    queue: Queue
    reached: bool = False


@dataclass(slots=True, eq=False)
class Operation:
    """One entry of a queue: it may run once `waits_for` is reached."""

    label: str
    run: Callable[[], object]
    waits_for: Mark | None = None


@dataclass(slots=True, eq=False)
class Queue:
    """Operations that run in the order they were given."""

    name: str
    kind: str = "compute"
    pending: deque[Operation] = field(default_factory=deque)

    @property
    def is_runnable(self) -> bool:
        if not self.pending:
            return False
        blocker = self.pending[0].waits_for
        return blocker is None or blocker.reached


@dataclass(slots=True, eq=False)
class SimulatedFence:
    """A fence; `last` is what a wait captures, `None` while it was never marked."""

    last: Mark | None = None


EXTREMES = {
    "late": (0.0, 0.0, 0.0),
    "early": (1.0, 1.0, 1.0),
    "compute first": (1.0, 0.0, 0.0),
    "copies first": (0.0, 1.0, 0.0),
    "workers last": (1.0, 1.0, 0.0),
}
"""Eagerness of compute queues, copy queue and host workers in the schedules that fail first."""


class Schedule:
    """Who runs when. Every choice comes from one seed.

    Args:
        kind: A name in `EXTREMES`, or `"random"` to draw how eager each kind of queue is.
        seed: Decides every choice.
    """

    def __init__(self, kind: str = "random", seed: int = 0) -> None:
        self._random = random.Random(seed)
        if kind == "random":
            drawn = [self._random.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for _ in range(3)]
            self._eagerness = dict(zip(QUEUE_KINDS, drawn, strict=True))
        else:
            self._eagerness = dict(zip(QUEUE_KINDS, EXTREMES[kind], strict=True))

    def order(self, queues: list[Queue]) -> list[Queue]:
        """In which order queues get a chance to run."""
        return self._random.sample(queues, len(queues))

    def goes_on(self, queue: Queue) -> bool:
        """Whether a queue that could run an operation now does."""
        return self._random.random() < self._eagerness[queue.kind]


class SimulatedTicket:
    """A delivery on a simulated worker."""

    __slots__ = ("failure", "mark")

    def __init__(self) -> None:
        self.mark: Mark | None = None
        self.failure: BaseException | None = None

    def done(self) -> bool:
        return self.mark is not None and self.mark.reached

    def error(self) -> BaseException | None:
        return self.failure


class SimulatedDevice(Device[Queue, SimulatedFence]):
    """See the module.

    Args:
        schedule: Who runs when.
        device_capacity_bytes: Staging that can be allocated at once; `None` for any.
        host_capacity_bytes: Slot memory that can be allocated at once; `None` for any.
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        device_capacity_bytes: int | None = None,
        host_capacity_bytes: int | None = None,
    ) -> None:
        super().__init__(torch.device("cpu"))
        self.schedule = schedule or Schedule()
        self.device_capacity_bytes = device_capacity_bytes
        self.host_capacity_bytes = host_capacity_bytes
        self.compute = Queue("compute")
        self.copy_queue = Queue("copy", "copy")
        self.workers = [Queue(f"worker {i}", "worker") for i in range(N_WORKERS)]
        self.capturing = False
        self._queues = [self.compute, self.copy_queue, *self.workers]
        self._of_thread = threading.local()
        self._lock = threading.RLock()
        self._is_running = False

    # Queues and fences

    def use_queue(self, queue: Queue) -> None:
        """Have this thread's model code use another compute queue from now on."""
        self._of_thread.queue = queue

    def new_queue(self, name: str) -> Queue:
        queue = Queue(name)
        self._queues.append(queue)
        return queue

    def current_queue(self) -> Queue:
        return getattr(self._of_thread, "queue", self.compute)

    def fence(self) -> SimulatedFence:
        self.counters.fences += 1
        return SimulatedFence()

    def mark(self, fence: SimulatedFence, queue: Queue) -> None:
        with self._turn():
            fence.last = self._mark(queue)

    def _mark(self, queue: Queue) -> Mark:
        mark = Mark(queue)

        def reach() -> None:
            mark.reached = True

        queue.pending.append(Operation("mark", reach))
        return mark

    def hold(self, queue: Queue, fence: SimulatedFence) -> None:
        with self._turn():
            self.counters.holds += 1
            self._wait_on(queue, fence)

    def _wait_on(self, queue: Queue, fence: SimulatedFence) -> None:
        queue.pending.append(Operation("hold", lambda: None, waits_for=fence.last))

    def done(self, fence: SimulatedFence) -> bool:
        with self._turn():
            pass
        return fence.last is None or fence.last.reached

    def wait(self, fence: SimulatedFence) -> None:
        if not self.done(fence) and fence.last is not None:
            self.counters.waits += 1
            self._run_until(fence.last)

    def join(self, ticket: Ticket) -> None:
        assert isinstance(ticket, SimulatedTicket)
        if not ticket.done() and ticket.mark is not None:
            self.counters.waits += 1
            self._run_until(ticket.mark)

    def is_capturing(self) -> bool:
        return self.capturing

    # Memory

    def free_bytes(self) -> int | None:
        if self.device_capacity_bytes is None:
            return None
        return self.device_capacity_bytes - self.counters.device_bytes

    def staging(self, n_bytes: int) -> Staging:
        capacity = self.device_capacity_bytes
        if capacity is not None and self.counters.device_bytes + n_bytes > capacity:
            raise DeviceMemoryError(f"simulated: no {n_bytes} bytes left on the device")
        self.counters.device_allocations += 1
        self.counters.device_bytes += n_bytes
        return Staging(_poisoned(n_bytes))

    def host(self, n_bytes: int) -> HostBuffer:
        capacity = self.host_capacity_bytes
        if capacity is not None and self.counters.host_bytes + n_bytes > capacity:
            raise HostMemoryError(f"simulated: no {n_bytes} bytes can be pinned")
        self.counters.host_allocations += 1
        self.counters.host_bytes += n_bytes
        return HostBuffer(_poisoned(n_bytes))

    def release(self, buffer: Buffer, after: Iterable[SimulatedFence] = ()) -> None:
        with self._turn():
            if not isinstance(buffer, Staging):
                self.counters.host_bytes -= buffer.n_bytes
                return
            self.counters.device_bytes -= buffer.n_bytes
            # The allocator's queue reuses the memory: what comes later there overwrites it.
            for fence in after:
                self._wait_on(self.compute, fence)
            self._give(self.compute, "reuse", lambda: _poison(buffer.bytes))

    # Moving bytes

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        source = value.clone()
        target = staging.view(dtype, offset, value.shape)
        self._give(self.current_queue(), "pack", lambda: target.copy_(source))

    def copy(
        self,
        staging: Staging,
        slot: HostBuffer,
        n_bytes: int,
        after: Iterable[SimulatedFence],
        then: Iterable[SimulatedFence],
    ) -> None:
        with self._turn():
            for fence in after:
                self._wait_on(self.copy_queue, fence)
            _poison(slot.bytes)
            source, target = staging.bytes[:n_bytes], slot.bytes[:n_bytes]
            self._give(self.copy_queue, "copy", lambda: target.copy_(source))
            for fence in then:
                fence.last = self._mark(self.copy_queue)
            self.counters.copies += 1
            self.counters.copied_bytes += n_bytes

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        with self._turn():
            target.copy_(slot.view(dtype, offset, target.shape))

    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor,
        after: SimulatedFence | None,
        worker: int,
    ) -> Ticket:
        ticket = SimulatedTicket()

        def run() -> None:
            try:
                target.copy_(slot.view(dtype, offset, target.shape))
            except Exception as error:  # noqa: BLE001 - raised by whoever asks
                ticket.failure = error

        with self._turn():
            queue = self.workers[worker % N_WORKERS]
            if after is not None:
                self._wait_on(queue, after)
            self._give(queue, "deliver", run)
            ticket.mark = self._mark(queue)
        return ticket

    def place(self, value: Tensor, target: Tensor) -> None:
        target.copy_(value)

    def lend(self, slot: HostBuffer, offset: int, n_bytes: int) -> Bytes:
        return slot.bytes.numpy()[offset : offset + n_bytes]

    def take_back(self, slot: HostBuffer, offset: int, n_bytes: int) -> None:
        _poison(slot.bytes[offset : offset + n_bytes])

    def close(self) -> None:
        for worker in self.workers:
            self._run_until(self._mark(worker))

    # Running

    def _give(self, queue: Queue, label: str, run: Callable[[], object]) -> None:
        with self._turn():
            queue.pending.append(Operation(label, run))

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """A call into the device: afterwards the schedule lets some operations run."""
        with self._lock:
            yield
            if not self._is_running:
                self._run_some()

    def _run_some(self) -> None:
        runnable = [queue for queue in self._queues if queue.is_runnable]
        while runnable:
            for queue in self.schedule.order(runnable):
                while queue.is_runnable and self.schedule.goes_on(queue):
                    self._step(queue)
            # What one queue did may have unblocked another; a queue that paused is asked again.
            before, runnable = runnable, [queue for queue in self._queues if queue.is_runnable]
            if runnable == before:
                return

    def _run_until(self, mark: Mark) -> None:
        """Run what `mark` needs and no more: everything else happens as late as it may."""
        with self._lock:
            while not mark.reached:
                queue = mark.queue
                while not queue.is_runnable:
                    if not queue.pending or queue.pending[0].waits_for is None:
                        raise RuntimeError("simulated: a wait for something that nobody will do")
                    blocker = queue.pending[0].waits_for
                    queue = blocker.queue
                self._step(queue)

    def _step(self, queue: Queue) -> None:
        operation = queue.pending.popleft()
        self._is_running = True
        try:
            with torch.inference_mode(False), torch.no_grad():
                operation.run()
        finally:
            self._is_running = False


def _poisoned(n_bytes: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((n_bytes,), POISON, dtype=torch.uint8, device="cpu")


def _poison(memory: Tensor) -> None:
    memory.fill_(POISON)
