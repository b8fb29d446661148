"""The host's half of a real device: threads move landed bytes into results while the model runs."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import Bytes, Destination, Device, EventT, HostBuffer, StreamT, Ticket
from fastcap.host_memory import normal_mode

N_CORES = os.cpu_count() or 1
# First touch goes at about 1.2 GB/s in each thread, far below a link; the other half is the model's
# thread and the user's own (docs/design/cost-model.md).
N_WORKERS = min(N_CORES, max(4, min(8, N_CORES // 2)))


class FutureTicket:
    """A delivery given to a thread; see `fastcap.devices.base.Ticket`."""

    __slots__ = ("_device", "future")

    def __init__(self, device: ThreadedDevice[Any, Any], future: Future[None]) -> None:
        self._device = device
        self.future = future

    def done(self) -> bool:
        return self.future.done()

    def wait(self) -> None:
        self._device.join(self)

    def error(self) -> BaseException | None:
        return self.future.exception()


class HostWorkers:
    """Threads with a queue each, so that tasks given to one worker run in the order given.

    No thread exists before its first task, and none outlives `close`.

    Args:
        begin: Called by each thread before its first task. It must not lead to the workers, which
            otherwise would keep themselves alive.
    """

    def __init__(self, begin: Callable[[], None], n_workers: int = N_WORKERS) -> None:
        self._threads = [
            ThreadPoolExecutor(
                max_workers=1,
                thread_name_prefix=f"fastcap-worker-{i}",
                initializer=_begin,
                initargs=(begin,),
            )
            for i in range(n_workers)
        ]

    def submit(self, worker: int, task: Callable[[], None]) -> Future[None]:
        """Have `task` run on the given worker, counted modulo their number."""
        return self._threads[worker % len(self._threads)].submit(task)

    def close(self) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True)


def _begin(begin: Callable[[], None]) -> None:
    copy_alone()
    begin()


def copy_alone() -> None:
    """Have torch's operators in this thread run in this thread alone.

    The first large copy of a thread otherwise brings a team of OpenMP threads as large as the main
    thread's: four workers on sixteen cores would be sixty-four threads. `torch.set_num_threads`
    is no way to say this, since it also sets the size for every thread to come; OpenMP's own
    setting is the thread's (docs/design/host-memory.md). Where it cannot be found, teams come.
    """
    torch.get_num_threads()  # torch sets the thread's size before its first use: not after this
    with contextlib.suppress(OSError, AttributeError):
        _torch_library().omp_set_num_threads(1)


@cache
def _torch_library() -> ctypes.CDLL:
    """The library of torch's operators, and through it the OpenMP it is linked to."""
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu{suffix}"))


class ThreadedDevice(Device[StreamT, EventT]):
    """A device whose slots are ordinary host memory and whose workers are threads.

    Args:
        torch_device: Where the model's tensors live.
        begin_worker: See `HostWorkers`.
    """

    def __init__(
        self, torch_device: torch.device, begin_worker: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(torch_device)
        self._workers = HostWorkers(begin_worker)
        self._delivery_lock = threading.Lock()

    def synchronize(self, event: EventT) -> None:
        if not self.query(event):
            with self._counted_wait():
                self._block_until(event)

    def join(self, ticket: Ticket) -> None:
        assert isinstance(ticket, FutureTicket)
        if not ticket.done():
            before = self.counters.waited_secs
            with self._counted_wait():
                ticket.future.exception()
            self.counters.joined_secs += self.counters.waited_secs - before

    @contextlib.contextmanager
    def _counted_wait(self) -> Iterator[None]:
        started = self.now()
        yield
        self.counters.waits += 1
        self.counters.waited_secs += self.now() - started

    def _block_until(self, event: EventT) -> None:
        """Block the calling thread, without polling, until `event` is done."""

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        target.copy_(slot.view(dtype, offset, target.shape))

    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: EventT | None,
        worker: int,
    ) -> Ticket:
        task = partial(self._read_after, slot, offset, dtype, target, after)
        return FutureTicket(self, self._workers.submit(worker, task))

    def _read_after(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: EventT | None,
    ) -> None:
        if after is not None:
            self._block_until(after)
        started = self.now()
        target.copy_(slot.view(dtype, offset, target.shape))
        with self._delivery_lock:
            self.counters.delivery_secs += self.now() - started

    def place(self, value: Tensor, dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        if target is None:
            with normal_mode():  # R10
                target = value.to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        else:
            target.copy_(value)
        self.counters.copies += 1
        self.counters.copied_bytes += target.nbytes
        return target

    def lend(self, slot: HostBuffer, offset: int, n_bytes: int) -> Bytes:
        return slot.bytes.numpy()[offset : offset + n_bytes]

    def take_back(self, slot: HostBuffer, offset: int, n_bytes: int) -> None:
        """Nothing to do: the array was a view of the slot."""

    def close(self) -> None:
        self._workers.close()
