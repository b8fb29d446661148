"""Everything that a run found, as one JSON file and as lines for the terminal."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkout import Checkout
from benchmarks.gpu import goals
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.figures import finite
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.session import FAILED, MEASURED, Entry
from fastcap.bench import Machine, Ratio
from fastcap.bench.report import INTERVAL
from fastcap.formatting import markdown_table


@dataclass(slots=True)
class Report:
    """Everything that a run found.

    Attributes:
        name: The program: `bench`, `soak`, `timeline` or `peers`.
        is_measurement: Whether the figures mean anything; those of a dry run do not.
        date: When, in UTC.
        machine: The host, and the accelerator's name.
        card: The accelerator, its driver, and the versions of what matters.
        checkout: Which code.
        missing: What is not installed, and what depends on it.
        limit_secs: How much time there was.
        spent_secs: How much was used so far.
        floors: What the machine can do at best; `None` until it was measured.
        entries: Figures by question.
        cells: Models, selections and destinations.
        origins: Which class each model is.
        repeats: Whether each model gives the same values twice.
        notes: What else went wrong.
        is_complete: Whether the run came to its end.
    """

    name: str
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
        """Whether nothing failed, and nothing that was compared with the oracle differed."""
        return (
            not self.notes
            and all(self.repeats.values())
            and not any(entry.status == FAILED for entry in self.entries)
            and not any(cell.status == FAILED or cell.problems for cell in self.cells)
        )

    @property
    def path(self) -> str:
        """The name of its file."""
        kind = self.name if self.is_measurement else f"dry-run-{self.name}"
        return f"{self.date[:10]}-gpu-{kind}-{self.machine.tag}.json"


def write(folder: Path, report: Report) -> Path:
    """Replace the file as a whole: a run that is killed meanwhile leaves the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / report.path
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document(report), indent=1, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return new.replace(path)


def document(report: Report) -> dict[str, Any]:
    """Everything, raw times included."""
    return {
        "format": 2,
        "program": report.name,
        "is_measurement": report.is_measurement,
        "is_complete": report.is_complete,
        "is_right": report.is_right,
        "date": report.date,
        "commit": report.checkout.commit,
        "changed_paths": list(report.checkout.changes),
        "machine": asdict(report.machine),
        **report.card,
        "missing": dict(report.missing),
        "limit_secs": report.limit_secs,
        "spent_secs": round(report.spent_secs, 1),
        "interval": INTERVAL,
        "models": report.origins,
        "models_repeat_themselves": report.repeats,
        "floors_gb_per_sec": None if report.floors is None else asdict(report.floors),
        "notes": report.notes,
        "entries": [entry.fields() for entry in report.entries],
        "cells": [_cell_fields(cell) for cell in report.cells],
    }


def _cell_fields(cell: Cell) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "cell": cell.name,
        "model": cell.group.subject.name,
        "selection": cell.group.picked.name,
        "destination": cell.destination,
        "status": cell.status,
        "reason": cell.reason,
        "pass_bytes": cell.group.pass_bytes,
        "passes": cell.n_passes,
        "prepare_secs": cell.prepare_secs,
        "first_run_secs": cell.first_secs,
        "pass_secs": cell.secs,
        "steady_pass_secs": cell.steady_secs,
        "baseline_pass_secs": cell.baseline_secs,
        "baseline_steady_pass_secs": cell.baseline_steady_secs,
        "values_compared": cell.n_compared,
        "equal": cell.is_equal,
        "problems": cell.problems,
        "statistics": cell.statistics,
    }
    if cell.is_measured:
        fields["ratio"] = _ratio_fields(cell.ratio)
        fields["steady_ratio"] = _ratio_fields(cell.steady_ratio)
    if cell.is_measured and cell.terms is not None:
        fields["floor_secs"] = dict(cell.terms.secs)
        fields["bound"] = cell.terms.bound
        fields["share"], fields["steady_share"] = cell.share, cell.steady_share
        if (verdict := goals.judge(cell)) is not None:
            fields["goal"] = f"{verdict.goal.name}: {verdict.goal.text}"
            fields["goal_met"] = verdict.is_met
    return fields


def _ratio_fields(ratio: Ratio | None) -> list[float | None] | None:
    return None if ratio is None else [ratio.mean, ratio.low, finite(ratio.high)]


# For the terminal


def cell_line(cell: Cell) -> str:
    """A cell in short."""
    if not cell.is_measured:
        return f"{cell.destination}: {cell.status}: {cell.reason}"
    ratio = f"{cell.ratio.mean:.3f} of the baseline"
    if cell.steady_ratio is not None:
        ratio += f", steady {cell.steady_ratio.mean:.3f}"
    if cell.terms is not None:
        ratio += f", {cell.share:.3f} of what {cell.terms.bound} allows"
    verdict = "equal" if cell.is_equal else f"DIFFERS: {'; '.join(cell.problems[:3])}"
    return f"{cell.destination}: {1e3 * cell.pass_secs:.2f} ms, {ratio}, {verdict}"


def ending(report: Report) -> str:
    """What is to be read first: warnings, goals, and what was not run."""
    return "\n".join([*_warnings(report), *_goals(report), *_not_run(report)])


def _warnings(report: Report) -> Iterator[str]:
    if not report.is_measurement:
        yield "A dry run on the CPU. No figure here is a measurement of anything."
    if not report.is_complete:
        yield "This run did not come to its end."
    for name, does_repeat in report.repeats.items():
        if not does_repeat:
            yield (
                f"{name} gave other values for the same batch the second time, so its comparisons "
                "with the oracle say nothing about capturing."
            )
    yield from report.notes


def _goals(report: Report) -> Iterator[str]:
    if not report.cells or report.name != "bench":
        return
    found = [
        (cell.name, cell.terms.bound, verdict)
        for cell in report.cells
        if cell.terms is not None and (verdict := goals.judge(cell)) is not None
    ]
    found += [(title, "", verdict) for title, verdict in goals.judge_entries(report.entries)]
    rows = [("goal", "what", "bound", "reached", "met")]
    for goal in goals.GOALS:
        text = f"{goal.name}: {goal.text}"
        of_goal = [each for each in found if each[2].goal is goal]
        for name, bound, verdict in of_goal:
            met = "met" if verdict.is_met else "MISSED"
            rows.append((text, name, bound, verdict.reached, met))
        if not of_goal:
            rows.append((text, "not measured", "", "", "unknown"))
    yield markdown_table(rows)


def _not_run(report: Report) -> Iterator[str]:
    for entry in report.entries:
        if entry.status != MEASURED:
            yield f"{entry.status}: {entry.name}, {entry.title}: {entry.reason}"
    for cell in report.cells:
        if cell.status != MEASURED:
            yield f"{cell.status}: {cell.name}: {cell.reason}"
