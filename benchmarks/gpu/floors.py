"""What this machine can do at best, measured in the same run, and what that allows a pass."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.gpu.toolbox import Gpu, Sizes
from fastcap.bench.floors import write_rates
from fastcap.devices.threaded import N_WORKERS

Array = np.ndarray[tuple[int], np.dtype[np.uint8]]

HOOK_SECS = 10e-6  # the goal for one site

FORWARD, LINK, LAUNCH = "forward", "link", "launch and hooks"
HOST, DISK = "fresh copy", "disk"
FRESH, ARCHIVE = "fresh memory", "archive"
"""Destinations that have a floor of their own."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Rates in GB/s (1e9 bytes).

    Attributes:
        link: One large copy into pinned memory.
        fresh: Pinned memory to fresh memory, by one thread.
        fresh_by_workers: The same by as many threads as fastcap has workers.
        disk: A new file with one fsync at its end, where archives are written; `None` where none
            could be written.
        n_workers: fastcap's workers.
    """

    link: float
    fresh: float
    fresh_by_workers: float
    disk: float | None
    n_workers: int = N_WORKERS


def measure_floors(gpu: Gpu, sizes: Sizes, scratch: Path) -> Floors:
    """Every rate, with copies of `sizes.copy_bytes`. Files are written to `scratch`."""
    n_bytes = sizes.copy_bytes
    source, pinned = gpu.random(n_bytes), gpu.pinned(n_bytes)
    link_secs = gpu.best_secs(lambda: pinned.copy_(source, non_blocking=True), sizes.repeats)
    landed: Array = pinned.numpy()

    return Floors(
        link=n_bytes / link_secs / 1e9,
        fresh=max(_fresh_rate(landed, 1) for _ in range(3)),
        fresh_by_workers=max(_fresh_rate(landed, N_WORKERS) for _ in range(3)),
        disk=_disk_rate(pinned, scratch),
    )


def _fresh_rate(source: Array, n_threads: int) -> float:
    """GB/s of some threads copying parts of `source` into memory that is new."""
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(time.sleep, [0.0] * n_threads))  # they exist before the clock starts
        started = time.perf_counter()
        target: Array = np.empty(source.nbytes, np.uint8)
        parts = zip(
            np.array_split(target, n_threads), np.array_split(source, n_threads), strict=True
        )
        list(threads.map(lambda part: np.copyto(*part), parts))
        return source.nbytes / (time.perf_counter() - started) / 1e9


def _disk_rate(source: Tensor, scratch: Path) -> float | None:
    try:
        return max(write_rates(source, scratch, 2))
    except OSError as error:  # a full disk: everything but archives can still be measured
        sys.stderr.write(f"Nothing can be written to {scratch}: {error}\n")
        return None


@dataclass(frozen=True, slots=True)
class Terms:
    """The cost model's terms for one pass, in seconds. With capture it takes at least the largest.

    Attributes:
        secs: Those that the destination has.
    """

    secs: Mapping[str, float]

    @property
    def bound(self) -> str:
        return max(self.secs, key=lambda name: self.secs[name])

    @property
    def bound_secs(self) -> float:
        return self.secs[self.bound]


def make_terms(
    floors: Floors,
    pass_bytes: float,
    n_sites: int,
    forward_secs: float,
    launch_secs: float,
    destination: str,
) -> Terms:
    """What a pass of `pass_bytes` takes on each floor by itself.

    Args:
        floors: The machine.
        pass_bytes: Captured in one pass.
        n_sites: Hooks.
        forward_secs: A pass without capture.
        launch_secs: What the host takes to issue one.
        destination: Where values go; see `benchmarks.gpu.destinations`.
    """
    gigabytes = pass_bytes / 1e9
    secs = {
        FORWARD: forward_secs,
        LINK: gigabytes / floors.link,
        LAUNCH: launch_secs + n_sites * HOOK_SECS,
    }
    if destination == FRESH:
        secs[HOST] = gigabytes / floors.fresh_by_workers
    if destination == ARCHIVE and floors.disk is not None:
        secs[DISK] = gigabytes / floors.disk
    return Terms(secs)
