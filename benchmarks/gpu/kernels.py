"""On the GPU itself: what packing costs, what copies cost a model, and packs inside a graph."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.gpu.figures import Figure, Range
from benchmarks.gpu.toolbox import Gpu, Sizes

N_PRODUCTS = 20
GRAPH_LAYERS = 4
DTYPE = torch.bfloat16


def packing(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
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
    acts = source.view(8, -1, 4096)
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


class Recorded:
    """Layers in a CUDA graph, with or without packs into staging of its own.

    Attributes:
        staging: What the packs write, of shape `(n_layers, n_rows, width)`.
        outputs: What each layer returned in the last replay.
        replay: Run all of it.
    """

    def __init__(self, gpu: Gpu, acts: Tensor, layers: nn.Sequential, packs: bool) -> None:
        self.staging = torch.zeros((len(layers), *acts.shape), dtype=DTYPE, device=gpu.device)
        self.outputs: list[Tensor] = []
        self.replay = gpu.record(lambda: self._forward(acts, layers, packs))

    def _forward(self, acts: Tensor, layers: nn.Sequential, packs: bool) -> None:
        self.outputs.clear()
        for layer, packed in zip(layers, self.staging, strict=True):
            acts = layer(acts)
            self.outputs.append(acts)
            if packs:
                packed.copy_(acts)


@torch.no_grad()
def graph_with_packs(gpu: Gpu, sizes: Sizes) -> Iterator[Figure]:
    """Packs recorded inside the graph, one copy to the host after each replay.

    Two graphs take turns, each with staging of its own: one is replayed while the other's is
    copied on a second stream.
    """
    width = sizes.matrix // 4
    acts = torch.randn(width, width, dtype=DTYPE, device=gpu.device)
    layers = nn.Sequential(*(_mlp(gpu, width, sizes.matrix) for _ in range(GRAPH_LAYERS)))
    plain = Recorded(gpu, acts, layers, packs=False)
    turns = [Recorded(gpu, acts, layers, packs=True) for _ in range(2)]
    slots = [gpu.pinned(each.staging.nbytes, DTYPE).view(each.staging.shape) for each in turns]
    side, copied = gpu.side_stream(), [gpu.mark(), gpu.mark()]

    def replay_and_copy(turn: int) -> None:
        current = gpu.cuda.current_stream()
        current.wait_event(copied[turn])
        turns[turn].replay()
        side.wait_event(gpu.mark())
        with gpu.cuda.stream(side):
            slots[turn].copy_(turns[turn].staging, non_blocking=True)
        copied[turn].record(side)

    n_wrong = 0
    for number in range(sizes.replays):
        turn = number % 2
        acts.fill_(number % 251 / 64 - 2)
        replay_and_copy(turn)
        gpu.synchronise()
        landed = slots[turn].to(gpu.device)
        n_wrong += not torch.equal(landed, torch.stack(turns[turn].outputs))
    yield Figure(f"wrong of {sizes.replays} replays", n_wrong, "replays", Range(0, 0))

    def both() -> None:
        replay_and_copy(0)
        replay_and_copy(1)

    n_timed = min(25, sizes.replays)
    plain_secs = gpu.best_secs(plain.replay, sizes.repeats, 2 * n_timed)
    packed_secs = gpu.best_secs(both, sizes.repeats, n_timed) / 2
    yield Figure(
        "time with packs and copies, of plain", packed_secs / plain_secs, "x", Range(0.98, 1.03)
    )


def _mlp(gpu: Gpu, width: int, hidden: int) -> nn.Module:
    up = nn.Linear(width, hidden, device=gpu.device, dtype=DTYPE)
    return nn.Sequential(up, nn.ReLU(), nn.Linear(hidden, width, device=gpu.device, dtype=DTYPE))
