"""What the programs of this folder share: options, an end in time, and a report after every step.

A report is a list of entries, each with its figures. A figure may have a range that was predicted
of it; where that was promised, it is a goal, and the report says whether it was met.
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from benchmarks import programs
from benchmarks.checkout import RESULTS
from benchmarks.gpu.standin import StandIn
from benchmarks.gpu.toolbox import FULL, TINY, Gpu, Sizes
from benchmarks.programs import Origin, refuse, say
from fastcap.bench import Ratio
from fastcap.bench.report import INTERVAL
from fastcap.formatting import markdown_table

OVERTIME_SECS = 15.0  # after its time what runs is ended, and the report written
GRACE_SECS = 10.0  # then the process is
MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
NOT_REACHED = "the run ended before it"
NEEDED = {
    "safetensors": "archives are not read, so that way is not run",
    "transformers": "the models are stand-ins of the same sizes; no hidden states, no KV cache",
    "nnsight": "it is not measured",
}


class UnavailableError(Exception):
    """Something cannot be measured here, for the reason in the text."""


class RunEndedError(BaseException):
    """Whatever is being measured has to end, as for `KeyboardInterrupt`; the text says why."""


ENDED = (KeyboardInterrupt, SystemExit, RunEndedError)
"""What ends a run. A run of `fastcap.extract` raises `SystemExit` for SIGTERM."""


@dataclass(frozen=True, slots=True)
class Range:
    """A prediction: between two numbers, either of which may be open."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        return (
            f"at least {self.low:g}" if math.isinf(self.high) else f"{self.low:g} to {self.high:g}"
        )


