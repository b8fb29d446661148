"""Break everything the archive calls, everywhere: `make faults`, or a part of it.

    python -m tests.faults [--second 0.02] [--kills 1000] [--mutants] [--out FOLDER]

Plays every program with every fault at every file call on a simulated disk, then kills real
processes, and prints what was played; with `--mutants`, hunts the broken protocols too and writes
their table into docs/design/archive-faults.md. Exit status: 0, or 1 when a judge refused something.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.programs import origin_of, write_json
from tests.support.fault_mutants import MUTANTS, Kill, Mutant, hunt
from tests.support.fault_points import Depth, Tally, play_program
from tests.support.fault_programs import PROGRAMS
from tests.support.kill_loop import Toll, kill_many

PAGE = Path(__file__).parent.parent / "docs/design/archive-faults.md"
BLOCK = re.compile(r"(<!-- mutants -->\n).*?(<!-- end of mutants -->)", re.DOTALL)
HUNT = Depth(share=0.05, second_share=0)
N_SHOWN = 10
LEAST_IN_COMMIT = 0.2


def play(number: int, depth: Depth) -> Tally:
    torch.set_num_threads(1)
    return play_program(PROGRAMS[number], depth)


def look(number: int) -> Kill:
    torch.set_num_threads(1)
    return hunt(MUTANTS[number], HUNT)


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def play_all(depth: Depth) -> tuple[Tally, str]:
    """Every program on all cores, and a table of them."""
    total = Tally()
    lines = [f"{'program':<48}{'points':>9}{'recoveries':>12}{'refused':>9}"]
    numbers = range(len(PROGRAMS))
    with pool() as workers:
        played = workers.map(play, numbers, [depth] * len(PROGRAMS))
        for program, tally in zip(PROGRAMS, played, strict=True):
            total.add(tally)
            n_points = tally.points.total()
            lines.append(
                f"{program.name:<48}{n_points:>9,}{tally.n_recoveries:>12,}{len(tally.failures):>9}"
            )
            sys.stderr.write(f"{program}: {n_points:,} points, {len(tally.failures)} refused\n")
    lines.append("")
    lines += [f"{kind:<48}{count:>9,}" for kind, count in sorted(total.points.items())]
    lines.append(f"{'together':<48}{total.points.total():>9,}{total.n_recoveries:>12,}")
    return total, "\n".join(lines)


def mutants_table(kills: list[Kill]) -> str:
    """The table of the page, and what it adds up to."""
    lines = ["| what is left out | seen in | as |", "|---|---|---|"]
    lines += [_row(mutant, kill) for mutant, kill in zip(MUTANTS, kills, strict=True)]
    n_dead = sum(kill.is_dead for kill in kills)
    return "\n".join(lines) + f"\n\n{n_dead} of {len(kills)} are seen.\n"


def _row(mutant: Mutant, kill: Kill) -> str:
    if not kill.is_dead:
        return f"| {mutant.drops} | nothing | |"
    problem = re.sub(r"/home/run/acts/?(w-[0-9a-f-]+/)?", "", kill.problem)
    problem = re.sub(r"\s+", " ", problem).replace("|", "\\|")
    problem = problem if len(problem) <= 100 else problem[:97] + "..."
    return f"| {mutant.drops} | {kill.where} | {problem} |"


def hunt_all() -> tuple[str, list[str]]:
    """The table, and mutants that nothing shows."""
    with pool() as workers:
        kills = list(workers.map(look, range(len(MUTANTS))))
    found = zip(MUTANTS, kills, strict=True)
    return mutants_table(kills), [m.drops for m, k in found if not k.is_dead]


def write(folder: Path, content: dict[str, Any]) -> Path:
    """One JSON file, named after the day."""
    origin = origin_of(None)
    path = folder / f"faults-{origin.date[:10]}.json"
    return write_json(path, {**origin.fields(), **content})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--share", type=float, default=1.0, help="of the first faults")
    parser.add_argument(
        "--second",
        type=float,
        default=0.02,
        help="share of the recoveries in which every operation has a second fault",
    )
    parser.add_argument("--seed", type=int, default=0, help="what the shares are drawn with")
    parser.add_argument("--kills", type=int, default=1000, help="real processes to kill")
    parser.add_argument("--mutants", action="store_true", help="hunt broken protocols as well")
    parser.add_argument("--out", type=Path, help="folder for the figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    depth = Depth(share=options.share, second_share=options.second, seed=options.seed)
    started = time.perf_counter()
    tally, table = play_all(depth)
    secs = time.perf_counter() - started
    sys.stdout.write(f"\n{table}\n{secs:.0f} s\n\n")
    toll = kill_many(options.kills, options.seed)
    sys.stdout.write(f"{toll.table()}\n")
    failures = [f"{where}\n    {problem}" for where, problem in tally.failures] + toll.failures
    if toll.n_in_commit < LEAST_IN_COMMIT * toll.n_kills:
        failures.append(f"too few kills were inside a commit: {toll.n_in_commit}")
    if options.mutants:
        text, unexplained = hunt_all()
        PAGE.write_text(BLOCK.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))
        sys.stdout.write(text)
        failures += [f"SURVIVES: {drops}" for drops in unexplained]
    if options.out:
        sys.stdout.write(f"written to {write(options.out, figures(options, tally, toll, secs))}\n")
    for failure in failures[:N_SHOWN]:
        sys.stdout.write(f"FAILED {failure}\n")
    sys.stdout.write(f"{len(failures)} refused\n")
    return 1 if failures else 0


def figures(options: argparse.Namespace, tally: Tally, toll: Toll, secs: float) -> dict[str, Any]:
    return {
        "programs": len(PROGRAMS),
        "seed": options.seed,
        "share_of_first_faults": options.share,
        "share_of_recoveries_with_second_faults": options.second,
        "points": tally.points.total(),
        "points_by_kind": dict(sorted(tally.points.items())),
        "recoveries": tally.n_recoveries,
        "refused": len(tally.failures),
        "secs": round(secs, 1),
        "kills": dataclasses.asdict(toll),
    }


if __name__ == "__main__":
    sys.exit(main())
