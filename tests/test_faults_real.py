"""The archive on a real file system: killed processes, full disks, several runs at once."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastcap.archive.files import LocalFiles, WritableFile
from fastcap.archive.limits import GroupLimits
from fastcap.archive.reader import Archive
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveWriteError
from tests.support.fault_play import ROOT, fresh_disk, present
from tests.support.fault_programs import PROGRAMS
from tests.support.filesystem import SimulatedFiles
from tests.support.kill_loop import PROGRAM, end_problem_of, kill_many, new_writer, write_rest
from tests.support.real_faults import WELL, run, run_on_small_disk


def test_killed_processes_lose_nothing_that_was_acknowledged() -> None:
    toll = kill_many(6, seed=1)
    assert toll.failures == []
    assert toll.n_trials == 6


def test_processes_that_do_not_know_of_each_other(tmp_path: Path) -> None:
    assert run(tmp_path, "zombie", "dead_zombie", "two_runs") == WELL


def test_a_small_disk_that_fills_up(tmp_path: Path) -> None:
    found = run_on_small_disk(tmp_path)
    if found is None:
        pytest.skip("this user may not mount a file system")
    assert found == WELL


@contextmanager
def file_limit(n_bytes: int) -> Iterator[None]:
    """No file of this process can become longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_becomes_too_long(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = new_writer(root)
    first, rest = PROGRAM.samples(0), list(range(2, PROGRAM.n_samples))
    writer.append(first, *PROGRAM.values(first))
    writer.commit()
    with (
        file_limit(4096 + 1000),
        pytest.raises(ArchiveWriteError, match="File too large") as caught,
    ):
        writer.append(rest, *PROGRAM.values(rest))
    text = str(caught.value)
    assert caught.value.errno == errno.EFBIG
    assert text.startswith(f"Writing {root}/w-00000-0-")
    assert "000001-002.safetensors.tmp at byte 5096 failed: File too large, " in text
    assert "intact (samples of this run: 2)" in text
    with pytest.raises(ArchiveWriteError, match="File too large"):
        writer.commit()
    writer.close()
    assert list(root.glob("w-*/*.tmp")) == [], "the space is given back at once"
    finish(root, {0, 1})


def test_looking_at_a_lock_does_not_keep_its_owner_from_it(tmp_path: Path) -> None:
    """Another run looks whether a journal is locked just when its writer is about to lock it."""
    file = LocalFiles().create(tmp_path / "journal")
    looking = os.open(tmp_path / "journal", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    owner = threading.Thread(target=file.lock)
    owner.start()
    owner.join(0.05)
    os.close(looking)
    owner.join()
    assert LocalFiles().is_locked(tmp_path / "journal")
    file.close()
    assert LocalFiles().is_locked(tmp_path / "journal") is False


class FullDevice(LocalFiles):
    """Writes to files of values go to a device that is always full."""

    def create(self, path: Path) -> WritableFile:
        file = super().create(path)
        if path.name.endswith(".safetensors.tmp"):
            full = os.open("/dev/full", os.O_RDWR)
            os.dup2(full, file._fd)  # type: ignore[attr-defined]
            os.close(full)
        return file


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_device_that_is_full(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = Writer(root, PROGRAM.meta(), files=FullDevice(), limits=PROGRAM.limits)
    samples = PROGRAM.samples(0)
    with pytest.raises(ArchiveWriteError, match="at byte 4096 failed: No space left on device, "):
        writer.append(samples, *PROGRAM.values(samples))
    with pytest.raises(ArchiveWriteError, match="No space left"):
        writer.append(samples, *PROGRAM.values(samples))
    writer.close()
    finish(root, set())


def finish(root: Path, saved: set[int]) -> None:
    """What was saved is there, the same call writes the rest, and then all is well."""
    assert present(Archive(root, LocalFiles())) == saved
    for _ in write_rest(root):
        pass
    assert end_problem_of(root) is None


def test_a_clock_that_jumps_only_moves_the_borders_of_groups() -> None:
    program = PROGRAMS[1]
    jumps = itertools.cycle([0.0, 1e15, -1e15, float("inf"), 3.0])
    files = SimulatedFiles(fresh_disk(program))
    limits = GroupLimits(secs=5.0)
    writer = Writer(ROOT, program.meta(), files=files, limits=limits, clock=lambda: next(jumps))
    for batch in range(program.n_batches):
        samples = program.samples(batch)
        writer.append(samples, *program.values(samples))
        if writer.is_full:
            writer.commit()
    writer.commit()
    writer.close()
    assert present(Archive(ROOT, files)) == set(range(program.n_samples))
