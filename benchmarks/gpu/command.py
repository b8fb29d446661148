"""What the programs here share: options, an end in time, and a report after every step."""

from __future__ import annotations

import argparse
import faulthandler
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks import programs
from benchmarks.checkout import RESULTS
from benchmarks.gpu.report import FAILED, MEASURED, Entry, Figure, describe_error
from benchmarks.gpu.toolbox import Gpu
from benchmarks.programs import Origin, refuse, say
from fastcap.bench.report import INTERVAL
from fastcap.formatting import markdown_table

OVERTIME_SECS = 15.0  # after its time what runs is ended, and the report written
GRACE_SECS = 10.0  # then the process is
NEEDED = {
    "safetensors": "archives are not read, so that way is not run",
    "transformers": "the models are stand-ins of the same sizes; no hidden states, no KV cache",
    "nnsight": "it is not measured",
}


class RunEndedError(BaseException):
    """Whatever is being measured has to end, as for `KeyboardInterrupt`; the text says why."""


ENDED = (KeyboardInterrupt, SystemExit, RunEndedError)
"""What ends a run. A run of `fastcap.extract` raises `SystemExit` for SIGTERM."""


@contextmanager
def ending_after(limit_secs: float, grace_secs: float) -> Iterator[None]:
    """Raise `RunEndedError` in the block after some seconds, or when SIGTERM comes.

    Python's handlers wait until a call into CUDA returns. For one that does not, the process is
    ended after `grace_secs` more, with every thread's stack on standard error.
    """

    def end(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise RunEndedError(f"{limit_secs:.0f} s were over" if number == signal.SIGALRM else name)

    before = {each: signal.signal(each, end) for each in (signal.SIGALRM, signal.SIGTERM)}
    signal.setitimer(signal.ITIMER_REAL, limit_secs)
    faulthandler.dump_traceback_later(limit_secs + grace_secs, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass(slots=True)
class Program:
    """One run of a program, step by step; the report is written after each.

    Attributes:
        name: `bench`, `soak`, `timeline` or `peers`.
        gpu: What is measured.
        limit_secs: How much time there is.
        out: Where the report is written; `None` for nowhere.
        scratch: Where archives and other files are written, then removed.
        origin: Machine, code and date.
        card: The accelerator, its driver, the software, and what is missing.
        entries: Figures by question.
        facts: What else was found out, such as floors and which class a model is.
        notes: What else went wrong.
        is_complete: Whether the run came to its end.
        only: Parts of the titles of what is asked; empty for everything.
    """

    name: str
    gpu: Gpu
    limit_secs: float
    out: Path | None
    scratch: Path
    origin: Origin
    card: Mapping[str, Any]
    entries: list[Entry] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = False
    only: tuple[str, ...] = ()
    _started: float = field(default_factory=time.perf_counter)

    @property
    def is_dry(self) -> bool:
        """Whether the figures mean nothing."""
        return not self.gpu.is_real

    @property
    def is_right(self) -> bool:
        """Whether nothing failed, and nothing that was compared with the oracle differed."""
        return not self.notes and not any(e.status == FAILED or e.problems for e in self.entries)

    @property
    def spent_secs(self) -> float:
        return time.perf_counter() - self._started

    @property
    def path(self) -> Path | None:
        kind = f"{'dry-run-' if self.is_dry else ''}gpu-{self.name}"
        return None if self.out is None else self.origin.path(self.out, kind)

    def document(self) -> dict[str, Any]:
        """Everything, raw times included."""
        return {
            "kind": f"gpu-{self.name}",
            "is_measurement": not self.is_dry,
            "is_complete": self.is_complete,
            "is_right": self.is_right,
            **self.origin.fields(),
            **self.card,
            "only": list(self.only),
            "spent_secs": round(self.spent_secs, 1),
            "interval": INTERVAL,
            **self.facts,
            "notes": self.notes,
            "entries": [entry.fields() for entry in self.entries],
        }

    def write(self) -> None:
        if self.path is not None:
            programs.write_json(self.path, self.document())

    def say(self, text: str) -> None:
        say(f"{self.spent_secs:6.1f} s  {text}")

    def ask(self, title: str) -> Entry:
        """The question's entry, which says that it was not reached until it is measured; one of no
        report, if the question is not to be asked.
        """
        if not self.is_asked(title):
            return Entry(title)
        for each in self.entries:
            if each.title == title:
                return each
        self.entries.append(Entry(title))
        return self.entries[-1]

    def is_asked(self, title: str) -> bool:
        return not self.only or any(part in title for part in self.only)

    def measure(
        self, title: str, run: Callable[[], Iterator[Figure]], likely_secs: float = 0.0
    ) -> None:
        """Fill an entry, unless it is not asked for or too little time is left."""
        if not self.is_asked(title):
            return
        self.say(title)
        entry, started = self.ask(title), self.spent_secs
        left_secs = max(0.0, self.limit_secs - started)
        try:
            if left_secs < likely_secs:
                entry.reason = f"{left_secs:.0f} s were left, and it takes about {likely_secs:.0f}"
            else:
                with entry.guarded():
                    for figure in run():
                        entry.figures.append(figure)
                    entry.status, entry.reason = MEASURED, ""
        finally:
            entry.secs = self.spent_secs - started
            self.write()
        for line in (*map(str, entry.figures), *entry.problems[:3], entry.outcome):
            say(f"            {line}")

    def fail(self, what: str, error: Exception) -> None:
        """Note what failed, and why."""
        self.notes.append(f"{what} failed: {describe_error(error)}")

    def ending(self) -> str:
        """What is to be read first: warnings, goals, and what was not run."""
        lines = []
        if self.is_dry:
            lines.append("A dry run on the CPU. No figure here is a measurement of anything.")
        if not self.is_complete:
            lines.append("This run did not come to its end.")
        lines += self.notes
        if rows := sorted(self._goals()):
            lines.append(markdown_table([("goal", "where", "reached", "promised", "met"), *rows]))
        for entry in self.entries:
            if entry.status != MEASURED:
                lines.append(f"{entry.title}: {entry.outcome}")
            if entry.problems:
                lines.append(f"{entry.title} DIFFERS: {'; '.join(entry.problems[:3])}")
        return "\n".join(lines)

    def _goals(self) -> Iterator[tuple[str, ...]]:
        for entry in self.entries:
            for each in entry.figures:
                if each.goal:
                    reached = f"{each.name} {each.shown}"
                    yield each.goal, entry.title, reached, str(each.predicted), each.verdict


def parser_of(name: str, description: str | None, limit_secs: float) -> argparse.ArgumentParser:
    """A parser of the options that every program has."""
    parser = programs.plain_parser(name, description)
    parser.add_argument("--limit-secs", type=float, default=limit_secs, help="time for everything")
    parser.add_argument(
        "--only", action="append", default=[], metavar="TEXT", help="what has this in its title"
    )
    parser.add_argument("--scratch", type=Path, help="where archives are written, then removed")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, on the CPU; writes with --out only"
    )
    return parser


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
    if options.out is None and not options.dry_run:
        options.out = Path(RESULTS)
    gpu = open_gpu(options.dry_run)
    with (
        ending_after(options.limit_secs + OVERTIME_SECS, GRACE_SECS),
        gpu.running(),
        tempfile.TemporaryDirectory(dir=options.scratch) as scratch,
    ):
        return play(open_program(name, gpu, options, Path(scratch)), steps)


def open_gpu(is_dry: bool) -> Gpu:
    """The GPU that is here, or what stands in for one."""
    if not is_dry:
        return Gpu()
    from benchmarks.gpu.standin import StandIn  # the tests' own modules

    return StandIn()


def open_program(name: str, gpu: Gpu, options: argparse.Namespace, scratch: Path) -> Program:
    there = [name for name in ("numpy", *NEEDED) if find_spec(name) is not None]
    card = {
        **gpu.card(),
        "software": ", ".join(f"{name} {version(name)}" for name in there),
        "missing": {name: what for name, what in NEEDED.items() if name not in there},
        "scratch": file_system(options.scratch or Path(tempfile.gettempdir())),
        "limit_secs": options.limit_secs,
    }
    origin = programs.origin_of(options.commit, gpu.device)
    only = tuple(options.only)
    return Program(name, gpu, options.limit_secs, options.out, scratch, origin, card, only=only)


def play(program: Program, steps: Callable[[Program], None]) -> int:
    """Every step, as far as there is time; the report is written however that ends."""
    try:
        steps(program)
        program.is_complete = True
    except ENDED as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        program.notes.append(f"Ended after {program.spent_secs:.0f} s. {why}")
    program.write()
    say(program.ending())
    if program.path is not None:
        say(f"Written to {program.path} after {program.spent_secs:.0f} s.")
    return 0 if program.is_right and program.is_complete else 1


def file_system(folder: Path) -> str:
    """The kind of file system that archives are written to: memory is not a disk."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # no Linux
        return "unknown"
    place = folder.resolve()
    found = [(len(where), kind) for _, where, kind, *_ in mounts if place.is_relative_to(where)]
    return max(found)[1] if found else "unknown"
