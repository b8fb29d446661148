"""Everything that a run found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.checkout import Checkout
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.session import FAILED, Entry
from fastcap.bench import Machine


@dataclass(slots=True)
class Report:
    """Everything that a run found.

    Attributes:
        title: What kind of run it was; a dry run says so here and everywhere.
        is_measurement: Whether the figures mean anything.
        date: When, in UTC.
        machine: The host, and the accelerator's name.
        card: The accelerator, its driver, and the versions of what matters.
        checkout: Which code.
        missing: What is not installed, and what depends on it.
        limit_secs: How much time there was.
        spent_secs: How much was used so far.
        floors: What the machine can do at best; `None` until it was measured.
        entries: The micro-benchmarks.
        cells: The grid.
        origins: Which class each model is.
        repeats: Whether each model gives the same values twice.
        notes: What else went wrong.
        is_complete: Whether the run came to its end.
    """

    title: str
    is_measurement: bool
    date: str
    machine: Machine
    card: Mapping[str, str]
    checkout: Checkout
    missing: Mapping[str, str]
    limit_secs: float
    spent_secs: float = 0.0
    floors: Floors | None = None
    entries: list[Entry] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    repeats: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = False

    @property
    def is_right(self) -> bool:
        """Whether nothing failed and nothing differed from the oracle."""
        return (
            not self.notes
            and all(self.repeats.values())
            and not any(entry.status == FAILED for entry in self.entries)
            and not any(cell.status == FAILED or cell.problems for cell in self.cells)
        )

    @property
    def stem(self) -> str:
        """What the files are named."""
        kind = "gpu-bench" if self.is_measurement else "gpu-dry-run"
        return f"{self.date[:10]}-{kind}-{self.machine.tag}"
