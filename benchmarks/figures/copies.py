"""What one copy on the host takes: floors, and ways to copy by size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import paragraphs, power_of_two, table

NAMES = {
    "copy_": "memcpy: `copy_` into memory written before",
    "numpy": "memcpy: NumPy's copy into the same",
    "copy_, new numpy memory": "first touch: new memory from NumPy (huge pages)",
    "copy_, new torch memory": "first touch: new memory from `torch.empty`",
    "copy_, transposed value": "memcpy of a transposed value",
    "copy_, every other column": "memcpy of every other column",
    "copy_, bfloat16 to float32": "cast: bfloat16 to float32",
    "copy_, float32 to bfloat16": "cast: float32 to bfloat16",
}

FLOORS = {
    "warm_gb_per_sec": "memory written before (memcpy)",
    "fresh_numpy_gb_per_sec": "fresh memory from NumPy, huge pages (first touch)",
    "fresh_torch_gb_per_sec": "fresh memory from `torch.empty` (first touch)",
    "rested_gb_per_sec": "memory given back some seconds before (first touch, also in the host)",
    "disk_gb_per_sec": "a new file, with its fsync",
}


def floors_block(result: Result) -> str:
    """The rates that predictions are made of."""
    floors = result.content["floors"]
    rates = {name: floors.get(field) for field, name in FLOORS.items()}
    rows = [(name, f"{rate:.2f}", f"{1e3 / rate:.0f}") for name, rate in rates.items() if rate]
    return table(("256 MiB into", "GB/s", "ms per GB"), rows)


def block(result: Result) -> str:
    """GB/s by size; a table for each number of threads."""
    by_threads = result.content["gb_per_sec_by_threads_and_bytes"]
    parts = [f"GB/s, counting the bytes written; medians of {result.content['rounds']} rounds."]
    for n_threads, by_size in by_threads.items():
        sizes = [power_of_two(int(size)) for size in by_size]
        parts.append(table((f"threads: {n_threads}", *sizes), _rows(by_size)))
    return paragraphs(*parts)


def brief(result: Result) -> str:
    """For the summary."""
    by_threads = result.content["gb_per_sec_by_threads_and_bytes"]
    n_threads, by_size = list(by_threads.items())[-1]
    size, rates = list(by_size.items())[-1]
    return (
        f"A copy of {power_of_two(int(size))} (threads: {n_threads}) runs at {rates['copy_']:.2f} "
        f"GB/s into memory written before, {rates['copy_, new numpy memory']:.2f} GB/s into new "
        f"memory from NumPy and {rates['copy_, new torch memory']:.2f} GB/s into new memory from "
        "torch."
    )


def _rows(by_size: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for way in next(iter(by_size.values())):
        yield (NAMES.get(way, way), *(f"{of_size[way]:.2f}" for of_size in by_size.values()))
