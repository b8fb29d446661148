"""The micro-benchmarks, in the order in which they run: what decides most comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.gpu import hazards, host, kernels, link, steady
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.toolbox import Gpu, Sizes


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One question.

    Attributes:
        name: Its number, which stays with it.
        title: What is measured.
        run: How.
        likely_secs: What it takes on an H200; it is not begun with less time left.
    """

    name: str
    title: str
    run: Callable[[Gpu, Sizes], Iterator[Figure]]
    likely_secs: float


FIRST = (
    Benchmark("B1", "one copy of 1 GiB to the host", link.one_copy, 2),
    Benchmark("B2", "copies to the host by size", link.by_size, 3),
    Benchmark("B7", "packing", kernels.packing, 2),
    Benchmark("B10", "the host's time in copy_ behind 50 ms of work", link.blocking, 2),
    Benchmark("B6", "pinning", link.pinning, 8),
    Benchmark("B13", "a value changed in place", hazards.changed_in_place, 3),
    Benchmark("B14", "a value freed", hazards.freed_too_early, 3),
    Benchmark("B9", "host time of a hook", host.hook_cost, 4),
    Benchmark("B9", "host time of the calls that ordering takes", host.call_cost, 2),
)
"""Before the grid."""

LATER = (
    Benchmark("B19", "allocations of a long run", steady.allocations, 6),
    Benchmark("B12", "a lazily conjugated tensor", hazards.conjugated, 2),
    Benchmark("B8", "matrix products beside copies", kernels.beside_products, 3),
    Benchmark("B18", "what a consumer can do", host.consuming, 8),
    Benchmark("B22", "packs inside a CUDA graph", kernels.graph_with_packs, 10),
)
"""After it."""
