"""Hunt every mutant with every judge, and write the table into docs/exactness.md.

    python -m tests.mutants [--programs 100] [--write]

Exit status: 0, or 1 when a mutant survives without a reason.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from tests.support.judging import JUDGES
from tests.support.killing import SCHEDULES_PER_PROGRAM, Kill, hunt, passes_in_order
from tests.support.mutants import MUTANTS, Mutant, deletions

PAGE = Path(__file__).parent.parent / "docs/exactness.md"
BLOCK = re.compile(r"(<!-- mutants -->\n).*?(<!-- end of mutants -->)", re.DOTALL)
N_IN_ORDER = 20


def look(number: int, n_programs: int) -> tuple[Kill, bool]:
    """Hunt one mutant; also, whether it passes when everything runs in order."""
    torch.set_num_threads(1)
    mutant = all_mutants()[number]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kill = hunt(mutant, range(n_programs), stop_at_first=False)
        return kill, mutant.scenario is None and passes_in_order(mutant, N_IN_ORDER)


def all_mutants() -> list[Mutant]:
    return [*sorted(MUTANTS, key=lambda mutant: int(mutant.rule[1:])), *deletions()]


def seeds_for(mutant: Mutant, n_programs: int) -> list[int]:
    """All seeds, from the program on that saw the mutant when the page was written."""
    start = f"| {mutant.rule} | {mutant.drops} "
    line = next((line for line in PAGE.read_text().splitlines() if line.startswith(start)), "")
    schedules = [int(number) for number in re.findall(rf"\b(?:{'|'.join(JUDGES)}) (\d+)", line)]
    first = (min(schedules, default=1) - 1) // SCHEDULES_PER_PROGRAM % n_programs
    return [*range(first, n_programs), *range(first)]


def row(mutant: Mutant, kill: Kill, in_order: bool) -> str:
    """One line of the table."""
    seen = ", ".join(f"{judge} {first}" for judge, first in kill.first.items())
    if mutant.scenario is not None:
        seen = next(iter(kill.first), "")
    drops = f"{mutant.drops} ({mutant.defect})" if mutant.defect else mutant.drops
    mark = "yes" if in_order else "-" if mutant.scenario else "no"
    return f"| {mutant.rule} | {drops} | {seen or f'survives: {mutant.survives}'} | {mark} |"


def table(kills: list[tuple[Kill, bool]]) -> str:
    """The table, and what it adds up to."""
    lines = ["| rule | what is left out | seen by, after so many schedules | passes in order |"]
    lines += ["|---|---|---|---|"]
    lines += [row(m, *found) for m, found in zip(all_mutants(), kills, strict=True)]
    alone = {
        judge: sum(kill.first.keys() - {"crash", "resources"} == {judge} for kill, _ in kills)
        for judge in ("order", "value")
    }
    n_dead = sum(kill.is_dead for kill, _ in kills)
    summary = (
        f"{n_dead} of {len(kills)} are seen. Of order and value, order alone sees {alone['order']} "
        f"and value alone {alone['value']}."
    )
    return "\n".join(lines) + f"\n\n{summary}\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="write the table into the page")
    options = parser.parse_args(arguments)
    mutants = all_mutants()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        kills = []
        for mutant, found in zip(
            mutants,
            pool.map(look, range(len(mutants)), [options.programs] * len(mutants)),
            strict=True,
        ):
            kills.append(found)
            sys.stderr.write(f"{row(mutant, *found)}\n")
    text = table(kills)
    sys.stdout.write(text)
    if options.write:
        PAGE.write_text(BLOCK.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))
    unexplained = [
        mutant.drops
        for mutant, (kill, _) in zip(mutants, kills, strict=True)
        if not kill.is_dead and not mutant.survives
    ]
    sys.stdout.write("".join(f"SURVIVES: {drops}\n" for drops in unexplained))
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
