"""A plan held against its run."""

from __future__ import annotations

from dataclasses import dataclass

from fastcap.planning import table


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity, planned and actual; `None` if unknown.

    Attributes:
        name: `captured`, `staging`, `slots`, `result`, `disk` or `time`.
        planned: What the plan said.
        found: What the run actually took.
        unit: `bytes` or `secs`.
    """

    name: str
    planned: float | None
    found: float | None
    unit: str = "bytes"

    @property
    def ratio(self) -> float | None:
        """Found divided by planned."""
        if self.found is None or not self.planned:
            return None
        return self.found / self.planned


@dataclass(frozen=True, slots=True)
class Comparison:
    """Planned against actual; `str()` is a table.

    Attributes:
        rows: One per quantity.
    """

    rows: tuple[Compared, ...]

    def __str__(self) -> str:
        cells = [(row.name, row.planned, row.found, row.unit) for row in self.rows]
        return table.page(table.of_comparison(cells))
