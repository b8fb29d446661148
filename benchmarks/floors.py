"""What this machine can do at best: what measured times are held against.

Rates count the bytes of the payload once and are the best of some repeats. "Warm" memory has been
written before by this process. "Fresh" memory is new to it, so every page of it costs a fault.
"Rested" memory is fresh and has lain free for some seconds: the host of a virtual machine may have
taken it back meanwhile, and then each page costs a fault there too, many times the one here; its
rate is the median. A result is written to rested memory, except where something just gave back as
much.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import synchroniser
from benchmarks.workloads import Workload

COPY_BYTES = 256 << 20  # several times any cache, and what one site of a large result takes
N_REPEATS = 5
N_RESTED_REPEATS = 3
REST_SECS = 5.0  # Linux tells the host about free pages within about 2 s


@dataclass(frozen=True, slots=True)
class Floors:
    """Measured rates, in GB/s (1e9 bytes).

    Attributes:
        warm_gb_per_sec: Host memory to host memory that has been written before.
        fresh_numpy_gb_per_sec: Into memory new from NumPy, which asks for huge pages.
        fresh_torch_gb_per_sec: Into memory new from `torch.empty`, which does not.
        rested_gb_per_sec: Into memory new from NumPy, given back to the system some seconds before.
        link_gb_per_sec: From the accelerator into pinned memory; `None` on the CPU.
    """

    warm_gb_per_sec: float
    fresh_numpy_gb_per_sec: float
    fresh_torch_gb_per_sec: float
    rested_gb_per_sec: float
    link_gb_per_sec: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The time that the floors predict for a workload with capture, and what sets it."""

    secs: float
    what: str


def measure_floors(device: str, n_bytes: int = COPY_BYTES) -> Floors:
    """Measure every rate that matters for a model on `device`."""
    source = torch.randint(256, (n_bytes,), dtype=torch.uint8)
    warm = source.clone()
    return Floors(
        warm_gb_per_sec=max(copy_rates(source, lambda: warm)),
        fresh_numpy_gb_per_sec=max(copy_rates(source, lambda: _fresh_numpy(n_bytes))),
        fresh_torch_gb_per_sec=max(copy_rates(source, lambda: _fresh_torch(n_bytes))),
        rested_gb_per_sec=_rested_rate(source),
        link_gb_per_sec=None if device == "cpu" else _link_rate(source, device),
    )


def copy_rates(
    source: Tensor,
    make_target: Callable[[], Tensor],
    synchronise: Callable[[], None] = lambda: None,
    n_repeats: int = N_REPEATS,
    rest_secs: float = 0.0,
) -> list[float]:
    """GB/s of copying `source` into what `make_target` returns; making it is part of the cost."""
    rates = []
    for _ in range(n_repeats):
        time.sleep(rest_secs)
        synchronise()
        started = time.perf_counter()
        target = make_target().copy_(source, non_blocking=True)
        synchronise()
        elapsed = time.perf_counter() - started
        del target  # giving the memory back is no part of a copy into it
        rates.append(source.nbytes / elapsed / 1e9)
    return rates


def _fresh_numpy(n_bytes: int) -> Tensor:
    return torch.from_numpy(np.empty(n_bytes, dtype=np.uint8))


def _fresh_torch(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)


def _rested_rate(source: Tensor) -> float:
    rates = copy_rates(
        source,
        lambda: _fresh_numpy(source.nbytes),
        n_repeats=N_RESTED_REPEATS,
        rest_secs=REST_SECS,
    )
    return statistics.median(rates)  # the best is one that was given pages in use until just now


def _link_rate(source: Tensor, device: str) -> float:
    pinned = torch.empty(source.shape, dtype=torch.uint8, pin_memory=True)
    return max(copy_rates(source.to(device), lambda: pinned, synchroniser(device)))


def predict(workload: Workload, floors: Floors, hookless_secs: float) -> Prediction:
    """The time for a result in memory, if nothing but the floors cost anything.

    Memory that another run has just given back is faster than rested memory, so a measured time can
    be below this.

    On the CPU the copy is work of the thread that runs the model, so it adds to the forward. Behind
    an accelerator the forward, the link and the host each work on their own: the slowest sets it.
    """
    gigabytes = workload.result_bytes / 1e9
    into_result = gigabytes / floors.rested_gb_per_sec
    if floors.link_gb_per_sec is None:
        return Prediction(hookless_secs + into_result, "forward + copy into rested memory")
    return max(
        Prediction(hookless_secs, "forward"),
        Prediction(gigabytes / floors.link_gb_per_sec, "link"),
        Prediction(into_result, "copy into rested memory"),
        key=lambda prediction: prediction.secs,
    )
