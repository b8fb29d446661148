"""What this machine can do at best: what measured times are held against.

Rates count the bytes of the payload once and are the best of some repeats. "Warm" memory has been
written before by this process. "Fresh" memory is new to it, so every page of it costs a fault.
"Cold" memory is fresh and has lain free for some seconds: the host of a virtual machine may have
taken it back meanwhile, and then each page costs a fault there too, many times the one here; its
rate is the median. A result is written to cold memory, except where something just gave back as
much.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastcap.bench.timing import synchroniser
from fastcap.errors import SaveError
from fastcap.formatting import format_bytes

COPY_BYTES = 256 << 20  # several times any cache, and what one site of a large result takes
WRITE_BYTES = 8 << 20  # of one call to the operating system
N_REPEATS = 5
N_COLD_REPEATS = 3
REST_SECS = 5.0  # Linux tells the host about free pages within about 2 s


@dataclass(frozen=True, slots=True)
class Floors:
    """Measured rates, in GB/s (1e9 bytes).

    Attributes:
        warm_gb_per_sec: Host memory to host memory that has been written before.
        fresh_numpy_gb_per_sec: Into memory new from NumPy, which asks for huge pages.
        fresh_torch_gb_per_sec: Into memory new from `torch.empty`, which does not.
        cold_gb_per_sec: Into memory new from NumPy, given back to the system some seconds before;
            `None` where it was not measured.
        link_gb_per_sec: From the accelerator to pinned memory; `None` on the CPU.
        disk_gb_per_sec: Into a new file, with one fsync at its end; `None` where it was not
            measured.
    """

    warm_gb_per_sec: float
    fresh_numpy_gb_per_sec: float
    fresh_torch_gb_per_sec: float
    cold_gb_per_sec: float | None = None
    link_gb_per_sec: float | None = None
    disk_gb_per_sec: float | None = None

    @property
    def into_result_gb_per_sec(self) -> float:
        """Into the memory that a result is written to."""
        return self.cold_gb_per_sec or self.fresh_numpy_gb_per_sec


@dataclass(frozen=True, slots=True)
class Prediction:
    """The time the floors predict for a run with capture, and what determines it."""

    secs: float
    what: str


def measure_floors(
    device: torch.device | str,
    n_bytes: int = COPY_BYTES,
    *,
    rest_secs: float | None = REST_SECS,
    folder: Path | None = None,
    n_repeats: int = N_REPEATS,
) -> Floors:
    """Measure every rate that matters for a model on `device`.

    Args:
        device: Where the model is.
        n_bytes: Of each copy. The host needs three times as much.
        rest_secs: How long memory lies free before it counts as cold; `None` to leave that out,
            which saves three times as many seconds.
        folder: Where files are written; `None` to leave the disk out.
        n_repeats: Of each measurement but the cold one.

    Raises:
        SaveError: `folder` cannot be written.

    Examples:
        >>> floors = measure_floors("cpu", 1 << 20, rest_secs=None, n_repeats=1)
        >>> floors.warm_gb_per_sec > 0, floors.link_gb_per_sec
        (True, None)
    """
    source = torch.randint(256, (n_bytes,), dtype=torch.uint8)
    warm = source.clone()

    def best(make_target: Callable[[], Tensor]) -> float:
        return max(copy_rates(source, make_target, n_repeats=n_repeats))

    is_cpu = torch.device(device).type == "cpu"
    return Floors(
        warm_gb_per_sec=best(lambda: warm),
        fresh_numpy_gb_per_sec=best(lambda: _fresh_numpy(n_bytes)),
        fresh_torch_gb_per_sec=best(lambda: _fresh_torch(n_bytes)),
        cold_gb_per_sec=None if rest_secs is None else _cold_rate(source, rest_secs),
        link_gb_per_sec=None if is_cpu else _link_rate(source, device, n_repeats),
        disk_gb_per_sec=None if folder is None else max(write_rates(source, folder, n_repeats)),
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
        del target  # giving the memory back is not part of a copy into it
        rates.append(source.nbytes / elapsed / 1e9)
    return rates


def _fresh_numpy(n_bytes: int) -> Tensor:
    return torch.from_numpy(np.empty(n_bytes, dtype=np.uint8))


def _fresh_torch(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8)


def _cold_rate(source: Tensor, rest_secs: float) -> float:
    rates = copy_rates(
        source,
        lambda: _fresh_numpy(source.nbytes),
        n_repeats=N_COLD_REPEATS,
        rest_secs=rest_secs,
    )
    return statistics.median(rates)  # the best is one that was given pages in use until just now


def _link_rate(source: Tensor, device: torch.device | str, n_repeats: int) -> float:
    pinned = torch.empty(source.shape, dtype=torch.uint8, pin_memory=True)
    on_device = source.to(device)
    return max(copy_rates(on_device, lambda: pinned, synchroniser(device), n_repeats))


def write_rates(source: Tensor, folder: Path, n_repeats: int = N_REPEATS) -> list[float]:
    """GB/s of writing `source` to a new file of `folder`, fsync included; the file is removed.

    Raises:
        SaveError: It cannot be written.
    """
    data = memoryview(source.numpy().data)
    try:
        return [len(data) / _write_secs(data, folder) / 1e9 for _ in range(n_repeats)]
    except OSError as error:
        raise SaveError(
            error.errno,
            f"Cannot write a file of {format_bytes(len(data))} in {folder}, which measures its "
            f"disk: {error.strerror}. Name another folder, or leave the disk out.",
        ) from error


def _write_secs(data: memoryview, folder: Path) -> float:
    descriptor, path = tempfile.mkstemp(prefix="fastcap-bench-", dir=folder)
    try:
        started = time.perf_counter()
        for first in range(0, len(data), WRITE_BYTES):
            _write_all(descriptor, data[first : first + WRITE_BYTES])
        os.fsync(descriptor)
        return time.perf_counter() - started
    finally:
        os.close(descriptor)
        Path(path).unlink()


def _write_all(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def predict(n_bytes: int, floors: Floors, baseline_secs: float) -> Prediction:
    """The time for a result of `n_bytes` in memory, if nothing but the floors cost anything.

    Memory that another run has just given back is faster than cold memory, so a measured time can
    be below this.

    On the CPU the copy is work of the thread that runs the model, so it adds to the forward. Behind
    an accelerator the forward, the link and the host each work on their own: the slowest sets it.

    Examples:
        >>> predict(2 * 10**9, Floors(8.0, 4.0, 2.0), baseline_secs=1.0)
        Prediction(secs=1.5, what='forward + copy into fresh memory')
    """
    gigabytes = n_bytes / 1e9
    kind = "fresh" if floors.cold_gb_per_sec is None else "cold"
    into_result = gigabytes / floors.into_result_gb_per_sec
    if floors.link_gb_per_sec is None:
        return Prediction(baseline_secs + into_result, f"forward + copy into {kind} memory")
    return max(
        Prediction(baseline_secs, "forward"),
        Prediction(gigabytes / floors.link_gb_per_sec, "link"),
        Prediction(into_result, f"copy into {kind} memory"),
        key=lambda prediction: prediction.secs,
    )


def predict_archive(n_bytes: int, floors: Floors, baseline_secs: float) -> Prediction:
    """The time for an archive of `n_bytes`: the forward, the link and the disk work beside one
    another, and the slowest sets it.

    Examples:
        >>> predict_archive(10**9, Floors(8.0, 4.0, 2.0, disk_gb_per_sec=0.5), baseline_secs=1.0)
        Prediction(secs=2.0, what='write to disk')
    """
    secs = floor_secs(n_bytes, floors, baseline_secs)
    beside = [name for name in ("forward", "link", "write to disk") if name in secs]
    slowest = max(beside, key=lambda name: secs[name])
    return Prediction(secs[slowest], slowest)


def floor_secs(n_bytes: int, floors: Floors, baseline_secs: float) -> dict[str, float]:
    """Seconds that `n_bytes` take on each floor by itself; what was not measured is left out.

    Examples:
        >>> floor_secs(8 * 10**9, Floors(8.0, 4.0, 2.0), baseline_secs=3.0)
        {'forward': 3.0, 'copy into fresh memory': 2.0, 'copy into warm memory': 1.0}
    """
    rates = {
        "link": floors.link_gb_per_sec,
        "copy into cold memory": floors.cold_gb_per_sec,
        "copy into fresh memory": floors.fresh_numpy_gb_per_sec,
        "copy into warm memory": floors.warm_gb_per_sec,
        "write to disk": floors.disk_gb_per_sec,
    }
    secs = {name: n_bytes / 1e9 / rate for name, rate in rates.items() if rate is not None}
    return {"forward": baseline_secs, **secs}
