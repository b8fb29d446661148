"""What the design rests on, measured by itself: copies, pinning, packing, a hook, memory."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import fastcap
from benchmarks.gpu.command import Figure, Range, UnavailableError
from benchmarks.gpu.grid import needs_room
from benchmarks.gpu.subjects import DTYPE, THIN, Thin
from benchmarks.gpu.toolbox import GiB, Gpu, MiB, Sizes
from benchmarks.memory import reset_peak, resident_bytes
from benchmarks.models import ModelShape
from fastcap.bench.timing import give_back_memory

HOOK = "fastcap's hook, per site"
GROWTH = "host memory for each byte more in the archive"
MOST_GROWTH = 0.02
HOOK_GOAL = "hook: at most 10 µs of host time per site"
MEMORY_GOAL = "archive: constant memory for any number of samples"


class Question(NamedTuple):
    """A number, which stays with it; a title; what measures it, and how long on an H200."""

    number: str
    title: str
    run: Callable[[Gpu, Sizes], Iterator[Figure]]
    likely_secs: float


def by_size(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """GB/s of copies into pinned memory, queued one behind another."""
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


def pinning(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Seconds per GiB: most of what a first run costs."""
    held, secs = [], []
    for _ in range(3):  # all held, so that the slowest did not come from torch's cache
        started = time.perf_counter()
        held.append(gpu.pinned(sizes.copy_bytes))
        secs.append(time.perf_counter() - started)
    per_gib = max(secs) * GiB / sizes.copy_bytes
    yield Figure("torch.empty(pin_memory=True)", per_gib, "s/GiB", Range(0.25, 0.5))


def packing(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """What a pack takes from the model's own stream."""
    n_bytes, repeats = sizes.part_bytes, sizes.repeats

    def tb_per_sec(target: Tensor, source: Tensor) -> float:
        secs = gpu.best_secs(lambda: target.copy_(source, non_blocking=True), repeats, 10)
        return source.nbytes / secs / 1e12

    source = gpu.random(n_bytes, torch.bfloat16)
    dense = tb_per_sec(gpu.empty(n_bytes, torch.bfloat16), source)
    yield Figure("dense bf16, payload", dense, "TB/s", Range(1.7, 2.1))
    wide = gpu.random(n_bytes, torch.float32)
    narrowed = tb_per_sec(gpu.empty(n_bytes // 2, torch.bfloat16), wide)
    yield Figure("float32 to bf16, read", narrowed, "TB/s", Range(1.3, 1.8))
    last = source.view(8, -1, 4096)[:, -1]
    target = gpu.empty(last.nbytes, torch.bfloat16).view(last.shape)
    secs = gpu.best_secs(lambda: target.copy_(last, non_blocking=True), repeats, 200)
    yield Figure("last of each sample, one pack", 1e6 * secs, "µs", Range(0, 6))


N_MODULES = 64


def hook_cost(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Host time per site, over a model that does nothing, so that only hooks are left."""
    model = nn.Sequential(*(nn.Identity() for _ in range(N_MODULES)))
    sites = [str(layer) for layer in range(N_MODULES)]
    acts = torch.zeros(1, 1, 64, device=gpu.device)

    def pass_secs() -> float:
        return gpu.host_secs(lambda: model(acts), sizes.calls)

    def with_empty_hooks() -> float:
        handles = [module.register_forward_hook(lambda *_: None) for module in model]
        found = pass_secs()
        for handle in handles:
            handle.remove()
        return found

    def with_fastcap() -> float:
        with fastcap.ActivationStore(model, sites):
            model(acts)  # the second firing of a site plans anew, which is not a steady state
            model(acts)
            return pass_secs()

    pass_secs()
    empty, captured = [], []
    with torch.no_grad():
        for _ in range(sizes.repeats):
            bare = pass_secs()
            empty.append(1e6 * (with_empty_hooks() - bare) / N_MODULES)
            captured.append(1e6 * (with_fastcap() - bare) / N_MODULES)
    yield Figure("an empty hook", statistics.median(empty), "µs", Range(1, 2))
    yield Figure(HOOK, statistics.median(captured), "µs", Range(high=10), goal=HOOK_GOAL)


FIRST = (
    Question("B2", "copies to the host by size", by_size, 3),
    Question("B6", "pinning", pinning, 5),
    Question("B7", "packing", packing, 2),
    Question("B9", "host time of a hook", hook_cost, 4),
)
"""Before the grid."""


# After it

N_SITES, BATCH_SIZE, N_PASSES = 4, 8, 16
ARCHIVE_SECS = 20.0


def archive_memory(
    gpu: Gpu, sizes: Sizes, scratch: Path, disk_gb_per_sec: float
) -> Iterator[Figure]:
    """Peak host memory of `extract` over N samples, and over four times as many."""
    n_bytes = int(min(sizes.archive_bytes, 1e9 * disk_gb_per_sec * ARCHIVE_SECS / 6))
    of_row = BATCH_SIZE * N_SITES * THIN.shape.width * DTYPE.itemsize
    n_tokens = max(1, n_bytes // N_PASSES // of_row)
    shape = ModelShape(N_SITES, THIN.shape.width, 1, 1, 64)
    model = Thin(shape).to(gpu.device, DTYPE).eval()
    small_bytes = N_PASSES * n_tokens * of_row
    needs_room(scratch, 4 * small_bytes)
    _, small, large = (  # the first one pins and allocates
        _peak_bytes(gpu, model, n_passes * BATCH_SIZE, n_tokens, scratch)
        for n_passes in (N_PASSES, N_PASSES, 4 * N_PASSES)
    )
    growth = (large - small) / (3 * small_bytes)
    yield Figure(f"over {small_bytes / 1e9:.2g} GB", small / 1e6, "MB")
    yield Figure(f"over {4 * small_bytes / 1e9:.2g} GB", large / 1e6, "MB")
    yield Figure(GROWTH, growth, "B", Range(high=MOST_GROWTH), goal=MEMORY_GOAL)


def _peak_bytes(gpu: Gpu, model: nn.Module, n_samples: int, n_tokens: int, scratch: Path) -> int:
    """What one archive adds to the resident memory at its peak."""
    samples = [{"input_ids": torch.zeros(n_tokens, dtype=torch.int64)}] * n_samples
    folder = Path(tempfile.mkdtemp(prefix="archive-", dir=scratch))
    sites = [f"layers.{layer}" for layer in range(N_SITES)]
    give_back_memory()
    try:
        before = reset_peak()
        fastcap.extract(
            model, samples, sites, folder / "acts", device=gpu.device, batch_size=BATCH_SIZE
        )
        return resident_bytes("VmHWM") - before
    except OSError as error:
        raise UnavailableError(f"peak memory cannot be measured here: {error}") from error
    finally:
        shutil.rmtree(folder)


ARCHIVE_MEMORY = "B23", "an archive's memory for more samples"
