"""Interrupt programs before each of their lines: `make interrupts`, or one of them again.

    python -m tests.interrupts [--programs 32] [--first-seed 0] [--out FOLDER]
    python -m tests.interrupts --seed 4 [--at 120]

Prints what was run and everything that was found; with `--out`, writes the counts down. Exit
status: 0, or 1 if anything was found.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import torch

from benchmarks.programs import origin_of, write_json
from tests.support.interrupting import Tally, draw_program, lines_of, play


def play_program(seed: int, every: int = 1) -> Tally:
    """Interrupt a program before each of its lines in turn, or before every so manieth."""
    torch.set_num_threads(1)
    tally = Tally(n_programs=1)
    for at in range(1 + seed % every, len(lines_of(seed)) + 1, every):
        play(seed, at, tally)
    return tally


def play_all(first_seed: int, n_programs: int, every: int) -> Tally:
    """On all cores."""
    tally = Tally()
    seeds = range(first_seed, first_seed + n_programs)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for seed, part in zip(seeds, pool.map(play_program, seeds, repeat(every)), strict=True):
            tally.add(part)
            kind, place = draw_program(seed).kind, draw_program(seed).place
            sys.stderr.write(
                f"program {seed} ({kind} on {place}): {part.n_interrupts} interrupts, "
                f"{len(part.findings)} findings\n"
            )
    return tally


def report(tally: Tally) -> str:
    """The figures, for people."""
    lines = [finding.report() for finding in tally.findings[:200]]
    by_place = Counter(finding.where for finding in tally.findings)
    lines += [f"{n:>6} x {where}" for where, n in by_place.most_common(40)]
    lines += [
        f"programs               {tally.n_programs:>9,}",
        f"interrupts             {tally.n_interrupts:>9,}",
        f"  at distinct lines    {len(tally.places):>9,}",
        f"  printed by Python    {tally.n_swallowed:>9,}",
        f"findings               {len(tally.findings):>9,}",
    ]
    return "\n".join(lines)


def write(folder: Path, tally: Tally, options: argparse.Namespace, secs: float) -> Path:
    """One JSON file, named after the day and the size."""
    origin = origin_of(None)
    path = folder / f"interrupts-{origin.date[:10]}-{tally.n_programs}.json"
    content = {
        **origin.fields(),
        "first_seed": options.first_seed,
        "programs": tally.n_programs,
        "every": options.every,
        "interrupts": tally.n_interrupts,
        "distinct_lines": len(tally.places),
        "printed_by_python_in_finalizers": tally.n_swallowed,
        "findings": len(tally.findings),
        "secs": round(secs, 1),
    }
    return write_json(path, content)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.interrupts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="lines from one interrupt to the next")
    parser.add_argument("--out", type=Path, help="folder for the figures")
    parser.add_argument("--seed", type=int, help="play this program only")
    parser.add_argument("--at", type=int, help="interrupt it before this line only")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    if options.at is not None:
        tally = Tally(n_programs=1)
        lines_of(options.seed)
        play(options.seed, options.at, tally)
    elif options.seed is not None:
        tally = play_program(options.seed, options.every)
    else:
        tally = play_all(options.first_seed, options.programs, options.every)
    secs = time.perf_counter() - started
    sys.stdout.write(f"{report(tally)}\n{secs:.0f} s\n")
    if options.out:
        sys.stdout.write(f"written to {write(options.out, tally, options, secs)}\n")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
