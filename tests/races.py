"""Play random programs under many schedules: `make races`, or one of them again.

    python -m tests.races [--programs 10000] [--schedules 10] [--first-seed 0] [--out FOLDER]
    python -m tests.races --seed 17 --schedule late --schedule-seed 17

Prints what was run, how many distinct interleavings there were and which paths they took; with
`--out`, writes it down. Exit status: 0, or 1 after the first thing that a judge refused.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.programs import origin_of, write_json
from fastcap.devices.simulated import EXTREMES, Schedule
from tests.support.judging import Failure, Verdict, is_watched, play, search, warm_up
from tests.support.runs import draw_any

N_PER_TASK = 50
BACK_PRESSURE = ("wrap-around", "slot wait", "spill", "lend")
LEAST_SHARE = 0.10


@dataclass
class Tally:
    """What some programs did, under all their schedules together."""

    n_programs: int = 0
    n_runs: int = 0
    n_watched: int = 0
    interleavings: set[tuple[int, int]] = field(default_factory=set)
    paths: Counter[str] = field(default_factory=Counter)
    failure: str | None = None

    def add(self, other: Tally) -> None:
        self.n_programs += other.n_programs
        self.n_runs += other.n_runs
        self.n_watched += other.n_watched
        self.interleavings |= other.interleavings
        self.paths += other.paths
        self.failure = self.failure or other.failure

    def share(self, path: str) -> float:
        return self.paths[path] / max(1, self.n_programs)

    def table(self) -> str:
        """The figures, for people."""
        rows = [
            f"programs                 {self.n_programs:>9,}",
            f"runs                     {self.n_runs:>9,}",
            f"  with the model watched {self.n_watched:>9,}",
            f"distinct interleavings   {len(self.interleavings):>9,}",
            "programs that took a path under some schedule:",
        ]
        rows += [f"  {path:<22} {self.share(path):>9.0%}" for path in sorted(self.paths)]
        return "\n".join(rows)


def play_some(seeds: Iterable[int], n_schedules: int) -> Tally:
    """Play the programs of these seeds, each under every extreme and some drawn schedules."""
    torch.set_num_threads(1)
    warm_up()
    tally = Tally()
    paths: set[tuple[int, str]] = set()

    def heed(seed: int, schedule: Schedule, verdict: Verdict) -> None:
        tally.n_runs += 1
        tally.n_watched += is_watched(seed)
        tally.interleavings.add((seed, verdict.fingerprint))
        paths.update((seed, path) for path in verdict.paths)

    seeds = list(seeds)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Nothing is captured")
        warnings.filterwarnings("ignore", message="A pass calls these")
        failure = search(seeds, max(0, n_schedules - len(EXTREMES)), heed)
        tally.failure = failure.report() if failure else None
    tally.n_programs = len(seeds)
    tally.paths = Counter(path for _, path in paths)
    return tally


def play_all(first_seed: int, n_programs: int, n_schedules: int) -> Tally:
    """On all cores, until something fails."""
    tally = Tally()
    seeds = range(first_seed, first_seed + n_programs)
    tasks = [seeds[i : i + N_PER_TASK] for i in range(0, n_programs, N_PER_TASK)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(play_some, tasks, [n_schedules] * len(tasks)):
            tally.add(part)
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{tally.n_programs:,} of {n_programs:,} programs")
            if tally.failure:
                pool.shutdown(cancel_futures=True)
                break
    return tally


def write(folder: Path, tally: Tally, options: argparse.Namespace, secs: float) -> Path:
    """One JSON file, named after the day and the size."""
    origin = origin_of(None)
    path = folder / f"races-{origin.date[:10]}-{tally.n_programs}.json"
    content = {
        **origin.fields(),
        "first_seed": options.first_seed,
        "programs": tally.n_programs,
        "schedules_each": options.schedules,
        "runs": tally.n_runs,
        "runs_with_the_model_watched": tally.n_watched,
        "distinct_interleavings": len(tally.interleavings),
        "share_of_programs_by_path": {p: round(tally.share(p), 4) for p in sorted(tally.paths)},
        "failures": 0 if tally.failure is None else 1,
        "secs": round(secs, 1),
    }
    return write_json(path, content)


def replay(seed: int, kind: str, schedule_seed: int) -> int:
    """One program under one schedule."""
    schedule = Schedule(kind, schedule_seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Nothing is captured")
        warnings.filterwarnings("ignore", message="A pass calls these")
        verdict = play(draw_any(seed), schedule, is_watched(seed))
    if not verdict:
        sys.stdout.write("Nothing was found.\n")
        return 0
    sys.stdout.write(Failure(seed, schedule, verdict).report() + "\n")
    return 1


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.races", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--schedules", type=int, default=10, help="per program, extremes included")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder for the figures")
    parser.add_argument("--seed", type=int, help="replay this program")
    parser.add_argument("--schedule", choices=[*EXTREMES, "random"], default="random")
    parser.add_argument("--schedule-seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.seed is not None:
        return replay(options.seed, options.schedule, options.schedule_seed)
    started = time.perf_counter()
    tally = play_all(options.first_seed, options.programs, options.schedules)
    secs = time.perf_counter() - started
    sys.stdout.write(f"\n{tally.table()}\n{secs:.0f} s, first seed {options.first_seed}\n")
    if tally.failure:
        sys.stdout.write(f"FAILED\n{tally.failure}\n")
        return 1
    rare = [path for path in BACK_PRESSURE if tally.share(path) < LEAST_SHARE]
    if rare:
        sys.stdout.write(f"FAILED\ntoo few programs took: {', '.join(rare)}\n")
        return 1
    if options.out:
        sys.stdout.write(f"written to {write(options.out, tally, options, secs)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
