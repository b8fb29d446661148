"""The steady state: what is allocated once everything has been seen, and an archive's memory."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import fastcap
from benchmarks.gpu.destinations import needs_room
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.subjects import DTYPE, THIN, Thin
from benchmarks.gpu.toolbox import Gpu, Sizes
from benchmarks.memory import reset_peak, resident_bytes
from benchmarks.models import ModelShape
from fastcap.bench.timing import give_back_memory

WIDTH, N_LAYERS = 256, 8
SITES = [str(layer) for layer in range(N_LAYERS)]
N_WARM = 10
NONE = Range(0, 0)
PINNED = "pinned by torch"


def allocations(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """What a long run adds after its first passes."""
    layers = [nn.Linear(WIDTH, WIDTH, device=gpu.device) for _ in range(N_LAYERS)]
    acts = torch.randn(WIDTH, WIDTH, device=gpu.device)
    batches = (acts for _ in range(sizes.passes))
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    with fastcap.stream(nn.Sequential(*layers).eval(), batches, SITES) as run:
        for number, _ in enumerate(run):
            if number in (N_WARM, sizes.passes - 1):
                before, after = after, _counts(gpu, run)
    for name, count in after.items():
        yield Figure(f"{name}, in {sizes.passes} passes", count - before[name], "times", NONE)
    if PINNED not in after:
        raise UnavailableError("this torch does not count what it pins (host_memory_stats)")


def _counts(gpu: Gpu, run: fastcap.Stream) -> dict[str, int]:
    gc.collect()  # garbage of whatever ran before would be counted as given back
    counted = run.statistics()
    found = {
        "slots pinned": counted.host_allocations,
        "staging allocated": counted.device_allocations,
        "events made": counted.fences,
    }
    read = getattr(gpu.cuda, "host_memory_stats", None)  # torch 2.6 has none
    if read is not None and "num_host_alloc" in (stats := read()):
        found[PINNED] = stats["num_host_alloc"]
    return found


# An archive's memory

N_SITES, BATCH_SIZE, N_PASSES = 4, 8, 16
ARCHIVE_SECS = 20.0
GROWTH = "host memory for each byte more in the archive"


def archive_memory(
    gpu: Gpu, sizes: Sizes, scratch: Path, disk_gb_per_sec: float
) -> Iterator[Figure]:
    """Peak host memory of `extract` over N samples, and over four times as many."""
    n_bytes = int(min(sizes.archive_bytes, 1e9 * disk_gb_per_sec * ARCHIVE_SECS / 6))
    of_row = BATCH_SIZE * N_SITES * THIN.shape.width * DTYPE.itemsize
    n_tokens = max(1, n_bytes // N_PASSES // of_row)
    shape = ModelShape(N_SITES, THIN.shape.width, 1, 1, 64)
    model = Thin(shape).to(gpu.device, DTYPE).eval()
    pass_bytes = n_tokens * of_row
    needs_room(scratch, 4 * N_PASSES * pass_bytes)
    _, small, large = (  # the first one pins and allocates
        _peak_bytes(gpu, model, n_passes * BATCH_SIZE, n_tokens, scratch)
        for n_passes in (N_PASSES, N_PASSES, 4 * N_PASSES)
    )
    yield Figure(f"over {N_PASSES * pass_bytes / 1e9:.2g} GB", small / 1e6, "MB")
    yield Figure(f"over {4 * N_PASSES * pass_bytes / 1e9:.2g} GB", large / 1e6, "MB")
    growth = (large - small) / (3 * N_PASSES * pass_bytes)
    yield Figure(GROWTH, growth, "B", Range(high=MOST_GROWTH))


MOST_GROWTH = 0.02


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
