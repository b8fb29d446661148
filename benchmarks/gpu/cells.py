"""The grid's groups and cells: what is asked of which model, and what came out."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu.destinations import DESTINATIONS, IN_MEMORY, WITH_LOOP, Destination
from benchmarks.gpu.floors import Floors, Terms
from benchmarks.gpu.session import MEASURED, NOT_REACHED, NOT_RUN
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Subject
from fastcap.bench import Ratio, paired_ratio

HOST_SHARE = 7  # results, the oracle's values, slots, pinned rows and an archive's pages
DISK_SHARE = 6  # an archive's first run is at most this part of a group's time
FEWEST_PASSES = 2


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
        destinations: Where values go.
    """

    subject: Subject
    picked: Picked
    likely_secs: float
    n_passes: int
    destinations: Mapping[str, Destination] = field(default_factory=lambda: DESTINATIONS)

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}"

    @property
    def pass_bytes(self) -> int:
        n_tokens = self.subject.n_tokens
        of_site = self.subject.site_bytes * self.picked.n_positions(n_tokens) // n_tokens
        return of_site * self.subject.shape.n_layers


GRID = (
    Group(LLAMA, ALL, 110, 4, WITH_LOOP),
    Group(LLAMA, LAST, 25, 8),
    Group(LLAMA, SLICE, 20, 8, IN_MEMORY),
    Group(THIN, ALL, 60, 6, WITH_LOOP),
    Group(GPT2, ALL, 30, 24, WITH_LOOP),
    Group(GPT2, LAST, 15, 96),
)


@dataclass(slots=True)
class Cell:
    """One destination's figures. Seconds of runs are those of one pass: all of it over its passes.

    Attributes:
        group: Model and selection.
        destination: Where values went.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why only so much.
        n_passes: Passes of one run.
        prepare_secs: What was pinned before the first run, and is not part of it.
        first_secs: The whole first run, which pins and allocates; `None` if there was none.
        secs: Every timed run after it, from its beginning until everything is delivered.
        steady_secs: From the start of its second pass to that of its last, by the GPU's clock.
        baseline_secs: The run without capture in the same round.
        baseline_steady_secs: The same of its steady state.
        terms: What the floors allow a pass; `None` where none were measured.
        n_compared: Values compared with the oracle, over all runs.
        problems: What differed.
        statistics: What the engine counted in the first run, where the destination gives it.
    """

    group: Group
    destination: str
    status: str = NOT_RUN
    reason: str = NOT_REACHED
    n_passes: int = 0
    prepare_secs: float | None = None
    first_secs: float | None = None
    secs: list[float] = field(default_factory=list)
    steady_secs: list[float] = field(default_factory=list)
    baseline_secs: list[float] = field(default_factory=list)
    baseline_steady_secs: list[float] = field(default_factory=list)
    terms: Terms | None = None
    n_compared: int = 0
    problems: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.group.name}, {self.destination}"

    @property
    def is_measured(self) -> bool:
        return self.status == MEASURED and bool(self.secs)

    @property
    def pass_secs(self) -> float:
        """The median run, by pass."""
        return statistics.median(self.secs)

    @property
    def ratio(self) -> Ratio:
        """To the same passes without capture, paired by round."""
        return paired_ratio(self.secs, self.baseline_secs)

    @property
    def steady_ratio(self) -> Ratio | None:
        """The same of the steady state; `None` for runs too short to have one."""
        if not self.steady_secs:
            return None
        return paired_ratio(self.steady_secs, self.baseline_steady_secs)

    @property
    def share(self) -> float:
        """How much of what the floors allow was reached."""
        assert self.terms is not None
        return self.terms.bound_secs / self.pass_secs

    @property
    def steady_share(self) -> float | None:
        """The same without a run's beginning and end."""
        if not self.steady_secs:
            return None
        assert self.terms is not None
        return self.terms.bound_secs / statistics.median(self.steady_secs)

    @property
    def is_equal(self) -> bool | None:
        """Whether everything equalled the oracle; `None` where nothing was compared."""
        return not self.problems if self.n_compared else None


def fitted(group: Group, host_bytes: int | None) -> int:
    """A group's passes; fewer where memory could not hold what exists at once."""
    n_passes = group.n_passes
    if host_bytes is not None:
        n_passes = min(n_passes, host_bytes // (HOST_SHARE * group.pass_bytes))
    return max(FEWEST_PASSES, n_passes)


def archive_passes(group: Group, n_passes: int, floors: Floors | None) -> int:
    """An archive's passes; fewer where writing them would take most of the group's time."""
    if floors is None or floors.disk is None:
        return n_passes
    written_bytes = 1e9 * floors.disk * group.likely_secs / DISK_SHARE
    return max(FEWEST_PASSES, min(n_passes, int(written_bytes / group.pass_bytes)))


def open_cells(group: Group) -> list[Cell]:
    """A cell for every destination, with nothing measured yet."""
    return [Cell(group, name) for name in group.destinations]


def by_subject(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups of one model together, in order, so that each is made once."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.subject.name, []).append(group)
    return found
