"""Measure everything on the GPU that is here, and write down what came out.

    python -m benchmarks.gpu [--out benchmarks/results] [--limit-secs 450]
    python -m benchmarks.gpu --dry-run      tiny, on the CPU: whether the code runs
    python -m benchmarks.gpu --virtual      the grid on a virtual clock: arithmetic

Both files are written again after every step, and when the run is ended by Ctrl-C, SIGTERM or its
time: then they say so, and list what was not reached.
Exit status: 0, or 1 when something failed or differs from the oracle or the run did not come to its
end, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import datetime as dt
import platform
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks.checkout import RESULTS, Checkout, describe_checkout
from benchmarks.gpu import cells, grid, micro, overheads, results, session
from benchmarks.gpu.cells import Group
from benchmarks.gpu.floors import measure_floors
from benchmarks.gpu.micro import Benchmark
from benchmarks.gpu.report import Report
from benchmarks.gpu.session import ENDED, NOT_RUN, Clock, Entry, describe_error
from benchmarks.gpu.standin import StandIn
from benchmarks.gpu.subjects import GPT2, LLAMA, Subject, build, tiny
from benchmarks.gpu.toolbox import FULL, TINY, Gpu, Sizes
from fastcap.bench import describe_machine
from fastcap.host_memory import format_bytes

CANNOT_START = 2
LIMIT_SECS = 430.0  # nothing is begun that would end later, as far as can be told
OVERTIME_SECS = 25.0  # then what runs is ended, and the report written
GRACE_SECS = 10.0  # then the process is; importing torch comes on top, and eight minutes are 480 s
DECODE_SECS = 8.0
NEEDED = {
    "safetensors": "archives are not read, so that destination is not run",
    "transformers": "the models are stand-ins of the same sizes",
    "pytest": "only the tests need it",
}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    if options.virtual:
        return _run_virtual(options)
    if not options.dry_run and not torch.cuda.is_available():
        sys.stderr.write(
            f"No CUDA GPU is here (torch {torch.__version__}). Run this on a machine that has one; "
            "--dry-run shows that the code runs, --virtual what the cost model expects.\n"
        )
        return CANNOT_START
    gpu, sizes = (StandIn(), TINY) if options.dry_run else (Gpu(), FULL)
    clock = Clock(options.limit_secs)
    with (
        session.ending_after(options.limit_secs + OVERTIME_SECS, GRACE_SECS),
        gpu.running(),
        tempfile.TemporaryDirectory(dir=options.scratch) as scratch,
    ):
        run = Run(gpu, sizes, clock, options.out, Path(scratch), _open_report(gpu, options))
        run.everything(_shrunk(cells.GRID) if options.dry_run else list(cells.GRID))
    return 0 if run.report.is_right and run.report.is_complete else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help=f"folder for the results; by default {RESULTS}")
    parser.add_argument("--limit-secs", type=float, default=LIMIT_SECS, help="time for everything")
    parser.add_argument("--scratch", type=Path, help="where archives are written, then removed")
    parser.add_argument("--commit", help="what is measured, where this is no git checkout")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--dry-run", action="store_true", help="tiny, on the CPU; writes with --out")
    kind.add_argument("--virtual", action="store_true", help="the grid on a virtual clock")
    options = parser.parse_args(arguments)
    if options.out is None and not (options.dry_run or options.virtual):
        options.out = Path(RESULTS)
    return options


def _run_virtual(options: argparse.Namespace) -> int:
    from benchmarks.gpu import virtual  # and with it the tests' own, which measuring does not need

    date = dt.datetime.now(dt.UTC).date().isoformat()
    code = describe_checkout().commit or options.commit
    page = virtual.page(
        virtual.play(cells.GRID), f"{date}, commit {code}, torch {torch.__version__}"
    )
    _say(page)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / f"{date}-gpu-virtual.md").write_text(page)
    return 0


def _open_report(gpu: Gpu, options: argparse.Namespace) -> Report:
    checkout = describe_checkout()
    machine = describe_machine(gpu.device)
    is_real = not options.dry_run
    title = "fastcap on a GPU" if is_real else "DRY RUN of the GPU benchmarks"
    return Report(
        title=f"{title}: {machine.tag}",
        is_measurement=is_real,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        machine=machine,
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
    return ", ".join([f"numpy {np.__version__}", *(f"{name} {_version(name)}" for name in there)])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # a module that nobody installed as a package
        return "of unknown version"


def file_system(folder: Path) -> str:
    """The kind of file system that archives are written to: memory is no disk."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:  # no Linux
        return "unknown"
    place = folder.resolve()
    found = [(len(where), kind) for _, where, kind, *_ in mounts if place.is_relative_to(where)]
    return max(found)[1] if found else "unknown"


def _shrunk(groups: Sequence[Group]) -> list[Group]:
    return [replace(group, subject=tiny(group.subject), n_passes=3) for group in groups]


