"""Playing a program on a simulated disk, and doing afterwards what a user does: run it again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from fastcap.archive.groups import Group
from fastcap.archive.reader import Archive, reopen
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveError, ArchiveWriteError, FastcapError
from tests.support.disk import Disk
from tests.support.fault_programs import Life, Program
from tests.support.filesystem import Crash, Fault, SimulatedFiles, Watch

HOME = Path("/home")
ROOT = HOME / "run/acts"
TOTAL = -1
"""Stands among acknowledged samples for the total."""


@dataclass
class History:
    """What the processes of a program were told.

    Attributes:
        saved: Samples that were acknowledged, in that order.
        wrong: What a process was told that it should not have been.
        n_operations: File calls that can fail.
        disks: As they were when a run had gone to its end, if they are kept.
        errors: Errors that reached a caller.
    """

    saved: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    n_operations: int = 0
    keeps_disks: bool = False
    disks: list[Disk] = field(default_factory=list)


def fresh_disk(program: Program) -> Disk:
    """A disk with a home directory, and perhaps the archive's, that are safe."""
    files = SimulatedFiles()
    paths = [HOME, *([ROOT.parent, ROOT] if program.has_root else [])]
    for path in paths:
        files.make_dir(path)
        files.sync_dir(path.parent)
    return files.disk


@contextmanager
def numbered_names(first: int) -> Iterator[None]:
    """Directories of writers are named by numbers, so that two plays of a program are the same."""
    numbers = itertools.count(first)

    def draw() -> object:  # not in order: a later writer may come first in the directory
        return SimpleNamespace(hex=f"{next(numbers) * 2654435761 % (1 << 32):08x}")

    with mock.patch("fastcap.archive.writer.uuid.uuid4", draw):
        yield


def play(
    program: Program,
    disk: Disk,
    fault: Fault | None = None,
    watch: Callable[[History], Watch] | None = None,
) -> History:
    """Run every life of a program; a power cut ends all of them."""
    history = History()
    log: list[str] = []
    observer = watch(history) if watch else None
    clock = itertools.count().__next__
    with numbered_names(1):
        for stage in program.stages:
            processes = [program.process(disk, fault, observer, log) for _ in stage]
            lives = [
                (files, live(program, life, files, history, clock))
                for life, files in zip(stage, processes, strict=True)
            ]
            if not _take_turns(lives, processes, disk) or history.errors:
                break
    history.n_operations = len(log)
    return history


def _take_turns(
    lives: list[tuple[SimulatedFiles, Iterator[None]]], processes: list[SimulatedFiles], disk: Disk
) -> bool:
    """Whether nobody crashed."""
    boot = disk.boot
    is_well = True
    while lives:
        for files, life in lives.copy():
            try:
                next(life)
            except StopIteration:
                lives.remove((files, life))
            except Crash:
                is_well = False
                lives.remove((files, life))
                if disk.boot != boot:
                    for process in processes:
                        process.kill()
                    return False
    return is_well


def live(
    program: Program, life: Life, files: SimulatedFiles, history: History, clock: Callable[[], int]
) -> Iterator[None]:
    """A process that stops after every batch and every commit."""
    writer = None
    try:
        done = tidy(files) if life.is_resume else set()
        writer = Writer(
            ROOT,
            program.meta(f"life-{life.rank}-{len(history.saved)}"),
            files=files,
            rank=life.rank,
            limits=program.limits,
            clock=lambda: float(clock()),
        )
        yield from _write(program, life, writer, done, history)
        if life.dies:
            files.kill()
        else:
            history.wrong.extend(_close(writer, files))
    except Exception as error:  # noqa: BLE001 - whatever reaches a caller is judged
        history.errors.append(error)
        history.wrong.extend(judge_error(error, files))
        if writer is not None:
            _judge_dead(program, writer, error, files, history)


def _write(
    program: Program, life: Life, writer: Writer, done: set[int], history: History
) -> Iterator[None]:
    waiting: Group | None = None
    for number, batch in enumerate(life.batches):
        todo = [sample for sample in program.samples(batch) if sample not in done]
        if todo:
            _write_batch(program, life, writer, todo)
            yield
        commit_waiting(writer, history, waiting)
        waiting = None
        if _is_due(writer, life, number):
            if life.is_late:
                waiting = writer.take_group()
            else:
                commit(writer, history)
            yield
    commit_waiting(writer, history, waiting)
    if life.total:
        record_total(program, writer, history)


def _write_batch(program: Program, life: Life, writer: Writer, samples: list[int]) -> None:
    if life.has_failed_passes:
        _fail_pass(program, writer)
    writer.append(samples, *program.values(samples))


