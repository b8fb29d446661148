"""What a run found, as one JSON and one Markdown file."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu import goals
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.page import markdown
from benchmarks.gpu.report import Report
from fastcap.bench.report import INTERVAL


def write(folder: Path, report: Report) -> Path:
    """Write both files; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report.stem}.json"
    path.write_text(json.dumps(document(report), indent=1, allow_nan=False) + "\n")
    path.with_suffix(".md").write_text(markdown(report))
    return path


def document(report: Report) -> dict[str, Any]:
    """Everything, raw times included."""
    return {
        "format": 1,
        "title": report.title,
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
        "micro": [entry.fields() for entry in report.entries],
        "grid": [cell_fields(cell) for cell in report.cells],
    }


def cell_fields(cell: Cell) -> dict[str, Any]:
    """One cell, for JSON."""
    fields: dict[str, Any] = {
        "cell": f"{cell.group.name}, {cell.destination}",
        "model": cell.group.subject.name,
        "selection": cell.group.picked.name,
        "destination": cell.destination,
        "status": cell.status,
        "reason": cell.reason,
        "pass_bytes": cell.group.pass_bytes,
        "passes": cell.n_passes,
        "prepare_secs": cell.prepare_secs,
        "first_secs": cell.first_secs,
        "secs": cell.secs,
        "hookless_secs": cell.hookless_secs,
        "values_compared": cell.n_compared,
        "equal": cell.is_equal,
        "problems": cell.problems,
        "statistics": cell.statistics,
    }
    if cell.is_measured and cell.terms is not None:
        ratio, verdict = cell.ratio, goals.judge(cell)
        fields["pass_secs"] = cell.pass_secs
        fields["ratio_to_hookless"] = [ratio.mean, ratio.low, _finite(ratio.high)]
        fields["floor_secs"] = dict(cell.terms.secs)
        fields["other_floor_secs"] = dict(cell.terms.others)
        fields["bound"] = cell.terms.bound
        fields["share"] = cell.share
        fields["steady_share"] = cell.steady_share
        fields["cadence_secs"] = cell.cadence_secs
        if verdict is not None:
            fields["goal"] = f"{verdict.goal.name}: {verdict.goal.text}"
            fields["goal_met"] = verdict.is_met
    return fields


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def summary(report: Report) -> str:
    """A few lines for the terminal."""
    measured = [cell for cell in report.cells if cell.is_measured]
    verdicts = [goals.judge(cell) for cell in measured]
    met = [verdict.is_met for verdict in verdicts if verdict is not None]
    n_figures = sum(len(entry.figures) for entry in report.entries)
    as_predicted = [
        figure.is_as_predicted
        for entry in report.entries
        for figure in entry.figures
        if figure.predicted is not None
    ]
    worst = max((statistics.median(cell.secs) for cell in measured), default=0.0)
    return (
        f"{len(measured)} of {len(report.cells)} cells measured, {sum(met)} of {len(met)} goals "
        f"met; {n_figures} figures, {sum(map(bool, as_predicted))} of {len(as_predicted)} as "
        f"predicted; longest run {worst:.1f} s; {report.spent_secs:.0f} s in all"
    )
