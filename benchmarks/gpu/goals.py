"""What was promised of runs on a GPU, and whether a cell keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.destinations import PINNED, SLOTS, WITH_LOOP
from benchmarks.gpu.floors import ARCHIVE, DISK, FORWARD, FRESH, HOOK_SECS, HOST, LINK
from benchmarks.gpu.micro import GROWTH, HOOK, MOST_GROWTH
from benchmarks.gpu.session import Entry


class Goal(NamedTuple):
    """What a promise is about, and what is promised."""

    name: str
    text: str


HIDDEN = Goal("compute-bound", "at most 1.02 of the time without capture")
LINK_SHARE = Goal("link-bound, slots", "at least 0.95 of the measured link")
OUT_SHARE = Goal("link-bound, pinned result", "at least 0.95 of the measured link")
HOST_SHARE = Goal("fresh memory", "at least 0.9 of the measured first touch and copy")
DISK_SHARE = Goal("archive", "at least 0.9 of the slower of link and plain write")
HOOK_TIME = Goal("hook", "at most 10 µs of host time per site")
DISK_MEMORY = Goal("archive's memory", "constant for any number of samples")
GOALS = (HIDDEN, LINK_SHARE, OUT_SHARE, HOST_SHARE, DISK_SHARE, HOOK_TIME, DISK_MEMORY)

MOST_RATIO, LEAST_LINK, LEAST_HOST, LEAST_DISK = 1.02, 0.95, 0.9, 0.9

_SHARES = {
    (SLOTS, LINK): (LINK_SHARE, LEAST_LINK),
    (PINNED, LINK): (OUT_SHARE, LEAST_LINK),
    (FRESH, HOST): (HOST_SHARE, LEAST_HOST),
    (ARCHIVE, LINK): (DISK_SHARE, LEAST_DISK),
    (ARCHIVE, DISK): (DISK_SHARE, LEAST_DISK),
}


class Verdict(NamedTuple):
    """A goal, what was reached, and whether that is enough."""

    goal: Goal
    reached: str
    is_met: bool


def judge(cell: Cell) -> Verdict | None:
    """The goal that holds for a cell's bound; `None` where none was set.

    What a pass adds while a run is under way is held against `HIDDEN`: a run of few passes is
    longer by the copy of its last one, however well the others are hidden. So are slots, whose
    loop never runs ahead. The other destinations have buffers that a short run fills without ever
    waiting for them, so that the whole run counts.
    """
    if not cell.is_measured or cell.terms is None or cell.destination not in WITH_LOOP:
        return None
    if cell.terms.bound == FORWARD:
        steady = cell.steady_ratio
        ratio = cell.ratio if steady is None else steady
        return Verdict(HIDDEN, f"{ratio}, whole {cell.ratio.mean:.3f}", ratio.mean <= MOST_RATIO)
    found = _SHARES.get((cell.destination, cell.terms.bound))
    if found is None:
        return None
    goal, least = found
    share = cell.share
    if cell.destination == SLOTS and cell.steady_share is not None:
        share = cell.steady_share
    return Verdict(goal, f"{share:.3f}, whole {cell.share:.3f}", share >= least)


def judge_entries(entries: Iterable[Entry]) -> Iterator[tuple[str, Verdict]]:
    """The goals for what was measured outside the grid, with the entry's title."""
    for entry in entries:
        for figure in entry.figures:
            if figure.name == HOOK:
                is_met = figure.value <= 1e6 * HOOK_SECS
                yield entry.title, Verdict(HOOK_TIME, f"{figure.value:.2f} µs", is_met)
            if figure.name == GROWTH:
                is_met = figure.value <= MOST_GROWTH
                reached = f"{figure.value:.4f} B for each byte more"
                yield entry.title, Verdict(DISK_MEMORY, reached, is_met)
