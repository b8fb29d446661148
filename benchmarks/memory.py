"""How much memory each way takes at its peak, measured in a fresh process of its own.

The figure is the high-water mark of a process that captures minus that of a process that runs the
same model over the same samples without. It is read from `VmHWM` inside the process: `ru_maxrss`
survives `exec`, so a child's would start at its parent's. Before the run the mark is set back to
what is resident then, so that building the model cannot hide what capturing takes. The C library
is told to return every freed tensor at once: by default it keeps some, and how many depends on the
order of allocations, which moved the peak of the same model by a fifth of a result.

    python -m benchmarks.memory WAY WORKLOAD     what a child runs; prints one line of JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.checkout import PROJECT
from benchmarks.ways import HOOKLESS, WAYS
from benchmarks.workloads import WORKLOADS, Case, build_case

LIMIT_SECS = 600
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": str(128 << 10), "MALLOC_TRIM_THRESHOLD_": "0"}


@dataclass(frozen=True, slots=True)
class Peak:
    """What one process reached while it ran one way.

    Attributes:
        host_bytes: The highest resident size during the run.
        before_bytes: The resident size before it, with the model built.
        device_bytes: The most that torch had allocated on the accelerator; `None` on the CPU.
        pinned_bytes: The most that torch had pinned on the host; `None` where it does not say.
            Pinned pages need not count as resident.
    """

    host_bytes: int
    before_bytes: int
    device_bytes: int | None = None
    pinned_bytes: int | None = None


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
    on_cuda = case.workload.needs_cuda
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = reset_peak()
    values = WAYS[way](case)
    if on_cuda:
        torch.cuda.synchronize()
    peak = resident_bytes("VmHWM")
    del values
    if not on_cuda:
        return Peak(peak, before)
    return Peak(peak, before, torch.cuda.max_memory_allocated(), _pinned_bytes())


def _pinned_bytes() -> int | None:
    read: Callable[[], Mapping[str, int]] = getattr(torch.cuda, "host_memory_stats", dict)
    return read().get("allocated_bytes.peak")


def measure_in_child(way: str, workload: str) -> Peak:
    """Run one way in a fresh process.

    Raises:
        RuntimeError: The child failed or took too long; with the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.memory", way, workload]
    try:
        child = subprocess.run(
            command,
            cwd=PROJECT,
            env={**os.environ, **RETURN_AT_ONCE},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "")[-2000:]
        raise RuntimeError(f"{error}\n{said}") from error
    return Peak(**json.loads(child.stdout.splitlines()[-1]))


def measure_all(workload: str, ways: Iterable[str]) -> dict[str, Peak]:
    """The peaks of several ways, each in a fresh process."""
    return {way: measure_in_child(way, workload) for way in ways}


def over_hookless(peaks: Mapping[str, Peak]) -> dict[str, int]:
    """Bytes that capturing adds to the peak of the same run without."""
    base = peaks[HOOKLESS].host_bytes
    return {way: peak.host_bytes - base for way, peak in peaks.items() if way != HOOKLESS}


def main(arguments: list[str]) -> None:
    way, workload = arguments
    peak = run_and_measure(way, build_case(WORKLOADS[workload]))
    sys.stdout.write(json.dumps(asdict(peak)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
