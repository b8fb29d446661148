"""Everything that a run found, as one JSON and one Markdown file."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.checkout import Checkout
from benchmarks.gpu import goals
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.figures import Figure, finite
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.session import FAILED, MEASURED, Entry
from fastcap.bench import Machine, Ratio
from fastcap.bench.report import INTERVAL, aligned
from fastcap.host_memory import format_bytes


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
    def stem(self) -> str:
        """What the files are named."""
        kind = self.name if self.is_measurement else f"dry-run-{self.name}"
        return f"{self.date[:10]}-gpu-{kind}-{self.machine.tag}"


def write(folder: Path, report: Report) -> Path:
    """Write both files, each at once; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.stem}.json"
    _write_at_once(path, json.dumps(document(report), indent=1, allow_nan=False) + "\n")
    _write_at_once(path.with_suffix(".md"), page(report))
    return path


def _write_at_once(path: Path, text: str) -> None:
    """A reader, or a run that is killed meanwhile, finds the old file or the new one."""
    new = path.with_name(f".{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


# JSON


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
        fields["other_floor_secs"] = dict(cell.terms.others)
        fields["bound"] = cell.terms.bound
        fields["share"], fields["steady_share"] = cell.share, cell.steady_share
        if (verdict := goals.judge(cell)) is not None:
            fields["goal"] = f"{verdict.goal.name}: {verdict.goal.text}"
            fields["goal_met"] = verdict.is_met
    return fields


def _ratio_fields(ratio: Ratio | None) -> list[float | None] | None:
    return None if ratio is None else [ratio.mean, ratio.low, finite(ratio.high)]


# Markdown


def page(report: Report) -> str:
    """The same for a reader."""
    kind = "" if report.is_measurement else "DRY RUN of "
    tables = [_goals(report), *_grid(report)] if report.cells else []
    parts = [
        f"# {kind}fastcap on a GPU, {report.name}: {report.machine.tag}, {report.date[:10]}",
        *_warnings(report),
        "```\n" + "\n".join(f"{name:<10}{text}" for name, text in _card(report).items()) + "\n```",
        *tables,
        "## Figures\n\nPredictions were written down before anything was measured.",
        aligned([FIGURE_HEADER, *_figure_rows(report)]),
        "## Not run\n\n" + ("\n".join(_not_run(report)) or "Everything was run."),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(report: Report) -> Iterator[str]:
    if not report.is_measurement:
        yield "**A dry run on the CPU. No figure here is a measurement of anything.**"
    if not report.is_complete:
        yield "**This run did not come to its end.**"
    for name, does_repeat in report.repeats.items():
        if not does_repeat:
            yield (
                f"**{name} gave other values for the same batch the second time**, so its "
                "comparisons with the oracle say nothing about capturing."
            )
    yield from (f"**{note}**" for note in report.notes)


def _card(report: Report) -> dict[str, str]:
    machine, checkout = report.machine, report.checkout
    changes = f", with {len(checkout.changes)} changed paths" if checkout.changes else ""
    memory = f"{format_bytes(machine.memory_bytes)}, huge pages: {machine.huge_pages}"
    models = {f"{name}:": origin for name, origin in report.origins.items()}
    absent = "; ".join(f"{name} ({what})" for name, what in report.missing.items())
    return {
        **report.card,
        "host": f"{machine.cpu}, {machine.n_cores} cores, {memory}",
        "commit": f"{checkout.commit or 'unknown: not a git checkout'}{changes}",
        "date": report.date,
        "time": f"{report.spent_secs:.0f} s of at most {report.limit_secs:.0f} s",
        "missing": absent or "nothing",
        **models,
    }


def _goals(report: Report) -> str:
    found = [
        (cell.name, cell.terms.bound, verdict)
        for cell in report.cells
        if cell.terms is not None and (verdict := goals.judge(cell)) is not None
    ]
    found += [(title, "", verdict) for title, verdict in goals.judge_entries(report.entries)]
    rows = [("goal", "what", "bound", "reached", "met")]
    for goal in goals.GOALS:
        of_goal = [each for each in found if each[2].goal is goal]
        for name, bound, verdict in of_goal:
            met = "met" if verdict.is_met else "MISSED"
            rows.append((f"{goal.name}: {goal.text}", name, bound, verdict.reached, met))
        if not of_goal:
            rows.append((f"{goal.name}: {goal.text}", "not measured", "", "", "unknown"))
    return "## Goals\n\n" + aligned(rows)


GRID_NOTE = """## Grid

Milliseconds of one pass, from the median of the timed runs. Runs take turns with the same passes
without capture, the baseline, and ratios are paired by round. "Whole" is a run until everything is
delivered; "steady" is from the start of its second pass to that of its last, by the GPU's clock.
Floors are what a pass takes on each by itself, in the same run; the largest that the destination
has is the bound, and the share is bound / measured. Every run's values are compared with the
oracle byte by byte; of a loop's timed runs, the last batch is."""


def _grid(report: Report) -> Iterator[str]:
    yield GRID_NOTE
    if report.floors is not None:
        rates = (f"{name} {rate}" for name, rate in asdict(report.floors).items())
        yield "Floors, GB/s: " + ", ".join(rates) + "."
    by_group: dict[int, list[Cell]] = {}
    for cell in report.cells:
        by_group.setdefault(id(cell.group), []).append(cell)
    for cells in by_group.values():
        group = cells[0].group
        yield f"### {group.name}: {format_bytes(group.pass_bytes)} per pass"
        yield aligned([GRID_HEADER, *map(_grid_row, cells)])
        for cell in cells:
            if cell.problems:
                yield f"{cell.destination} DIFFERS: {'; '.join(cell.problems[:3])}"


GRID_HEADER = (
    *("destination", "ms", "steady", "whole, baseline = 1", "steady, baseline = 1"),
    *("floors, ms", "bound", "share", "equal", "rounds", "first run, s", "lent, spilled"),
)


def _grid_row(cell: Cell) -> tuple[str, ...]:
    first = "" if cell.first_secs is None else f"{cell.first_secs:.2f}"
    if first and cell.prepare_secs is not None:
        first += f", after {cell.prepare_secs:.2f} of pinning"
    equal = {True: "yes", False: "NO", None: "not compared"}[cell.is_equal]
    if not cell.is_measured:
        reason = f"{cell.status}: {cell.reason}"
        return cell.destination, reason, *6 * ("",), equal, "0", first, ""
    counted, terms = cell.statistics, cell.terms
    floors = {} if terms is None else {**terms.secs, **terms.others}
    return (
        cell.destination,
        f"{1e3 * cell.pass_secs:.2f}",
        f"{1e3 * statistics.median(cell.steady_secs):.2f}" if cell.steady_secs else "",
        _shown(cell.ratio),
        _shown(cell.steady_ratio),
        ", ".join(f"{name} {1e3 * secs:.2f}" for name, secs in floors.items()),
        "" if terms is None else terms.bound,
        "" if terms is None else f"{cell.share:.3f}",
        equal,
        str(len(cell.secs)),
        first,
        f"{counted['lends']}, {format_bytes(counted['spilled_bytes'])}" if counted else "",
    )


def _shown(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return str(ratio) if len(ratio.rounds) > 1 else f"{ratio.mean:.3f} (one round)"


FIGURE_HEADER = ("", "question", "what", "measured", "predicted", "as predicted")


def _figure_rows(report: Report) -> Iterator[tuple[str, ...]]:
    for entry in report.entries:
        for figure in entry.figures:
            yield entry.name, entry.title, figure.name, *_figure(figure)


def _figure(figure: Figure) -> tuple[str, str, str]:
    predicted = "" if figure.predicted is None else f"{figure.predicted} {figure.unit}"
    verdict = {True: "yes", False: "NO", None: ""}[figure.is_as_predicted]
    value = f"{figure.value:.4g} {figure.unit}"
    if figure.interval is not None:
        value += " [{:.3f}, {:.3f}]".format(*figure.interval)
    return value, predicted, verdict


def _not_run(report: Report) -> Iterator[str]:
    for entry in report.entries:
        if entry.status != MEASURED:
            yield f"- {entry.name}, {entry.title}: {entry.status}: {entry.reason}"
    for cell in report.cells:
        if cell.status != MEASURED:
            yield f"- {cell.name}: {cell.status}: {cell.reason}"


def summary(report: Report) -> str:
    """A line for the terminal."""
    measured = [cell for cell in report.cells if cell.is_measured]
    verdicts = [goals.judge(cell) for cell in measured]
    met = [verdict.is_met for verdict in verdicts if verdict is not None]
    met += [verdict.is_met for _, verdict in goals.judge_entries(report.entries)]
    found = [figure.is_as_predicted for entry in report.entries for figure in entry.figures]
    predicted = [each for each in found if each is not None]
    return (
        f"{len(measured)} of {len(report.cells)} cells measured, {sum(met)} of {len(met)} goals "
        f"met; {len(found)} figures, {sum(predicted)} of {len(predicted)} as predicted; "
        f"{report.spent_secs:.0f} s"
    )
