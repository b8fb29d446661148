"""Runs of a few passes on a device with a virtual clock: whether memory is sized in time.

    python -m benchmarks.virtual [--out benchmarks/results]
    python -m benchmarks.virtual --grid       the cells of the GPU grid beside the cost model

fastcap's engine runs as it is and chooses its own staging and slots; what a link, a kernel and a
host copy take is assumed. So this is arithmetic, not a measurement, and it says what the engine
makes of a machine, from its first pass on. Pinning is free on this clock: torch keeps pinned
memory, so a process pays for it once. An archive's workers are given the disk's rate, since nothing
is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from benchmarks import programs
from benchmarks.gpu import grid
from benchmarks.gpu.grid import Group
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from fastcap.formatting import format_bytes, markdown_table
from fastcap.transfer.pinned_out import PINNED_OUT_BYTES
from tests.support.virtual import (
    Load,
    Outcome,
    baseline_secs,
    bounds,
    predicted_secs,
    run_extraction,
    run_stream,
    synchronous_secs,
)

GB = 1e9
PASSES = (4, 12)
HOST_RATES = (3 * GB, 10 * GB, 25 * GB)
HOST_BYTES = 32 << 30  # what slots may take by default on a host with 128 GiB to spare
DISK_BYTES_PER_SEC = 2.5e9
LOOP, FRESH, PINNED = "lent slots", "fresh memory", "pinned `out=`"
LIMITS: Mapping[str, float] = {LOOP: 1.02, FRESH: 1.03, PINNED: 1.02}
"""Times the passes alone that each destination may take."""


Row = dict[str, Any]


def play() -> Iterator[Row]:
    """32 layers of width 4096 in bfloat16, 8 x 1,024 tokens, all positions of every layer; times
    as multiples of the passes alone. The floor is the least that the rates allow.
    """
    for n_passes in PASSES:
        for rate in HOST_RATES:
            costs = SimulatedCosts(host_bytes_per_sec=rate)
            for destination in LIMITS:
                load = Load(
                    n_passes=n_passes,
                    pinned_bytes=HOST_BYTES,
                    costs=costs,
                    lends=destination != FRESH,
                )
                plain_secs, found = baseline_secs(load), _run(load, destination)
                # What is landed last still has to be delivered when the model is done.
                last_secs = 0.0 if load.lends else load.site_bytes / rate
                floor_secs = n_passes * bounds(load).pass_secs + last_secs
                yield {
                    "n_passes": n_passes,
                    "host_bytes_per_sec": rate,
                    "destination": destination,
                    "ratio": found.secs / plain_secs,
                    "floor": floor_secs / plain_secs,
                    "slot_bytes": found.slot_bytes,
                    "staging_bytes": found.staging_bytes,
                    "spilled_bytes": found.spilled_bytes,
                }


def is_within(figures: Mapping[str, Any]) -> bool:
    """Whether no run takes more than it may, where its floor allows that."""
    return all(
        row["ratio"] <= max(LIMITS[row["destination"]], 1.01 * row["floor"])
        for row in figures["rows"]
    )


def _run(load: Load, destination: str, keeps_batch: bool = True) -> Outcome:
    if destination == LOOP:
        return run_stream(load, TimedDevice(load.costs), keeps_batch)
    is_pinned = destination == PINNED
    device = TimedDevice(load.costs, reaches_all=is_pinned)
    return run_extraction(load, device, is_pinned)


# The grid's twin

DESTINATIONS = {
    grid.SLOTS: LOOP,
    grid.LOOP: LOOP,
    grid.FRESH: FRESH,
    grid.PINNED: PINNED,
    grid.ARCHIVE: FRESH,
}


PASS_SECS = {"llama": (0.290, 0.004), "gpt2": (0.010, 0.003), "thin": (0.0015, 0.0005)}
"""What a pass of each model is assumed to take the device, and the host to issue it."""


class Cell(NamedTuple):
    """A way of one group on the virtual clock, in seconds of one pass: without capture, with
    everything landed, and what the cost model says, which is not about the synchronous hook; and
    the term that sets it.
    """

    group: Group
    way: str
    baseline_secs: float
    secs: float
    model_secs: float | None
    bound: str


def play_group(group: Group) -> Iterator[Cell]:
    """Every destination, and the synchronous hook beside them."""
    for way in (*DESTINATIONS, grid.HOOK):
        load = load_of(group, way)
        n_passes, bound = load.n_passes, bounds(load).name
        plain_secs = baseline_secs(load) / n_passes
        if way == grid.HOOK:
            yield Cell(group, way, plain_secs, synchronous_secs(load) / n_passes, None, "")
            continue
        if way == grid.ARCHIVE and bound == "consumer":
            bound = "disk"
        # `slots` drops each batch before it asks for the next, as the plain loop does not.
        found = _run(load, DESTINATIONS[way], keeps_batch=way != grid.SLOTS)
        yield Cell(
            group, way, plain_secs, found.secs / n_passes, predicted_secs(load) / n_passes, bound
        )


def load_of(group: Group, way: str) -> Load:
    """A cell as the virtual clock has it."""
    n_layers, costs = group.subject.shape.n_layers, SimulatedCosts()
    forward_secs, launch_secs = PASS_SECS[group.subject.name]
    site_bytes = group.pass_bytes // n_layers
    if way == grid.ARCHIVE:
        costs = replace(costs, host_bytes_per_sec=DISK_BYTES_PER_SEC / costs.n_workers)
    return Load(
        n_passes=group.n_passes,
        n_layers=n_layers,
        site_bytes=site_bytes,
        forward_secs=forward_secs,
        launch_secs=launch_secs,
        pinned_bytes=HOST_BYTES,
        lends=way in (grid.SLOTS, grid.LOOP)
        or (way == grid.PINNED and site_bytes >= PINNED_OUT_BYTES),
        costs=costs,
    )


def grid_table(cells: Sequence[Cell]) -> str:
    """Milliseconds per pass."""
    header = ("cell", "bytes per pass", "without capture", "virtual", "x", "cost model", "bound")
    rows = [
        (
            f"{cell.group.name}, {cell.way}",
            format_bytes(cell.group.pass_bytes),
            f"{1e3 * cell.baseline_secs:.2f}",
            f"{1e3 * cell.secs:.2f}",
            f"{cell.secs / cell.baseline_secs:.2f}",
            "" if cell.model_secs is None else f"{1e3 * cell.model_secs:.2f}",
            cell.bound,
        )
        for cell in cells
    ]
    return markdown_table([header, *rows])


def main(arguments: list[str] | None = None) -> int:
    parser = programs.parser_of("benchmarks.virtual", __doc__)
    parser.add_argument("--grid", action="store_true", help="print the GPU grid's cells instead")
    options = parser.parse_args(arguments)
    if options.grid:
        groups = {group.name: group for group in grid.GRID}.values()  # archives are in every one
        cells = [cell for group in groups for cell in play_group(group)]
        programs.say(f"Arithmetic, not a measurement; ms per pass.\n\n{grid_table(cells)}")
        return 0
    return programs.run(
        options,
        "virtual",
        lambda: {
            "note": "simulated: a virtual clock with assumed rates, not a measurement",
            "assumed": asdict(SimulatedCosts()),
            "rows": list(play()),
        },
        is_good=is_within,
    )


if __name__ == "__main__":
    sys.exit(main())
