"""A GPU that is not there: the toolbox over CPU memory, where everything has run once issued.

It shows that the code runs, and that what it compares is equal. Its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.toolbox import Gpu
from fastcap import devices
from fastcap.devices import accelerator
from fastcap.devices.accelerator import Abilities, AcceleratorDevice

CYCLES_PER_SEC = 2e10  # fast, so that calibrating takes a millisecond
TRACE: list[dict[str, Any]] = [
    {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 9, "args": {"stream": 7}},
    {
        "ph": "X",
        "cat": "gpu_memcpy",
        "name": "Memcpy DtoH (Device -> Pinned)",
        "ts": 2,
        "dur": 3,
        "args": {"stream": 13, "bytes": 1},
    },
]
"""What a profiler would have seen of a run, in the form in which it writes that."""


class FakeStream:
    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device = device

    def wait_event(self, event: FakeEvent) -> None:
        """Everything has run."""


class FakeEvent:
    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.secs: float | None = None

    def record(self, stream: FakeStream | None = None) -> None:
        self.secs = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Everything has run."""

    def elapsed_time(self, end_event: FakeEvent) -> float:
        assert self.secs is not None
        assert end_event.secs is not None
        return 1e3 * max(end_event.secs - self.secs, 1e-9)


class FakeProperties:
    name, total_memory, multi_processor_count = "none: a stand-in on the CPU", 1 << 33, 1


class FakeCuda:
    """What the benchmarks use of `torch.cuda`, and nothing else."""

    Stream, Event = FakeStream, FakeEvent

    def __init__(self) -> None:
        self._current = FakeStream()

    def current_stream(self, device: Any = None) -> FakeStream:
        return self._current

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self._current = self._current, stream
        try:
            yield
        finally:
            self._current = before

    def synchronize(self, device: Any = None) -> None:
        """Everything has run."""

    def _sleep(self, cycles: int) -> None:
        time.sleep(cycles / CYCLES_PER_SEC)

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def current_device(self) -> int:
        return 0

    def get_device_properties(self, device: Any = None) -> FakeProperties:
        return FakeProperties()

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return 1 << 33, 1 << 33


class StandInDevice(AcceleratorDevice):
    """Whose copies reach all of the host's memory, as if it were pinned."""

    def reaches(self, memory: torch.Tensor) -> bool:
        return True


class StandIn(Gpu):
    """See the module."""

    pins = False

    def __init__(self) -> None:
        super().__init__("cpu")
        self.cuda = FakeCuda()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Fastcap takes the way it takes on a GPU: staging, slots, workers."""
        accelerator._copy_stream.cache_clear()
        accelerator.ABILITIES["cpu"] = self._abilities()
        try:
            with devices.substitute(StandInDevice):
                yield
        finally:
            del accelerator.ABILITIES["cpu"]
            accelerator._copy_stream.cache_clear()

    def _abilities(self) -> Abilities:
        return Abilities(
            new_stream=lambda device: FakeStream(device),
            new_event=lambda device: FakeEvent(blocking=True),
            new_timing_event=lambda device: FakeEvent(enable_timing=True),
            current_stream=self.cuda.current_stream,
            lasting_stream=self.cuda.current_stream,
            lasts=lambda stream: True,
            use_stream=self.cuda.stream,
            current_index=lambda: 0,
            set_index=lambda index: None,
            use_index=lambda index: contextlib.nullcontext(),
            new_pinned=lambda n_bytes: torch.empty(n_bytes, dtype=torch.uint8),
            free_bytes=lambda device: self.free_bytes(),
            is_capturing=lambda: False,
        )

    def trace(self, run: Callable[[], object], path: Path) -> None:
        run()
        with gzip.open(path, "wt") as file:
            json.dump({"traceEvents": TRACE}, file)
