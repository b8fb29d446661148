"""The soak and its mutants on the stand-in runtime; prints one JSON object a line.

    python -m tests.standin_cuda -m tests.standin_cuda.soaking --first-seed 0 --programs 1000
    python -m tests.standin_cuda -m tests.standin_cuda.soaking --mutants [NAME ...] [--part 0/2]

How streams advance is drawn by the program's seed: most at random, every fifth as late as possible
and every fifth as early as possible. A seed replays its program and its schedule, up to what the
threads of the host do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.standin_cuda import controls
from tests.support.mutants import Mutant
from tests.support.soak import Soak, all_mutants, soak

MODES = ("random", "random", "random", "lazy", "eager")
LONGEST_SECS = 40.0  # of one hunt
MOST_PROGRAMS = 250
UNSOUND = 3  # exit status


def disturb(seed: int) -> None:
    controls.reseed(seed * 7919 + 13, MODES[seed % len(MODES)])


@dataclass(frozen=True)
class Hunt:
    """What was seen of one mutant.

    Attributes:
        programs: How many were played, the one that saw it included.
        seen_by: `value`, `crash`, `end` (it never ends, or the runtime ended it), or nothing.
    """

    name: str
    rule: str
    drops: str
    programs: int
    seen_by: str
    message: str


def hunt(name: str, mutant: Mutant) -> Hunt:
    """Play programs on a mutant, in a process of its own: it may deadlock, or be ended."""
    with tempfile.TemporaryDirectory() as folder:
        progress, errors = Path(folder, "progress"), Path(folder, "errors")
        child = os.fork()
        if child == 0:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
            signal.alarm(int(2 * LONGEST_SECS))  # a deadlock: nothing else ends it
            os._exit(_play(mutant, progress))
        _, status = os.waitpid(child, 0)
        if status == UNSOUND << 8:
            raise SystemExit(errors.read_text())
        lines = progress.read_text().splitlines() if progress.exists() else []
        n_programs, message = len(lines), lines[-1] if lines else ""
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) not in (0, 1):
            last = errors.read_text().strip().splitlines() or [f"ended by status {status}"]
            return Hunt(name, mutant.rule, mutant.drops, n_programs + 1, "end", last[-1][:200])
    seen_by = ("value" if message.startswith("AssertionError") else "crash") if message else ""
    return Hunt(name, mutant.rule, mutant.drops, n_programs, seen_by, message[:200])


def _play(mutant: Mutant, progress: Path) -> int:
    if wrong := soak([0], before=disturb).wrong:  # else everything here would look like a kill
        sys.stderr.write(f"the sound engine fails: {wrong[0]}\n")
        return UNSOUND
    with ExitStack() as stack, progress.open("w", buffering=1) as lines:
        try:
            stack.enter_context(mutant.applied())
            left = LONGEST_SECS
            for seed in range(MOST_PROGRAMS):
                done = soak([seed], before=disturb, most_wrong=1)
                lines.write(" ".join(done.wrong.get(seed, "").split()) + "\n")
                left -= done.secs
                if done.wrong or left < 0:
                    break
        except Exception as error:  # noqa: BLE001 - it is broken
            lines.write(f"{type(error).__name__}: {error}\n")
    return 0  # and none of what a broken engine might do at exit


def write(figures: object) -> None:
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def play_sound(first_seed: int, n_programs: int) -> Soak:
    return soak(range(first_seed, first_seed + n_programs), before=disturb)


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.standin_cuda.soaking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--mutants", nargs="*", metavar="NAME", help="hunt these, or all")
    parser.add_argument("--part", default="0/1", help="every n-th mutant only, as 0/2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.mutants is None:
        done = play_sound(options.first_seed, options.programs)
        write(asdict(done) | {"unknown_kernels": controls.unknown_kernels()})
        return 1 if done.wrong else 0
    part, n_parts = map(int, options.part.split("/"))
    mutants = all_mutants()
    for name in (options.mutants or list(mutants))[part::n_parts]:
        write(asdict(hunt(name, mutants[name])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
