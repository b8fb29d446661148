"""Runs steps until the time is over, and notes what was not run, and why."""

from __future__ import annotations

import faulthandler
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from types import FrameType
from typing import Any

from benchmarks.gpu.figures import Figure, UnavailableError

MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
NOT_REACHED = "the run ended before it"


class RunEndedError(BaseException):
    """Whatever is being measured has to end, as for `KeyboardInterrupt`; the text says why."""


ENDED = (KeyboardInterrupt, SystemExit, RunEndedError)
"""What ends a run. A run of `fastcap.extract` raises `SystemExit` for SIGTERM."""


@contextmanager
def ending_after(limit_secs: float, grace_secs: float) -> Iterator[None]:
    """Raise `RunEndedError` in the block after some seconds, or when SIGTERM comes.

    Python's handlers wait until a call into CUDA returns. For one that does not, the process is
    ended after `grace_secs` more, with every thread's stack on standard error.
    """

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        reason = f"{limit_secs:.0f} s were over" if number == signal.SIGALRM else name
        raise RunEndedError(reason)

    before = {each: signal.signal(each, end) for each in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, limit_secs)
    faulthandler.dump_traceback_later(limit_secs + grace_secs, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for each, handler in before.items():
            signal.signal(each, handler)


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

    def reserving(self, secs: float) -> Clock:
        """The same time with less of it left, for what must leave some to others."""
        return Clock(self.left_secs - secs, self.now)


@dataclass(slots=True)
class Entry:
    """The figures that answer one question.

    Attributes:
        name: Its number, which stays with it.
        title: What is asked; no two entries of a report share it.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why not all of it.
        figures: What came out, as far as it came.
        secs: How long it took.
    """

    name: str
    title: str
    status: str = NOT_RUN
    reason: str = NOT_REACHED
    figures: list[Figure] = field(default_factory=list)
    secs: float = 0.0

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "figures": [figure.fields() for figure in self.figures]}


def measure(
    entry: Entry, run: Callable[[], Iterator[Figure]], clock: Clock, likely_secs: float = 0.0
) -> None:
    """Fill an entry, unless too little time is left; what `run` raises becomes the reason."""
    if clock.left_secs < likely_secs:
        entry.reason = out_of_time(clock, likely_secs)
        return
    started = clock.now()
    try:
        for figure in run():
            entry.figures.append(figure)
        entry.status, entry.reason = MEASURED, ""
    except UnavailableError as error:
        entry.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest runs and the report says so
        entry.status, entry.reason = FAILED, describe_error(error)
    finally:
        entry.secs = clock.now() - started


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
