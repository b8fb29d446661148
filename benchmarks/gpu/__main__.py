"""Measure what bounds fastcap on the GPU that is here: floors, a grid, and what both rest on.

    python -m benchmarks.gpu [--out benchmarks/results] [--scratch FOLDER] [--limit-secs 480]
    python -m benchmarks.gpu --dry-run      tiny, on the CPU: whether the code runs

The file is written again after every step, and when the run is ended by Ctrl-C, SIGTERM or its
time: then it says so, and lists what was not reached.
Exit status: 0, or 1 when something failed or differs from the oracle or the run did not come to its
end, or 2 when it cannot start.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby

from benchmarks.gpu import command, grid, micro, turns
from benchmarks.gpu.command import Program

LIMIT_SECS = 480.0  # nothing is begun that would end later, as far as can be told


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu", __doc__, LIMIT_SECS)
    return command.run("bench", parser.parse_args(arguments), everything)


def everything(program: Program) -> None:
    """Floors, what the rest rests on, then the grid."""
    groups = [replace(g, subject=turns.subject_of(program, g.subject)) for g in grid.GRID]
    if program.is_dry:
        groups = [replace(group, n_passes=grid.FEWEST_PASSES) for group in groups]
    for question in micro.QUESTIONS:
        program.ask(question.title)
    for group in groups:
        for way in group.ways:
            program.ask(f"{group.name}: {way}")
    program.say("floors")
    try:
        program.facts["floors"] = asdict(grid.measure_floors(program.gpu, program.scratch))
    except Exception as error:  # noqa: BLE001 - ratios can still be measured
        program.fail("measuring the floors", error)
    program.write()
    for question in micro.QUESTIONS:
        program.measure(question.title, partial(question.run, program), question.likely_secs)
    for _, of_model in groupby(groups, key=lambda group: group.subject):
        turns.measure_groups(program, list(of_model))


if __name__ == "__main__":
    sys.exit(main())
