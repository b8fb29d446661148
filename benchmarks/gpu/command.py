"""What the programs of this folder share: options, an end in time, a report after every step."""

from __future__ import annotations

import argparse
import datetime as dt
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.checkout import RESULTS, Checkout, describe_checkout
from benchmarks.gpu import report as reports
from benchmarks.gpu import session
from benchmarks.gpu.figures import Figure
from benchmarks.gpu.report import Report
from benchmarks.gpu.session import ENDED, Clock, Entry
from benchmarks.gpu.standin import StandIn
from benchmarks.gpu.toolbox import FULL, TINY, Gpu, Sizes
from benchmarks.programs import refuse, say
from fastcap.bench import describe_machine

OVERTIME_SECS = 15.0  # after its time what runs is ended, and the report written
GRACE_SECS = 10.0  # then the process is
NEEDED = {
    "safetensors": "archives are not read, so that destination is not run",
    "transformers": "the models are stand-ins of the same sizes; no hidden states, no KV cache",
    "nnsight": "it is not measured",
}


def parser_of(name: str, description: str | None, limit_secs: float) -> argparse.ArgumentParser:
    """A parser of the options that every program has."""
    parser = argparse.ArgumentParser(f"python -m {name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help=f"folder for the results; by default {RESULTS}")
    parser.add_argument("--limit-secs", type=float, default=limit_secs, help="time for everything")
    parser.add_argument("--scratch", type=Path, help="where archives are written, then removed")
    parser.add_argument("--commit", help="what is measured, where this is not a git checkout")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, on the CPU; writes with --out only"
    )
    return parser


@dataclass(slots=True)
class Program:
    """One run of a program, step by step; the report is written after each.

    Attributes:
        gpu: What is measured.
        sizes: How much is moved.
        clock: How much time there is.
        out: Where the report is written; `None` for nowhere.
        scratch: Where archives and other files are written, then removed.
        report: What is found is put into it.
    """

    gpu: Gpu
    sizes: Sizes
    clock: Clock
    out: Path | None
    scratch: Path
    report: Report

    @property
    def is_dry(self) -> bool:
        return not self.report.is_measurement

    def say(self, text: str) -> None:
        say(f"{self.clock.spent_secs:6.1f} s  {text}")

    def write(self) -> None:
        self.report.spent_secs = self.clock.spent_secs
        if self.out is not None:
            reports.write(self.out, self.report)

    def ask(self, name: str, title: str) -> Entry:
        """The question's entry, which says that it was not reached until it is measured."""
        found = [each for each in self.report.entries if each.title == title]
        if not found:
            found = [Entry(name, title)]
            self.report.entries += found
        return found[0]

    def measure(
        self, name: str, title: str, run: Callable[[], Iterator[Figure]], likely_secs: float = 0.0
    ) -> None:
        self.say(f"{name} {title}")
        entry = self.ask(name, title)
        try:
            session.measure(entry, run, self.clock, likely_secs)
        finally:
            self.write()
        for each in entry.figures:
            say(f"            {each}")
        if entry.reason:
            say(f"            {entry.status}: {entry.reason}")

    def fail(self, what: str, error: Exception) -> str:
        """Note what failed; returns why."""
        reason = session.describe_error(error)
        self.report.notes.append(f"{what} failed: {reason}")
        return reason


def run(name: str, options: argparse.Namespace, steps: Callable[[Program], None]) -> int:
    """Run a program on the GPU that is here, or dry; the exit status.

    0, or 1 when something failed or differs or the run did not come to its end, or 2 when it
    cannot start.
    """
    if not options.dry_run and not torch.cuda.is_available():
        return refuse(
            f"No CUDA GPU is here (torch {torch.__version__}). Run this on a machine that has one; "
            "--dry-run shows that the code runs."
        )
    gpu, sizes = (StandIn(), TINY) if options.dry_run else (Gpu(), FULL)
    if options.out is None and not options.dry_run:
        options.out = Path(RESULTS)
    with (
        session.ending_after(options.limit_secs + OVERTIME_SECS, GRACE_SECS),
        gpu.running(),
        tempfile.TemporaryDirectory(dir=options.scratch) as scratch,
    ):
        report, clock = open_report(name, gpu, options), Clock(options.limit_secs)
        program = Program(gpu, sizes, clock, options.out, Path(scratch), report)
        return play(program, steps)


def play(program: Program, steps: Callable[[Program], None]) -> int:
    """Every step, as far as there is time; the report is written however that ends."""
    report = program.report
    try:
        steps(program)
        report.is_complete = True
    except ENDED as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        report.notes.append(f"Ended after {program.clock.spent_secs:.0f} s. {why}")
    program.write()
    say(reports.ending(report))
    if program.out is not None:
        say(f"Written to {program.out / report.path} after {report.spent_secs:.0f} s.")
    return 0 if report.is_right and report.is_complete else 1


def open_report(name: str, gpu: Gpu, options: argparse.Namespace) -> Report:
    checkout = describe_checkout()
    return Report(
        name=name,
        is_measurement=not options.dry_run,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        machine=describe_machine(gpu.device),
        card={
            **gpu.card(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "software": _software(),
            "scratch": file_system(options.scratch or Path(tempfile.gettempdir())),
        },
        checkout=checkout if checkout.commit is not None else Checkout(options.commit),
        missing={name: what for name, what in NEEDED.items() if find_spec(name) is None},
        limit_secs=options.limit_secs,
    )


def _software() -> str:
    there = [name for name in NEEDED if find_spec(name) is not None]
    return ", ".join([f"numpy {np.__version__}", *(f"{name} {version(name)}" for name in there)])


def file_system(folder: Path) -> str:
    """The kind of file system that archives are written to: memory is not a disk."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # no Linux
        return "unknown"
    place = folder.resolve()
    found = [(len(where), kind) for _, where, kind, *_ in mounts if place.is_relative_to(where)]
    return max(found)[1] if found else "unknown"
