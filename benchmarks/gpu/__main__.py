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

import sys
from dataclasses import asdict, replace
from functools import partial

from benchmarks.gpu import command, grid, micro
from benchmarks.gpu.command import Program
from benchmarks.gpu.grid import Group
from benchmarks.gpu.subjects import tiny

LIMIT_SECS = 480.0  # nothing is begun that would end later, as far as can be told


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu", __doc__, LIMIT_SECS)
    parser.add_argument("--virtual", action="store_true", help="the grid on a virtual clock")
    options = parser.parse_args(arguments)
    if options.virtual:
        from benchmarks.gpu import virtual  # and the tests' own, which measuring does not need

        return virtual.show(grid.GRID, options)
    return command.run("bench", options, everything)


def everything(program: Program) -> None:
    """Floors, what the rest rests on, the grid, then an archive's memory."""
    gpu, sizes, clock = program.gpu, program.sizes, program.clock
    groups = list(grid.GRID)
    if program.is_dry:
        groups = [replace(group, subject=tiny(group.subject), n_passes=3) for group in groups]
    for question in micro.FIRST:
        program.ask(question.number, question.title)
    program.ask(*micro.ARCHIVE_MEMORY)
    of_subjects: dict[str, list[Group]] = {}
    for group in groups:  # those of one model together, so that each is made once
        of_subjects.setdefault(group.subject.name, []).append(group)
        grid.entries_of(program, group)
    _floors(program)
    for question in micro.FIRST:
        run = partial(question.run, gpu, sizes)
        program.measure(question.number, question.title, run, question.likely_secs)
    clock.reserved_secs = min(micro.ARCHIVE_SECS, clock.left_secs / 4)
    for of_subject in of_subjects.values():
        grid.measure_subject(program, of_subject)
    clock.reserved_secs = 0.0
    disk = program.facts.get("floors_gb_per_sec", {}).get("disk")
    if disk is not None:
        memory = partial(micro.archive_memory, gpu, sizes, program.scratch, disk)
        program.measure(*micro.ARCHIVE_MEMORY, memory, micro.ARCHIVE_SECS)


def _floors(program: Program) -> None:
    program.say("floors")
    try:
        floors = grid.measure_floors(program.gpu, program.sizes, program.scratch)
        program.facts["floors_gb_per_sec"] = asdict(floors)
    except Exception as error:  # noqa: BLE001 - ratios can still be measured
        program.fail("measuring the floors", error)
    program.write()


if __name__ == "__main__":
    sys.exit(main())