def _is_due(writer: Writer, life: Life, number: int) -> bool:
    n_to_commit = len(life.batches) - life.n_left
    if number + 1 >= n_to_commit:
        return number + 1 == n_to_commit
    return (number + 1) % life.per_commit == 0 if life.per_commit else writer.is_full


def commit_waiting(writer: Writer, history: History, group: Group | None) -> None:
    """Commit a group that was taken, if one was."""
    if group is not None:
        commit(writer, history, group)


def commit(writer: Writer, history: History, group: Group | None = None) -> None:
    done = writer.commit(group)
    if done is not None:
        history.saved.extend(i for start, stop in done.samples for i in range(start, stop))


def record_total(program: Program, writer: Writer, history: History) -> None:
    writer.record_total(program.n_samples)
    history.saved.append(TOTAL)


def _fail_pass(program: Program, writer: Writer) -> None:
    """A pass over all samples at once, which writes its parts and is never added."""
    values, _ = program.values(range(program.n_samples))
    for name, value in values.items():
        part = writer.group().part(name, value.shape)
        part.copy_(value)
        part.abandon()


def tidy(files: SimulatedFiles) -> set[int]:
    """What every run begins with: remove what the dead have left, and see what is there."""
    if f"{ROOT}/meta.json" not in files.disk.image():
        return set()
    return present(reopen(ROOT, files))


def present(archive: Archive) -> set[int]:
    return {sample for start, stop in archive.ids for sample in range(start, stop)}


def resume(program: Program, files: SimulatedFiles, first_name: int, history: History) -> None:
    """Run it again: what is missing is written, two batches to a commit. Then tidy again."""
    with numbered_names(first_name):
        done = tidy(files)
        writer = Writer(ROOT, program.meta(), files=files, limits=program.limits, clock=lambda: 0.0)
        for batch in range(program.n_batches):
            todo = [sample for sample in program.samples(batch) if sample not in done]
            if todo:
                writer.append(todo, *program.values(todo))
            if batch % 2:
                commit(writer, history)
        commit(writer, history)
        if not program.is_sized:
            record_total(program, writer, history)
        writer.close()
        if history.keeps_disks:
            history.disks.append(files.disk.copy())
        tidy(files)


def judge_error(error: Exception, files: SimulatedFiles) -> Iterator[str]:
    """What is wrong with an error that reached a caller."""
    if not isinstance(error, FastcapError) or not isinstance(error, OSError):
        yield f"no error of fastcap: {error!r}"
    elif not files.failures:
        yield f"an error without a cause: {error!r}"
    else:
        faults = [list(_missing_in(error, failure)) for failure in files.failures]
        yield from min(faults, key=len)


def _judge_dead(
    program: Program,
    writer: Writer,
    error: Exception,
    files: SimulatedFiles,
    history: History,
) -> None:
    """A writer that has failed does nothing more."""
    before = files.disk.image()
    n_before = files.n_operations
    for act in (
        lambda: writer.append(program.samples(0), *program.values(program.samples(0))),
        writer.commit,
        lambda: writer.record_total(1),
    ):
        try:
            if act() is not None or isinstance(error, ArchiveWriteError):
                history.wrong.append("a writer that has failed goes on")
        except ArchiveError:
            pass
        except Exception as second:  # noqa: BLE001
            history.wrong.append(f"a writer that has failed answers: {second!r}")
    if files.n_operations != n_before or files.disk.image() != before:
        history.wrong.append("a writer that has failed touches the disk")
    try:
        history.wrong.extend(_close(writer, files))
        writer.close()
    except OSError as second:
        history.wrong.append(f"closing a writer that has failed: {second!r}")


def _close(writer: Writer, files: SimulatedFiles) -> Iterator[str]:
    """Close a writer. It gives its space back, which others need on a full disk, if it can."""
    n_failures = len(files.failures)
    writer.close()
    if len(files.failures) > n_failures:
        return
    for path in files.disk.image():
        if path.startswith(f"{writer.directory}/") and path.endswith(".safetensors.tmp"):
            yield f"a closed writer keeps {path}"


def _missing_in(error: OSError, failure: OSError) -> Iterator[str]:
    text = str(error)
    path = Path(failure.filename)
    if str(path) not in text and str(path.parent) not in text:
        yield f"the error does not name {path}: {text}"
    if str(failure.strerror) not in text:
        yield f"the error does not say {failure.strerror!r}: {text}"
    if isinstance(error, ArchiveWriteError):
        if "free" not in text:
            yield f"the error does not say what is free: {text}"
        if text.startswith("Writing") and " at byte " not in text:
            yield f"the error does not say at which byte: {text}"
