"""Runs steps until the time is over, and notes what was not run, and why."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.figures import Figure, UnavailableError
from benchmarks.gpu.micro import Benchmark
from benchmarks.gpu.toolbox import Gpu, Sizes

MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"


class Clock:
    """How much time is left of what there was.

    Args:
        limit_secs: All of it.
        now: Seconds that only grow.
    """

    def __init__(self, limit_secs: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.limit_secs = limit_secs
        self._started = now()

    @property
    def spent_secs(self) -> float:
        return self.now() - self._started

    @property
    def left_secs(self) -> float:
        return self.limit_secs - self.spent_secs


@dataclass(slots=True)
class Entry:
    """One benchmark's figures.

    Attributes:
        name: Its number.
        title: What was measured.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why not all of it.
        figures: What came out, as far as it came.
        secs: How long it took.
    """

    name: str
    title: str
    status: str = MEASURED
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)
    secs: float = 0.0

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "status": self.status,
            "reason": self.reason,
            "secs": round(self.secs, 3),
            "figures": [figure.fields() for figure in self.figures],
        }


def run_benchmark(benchmark: Benchmark, gpu: Gpu, sizes: Sizes, clock: Clock) -> Entry:
    """Run one, unless there is too little time left; what it raises becomes its reason."""
    return run_figures(
        benchmark.name,
        benchmark.title,
        lambda: benchmark.run(gpu, sizes),
        clock,
        benchmark.likely_secs,
    )


def run_figures(
    name: str,
    title: str,
    run: Callable[[], Iterator[Figure]],
    clock: Clock,
    likely_secs: float = 0.0,
) -> Entry:
    """As `run_benchmark`, of anything that gives figures."""
    entry = Entry(name, title)
    if clock.left_secs < likely_secs:
        entry.status, entry.reason = NOT_RUN, out_of_time(clock, likely_secs)
        return entry
    started = clock.now()
    try:
        entry.figures.extend(run())
    except UnavailableError as error:
        entry.status, entry.reason = NOT_RUN, str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest runs and the report says so
        entry.status, entry.reason = FAILED, describe_error(error)
    entry.secs = clock.now() - started
    return entry


def out_of_time(clock: Clock, likely_secs: float) -> str:
    left_secs = max(0.0, clock.left_secs)
    return f"out of time: {left_secs:.0f} s were left, and it takes about {likely_secs:.0f} s"


def describe_error(error: BaseException) -> str:
    """What was raised, and where; the whole trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}{where}"
