"""Short runs on a virtual clock: whether memory is sized in time. Simulated, not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import paragraphs, table
from fastcap.formatting import format_bytes

GB = 1e9


def block(result: Result) -> str:
    """Ratios by destination, host rate and number of passes."""
    assumed = result.content["assumed"]
    said = (
        f"**Simulated, not measured.** Assumed: link {assumed['link_bytes_per_sec'] / GB:g} GB/s, "
        f"device memory {assumed['memory_bytes_per_sec'] / GB:g} GB/s, {assumed['n_workers']} host "
        f"workers, {1e6 * assumed['hook_secs']:g} µs per hook, and that pinning takes no time. "
        "The floor is the cost model's: packing, and delivering what landed last."
    )
    return paragraphs(said, table(HEADER, _rows(result)))


HEADER = (
    "into",
    "host copy, per worker",
    "passes",
    "time / without capture",
    "floor",
    "slots, at most",
    "spilled",
)


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    rows: list[dict[str, Any]] = result.content["rows"]
    for row in sorted(rows, key=lambda row: str(row["destination"])):
        yield (
            row["destination"],
            f"{row['host_bytes_per_sec'] / GB:g} GB/s",
            str(row["n_passes"]),
            f"{row['ratio']:.3f}",
            f"{row['floor']:.3f}",
            format_bytes(row["slot_bytes"]),
            format_bytes(row["spilled_bytes"]),
        )
