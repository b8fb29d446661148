"""How much memory a way takes at its peak, measured in a fresh process of its own.

The figure is the high-water mark of a process that captures minus that of one that runs the same
model over the same samples without. It is read from `VmHWM` inside the process: `ru_maxrss`
survives `exec`, so a child's would start at its parent's. Before the run the mark is set back to
what is resident then, so that building the model cannot hide what capturing takes. The C library
is told to return every freed tensor at once: by default it keeps some, and how many depends on the
order of allocations, which moved the peak of the same model by a fifth of a result.

    python -m benchmarks.memory WAY WORKLOAD     what a child runs; prints one line of JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.programs import run_child
from benchmarks.workloads import ACCEPTANCE, Workload, grid
from fastcap.bench import Case
from fastcap.bench.ways import BASELINE, WAYS

LIMIT_SECS = 600
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True, slots=True)
class Peak:
    """The highest resident size during a run, and the resident size before it."""

    host_bytes: int
    before_bytes: int


def resident_bytes(field: str = "VmRSS") -> int:
    """`VmRSS`, resident now, or `VmHWM`, the most since the mark was reset.

    Raises:
        OSError: The system has no `/proc/self/status`, or not this field in it.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}: peak memory cannot be measured here.")


def reset_peak() -> int:
    """Set the high-water mark to what is resident now, and return that.

    Raises:
        OSError: The mark cannot be set, or did not follow.
    """
    Path("/proc/self/clear_refs").write_text("5")
    resident, peak = resident_bytes(), resident_bytes("VmHWM")
    if abs(peak - resident) > max(resident // 20, 8 << 20):
        raise OSError(f"VmHWM is {peak} right after a reset, and {resident} bytes are resident.")
    return resident


def run_and_measure(way: str, case: Case) -> Peak:
    """Run one way in this process, keeping its result until its peak has been read."""
    before = reset_peak()
    values = WAYS[way](case)
    peak = resident_bytes("VmHWM")
    del values
    return Peak(peak, before)


def measure_in_child(way: str, workload: Workload) -> Peak:
    """Run one way in a fresh process.

    Raises:
        RuntimeError: The child failed or took too long; with the end of what it said.
    """
    arguments = ("-m", "benchmarks.memory", way, workload.name)
    return Peak(**run_child(*arguments, variables=RETURN_AT_ONCE, limit_secs=LIMIT_SECS))


def over_baseline(peaks: Mapping[str, Peak]) -> dict[str, int]:
    """Bytes that capturing adds to the peak of the same run without."""
    base = peaks[BASELINE].host_bytes
    return {way: peak.host_bytes - base for way, peak in peaks.items() if way != BASELINE}


def main(arguments: list[str]) -> None:
    way, name = arguments
    workload = {each.name: each for each in (ACCEPTANCE, *grid("cpu", None))}[name]
    sys.stdout.write(json.dumps(asdict(run_and_measure(way, workload.build()))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