NONE = Range(0, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        name: What was measured, beside the entry's title.
        value: How much.
        unit: Of what.
        predicted: Before anything was measured; `None` for a value that others are held against.
        interval: Of 95 %, where the value is a mean of rounds.
        goal: What was promised, where the prediction is a promise.
    """

    name: str
    value: float
    unit: str
    predicted: Range | None = None
    interval: tuple[float, float] | None = None
    goal: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: {self.shown}"
        if self.predicted is None:
            return text
        word = "promised" if self.goal else "predicted"
        return f"{text} ({self.predicted} {word}{'' if self.is_as_predicted else ': NO'})"

    @property
    def shown(self) -> str:
        text = f"{self.value:.4g} {self.unit}".rstrip()
        return text if self.interval is None else text + " [{:.3f}, {:.3f}]".format(*self.interval)

    @property
    def is_as_predicted(self) -> bool | None:
        return None if self.predicted is None else self.value in self.predicted

    def fields(self) -> dict[str, Any]:
        """For JSON, which has no infinity: one round gives no interval."""
        ends = [end if math.isfinite(end) else None for end in self.interval or ()]
        return {
            **asdict(self),
            "interval": ends or None,
            "predicted": None if self.predicted is None else str(self.predicted),
            "as_predicted": self.is_as_predicted,
        }


def of_ratio(name: str, ratio: Ratio, predicted: Range | None = None, goal: str = "") -> Figure:
    """A paired ratio with its interval."""
    return Figure(name, ratio.mean, "x", predicted, (ratio.low, ratio.high), goal)


@dataclass(slots=True)
class Entry:
    """The figures that answer one question.

    Attributes:
        name: Its number, which stays with it.
        title: What is asked; no two entries of a report share it.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why not all of it.
        figures: What came out, as far as it came.
        secs: How long it took.
        problems: What differed from the oracle.
        raw: What the figures are made of, such as seconds by round.
    """

    name: str
    title: str
    status: str = NOT_RUN
    reason: str = NOT_REACHED
    figures: list[Figure] = field(default_factory=list)
    secs: float = 0.0
    problems: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "figures": [figure.fields() for figure in self.figures]}

    def reason_if(self, reason: str) -> bool:
        """Say why it is not run, if there is a reason and it was not reached; whether there is."""
        if reason and self.reason == NOT_REACHED:
            self.reason = reason
        return bool(reason)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is raised in the block becomes the reason; the rest goes on."""
        try:
            yield
        except UnavailableError as error:
            self.status, self.reason = NOT_RUN, str(error)
        except Exception as error:  # noqa: BLE001 - the rest runs, and the report says so
            self.status, self.reason = FAILED, describe_error(error)


def describe_error(error: BaseException) -> str:
    """What was raised, and where; the whole trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}{where}"


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


class Clock:
    """How much time is left of what there was; `now` gives seconds that only grow."""

    def __init__(self, limit_secs: float, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self.reserved_secs = 0.0  # kept for what comes last
        self._started = now()
        self._limit_secs = limit_secs

    @property
    def spent_secs(self) -> float:
        return self.now() - self._started

    @property
    def left_secs(self) -> float:
        return self._limit_secs - self.spent_secs - self.reserved_secs

    def lacks(self, secs: float) -> str:
        """Why something of some seconds is not begun; empty where there is time for it."""
        if self.left_secs >= secs:
            return ""
        left_secs = max(0.0, self.left_secs)
        return f"out of time: {left_secs:.0f} s were left, and it takes about {secs:.0f} s"


@dataclass(slots=True)
class Program:
    """One run of a program, step by step; the report is written after each.

    Attributes:
        name: `bench`, `soak`, `timeline` or `peers`.
        gpu: What is measured.
        sizes: How much is moved.
        clock: How much time there is.
        out: Where the report is written; `None` for nowhere.
        scratch: Where archives and other files are written, then removed.
        origin: Machine, code and date.
        card: The accelerator, its driver, the software, and what is missing.
        is_dry: Whether the figures mean nothing.
        entries: Figures by question.
        facts: What else was found out, such as floors and which class a model is.
        notes: What else went wrong.
        is_complete: Whether the run came to its end.
    """

    name: str
    gpu: Gpu
    sizes: Sizes
    clock: Clock
    out: Path | None
    scratch: Path
    origin: Origin
    card: Mapping[str, Any]
    is_dry: bool
    entries: list[Entry] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    is_complete: bool = False

    @property
    def is_right(self) -> bool:
        """Whether nothing failed, and nothing that was compared with the oracle differed."""
        return not self.notes and not any(e.status == FAILED or e.problems for e in self.entries)

    @property
    def path(self) -> Path | None:
        if self.out is None:
            return None
        kind = f"{'dry-run-' if self.is_dry else ''}gpu-{self.name}"
        return self.out / f"{kind}-{self.origin.date[:10]}-{self.origin.machine.tag}.json"

    def document(self) -> dict[str, Any]:
        """Everything, raw times included."""
        return {
            "kind": f"gpu-{self.name}",
            "is_measurement": not self.is_dry,
            "is_complete": self.is_complete,
            "is_right": self.is_right,
            **self.origin.fields(),
            **self.card,
            "spent_secs": round(self.clock.spent_secs, 1),
            "interval": INTERVAL,
            **self.facts,
            "notes": self.notes,
            "entries": [entry.fields() for entry in self.entries],
        }

    def write(self) -> None:
        if self.path is not None:
            programs.write_json(self.path, self.document())

    def say(self, text: str) -> None:
        say(f"{self.clock.spent_secs:6.1f} s  {text}")

    def ask(self, name: str, title: str) -> Entry:
        """The question's entry, which says that it was not reached until it is measured."""
        for each in self.entries:
            if each.title == title:
                return each
        self.entries.append(Entry(name, title))
        return self.entries[-1]

    def measure(
        self, name: str, title: str, run: Callable[[], Iterator[Figure]], likely_secs: float = 0.0
    ) -> None:
        """Fill an entry, unless too little time is left."""
        self.say(f"{name} {title}")
        entry, started = self.ask(name, title), self.clock.now()
        entry.reason = self.clock.lacks(likely_secs) or entry.reason
        try:
            if not self.clock.lacks(likely_secs):
                with entry.guarded():
                    for figure in run():
                        entry.figures.append(figure)
                    entry.status, entry.reason = MEASURED, ""
        finally:
            entry.secs = self.clock.now() - started
            self.write()
        self.tell(entry)

    def tell(self, entry: Entry) -> None:
        lines = [*map(str, entry.figures), *entry.problems[:3]]
        if entry.reason:
            lines.append(f"{entry.status}: {entry.reason}")
        for line in lines:
            say(f"            {line}")

    def fail(self, what: str, error: Exception) -> str:
        """Note what failed; returns why."""
        reason = describe_error(error)
        self.notes.append(f"{what} failed: {reason}")
        return reason

    def ending(self) -> str:
        """What is to be read first: warnings, goals, and what was not run."""
        lines = ["A dry run on the CPU. No figure here is a measurement of anything."]
        lines = lines if self.is_dry else []
        if not self.is_complete:
            lines.append("This run did not come to its end.")
        lines += self.notes
        rows = [
            (
                f.goal,
                entry.title,
                f"{f.name} {f.shown}",
                str(f.predicted),
                "met" if ok else "MISSED",
            )
            for entry in self.entries
            for f in entry.figures
            if f.goal and (ok := f.is_as_predicted) is not None
        ]
        if rows:
            header = ("goal", "where", "reached", "promised", "met")
            lines.append(markdown_table([header, *sorted(rows)]))
        for entry in self.entries:
            if entry.status != MEASURED:
                lines.append(f"{entry.status}: {entry.name} {entry.title}: {entry.reason}")
            if entry.problems:
                lines.append(f"{entry.title} DIFFERS: {'; '.join(entry.problems[:3])}")
        return "\n".join(lines)


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
    gpu = StandIn() if options.dry_run else Gpu()
    with (
        ending_after(options.limit_secs + OVERTIME_SECS, GRACE_SECS),
        gpu.running(),
        tempfile.TemporaryDirectory(dir=options.scratch) as scratch,
    ):
        return play(open_program(name, gpu, options, Path(scratch)), steps)


def open_program(name: str, gpu: Gpu, options: argparse.Namespace, scratch: Path) -> Program:
    there = [name for name in NEEDED if find_spec(name) is not None]
    card = {
        **gpu.card(),
        "software": ", ".join([f"numpy {np.__version__}", *(f"{n} {version(n)}" for n in there)]),
        "missing": {name: what for name, what in NEEDED.items() if name not in there},
        "scratch": file_system(options.scratch or Path(tempfile.gettempdir())),
        "limit_secs": options.limit_secs,
    }
    origin = programs.origin_of(options.commit, gpu.device)
    sizes, clock = TINY if options.dry_run else FULL, Clock(options.limit_secs)
    return Program(
        name, gpu, sizes, clock, options.out, scratch, origin, card, is_dry=options.dry_run
    )


def play(program: Program, steps: Callable[[Program], None]) -> int:
    """Every step, as far as there is time; the report is written however that ends."""
    try:
        steps(program)
        program.is_complete = True
    except ENDED as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        program.notes.append(f"Ended after {program.clock.spent_secs:.0f} s. {why}")
    program.write()
    say(program.ending())
    if program.path is not None:
        say(f"Written to {program.path} after {program.clock.spent_secs:.0f} s.")
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
