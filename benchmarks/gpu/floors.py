"""What this machine can do at best, measured in the same run, and what that allows a pass."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import Tensor

from benchmarks.gpu.host import Array, best_copy_rate
from benchmarks.gpu.link import link_rate
from benchmarks.gpu.toolbox import Gpu, Sizes
from fastcap.bench.floors import write_rates
from fastcap.devices.threaded import N_WORKERS

HOOK_SECS = 10e-6  # the goal for one site

FORWARD, LINK, LAUNCH = "forward", "link", "launch and hooks"
HOST, WARM, DISK = "fresh copy", "warm copy", "disk"
FRESH, ARCHIVE = "fresh memory", "archive"
"""Destinations that have a floor of their own."""


@dataclass(frozen=True, slots=True)
class Floors:
    """Rates in GB/s (1e9 bytes).

    Attributes:
        link: One large copy into pinned memory.
        fresh: Pinned memory to fresh memory, by one thread.
        fresh_by_workers: The same by as many threads as fastcap has workers.
        warm: Pinned memory to memory that has been written before, by one thread.
        warm_by_workers: The same by as many threads as fastcap has workers.
        disk: A new file with one fsync at its end, where archives are written; `None` where none
            could be written.
        n_workers: fastcap's workers.
    """

    link: float
    fresh: float
    fresh_by_workers: float
    warm: float
    warm_by_workers: float
    disk: float | None
    n_workers: int = N_WORKERS


def measure_floors(gpu: Gpu, sizes: Sizes, scratch: Path) -> Floors:
    """Every rate, with copies of `sizes.copy_bytes`. Files are written to `scratch`."""
    n_bytes = sizes.copy_bytes
    pinned = gpu.pinned(n_bytes)
    pinned.copy_(gpu.random(n_bytes))
    source: Array = pinned.numpy()
    warm: Array = np.ones(n_bytes, np.uint8)

    def fresh_rate(n_threads: int) -> float:
        return best_copy_rate(source, lambda: np.empty(n_bytes, np.uint8), n_threads, 3)

    return Floors(
        link=link_rate(gpu, n_bytes, sizes.repeats),
        fresh=fresh_rate(1),
        fresh_by_workers=fresh_rate(N_WORKERS),
        warm=best_copy_rate(source, lambda: warm, 1, 3),
        warm_by_workers=best_copy_rate(source, lambda: warm, N_WORKERS, 3),
        disk=_disk_rate(pinned, scratch),
    )


def _disk_rate(source: Tensor, scratch: Path) -> float | None:
    try:
        return max(write_rates(source, scratch, 2))
    except OSError as error:  # a full disk: everything but archives can still be measured
        sys.stderr.write(f"Nothing can be written to {scratch}: {error}\n")
        return None


@dataclass(frozen=True, slots=True)
class Terms:
    """The cost model's terms for one pass, in seconds, those that the destination has.

    A pass with capture takes at least the largest.

    Attributes:
        secs: What counts for the destination.
        others: The rest of the floors, which do not.
    """

    secs: Mapping[str, float]
    others: Mapping[str, float] = field(default_factory=dict)

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
    others: dict[str, float] = {
        HOST: gigabytes / floors.fresh_by_workers,
        WARM: gigabytes / floors.warm_by_workers,
    }
    if floors.disk is not None:
        others[DISK] = gigabytes / floors.disk
    own = {FRESH: HOST, ARCHIVE: DISK}.get(destination)
    if own in others:
        secs[own] = others.pop(own)
    return Terms(secs, others)
