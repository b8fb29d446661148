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

from benchmarks.gpu.toolbox import TINY, Gpu
from fastcap import devices
from fastcap.devices.accelerator import AcceleratorDevice
from tests.support.devices import LoggedStreams, logged_accelerator

COPY = {"cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pinned)", "ts": 2, "dur": 3}
TRACE: list[dict[str, Any]] = [
    {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 9, "args": {"stream": 7}},
    {"ph": "X", **COPY, "args": {"stream": 13, "bytes": 1}},
]
"""What a profiler would have seen of a run, in the form in which it writes that."""


class HostEvent:
    """The host's clock when it was made."""

    def __init__(self) -> None:
        self.secs = time.perf_counter()

    def elapsed_time(self, later: HostEvent) -> float:
        return 1e3 * max(later.secs - self.secs, 1e-9)


class StandInDevice(AcceleratorDevice):
    """Whose copies reach all of the host's memory, as if it were pinned."""

    def reaches(self, memory: torch.Tensor) -> bool:
        return True


class StandIn(Gpu):
    """See the module."""

    is_real = False
    sizes = TINY

    def __init__(self) -> None:
        super().__init__("cpu")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Fastcap takes the way it takes on a GPU: staging, slots, workers."""
        with logged_accelerator(LoggedStreams()), devices.substitute(StandInDevice):
            yield

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def synchronise(self) -> None:
        """Everything has run."""

    def nap(self, cycles: int, stream: Any = None) -> None:
        """Nothing is kept waiting."""

    def timing_event(self) -> HostEvent:
        return HostEvent()

    def trace(self, run: Callable[[], object], path: Path) -> None:
        run()
        with gzip.open(path, "wt") as file:
            json.dump({"traceEvents": TRACE}, file)

    def card(self) -> dict[str, str]:
        return {"gpu": "none: a stand-in on the CPU", "driver": "none", "cuda": "none"}
