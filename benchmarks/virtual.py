"""Whether memory is sized in time: runs of a few passes on a device with a virtual clock.

    python -m benchmarks.virtual [--out benchmarks/results]

fastcap's engine runs as it is and chooses its own staging and slots; what a link, a kernel and a
host copy take is assumed. So this is arithmetic, not a measurement, and it says what the engine
makes of a machine, from its first pass on. Pinning is free on this clock: torch keeps pinned
memory, so a process pays for it once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from benchmarks import programs
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from tests.support.virtual import (
    Load,
    Outcome,
    baseline_secs,
    bounds,
    run_extraction,
    run_stream,
)

GB = 1e9
PASSES = (4, 12)
HOST_RATES = (3 * GB, 10 * GB, 25 * GB)
HOST_BYTES = 32 << 30  # what slots may take by default on a host with 128 GiB to spare
LOOP, FRESH, PINNED = "lent slots", "fresh memory", "pinned `out=`"
LIMITS: Mapping[str, float] = {LOOP: 1.02, FRESH: 1.03, PINNED: 1.02}
"""Times the passes alone that each destination may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """One run.

    Attributes:
        n_passes: Its passes.
        host_bytes_per_sec: Of one host worker.
        destination: Where values go.
        ratio: Its time by that of the same passes without capture.
        floor: The least that this ratio can be, from the rates.
        slot_bytes: The most that slots took.
        staging_bytes: The most that staging took.
        spilled_bytes: Values moved out of a slot for want of another.
    """

    n_passes: int
    host_bytes_per_sec: float
    destination: str
    ratio: float
    floor: float
    slot_bytes: int
    staging_bytes: int
    spilled_bytes: int

    @property
    def is_within(self) -> bool:
        """Whether it takes no more than it may, where its floor allows that."""
        return self.ratio <= max(LIMITS[self.destination], 1.01 * self.floor)


def play() -> Iterator[Row]:
    """32 layers of width 4096 in bfloat16, 8 x 1,024 tokens, all positions of every layer."""
    for n_passes in PASSES:
        for rate in HOST_RATES:
            costs = SimulatedCosts(host_bytes_per_sec=rate)
            load = Load(n_passes=n_passes, pinned_bytes=HOST_BYTES, costs=costs)
            for destination in LIMITS:
                yield _row(replace(load, lends=destination != FRESH), destination)


def _row(load: Load, destination: str) -> Row:
    plain = baseline_secs(load)
    found = _run(load, destination)
    # What is landed last still has to be delivered when the model is done.
    last_secs = 0.0 if load.lends else load.site_bytes / load.costs.host_bytes_per_sec
    floor = (load.n_passes * bounds(load).pass_secs + last_secs) / plain
    return Row(
        load.n_passes,
        load.costs.host_bytes_per_sec,
        destination,
        found.secs / plain,
        floor,
        found.slot_bytes,
        found.staging_bytes,
        found.spilled_bytes,
    )


def _run(load: Load, destination: str) -> Outcome:
    if destination == LOOP:
        return run_stream(load, TimedDevice(load.costs))
    is_pinned = destination == PINNED
    device = TimedDevice(load.costs, reaches_all=is_pinned)
    return run_extraction(load, device, is_pinned)


def main(arguments: list[str] | None = None) -> int:
    options = programs.parser_of("benchmarks.virtual", __doc__).parse_args(arguments)
    origin = programs.begin(options)
    if origin is None:
        return programs.CANNOT_START
    rows = list(play())
    content = {
        "note": "simulated: a virtual clock with assumed rates, not a measurement",
        "assumed": asdict(SimulatedCosts()),
        "rows": [asdict(row) for row in rows],
    }
    programs.finish(options, "virtual", origin, content)
    return 0 if all(row.is_within for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
