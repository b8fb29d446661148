"""One GPU as the micro-benchmarks use it. The only module here that names `torch.cuda`."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MiB, GiB = 1 << 20, 1 << 30
CALIBRATION_CYCLES = 20_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is moved, and how often.

    Attributes:
        copy_bytes: Of one large copy.
        part_bytes: Of one copy among several.
        smallest_bytes: Of the smallest copy that is timed.
        repeats: Of a measurement whose best or median counts.
        calls: Of something that takes the host microseconds.
        steps: Of decoding.
        rounds: In which ways take turns.
        archive_bytes: Of the smaller of two archives whose writers' memory is compared.
    """

    copy_bytes: int = GiB
    part_bytes: int = 256 * MiB
    smallest_bytes: int = 16 << 10
    repeats: int = 5
    calls: int = 300
    steps: int = 64
    rounds: int = 5
    archive_bytes: int = 2 * GiB


FULL = Sizes()
TINY = Sizes(64 << 10, 64 << 10, 16 << 10, repeats=2, calls=4, steps=3, rounds=2, archive_bytes=MiB)
"""For the dry run."""


class Gpu:
    """Streams, events, clocks and pinned memory of the current CUDA device."""

    is_real = True
    sizes = FULL

    def __init__(self, device: str = "cuda") -> None:
        self.device = torch.device(device)

    def running(self) -> AbstractContextManager[Any]:
        """What has to hold while anything is measured."""
        return contextlib.nullcontext()

    # Memory

    def random(self, n_bytes: int) -> Tensor:
        """Device memory whose every byte is drawn, so that no copy can be right by accident."""
        return torch.randint(256, (n_bytes,), dtype=torch.uint8, device=self.device)

    def pinned(self, n_bytes: int) -> Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=self.is_real)

    def give_back_pinned(self) -> None:
        """Unpin what is free: torch keeps it otherwise, 0.4 s per GB of it are needed for this."""
        if give_back := getattr(torch._C, "_host_emptyCache", None):
            give_back()

    def empty_cache(self) -> None:
        torch.cuda.empty_cache()

    # Order

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def nap(self, cycles: int, stream: Any = None) -> None:
        """Keep a stream busy, or the current one."""
        with torch.cuda.stream(stream):
            torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]

    @cached_property
    def _cycles_per_sec(self) -> float:
        self.nap(CALIBRATION_CYCLES)
        return CALIBRATION_CYCLES / self.secs(lambda: self.nap(CALIBRATION_CYCLES))

    # Time

    def timing_event(self) -> Any:
        """Recorded on the current stream now; `elapsed_time` of two is in milliseconds."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def secs(self, run: Callable[[], object], n_times: int = 1) -> float:
        """Seconds of one of `n_times` runs on the current stream, by the GPU's clock."""
        start = self.timing_event()
        for _ in range(n_times):
            run()
        end = self.timing_event()
        self.synchronise()
        return float(start.elapsed_time(end)) / 1e3 / n_times

    def queued_secs(self, run: Callable[[], object], repeats: int, n_times: int) -> float:
        """The shortest of some repeats, of runs that are all issued before the first begins."""
        issue_secs = n_times * self.median_host_secs(run, 3, n_times)
        cycles = int((2 * issue_secs + 1e-3) * self._cycles_per_sec)
        found = []
        for _ in range(repeats):
            self.nap(cycles)
            found.append(self.secs(run, n_times))
        return min(found)

    def median_host_secs(self, run: Callable[[], object], repeats: int, n_times: int) -> float:
        """Seconds of the host for one of `n_times` runs, whatever the GPU still has to do."""
        run()
        found = []
        for _ in range(repeats):
            self.synchronise()
            started = time.perf_counter()
            for _ in range(n_times):
                run()
            found.append((time.perf_counter() - started) / n_times)
        self.synchronise()
        return statistics.median(found)

    def trace(self, run: Callable[[], object], path: Path) -> None:
        """Write what the profiler sees of a run as a Chrome trace; gzipped if `path` ends so."""
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
            run()
            self.synchronise()
        profiler.export_chrome_trace(str(path))

    # What it is

    def card(self) -> dict[str, str]:
        """Name, memory and driver, as the driver's own tool has them where it is there."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "gpu": f"{properties.name}, {properties.total_memory / 1e9:.1f} GB, "
            f"{properties.multi_processor_count} multiprocessors",
            "driver": _driver_version() or "unknown: nvidia-smi did not answer",
            "cuda": str(torch.version.cuda),
        }


def _driver_version() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None
