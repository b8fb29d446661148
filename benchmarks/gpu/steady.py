"""The steady state: what is allocated, waited for and created once everything has been seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

import fastcap
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.toolbox import Gpu, Sizes

WIDTH, N_LAYERS = 256, 8
SITES = [str(layer) for layer in range(N_LAYERS)]
N_WARM = 10
NONE = Range(0, 0)
PINNED = "pinned by torch"
ROOT = Path(__file__).resolve().parents[2]


def _model(gpu: Gpu) -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH, device=gpu.device) for _ in range(N_LAYERS)]
    return nn.Sequential(*layers).eval()


def _run(gpu: Gpu, n_passes: int) -> fastcap.Stream:
    acts = torch.randn(WIDTH, WIDTH, device=gpu.device)
    return fastcap.stream(_model(gpu), (acts for _ in range(n_passes)), SITES)


def allocations(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """What a long run adds after its first passes."""
    before: dict[str, int] = {}
    after: dict[str, int] = {}
    with _run(gpu, sizes.passes) as run:
        for number, _ in enumerate(run):
            if number in (N_WARM, sizes.passes - 1):
                before, after = after, _counts(gpu, run)
    for name, count in after.items():
        yield Figure(f"{name}, in {sizes.passes} passes", count - before[name], "times", NONE)
    if PINNED not in after:
        raise UnavailableError("this torch does not count what it pins (host_memory_stats)")


def _counts(gpu: Gpu, run: fastcap.Stream) -> dict[str, int]:
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


def profiled(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Calls to CUDA in the steady state, as the profiler sees them."""
    n_passes = min(50, sizes.passes)
    with _run(gpu, N_WARM + n_passes) as run:
        for _ in range(N_WARM):
            next(run)
        counts = gpu.profiled_calls(lambda: _drain(run))
    if not any(name.startswith("Memcpy DtoH") for name in counts):
        raise UnavailableError("the profiler saw no copy to the host, so it would see nothing else")
    for call in ("cudaHostAlloc", "cudaMalloc", "cudaStreamSynchronize"):
        yield Figure(f"{call}, in {n_passes} passes", counts.get(call, 0), "calls", NONE)
    made = sum(count for name, count in counts.items() if name.startswith("cudaEventCreate"))
    yield Figure(f"cudaEventCreate, in {n_passes} passes", made, "calls", NONE)
    down = {name: count for name, count in counts.items() if name.startswith("Memcpy DtoH")}
    pageable = sum(count for name, count in down.items() if "Pageable" in name)
    yield Figure("copies to the host", sum(down.values()), "copies")
    yield Figure("of them to pageable memory", pageable, "copies", NONE)


def _drain(run: fastcap.Stream) -> None:
    for _ in run:
        pass


def sanitized(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Torch's CUDA sanitizer over a small store, and over one that is broken on purpose."""
    from tests.support.sanitizer import SCRIPT  # what is measured otherwise needs no tests

    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "TORCH_CUDA_SANITIZER": "1", "PYTHONPATH": path}
    reports = {}
    for is_broken in (False, True):
        done = gpu.python(SCRIPT.format(is_broken=is_broken), env)
        has_reported = "CSAN" in done.stderr
        if done.stdout != "done\n" and not has_reported:
            raise UnavailableError(f"the sanitizer's script ended with {done.stderr[-300:]!r}")
        reports[is_broken] = float(has_reported)
    yield Figure("fastcap has a race", reports[False], "reports", NONE)
    yield Figure("the control, broken, has one", reports[True], "reports", Range(1, 1))
