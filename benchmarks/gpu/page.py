"""What a run found, as a Markdown page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.gpu import goals
from benchmarks.gpu.cells import Cell
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.floors import Floors
from benchmarks.gpu.goals import Verdict
from benchmarks.gpu.report import Report
from benchmarks.gpu.session import MEASURED, Entry
from fastcap.bench.report import aligned
from fastcap.host_memory import format_bytes


def markdown(report: Report) -> str:
    """The page beside the JSON."""
    parts = [
        f"# {report.title}, {report.date[:10]}",
        *_warnings(report),
        "```\n" + "\n".join(f"{name:<10}{text}" for name, text in _card(report).items()) + "\n```",
        "## Goals",
        aligned([GOAL_HEADER, *_goal_rows(report)]),
        "## Grid",
        GRID_NOTE,
        *_grid_tables(report.cells),
        "## Floors",
        _floors(report.floors),
        "## Micro-benchmarks",
        "Predictions were written down before anything was measured.",
        aligned([MICRO_HEADER, *_micro_rows(report.entries)]),
        *_not_run(report),
    ]
    return "\n\n".join(parts) + "\n"


GRID_NOTE = (
    "Milliseconds of one pass, from the median of the timed runs, which take turns with passes "
    "without capture; the ratio is paired by round. Floors are what a pass takes on each by "
    "itself, in the same run. The largest that the destination has is the bound, and the share is "
    "bound / measured; between batches it leaves out a run's beginning and end. Every run's values "
    "are compared with the oracle byte by byte; of a loop's timed runs, the last batch is."
)


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
    for note in report.notes:
        yield f"**{note}**"


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


GOAL_HEADER = ("goal", "cell", "bound", "reached", "met")


def _goal_rows(report: Report) -> Iterator[tuple[str, ...]]:
    found: dict[str, list[tuple[str, str, Verdict]]] = {}
    for cell in report.cells:
        verdict = goals.judge(cell)
        if verdict is not None and cell.terms is not None:
            name = f"{cell.group.name}, {cell.destination}"
            found.setdefault(verdict.goal.name, []).append((name, cell.terms.bound, verdict))
    hook = goals.judge_hook(report.entries)
    if hook is not None:
        found[hook.goal.name] = [("64 sites, B9", "", hook)]
    for goal in (
        goals.HIDDEN,
        goals.LINK_SHARE,
        goals.OUT_SHARE,
        goals.HOST_SHARE,
        goals.DISK_SHARE,
        goals.HOOK_TIME,
    ):
        text = f"{goal.name}: {goal.text}"
        for name, bound, verdict in found.get(goal.name, []):
            yield text, name, bound, verdict.reached, "met" if verdict.is_met else "MISSED"
        if goal.name not in found:
            yield text, "no cell with this bound was measured", "", "", "unknown"
    memory = goals.DISK_MEMORY
    yield f"{memory.name}: {memory.text}", "not measured by this command", "", "", "unknown"


def _grid_tables(cells: Sequence[Cell]) -> Iterator[str]:
    by_group: dict[str, list[Cell]] = {}
    for cell in cells:
        by_group.setdefault(cell.group.name, []).append(cell)
    for name, of_group in by_group.items():
        per_pass = format_bytes(of_group[0].group.pass_bytes)
        yield f"### {name}: {per_pass} per pass"
        yield aligned([GRID_HEADER, *map(_grid_row, of_group)])
        for cell in of_group:
            if cell.problems:
                shown = "; ".join(cell.problems[:3])
                yield f"{cell.destination} DIFFERS: {shown}"


GRID_HEADER = (
    "destination",
    "ms",
    "x without capture",
    "floors, ms",
    "other floors, ms",
    "bound",
    "share",
    "between batches",
    "goal",
    "equal",
    "rounds",
    "first run, s",
    "lent, spilled",
)


def _grid_row(cell: Cell) -> tuple[str, ...]:
    first = "" if cell.first_secs is None else f"{cell.first_secs:.2f}"
    if first and cell.prepare_secs is not None:
        first += f", after {cell.prepare_secs:.2f} of pinning"
    equal = {True: "yes", False: "NO", None: "not compared"}[cell.is_equal]
    if not cell.is_measured or cell.terms is None:
        failed = f"{cell.status}: {cell.reason}"
        return cell.destination, failed, *7 * ("",), equal, "0", first, ""
    verdict = goals.judge(cell)
    goal = "none" if verdict is None else "met" if verdict.is_met else "MISSED"
    floors, others = (_shown_ms(of_kind) for of_kind in (cell.terms.secs, cell.terms.others))
    counted = cell.statistics
    lent = f"{counted['lends']}, {format_bytes(counted['spilled_bytes'])}" if counted else ""
    return (
        cell.destination,
        f"{1e3 * cell.pass_secs:.2f}",
        str(cell.ratio) if len(cell.secs) > 1 else f"{cell.ratio.mean:.3f} (one round)",
        floors,
        others,
        cell.terms.bound,
        f"{cell.share:.3f}",
        "" if cell.steady_share is None else f"{cell.steady_share:.3f}",
        goal,
        equal,
        str(len(cell.secs)),
        first,
        lent,
    )


def _shown_ms(secs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * each:.2f}" for name, each in secs.items())


def _floors(floors: Floors | None) -> str:
    if floors is None:
        return "Not measured."
    workers = f"{floors.n_workers} threads, as many as fastcap has workers"
    disk = "none could be written" if floors.disk is None else f"{floors.disk:.2f}"
    rows = [
        ("floor", "GB/s"),
        ("one large copy into pinned memory", f"{floors.link:.2f}"),
        ("pinned to fresh memory, one thread", f"{floors.fresh:.2f}"),
        (f"pinned to fresh memory, {workers}", f"{floors.fresh_by_workers:.2f}"),
        ("pinned to warm memory, one thread", f"{floors.warm:.2f}"),
        (f"pinned to warm memory, {workers}", f"{floors.warm_by_workers:.2f}"),
        ("a new file, with one fsync", disk),
    ]
    return aligned(rows) + "\n\nThe forward without capture is in each cell."


MICRO_HEADER = ("", "benchmark", "what", "measured", "predicted", "as predicted")


def _micro_rows(entries: Sequence[Entry]) -> Iterator[tuple[str, ...]]:
    for entry in sorted(entries, key=lambda entry: int(entry.name[1:])):
        for figure in entry.figures:
            yield entry.name, entry.title, figure.name, *_figure(figure)
        if entry.status != MEASURED:
            yield entry.name, entry.title, f"{entry.status}: {entry.reason}", "", "", ""


def _figure(figure: Figure) -> tuple[str, str, str]:
    predicted = "" if figure.predicted is None else f"{figure.predicted} {figure.unit}"
    verdict = {True: "yes", False: "NO", None: ""}[figure.is_as_predicted]
    return f"{figure.value:.4g} {figure.unit}", predicted, verdict


def _not_run(report: Report) -> Iterator[str]:
    yield "## Not run"
    lines = [
        f"- {entry.name}, {entry.title}: {entry.status}: {entry.reason}"
        for entry in report.entries
        if entry.status != MEASURED
    ]
    lines += [
        f"- {cell.group.name}, {cell.destination}: {cell.status}: {cell.reason}"
        for cell in report.cells
        if cell.status != MEASURED
    ]
    yield "\n".join(lines) if lines else "Everything was run."
