"""Which group holds which sample: the first commit of each id, in the order of the writers."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple

from fastcap.archive.journal import GroupRecord
from fastcap.archive.recovery import Scan, WriterState


class Run(NamedTuple):
    """Consecutive ids in consecutive rows of one group."""

    start: int
    stop: int
    writer: WriterState
    group: GroupRecord
    row: int

    def part(self, start: int, stop: int) -> Run:
        return self._replace(start=start, stop=stop, row=self.row + start - self.start)


class SampleIndex:
    """The runs that are read, sorted by id and without overlap."""

    def __init__(self, scan: Scan) -> None:
        found = list(_runs(scan))
        self._runs = sorted(found, key=lambda run: run.start)
        if any(a.stop > b.start for a, b in pairwise(self._runs)):
            self._runs = _first_of_each(found)
        self._starts = [run.start for run in self._runs]
        self.n_samples = sum(run.stop - run.start for run in self._runs)
        self.ranges = self._ranges()
        """The ids that are there, as ranges that do not touch."""

    def _ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        for run in self._runs:
            if ranges and ranges[-1][1] == run.start:
                ranges[-1] = (ranges[-1][0], run.stop)
            else:
                ranges.append((run.start, run.stop))
        return ranges

    def runs(self, start: int, stop: int) -> Iterator[Run]:
        """What is there of the ids from `start` up to `stop`, in order."""
        place = max(0, bisect_right(self._starts, start) - 1)
        while place < len(self._runs) and (run := self._runs[place]).start < stop:
            if run.stop > start:
                yield run.part(max(start, run.start), min(stop, run.stop))
            place += 1

    def has(self, start: int, stop: int) -> bool:
        """Whether all of these ids are there."""
        return sum(run.stop - run.start for run in self.runs(start, stop)) == stop - start


def _runs(scan: Scan) -> Iterator[Run]:
    for writer in scan.writers:
        for group in writer.groups:
            row = 0
            for start, stop in group.samples:
                yield Run(start, stop, writer, group, row)
                row += stop - start


def _first_of_each(found: Iterable[Run]) -> list[Run]:
    """Runs that overlap, cut so that the first of them in order of commits keeps its ids.

    A sweep over all ids where a run begins or ends; the oldest run that is open there is read.
    """
    runs = list(found)
    edges = sorted({edge for run in runs for edge in (run.start, run.stop)})
    begins: dict[int, list[int]] = {}
    for age, run in enumerate(runs):
        begins.setdefault(run.start, []).append(age)
    waiting: list[int] = []
    kept: list[Run] = []
    for start, stop in pairwise(edges):
        for age in begins.get(start, ()):
            heapq.heappush(waiting, age)
        while waiting and runs[waiting[0]].stop <= start:
            heapq.heappop(waiting)
        if not waiting:
            continue
        run = runs[waiting[0]].part(start, stop)
        if (
            kept
            and kept[-1].group is run.group
            and kept[-1].stop == start
            and (kept[-1].row + kept[-1].stop - kept[-1].start == run.row)
        ):
            run = kept.pop()._replace(stop=stop)
        kept.append(run)
    return kept
