"""Throughput of a run, time left, and what the run is waiting for."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

Bound: TypeAlias = Literal["compute", "data", "link", "consumer", "disk"]
"""What limits a run: the model, loading batches, copies to the host, host workers, or files."""

WINDOW_SECS = 30.0
"""What live figures look back on: long enough for a few passes, short enough to see a change."""

FREE_SHARE = 0.1
"""A run that waits for less than this share of its time is as fast as its model."""

SLOWEST_LINK = 10e9
"""Bytes per second of pinned copies, about, over the slowest link that accelerators have today."""

GB = 1e9


@dataclass(frozen=True, slots=True)
class Counters:
    """What a run has done since it began; every count only grows. Bytes, seconds.

    Attributes:
        n_samples: Samples that went through the model.
        written_bytes: Bytes given to files, or delivered where there is no file.
        copied_bytes: Bytes that crossed from the accelerator to the host.
        waited_secs: The run's thread waited, for copies, slots or host workers.
        joined_secs: The part of `waited_secs` that was spent on host workers.
        delivery_secs: Host workers moved bytes, to memory or files; added up over them.
        loading_secs: The run's thread waited for the next batch.
        committing_secs: The run's thread waited for a commit.
        file_secs: Host workers spent in calls to the file system: writes and commits.
    """

    n_samples: int = 0
    written_bytes: int = 0
    copied_bytes: int = 0
    waited_secs: float = 0.0
    joined_secs: float = 0.0
    delivery_secs: float = 0.0
    loading_secs: float = 0.0
    committing_secs: float = 0.0
    file_secs: float = 0.0

    def __sub__(self, other: Counters) -> Counters:
        return Counters(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(Counters)))


@dataclass(frozen=True, slots=True)
class Figures:
    """The rates over a stretch of time.

    Attributes:
        samples_per_sec: Samples per second.
        bytes_per_sec: Bytes per second, of what is written.
        left_secs: Seconds that the rest takes at this rate; `None` where unknown.
        bound: What limits the run; `None` before there is anything to tell it by.

    Examples:
        >>> print(Figures(samples_per_sec=210.4, bytes_per_sec=1.7e9, left_secs=75, bound="link"))
        210 samples/s, 1:15 left, 1.70 GB/s, bound by link
    """

    samples_per_sec: float
    bytes_per_sec: float
    left_secs: float | None
    bound: Bound | None

    def __str__(self) -> str:
        left = None if self.left_secs is None else f"{clock_time(self.left_secs)} left"
        return ", ".join(filter(None, [_rate(self.samples_per_sec), left, self.postfix]))

    @property
    def rates(self) -> str:
        """The same without the time left."""
        return f"{_rate(self.samples_per_sec)}, {self.postfix}"

    @property
    def postfix(self) -> str:
        """What a bar that shows samples and the time left does not show itself."""
        bound = "" if self.bound is None else f", bound by {self.bound}"
        return f"{self.bytes_per_sec / GB:.2f} GB/s{bound}"


class Rates:
    """Turns counters into figures.

    Args:
        n_expected: Samples that this run will do; `None` if unknown.
        window_secs: What `recent` looks back on.
        clock: Seconds that only grow.

    Examples:
        >>> now = iter([0.0, 10.0])
        >>> rates = Rates(n_expected=300, clock=lambda: next(now))
        >>> rates.update(Counters(n_samples=100, written_bytes=5 * 10**9, loading_secs=6.0))
        >>> print(rates.recent)
        10.0 samples/s, 0:20 left, 0.50 GB/s, bound by data
    """

    def __init__(
        self,
        n_expected: int | None,
        *,
        window_secs: float = WINDOW_SECS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._n_expected = n_expected
        self._window_secs = window_secs
        self._clock = clock
        self._first = (clock(), Counters())
        self._last = self._first
        self._seen = deque([self._first])

    def update(self, counters: Counters) -> None:
        """Take note of what the run has done by now."""
        self._last = (self._clock(), counters)
        self._seen.append(self._last)
        # One snapshot older than the window stays, or slow passes would leave nothing to compare.
        while len(self._seen) > 2 and self._last[0] - self._seen[1][0] >= self._window_secs:
            self._seen.popleft()

    @property
    def recent(self) -> Figures:
        """The figures of the latest stretch."""
        return self._since(*self._seen[0])

    @property
    def overall(self) -> Figures:
        """The figures of the whole run."""
        return self._since(*self._first)

    @property
    def n_samples(self) -> int:
        """Samples that this run has done."""
        return self._last[1].n_samples

    @property
    def secs(self) -> float:
        """From the first moment to the latest update."""
        return self._last[0] - self._first[0]

    def _since(self, then: float, counters: Counters) -> Figures:
        now, done = self._last
        secs, change = now - then, done - counters
        if secs <= 0:
            return Figures(0.0, 0.0, None, None)
        per_sec = change.n_samples / secs
        is_known = self._n_expected is not None and per_sec > 0
        n_left = max(0, (self._n_expected or 0) - done.n_samples)
        left_secs = n_left / per_sec if is_known else None
        return Figures(per_sec, change.written_bytes / secs, left_secs, find_bound(change, secs))


def find_bound(change: Counters, secs: float) -> Bound:
    """What a run waited for most in `secs` seconds, or `"compute"` if it hardly waited.

    Who waits for a host worker waits for the copy before it, and who waits for a copy waits for the
    pass that makes its values. So workers that hold a run up are blamed only if they moved bytes
    for half of the time: in file calls they are called the disk, else the consumer. The link is
    blamed only if the bytes would have kept a slow one busy for half of the time. What is left is
    compute.

    Examples:
        >>> find_bound(Counters(waited_secs=0.5), secs=10.0)
        'compute'
        >>> busy = Counters(waited_secs=4.0, joined_secs=3.0, delivery_secs=7.0, file_secs=6.0)
        >>> find_bound(busy, secs=10.0)
        'disk'
    """
    waits: dict[Bound, float] = {
        "data": change.loading_secs,
        "link": change.waited_secs - change.joined_secs,
        "consumer": change.joined_secs,
        "disk": change.committing_secs,
    }
    if sum(waits.values()) < FREE_SHARE * secs:
        return "compute"
    longest = max(waits, key=lambda name: waits[name])
    if longest == "consumer" and change.delivery_secs >= secs / 2:
        return "disk" if change.file_secs > change.delivery_secs / 2 else "consumer"
    if longest in ("consumer", "link"):
        return "link" if change.copied_bytes >= SLOWEST_LINK * secs / 2 else "compute"
    return longest


def clock_time(secs: float) -> str:
    """Seconds as people read them: `1:05`, `2:03:04`.

    Examples:
        >>> clock_time(65), clock_time(7384.2)
        ('1:05', '2:03:04')
    """
    minutes, seconds = divmod(round(secs), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _rate(samples_per_sec: float) -> str:
    digits = 0 if samples_per_sec >= 100 else 1 if samples_per_sec >= 10 else 2
    return f"{samples_per_sec:.{digits}f} samples/s"
