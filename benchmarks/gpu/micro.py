"""What the design rests on, measured by itself: copies, pinning, a hook, memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import benchmarks.hook_cost
from benchmarks import archive
from benchmarks.gpu import grid
from benchmarks.gpu.command import Program
from benchmarks.gpu.report import Figure, Range, UnavailableError
from benchmarks.gpu.toolbox import GiB, MiB
from fastcap.bench.timing import give_back_memory

HOOK = "fastcap's hook, per site"
GROWTH = "host memory for each byte more in the archive"
MOST_GROWTH = 0.02
HOOK_GOAL = "hook: at most 10 µs of host time per site"
MEMORY_GOAL = "archive: constant memory for any number of samples"


class Question(NamedTuple):
    """A title; what measures it, and how long on an H200."""

    title: str
    run: Callable[[Program], Iterator[Figure]]
    likely_secs: float


def by_size(program: Program) -> Iterator[Figure]:
    """GB/s of copies into pinned memory, queued one behind another."""
    gpu, sizes = program.gpu, program.gpu.sizes
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
        rates[n_bytes] = n_bytes / gpu.queued_secs(copy, sizes.repeats, n_copies) / 1e9
        name = f"{n_bytes >> 20} MiB" if n_bytes >= MiB else f"{n_bytes >> 10} KiB"
        yield Figure(name, rates[n_bytes], "GB/s", predicted.get(n_bytes))
        n_bytes *= 2
    knee = min(n for n, rate in rates.items() if rate >= 0.9 * max(rates.values()))
    yield Figure("smallest at 90 % of the best", knee / MiB, "MiB", Range(1, 4))


def pinning(program: Program) -> Iterator[Figure]:
    """Seconds per GiB: most of what a first run costs."""
    gpu, sizes = program.gpu, program.gpu.sizes
    held, secs = [], []
    for _ in range(3):  # all held, so that the slowest did not come from torch's cache
        started = time.perf_counter()
        held.append(gpu.pinned(sizes.copy_bytes))
        secs.append(time.perf_counter() - started)
    per_gib = max(secs) * GiB / sizes.copy_bytes
    yield Figure("torch.empty(pin_memory=True)", per_gib, "s/GiB", Range(0.25, 0.5))


def hook_cost(program: Program) -> Iterator[Figure]:
    """Host time per site, over a model that does nothing, so that only hooks are left."""
    costs = benchmarks.hook_cost.measure(program.gpu.sizes.calls, program.gpu.device.type)
    empty, captured = (costs[name].over_baseline for name in ("empty hook", "store"))
    yield Figure("an empty hook", empty, "µs", Range(1, 2))
    yield Figure(HOOK, captured, "µs", Range(high=10), goal=HOOK_GOAL)


def archive_memory(program: Program) -> Iterator[Figure]:
    """Peak host memory of `extract` over N samples, and over four times as many."""
    floors, n_bytes = program.facts.get("floors", {}), program.gpu.sizes.archive_bytes
    if rate := floors.get("disk_bytes_per_sec"):
        n_bytes = int(min(n_bytes, rate * ARCHIVE_SECS / 6))
    grid.needs_room(program.scratch, 4 * n_bytes)
    give_back_memory()
    try:
        _, small, large = (  # the first one pins and allocates
            archive.memory_of_run(n, program.gpu.device, program.scratch)
            for n in (n_bytes, n_bytes, 4 * n_bytes)
        )
    except OSError as error:
        raise UnavailableError(f"peak memory cannot be measured here: {error}") from error
    for found in (small, large):
        yield Figure(f"over {found['bytes'] / 1e9:.2g} GB", found["growth_bytes"] / 1e6, "MB")
    growth = large["growth_bytes"] - small["growth_bytes"]
    growth_share = growth / (large["bytes"] - small["bytes"])
    yield Figure(GROWTH, growth_share, "B", Range(high=MOST_GROWTH), goal=MEMORY_GOAL)


ARCHIVE_SECS = 20.0
ARCHIVE_MEMORY = "an archive's memory for more samples"
QUESTIONS = (
    Question("copies to the host by size", by_size, 3),
    Question("pinning", pinning, 5),
    Question("host time of a hook", hook_cost, 4),
    Question(ARCHIVE_MEMORY, archive_memory, ARCHIVE_SECS),
)
