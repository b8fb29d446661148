"""Measure what bounds fastcap on the GPU that is here: floors, a grid, and what both rest on.

    python -m benchmarks.gpu [--out benchmarks/results] [--scratch FOLDER] [--limit-secs 480]
    python -m benchmarks.gpu --dry-run      tiny, on the CPU: whether the code runs
    python -m benchmarks.gpu --virtual      the grid on a virtual clock: arithmetic

The file is written again after every step, and when the run is ended by Ctrl-C, SIGTERM or its
time: then it says so, and lists what was not reached.
Exit status: 0, or 1 when something failed or differs from the oracle or the run did not come to its
end, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.checkout import describe_checkout
from benchmarks.gpu import cells, command, grid, micro
from benchmarks.gpu.cells import Group
from benchmarks.gpu.command import Program
from benchmarks.gpu.floors import measure_floors
from benchmarks.gpu.report import cell_line
from benchmarks.gpu.session import NOT_REACHED, Clock
from benchmarks.gpu.subjects import Built, Subject, build, tiny
from benchmarks.programs import say
from fastcap.formatting import format_bytes

LIMIT_SECS = 480.0  # nothing is begun that would end later, as far as can be told


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu", __doc__, LIMIT_SECS)
    parser.add_argument("--virtual", action="store_true", help="the grid on a virtual clock")
    options = parser.parse_args(arguments)
    return _run_virtual(options) if options.virtual else command.run("bench", options, everything)


def _run_virtual(options: argparse.Namespace) -> int:
    from benchmarks.gpu import virtual  # and with it the tests' own, which measuring does not need

    date = dt.datetime.now(dt.UTC).date().isoformat()
    code = describe_checkout().commit or options.commit
    origin = f"{date}, commit {code}, torch {torch.__version__}"
    page = virtual.page(virtual.play(cells.GRID), origin)
    say(page)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{date}-gpu-virtual.md").write_text(page)
    return 0


def everything(program: Program) -> None:
    """Floors, what the rest rests on, the grid, then an archive's memory."""
    gpu, sizes, report = program.gpu, program.sizes, program.report
    groups = shrunk(cells.GRID) if program.is_dry else list(cells.GRID)
    for question in micro.FIRST:
        program.ask(question.number, question.title)
    program.ask(*micro.ARCHIVE_MEMORY)
    report.cells = [cell for group in groups for cell in cells.open_cells(group)]
    _floors(program)
    for question in micro.FIRST:
        run = partial(question.run, gpu, sizes)
        program.measure(question.number, question.title, run, question.likely_secs)
    clock = program.clock.reserving(min(micro.ARCHIVE_SECS, program.clock.left_secs / 4))
    for of_subject in cells.by_subject(groups).values():
        measure_subject(program, of_subject, clock)
    if report.floors is not None and report.floors.disk is not None:
        memory = partial(micro.archive_memory, gpu, sizes, program.scratch, report.floors.disk)
        program.measure(*micro.ARCHIVE_MEMORY, memory, micro.ARCHIVE_SECS)


def shrunk(groups: Sequence[Group]) -> list[Group]:
    return [replace(group, subject=tiny(group.subject), n_passes=3) for group in groups]


def _floors(program: Program) -> None:
    program.say("floors")
    try:
        program.report.floors = measure_floors(program.gpu, program.sizes, program.scratch)
    except Exception as error:  # noqa: BLE001 - the micro-benchmarks can still run
        program.fail("measuring the floors", error)
    program.write()


def measure_subject(program: Program, groups: Sequence[Group], clock: Clock) -> None:
    """All groups of one model, whose cells are in the report already."""
    subject = groups[0].subject
    program.say(f"model {subject.name}")
    try:
        reason = "the floors could not be measured" if program.report.floors is None else ""
        if built := None if reason else open_subject(program, subject):
            for group in groups:
                measure_group(program, group, built, clock)
        reason = reason or "the GPU has too little memory"
    except Exception as error:  # noqa: BLE001 - the other models can still run
        reason = program.fail(subject.name, error)
    for cell in program.report.cells:
        if any(cell.group is group for group in groups) and cell.reason == NOT_REACHED:
            cell.reason = reason
    grid.end_subject(program.gpu)


def open_subject(program: Program, subject: Subject) -> Built | None:
    """Make a model; `None` where the GPU has too little memory."""
    gpu, report = program.gpu, program.report
    gpu.cuda.empty_cache()
    if gpu.free_bytes() < subject.needs_bytes:
        free = format_bytes(gpu.free_bytes())
        say(f"{subject.name} needs {format_bytes(subject.needs_bytes)}, and {free} are free")
        return None
    built = build(subject, gpu)
    grid.begin_subject()
    report.origins[subject.name] = built.origin
    report.repeats[subject.name] = grid.repeats_itself(gpu, built)
    return built


def measure_group(program: Program, group: Group, built: Built, clock: Clock) -> None:
    """Fill a group's cells."""
    program.say(group.name)
    found = [cell for cell in program.report.cells if cell.group is group]
    floors, scratch = program.report.floors, program.scratch
    try:
        grid.measure_group(program.gpu, found, built, floors, scratch, clock)
    except Exception as error:  # noqa: BLE001 - the other groups can still run
        program.fail(group.name, error)
    finally:
        program.write()
    for cell in found:
        say(f"            {cell_line(cell)}")


if __name__ == "__main__":
    sys.exit(main())
