"""What was promised of runs on a GPU, and whether a cell keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.cells import Cell
from benchmarks.gpu.destinations import DESTINATIONS, PINNED, SLOTS
from benchmarks.gpu.floors import ARCHIVE, DISK, FORWARD, FRESH, HOOK_SECS, HOST, LINK
from benchmarks.gpu.host import HOOK
from benchmarks.gpu.session import Entry


@dataclass(frozen=True, slots=True)
class Goal:
    """A promise.

    Attributes:
        name: What it is about.
        text: What is promised.
    """

    name: str
    text: str


HIDDEN = Goal("compute-bound", "at most 1.02 of the time without capture")
LINK_SHARE = Goal("link-bound, slots", "at least 0.95 of the measured link")
OUT_SHARE = Goal("link-bound, pinned result", "at least 0.95 of the measured link")
HOST_SHARE = Goal("fresh memory", "at least 0.9 of the measured first touch and copy")
DISK_SHARE = Goal("archive", "at least 0.9 of the slower of link and plain write")
HOOK_TIME = Goal("hook", "at most 10 µs of host time per site")
DISK_MEMORY = Goal("archive's memory", "constant for any number of samples")

MOST_RATIO, LEAST_LINK, LEAST_HOST, LEAST_DISK = 1.02, 0.95, 0.9, 0.9

_SHARES = {
    (SLOTS, LINK): (LINK_SHARE, LEAST_LINK),
    (PINNED, LINK): (OUT_SHARE, LEAST_LINK),
    (FRESH, HOST): (HOST_SHARE, LEAST_HOST),
    (ARCHIVE, LINK): (DISK_SHARE, LEAST_DISK),
    (ARCHIVE, DISK): (DISK_SHARE, LEAST_DISK),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A goal, what was reached, and whether that is enough."""

    goal: Goal
    reached: str
    is_met: bool


def judge(cell: Cell) -> Verdict | None:
    """The goal that holds for a cell's bound; `None` where none was set."""
    if not cell.is_measured or cell.terms is None or cell.destination not in DESTINATIONS:
        return None
    if cell.terms.bound == FORWARD:
        ratio = cell.ratio
        return Verdict(HIDDEN, str(ratio), ratio.mean <= MOST_RATIO)
    found = _SHARES.get((cell.destination, cell.terms.bound))
    if found is None:
        return None
    goal, least = found
    steady = cell.steady_share
    if steady is None:
        return Verdict(goal, f"{cell.share:.3f}", cell.share >= least)
    return Verdict(goal, f"{steady:.3f} between batches, {cell.share:.3f} whole", steady >= least)


def judge_hook(entries: Sequence[Entry]) -> Verdict | None:
    """The goal for a hook, once it was measured."""
    for entry in entries:
        for figure in entry.figures:
            if figure.name == HOOK:
                is_met = figure.value <= 1e6 * HOOK_SECS
                return Verdict(HOOK_TIME, f"{figure.value:.2f} µs", is_met)
    return None