class Run:
    """One run, step by step; the report is written after each.

    Args:
        gpu: What is measured.
        sizes: How much is moved by the micro-benchmarks.
        clock: How much time there is.
        out: Where the report is written; `None` for nowhere.
        scratch: Where archives are written.
        report: What is found is put into it.
    """

    def __init__(
        self, gpu: Gpu, sizes: Sizes, clock: Clock, out: Path | None, scratch: Path, report: Report
    ) -> None:
        self.gpu, self.sizes, self.clock = gpu, sizes, clock
        self.out, self.scratch, self.report = out, scratch, report

    def everything(self, groups: Sequence[Group]) -> None:
        """Floors, what decides most, the grid, then the rest."""
        try:
            self._steps(groups)
            self.report.is_complete = True
        except ENDED as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
            self.report.notes.append(f"Ended after {self.clock.spent_secs:.0f} s. {why}")
        self._list_what_was_not_reached(groups)
        self._figures(LLAMA, "B15")
        self._figures(GPT2, "B16")
        self._write()
        _say(results.summary(self.report))
        if self.out is not None:
            _say(f"Written to {self.out / self.report.stem}.json and .md")

    def _steps(self, groups: Sequence[Group]) -> None:
        self._floors()
        self._micro(micro.FIRST)
        later_secs = sum(benchmark.likely_secs for benchmark in micro.LATER)
        clock = self.clock.reserving(min(later_secs, self.clock.left_secs / 4))
        for of_subject in cells.by_subject(groups).values():
            self._subject(of_subject, clock)
        self._micro(micro.LATER)

    def _list_what_was_not_reached(self, groups: Sequence[Group]) -> None:
        begun = {id(cell.group) for cell in self.report.cells}
        for group in groups:
            if id(group) not in begun:
                self.report.cells += cells.open_cells(group)
        there = {(entry.name, entry.title) for entry in self.report.entries}
        for each in (*micro.FIRST, *micro.LATER):
            if (each.name, each.title) not in there:
                self._add(Entry(each.name, each.title, NOT_RUN, session.NOT_REACHED))

    def _write(self) -> None:
        self.report.spent_secs = self.clock.spent_secs
        if self.out is not None:
            results.write(self.out, self.report)

    def _floors(self) -> None:
        _say(f"{self.clock.spent_secs:6.1f} s  floors")
        try:
            self.report.floors = measure_floors(self.gpu, self.sizes, self.scratch)
        except Exception as error:  # noqa: BLE001 - the micro-benchmarks can still run
            self.report.notes.append(f"The floors could not be measured: {describe_error(error)}")
        self._write()

    def _micro(self, benchmarks: Sequence[Benchmark]) -> None:
        for benchmark in benchmarks:
            _say(f"{self.clock.spent_secs:6.1f} s  {benchmark.name} {benchmark.title}")
            self._add(session.run_benchmark(benchmark, self.gpu, self.sizes, self.clock))

    def _add(self, entry: session.Entry) -> None:
        self.report.entries.append(entry)
        self._write()

    # The grid

    def _subject(self, groups: Sequence[Group], clock: Clock) -> None:
        """All groups of one model."""
        subject = groups[0].subject
        _say(f"{self.clock.spent_secs:6.1f} s  model {subject.name}")
        try:
            reason = self._measure(subject, groups, clock)
        except Exception as error:  # noqa: BLE001 - the other models can still run
            reason = self._failed(subject.name, error)
        begun = {id(cell.group) for cell in self.report.cells}
        for group in groups:
            if id(group) not in begun:
                self._open(group, reason)
        grid.end_subject(self.gpu)

    def _open(self, group: Group, reason: str = session.NOT_REACHED) -> list[cells.Cell]:
        opened = cells.open_cells(group)
        for cell in opened:
            cell.reason = reason
        self.report.cells += opened
        return opened

    def _failed(self, what: str, error: Exception) -> str:
        reason = describe_error(error)
        self.report.notes.append(f"{what} failed: {reason}")
        return reason

    def _measure(self, subject: Subject, groups: Sequence[Group], clock: Clock) -> str:
        """Measure what can be; returns why the rest was not."""
        floors = self.report.floors
        if floors is None:
            return "the floors could not be measured"
        self.gpu.cuda.empty_cache()
        if self.gpu.free_bytes() < subject.needs_bytes:
            free = format_bytes(self.gpu.free_bytes())
            return f"the GPU has {free} free, and needs {format_bytes(subject.needs_bytes)}"
        built = build(subject, self.gpu)
        grid.begin_subject()
        self.report.origins[subject.name] = built.origin
        self.report.repeats[subject.name] = grid.repeats_itself(self.gpu, built)
        for group in groups:
            _say(f"{self.clock.spent_secs:6.1f} s  {group.name}")
            opened = self._open(group)
            try:
                grid.measure_group(self.gpu, opened, built, floors, self.scratch, clock)
            except Exception as error:  # noqa: BLE001 - the other groups can still run
                self._failed(group.name, error)
            self._write()
        if subject.name == LLAMA.name:
            title = "32 hooks around passes of one token"
            decode = partial(overheads.decode, self.gpu, built)
            self._add(session.run_figures("B17", title, decode, self.clock, DECODE_SECS))
        return ""

    def _figures(self, subject: Subject, name: str) -> None:
        """Arithmetic over cells, which takes no time."""
        title = f"{subject.name}, all positions of every block, by pass"
        of_grid = partial(overheads.overhead_figures, self.report.cells, subject)
        self._add(session.run_figures(name, title, of_grid, self.clock, likely_secs=-1e9))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
