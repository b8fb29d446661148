"""On the GPU itself: what packing costs, what copies cost a model, and packs inside a graph."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch

from benchmarks.gpu.figures import Figure, Range
from benchmarks.gpu.toolbox import Gpu, Sizes

N_PRODUCTS = 20
GRAPH_WIDTH, GRAPH_LAYERS = 512, 4


def packing(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    n_bytes, repeats = sizes.part_bytes, sizes.repeats

    def tb_per_sec(target: torch.Tensor, source: torch.Tensor) -> float:
        secs = gpu.best_secs(lambda: target.copy_(source, non_blocking=True), repeats, 10)
        return source.nbytes / secs / 1e12

    source = gpu.random(n_bytes, torch.bfloat16)
    dense = tb_per_sec(gpu.empty(n_bytes, torch.bfloat16), source)
    yield Figure("dense bf16, payload", dense, "TB/s", Range(1.7, 2.1))
    wide = gpu.random(n_bytes, torch.float32)
    narrowed = tb_per_sec(gpu.empty(n_bytes // 2, torch.bfloat16), wide)
    yield Figure("float32 to bf16, read", narrowed, "TB/s", Range(1.3, 1.8))
    acts = source.view(8, -1, 64)
    last = acts[:, -1]
    target = gpu.empty(last.nbytes, torch.bfloat16).view(last.shape)
    secs = gpu.best_secs(lambda: target.copy_(last, non_blocking=True), repeats, 200)
    yield Figure("last of each sample, one pack", 1e6 * secs, "µs", Range(0, 6))


def beside_products(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """A loop of matrix products, alone and while copies to the host never stop."""
    size = sizes.matrix
    left = torch.randn(size, size, dtype=torch.bfloat16, device=gpu.device)
    right = torch.randn_like(left)
    product = torch.empty_like(left)
    source, target = gpu.random(sizes.part_bytes), gpu.pinned(sizes.part_bytes)
    side = gpu.side_stream()

    def multiply() -> float:
        return gpu.secs(lambda: torch.mm(left, right, out=product), N_PRODUCTS)

    def multiply_beside_copies() -> float:
        with gpu.cuda.stream(side):
            for _ in range(16):
                target.copy_(source, non_blocking=True)
        return multiply()

    multiply()
    ratios = []
    for _ in range(sizes.repeats):
        alone = multiply()
        ratios.append(multiply_beside_copies() / alone)
    tflops = 2 * size**3 / alone / 1e12
    yield Figure("alone", tflops, "TFLOP/s")
    yield Figure("time beside copies, of alone", statistics.median(ratios), "x", Range(0.98, 1.015))


def graph_with_packs(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Packs recorded inside the graph, one copy to the host after each replay."""
    shape = (64, GRAPH_WIDTH)
    acts = torch.zeros(shape, device=gpu.device)
    weights = torch.randn(GRAPH_LAYERS, GRAPH_WIDTH, GRAPH_WIDTH, device=gpu.device)
    weights *= GRAPH_WIDTH**-0.5
    staging = torch.zeros((GRAPH_LAYERS, *shape), device=gpu.device)
    slot = gpu.pinned(staging.nbytes, torch.float32).view(staging.shape)
    outputs: list[torch.Tensor] = []

    def forward(packs: bool) -> None:
        outputs.clear()
        value = acts
        for layer in range(GRAPH_LAYERS):
            value = value @ weights[layer]
            outputs.append(value)
            if packs:
                staging[layer].copy_(value)

    replay_plain = gpu.record(lambda: forward(False))
    replay = gpu.record(lambda: forward(True))

    def replay_and_copy() -> None:
        replay()
        slot.copy_(staging, non_blocking=True)

    n_wrong = 0
    for number in range(sizes.replays):
        acts.fill_(number % 251 - 125)
        replay_and_copy()
        gpu.synchronise()
        n_wrong += not torch.equal(slot, torch.stack([value.cpu() for value in outputs]))
    yield Figure(f"wrong of {sizes.replays} replays", n_wrong, "replays", Range(0, 0))
    n_timed = min(50, sizes.replays)
    plain = gpu.best_secs(replay_plain, sizes.repeats, n_timed)
    packed = gpu.best_secs(replay_and_copy, sizes.repeats, n_timed)
    yield Figure("time with packs and copy, of plain", packed / plain, "x", Range(0.98, 1.03))
