"""The grid's groups and cells: what is asked of which model, and what came out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.destinations import COMPARED, DESTINATIONS, LOOP, Destination
from benchmarks.gpu.floors import Floors, Terms
from benchmarks.gpu.session import MEASURED, NOT_REACHED, NOT_RUN
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Subject
from fastcap.bench import Ratio, paired_ratio

HOST_SHARE = 7  # results, the oracle's values, slots, pinned rows and an archive's pages
DISK_SHARE = 6  # an archive's first run is at most this part of a group's time


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection, by the name that reports give it."""

    name: str
    positions: int | slice | None

    def n_positions(self, n_tokens: int) -> int:
        if isinstance(self.positions, slice):
            return len(range(n_tokens)[self.positions])
        return n_tokens if self.positions is None else 1


ALL = Picked("all positions", None)
LAST = Picked("last", -1)
SLICE = Picked("slice 64", slice(0, 64))


@dataclass(frozen=True, slots=True)
class Group:
    """One question to one model, that every destination answers in turns.

    Attributes:
        subject: The model.
        picked: The selection.
        likely_secs: What it may take of the time.
        n_passes: Passes of one run: long enough that setting up is little of it, and no longer
            than its values fit in memory several times.
    """

    subject: Subject
    picked: Picked
    likely_secs: float
    n_passes: int

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}"

    @property
    def pass_bytes(self) -> int:
        n_tokens = self.subject.n_tokens
        of_site = self.subject.site_bytes * self.picked.n_positions(n_tokens) // n_tokens
        return of_site * self.subject.shape.n_layers

    @property
    def destinations(self) -> dict[str, Destination]:
        if self.picked is not ALL:
            return dict(DESTINATIONS)
        if self.subject.name == THIN.name:
            return {**DESTINATIONS, LOOP: COMPARED[LOOP]}
        return {**DESTINATIONS, **COMPARED}


GRID = (
    Group(LLAMA, ALL, 110, 4),
    Group(LLAMA, LAST, 25, 8),
    Group(LLAMA, SLICE, 25, 8),
    Group(THIN, ALL, 60, 6),
    Group(GPT2, ALL, 30, 24),
    Group(GPT2, LAST, 15, 96),
    Group(GPT2, SLICE, 15, 96),
)


@dataclass(slots=True)
class Cell:
    """One destination's figures.

    Attributes:
        group: Model and selection.
        destination: Where values went.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why only so much.
        n_passes: Passes of one run.
        prepare_secs: What was pinned before the first run, and is no part of it.
        first_secs: The first run, which pins and allocates; `None` if there was none.
        secs: Every timed run after it.
        hookless_secs: The run without capture in the same round.
        terms: What the floors allow a pass.
        n_compared: Values compared with the oracle, over all runs.
        problems: What differed.
        statistics: What the engine counted in the first run, where the destination gives it.
        cadence_secs: Between two batches that a loop was given, by timed run, from the second on.
    """

    group: Group
    destination: str
    status: str = NOT_RUN
    reason: str = NOT_REACHED
    n_passes: int = 0
    prepare_secs: float | None = None
    first_secs: float | None = None
    secs: list[float] = field(default_factory=list)
    hookless_secs: list[float] = field(default_factory=list)
    terms: Terms | None = None
    n_compared: int = 0
    problems: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    cadence_secs: list[float] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        return self.status == MEASURED and bool(self.secs)

    @property
    def pass_secs(self) -> float:
        """The median run, by pass."""
        return statistics.median(self.secs) / self.n_passes

    @property
    def ratio(self) -> Ratio:
        """To the same passes without capture, paired by round."""
        return paired_ratio(self.secs, self.hookless_secs)

    @property
    def share(self) -> float:
        """How much of what the floors allow was reached."""
        assert self.terms is not None
        return self.terms.bound_secs / self.pass_secs

    @property
    def steady_share(self) -> float | None:
        """The same between batches, without a run's beginning and end; `None` without a loop."""
        assert self.terms is not None
        if not self.cadence_secs:
            return None
        return self.terms.bound_secs / statistics.median(self.cadence_secs)

    @property
    def is_equal(self) -> bool | None:
        """Whether everything equalled the oracle; `None` where nothing was compared."""
        return not self.problems if self.n_compared else None


def fitted(group: Group, host_bytes: int | None, floors: Floors) -> int:
    """A group's passes; fewer where memory could not hold what exists at once, or where writing an
    archive of them would take most of the group's time.
    """
    n_passes = group.n_passes
    if host_bytes is not None:
        n_passes = min(n_passes, host_bytes // (HOST_SHARE * group.pass_bytes))
    if floors.disk is not None:
        written_bytes = 1e9 * floors.disk * group.likely_secs / DISK_SHARE
        n_passes = min(n_passes, int(written_bytes / group.pass_bytes))
    return max(2, n_passes)


def open_cells(group: Group) -> list[Cell]:
    """A cell for every destination, with nothing measured yet."""
    return [Cell(group, name) for name in group.destinations]


def by_subject(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups of one model together, in order, so that each is made once."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.subject.name, []).append(group)
    return found
