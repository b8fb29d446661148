"""The grid's twin: the same cells on a device with a virtual clock.

fastcap's engine runs as it is, on assumed rates of an H200 and assumed times of the models. What
comes out is what the engine makes of them; beside it stands what the cost model says. Neither is a
measurement. An archive's workers are given the disk's rate, since nothing is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks import programs
from benchmarks.gpu.grid import ARCHIVE, FRESH, HOOK, LOOP, PINNED, SLOTS, Group
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from fastcap.formatting import format_bytes, markdown_table
from fastcap.transfer.pinned_out import PINNED_OUT_BYTES
from tests.support.virtual import (
    Load,
    baseline_secs,
    bounds,
    makespan,
    predicted_secs,
    run_extraction,
    run_stream,
    synchronous_secs,
)

COSTS = SimulatedCosts()
DISK_BYTES_PER_SEC = 2.5e9
HOST_BYTES = 32 << 30  # what slots may take by default on a host with 128 GiB to spare
DESTINATIONS = (SLOTS, LOOP, FRESH, PINNED, ARCHIVE, HOOK)


@dataclass(frozen=True, slots=True)
class VirtualCell:
    """One destination on the virtual clock, in seconds of one pass.

    Attributes:
        group: Model and selection.
        destination: Where values go.
        baseline_secs: Without capture.
        secs: On the virtual clock, with everything landed.
        model_secs: What the cost model says; `None` for a synchronous hook, which it is not about.
        bound: The term that sets it.
    """

    group: Group
    destination: str
    baseline_secs: float
    secs: float
    model_secs: float | None
    bound: str


def load_of(group: Group, destination: str) -> Load:
    """A cell as the virtual clock has it."""
    subject, costs = group.subject, COSTS
    n_sites = subject.shape.n_layers
    site_bytes = group.pass_bytes // n_sites
    if destination == ARCHIVE:
        of_worker = DISK_BYTES_PER_SEC / costs.n_workers
        costs = replace(costs, host_bytes_per_sec=of_worker)
    return Load(
        n_passes=group.n_passes,
        n_layers=n_sites,
        site_bytes=site_bytes,
        forward_secs=subject.likely_forward_secs,
        launch_secs=subject.likely_launch_secs,
        pinned_bytes=HOST_BYTES,
        lends=destination in (SLOTS, LOOP)
        or (destination == PINNED and site_bytes >= PINNED_OUT_BYTES),
        costs=costs,
    )


def play(groups: Sequence[Group]) -> list[VirtualCell]:
    """Every group's destinations, and the synchronous hook beside them."""
    return [_cell(group, destination) for group in groups for destination in DESTINATIONS]


def _cell(group: Group, destination: str) -> VirtualCell:
    load = load_of(group, destination)
    n_passes = load.n_passes
    plain = baseline_secs(load) / n_passes
    if destination == HOOK:
        return VirtualCell(group, destination, plain, synchronous_secs(load) / n_passes, None, "")
    bound = bounds(load).name
    if destination == ARCHIVE and bound == "consumer":
        bound = "disk"
    predicted = predicted_secs(load) / n_passes
    ways = {SLOTS: _slots_secs, FRESH: _fresh_secs, PINNED: _pinned_secs, ARCHIVE: _fresh_secs}
    secs = ways.get(destination, makespan)(load)
    return VirtualCell(group, destination, plain, secs / n_passes, predicted, bound)


def _slots_secs(load: Load) -> float:
    """For a caller that drops each batch at once."""
    return run_stream(load, TimedDevice(load.costs), keeps_batch=False).secs


def _fresh_secs(load: Load) -> float:
    return run_extraction(load, TimedDevice(load.costs)).secs


def _pinned_secs(load: Load) -> float:
    device = TimedDevice(load.costs, reaches_all=True)
    return run_extraction(load, device, is_pinned=True).secs


HEADER = ("cell", "bytes per pass", "without capture", "virtual", "x", "cost model", "bound")


LENDING = (
    "The cost model takes every record to be lent. fastcap lends a slot for a record that fills "
    "half of it, and copies the others out in the caller's thread when slots run short: a batch "
    f"that the caller holds, one that is ready and one under way need three passes of them. "
    f"{SLOTS!r} drops each batch before it asks for the next; {LOOP!r} does not."
)


def page(cells: Sequence[VirtualCell], origin: str) -> str:
    """A Markdown page that says what it is, and which code it was."""
    costs = COSTS
    assumed = (
        f"Assumed: link {costs.link_bytes_per_sec / 1e9:g} GB/s, device memory "
        f"{costs.memory_bytes_per_sec / 1e9:g} GB/s, {costs.n_workers} host workers of "
        f"{costs.host_bytes_per_sec / 1e9:g} GB/s each, disk {DISK_BYTES_PER_SEC / 1e9:g} GB/s, "
        f"hook {1e6 * costs.hook_secs:g} µs, pageable copy "
        f"{costs.pageable_bytes_per_sec / 1e9:g} GB/s."
    )
    parts = [
        "# Virtual twin of the GPU grid: arithmetic, not a measurement",
        "fastcap's engine on a virtual clock, beside the cost model, in ms per pass.",
        f"From {origin}.",
        assumed,
        markdown_table([HEADER, *_rows(cells)]),
        LENDING,
    ]
    return "\n\n".join(parts) + "\n"


def _rows(cells: Sequence[VirtualCell]) -> Iterator[tuple[str, ...]]:
    for cell in cells:
        model = "" if cell.model_secs is None else f"{1e3 * cell.model_secs:.2f}"
        yield (
            f"{cell.group.name}, {cell.destination}",
            format_bytes(cell.group.pass_bytes),
            f"{1e3 * cell.baseline_secs:.2f}",
            f"{1e3 * cell.secs:.2f}",
            f"{cell.secs / cell.baseline_secs:.2f}",
            model,
            cell.bound,
        )


def show(groups: Sequence[Group], options: argparse.Namespace) -> int:
    """Print the page, and write it where that was asked for."""
    origin = programs.origin_of(options.commit)
    day = origin.date[:10]
    text = page(
        play(groups), f"{day}, commit {origin.checkout.commit}, torch {origin.fields()['torch']}"
    )
    programs.say(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{day}-gpu-virtual.md").write_text(text)
    return 0
