"""On the host: what a hook costs, what moving landed bytes costs, and what waiting costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import nn

import fastcap
from benchmarks.gpu.figures import Figure, Range
from benchmarks.gpu.link import gb_per_sec
from benchmarks.gpu.toolbox import Gpu, Sizes

Array = np.ndarray[tuple[int], np.dtype[np.uint8]]

N_MODULES = 64


def hook_cost(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Host time per site, over a model that does nothing, so that only hooks are left."""
    model = nn.Sequential(*(nn.Identity() for _ in range(N_MODULES)))
    sites = [str(layer) for layer in range(N_MODULES)]
    acts = torch.zeros(1, 1, 64, device=gpu.device)
    n_passes = max(2, sizes.calls // 20)

    def pass_secs() -> float:
        return gpu.host_secs(lambda: model(acts), n_passes)

    def with_empty_hooks() -> float:
        handles = [module.register_forward_hook(lambda *_: None) for module in model]
        found = pass_secs()
        for handle in handles:
            handle.remove()
        return found

    def with_fastcap() -> float:
        with fastcap.ActivationStore(model, sites):
            model(acts)  # the second firing of a site sizes the lane, which is no steady state
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
    yield Figure(HOOK, statistics.median(captured), "µs", Range(8, 12))


HOOK = "fastcap's hook, per site"


def call_cost(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Host time of the calls that ordering takes."""
    cuda, side = gpu.cuda, gpu.side_stream()
    event, current = gpu.mark(), gpu.cuda.current_stream()

    def set_and_back() -> None:
        cuda.set_stream(side)
        cuda.set_stream(current)

    def enter_and_leave() -> None:
        with cuda.stream(side):
            pass

    calls: dict[str, tuple[Callable[[], Any], Range]] = {
        "event.record": (lambda: event.record(current), Range(1.5, 3)),
        "stream.wait_event": (lambda: side.wait_event(event), Range(1, 2)),
        "set_stream, and back": (set_and_back, Range(1.5, 3)),
        "with stream": (enter_and_leave, Range(4, 8)),
        # torch makes an event when it is recorded first, so making one is not seen by itself
        "a new event, and its record": (lambda: cuda.Event().record(current), Range(3.5, 8)),
    }
    for name, (call, predicted) in calls.items():
        secs = gpu.median_host_secs(call, sizes.repeats, sizes.calls)
        yield Figure(name, 1e6 * secs, "µs", predicted)


def copy_rate(source: Array, make_target: Callable[[], Array], n_threads: int) -> float:
    """GB/s of `n_threads` copying parts of `source` into what is made for it, in that time."""
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(time.sleep, [0.0] * n_threads))  # they exist before the clock starts
        started = time.perf_counter()
        target = make_target()
        parts = zip(
            np.array_split(target, n_threads), np.array_split(source, n_threads), strict=True
        )
        list(threads.map(lambda part: np.copyto(*part), parts))
        elapsed = time.perf_counter() - started
    return gb_per_sec(source.nbytes, elapsed)


def best_copy_rate(
    source: Array, make_target: Callable[[], Array], n_threads: int, repeats: int
) -> float:
    return max(copy_rate(source, make_target, n_threads) for _ in range(repeats))


def consuming(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """What a consumer can do with landed bytes."""
    n_bytes = sizes.copy_bytes
    pinned = gpu.pinned(n_bytes)
    pinned.copy_(gpu.random(n_bytes))
    source: Array = pinned.numpy()
    predictions = {1: Range(1.5, 3), 8: Range(10, 20)}
    for n_threads, predicted in predictions.items():
        rate = best_copy_rate(source, lambda: np.empty(n_bytes, np.uint8), n_threads, 3)
        threads = "1 thread" if n_threads == 1 else f"{n_threads} threads"
        yield Figure(f"pinned to fresh memory, {threads}", rate, "GB/s", predicted)
    warm: Array = np.ones(n_bytes, np.uint8)
    rate = best_copy_rate(source, lambda: warm, 1, 3)
    yield Figure("pinned to warm memory, 1 thread", rate, "GB/s", Range(8, 12))
    floats = source.view(np.float32)
    started = time.perf_counter()
    with np.errstate(all="ignore"):  # any bytes are floats here, and the sum is not looked at
        floats.sum()
    rate = gb_per_sec(n_bytes, time.perf_counter() - started)
    yield Figure("numpy's sum over pinned memory", rate, "GB/s", Range(8, 12))
