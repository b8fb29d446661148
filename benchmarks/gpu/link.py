"""Between the GPU and the host: rates, what pinning costs, and when a copy blocks."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.toolbox import GiB, Gpu, MiB, Sizes

PAGE_BYTES = 4096
N_TOUCHING = 8


def gb_per_sec(n_bytes: float, secs: float) -> float:
    return n_bytes / secs / 1e9


def link_rate(gpu: Gpu, n_bytes: int, repeats: int) -> float:
    """GB/s of one large copy into pinned memory: the floor of everything that crosses."""
    source, target = gpu.random(n_bytes), gpu.pinned(n_bytes)
    secs = gpu.best_secs(lambda: target.copy_(source, non_blocking=True), repeats)
    return gb_per_sec(n_bytes, secs)


def one_copy(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    rate = link_rate(gpu, sizes.copy_bytes, sizes.repeats)
    yield Figure("to pinned memory", rate, "GB/s", Range(52, 57))


def by_size(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    predicted = {
        64 << 10: Range(10, 20),
        MiB: Range(40, 50),
        8 * MiB: Range(low=53),
        64 * MiB: Range(low=53),
    }
    source, target = gpu.random(sizes.part_bytes), gpu.pinned(sizes.part_bytes)
    rates = {}
    n_bytes = sizes.smallest_bytes
    while n_bytes <= sizes.part_bytes:
        copy = partial(target[:n_bytes].copy_, source[:n_bytes], non_blocking=True)
        n_copies = max(4, min(200, 4 * sizes.part_bytes // n_bytes))
        secs = gpu.queued_secs(copy, sizes.repeats, n_copies)
        rates[n_bytes] = gb_per_sec(n_bytes, secs)
        yield Figure(_size(n_bytes), rates[n_bytes], "GB/s", predicted.get(n_bytes))
        n_bytes *= 2
    knee = min(n for n, rate in rates.items() if rate >= 0.9 * max(rates.values()))
    yield Figure("smallest at 90 % of the best", knee / MiB, "MiB", Range(1, 4))


def _size(n_bytes: int) -> str:
    return f"{n_bytes >> 20} MiB" if n_bytes >= MiB else f"{n_bytes >> 10} KiB"


def pinning(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Seconds per GiB, however much was pinned."""
    n_bytes = sizes.copy_bytes
    held, secs = [], []
    for _ in range(3):  # all held, so that the slowest did not come from torch's cache
        started = time.perf_counter()
        held.append(gpu.pinned(n_bytes))
        secs.append(time.perf_counter() - started)
    per_gib = GiB / n_bytes
    yield Figure("torch.empty(pin_memory=True)", max(secs) * per_gib, "s/GiB", Range(0.25, 0.5))
    held.clear()
    registered = _register_secs(gpu, n_bytes) * per_gib
    name = f"mmap, touched by {N_TOUCHING} threads, registered"
    yield Figure(name, registered, "s/GiB", Range(0.10, 0.15))


def _register_secs(gpu: Gpu, n_bytes: int) -> float:
    runtime = gpu.cuda.cudart()
    started = time.perf_counter()
    memory = mmap.mmap(-1, n_bytes)
    pages = np.frombuffer(memory, dtype=np.uint8)

    def touch(part: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
        part[::PAGE_BYTES] = 0

    with ThreadPoolExecutor(N_TOUCHING) as threads:
        list(threads.map(touch, np.array_split(pages, N_TOUCHING)))
    error = int(runtime.cudaHostRegister(pages.ctypes.data, n_bytes, 0))
    elapsed = time.perf_counter() - started
    if error:
        with contextlib.suppress(RuntimeError):  # the next kernel is blamed for it
            gpu.empty(1).zero_()
        raise UnavailableError(f"cudaHostRegister of {n_bytes} bytes returned error {error}")
    runtime.cudaHostUnregister(pages.ctypes.data)
    return elapsed


def blocking(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """How long the host is kept in `copy_`, behind a stream that is busy for some time."""
    rows = 1024
    width = max(2, sizes.smallest_bytes // rows)
    source = gpu.random(rows * width).view(rows, width)
    contiguous = gpu.pinned(rows * width).view(rows, width)
    column = gpu.pinned(2 * rows * width).view(rows, 2 * width)[:, :width]
    pageable = torch.empty(rows, width, dtype=torch.uint8)
    busy_ms = 1e3 * sizes.sleep_secs
    targets = {
        "pinned and contiguous": (contiguous, Range(0, 0.02)),
        "a column of pinned memory": (column, Range(0.9 * busy_ms, 1.2 * busy_ms)),
        "pageable": (pageable, Range(0.9 * busy_ms, 1.2 * busy_ms)),
    }
    gpu.sleep(sizes.sleep_secs)  # calibrated before anything is timed
    for name, (target, predicted) in targets.items():
        target.copy_(source, non_blocking=True)
        yield Figure(name, 1e3 * _host_secs_behind(gpu, sizes, target, source), "ms", predicted)


def _host_secs_behind(gpu: Gpu, sizes: Sizes, target: Tensor, source: Tensor) -> float:
    gpu.synchronise()
    gpu.sleep(sizes.sleep_secs)
    started = time.perf_counter()
    target.copy_(source, non_blocking=True)
    elapsed = time.perf_counter() - started
    gpu.synchronise()
    return elapsed
