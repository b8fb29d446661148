"""What real processes and real disks do to an archive.

    python -m tests.support.real_faults FOLDER SCENARIO...    prints what is wrong, if anything is

A process of its own, because it forks: it has one thread, and everything imported.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fastcap.archive.files import LocalFiles
from fastcap.archive.reader import Archive
from fastcap.archive.recovery import clean
from fastcap.errors import ArchiveWriteError
from tests.support.fault_play import present
from tests.support.kill_loop import (
    PROGRAM,
    end_problem_of,
    new_writer,
    problem_of,
    read_all,
    spawn,
    write_rest,
)

PROJECT = Path(__file__).parents[2]
SMALL_DISK_BYTES = 256 << 10
BALLAST_BYTES = 208 << 10


def run(folder: Path, *scenarios: str) -> str:
    """Play scenarios in a fresh process; what it prints."""
    return _run([sys.executable, "-m", __name__, str(folder), *scenarios])


def run_on_small_disk(folder: Path) -> str | None:
    """The same on a disk of a few pages; `None` where this user may not mount one."""
    mount = f"mount -t tmpfs -o size={SMALL_DISK_BYTES} none {folder}"
    if subprocess.run(_in_namespace(mount), capture_output=True, check=False).returncode:
        return None
    return _run(_in_namespace(f"{mount} && {sys.executable} -m {__name__} {folder} full_disk"))


def _in_namespace(command: str) -> list[str]:
    return ["unshare", "-Urm", "sh", "-c", command]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip()


def _check(root: Path, saved: list[int]) -> Iterator[str]:
    problem = problem_of(root, saved) or end_problem_of(root)
    if problem is not None:
        yield problem


def _fork(act: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return child


def _wait_well(child: int) -> Iterator[str]:
    _, status = os.waitpid(child, 0)
    if status:
        yield f"a process ended with {status}"


class Pause:
    """A process stops here until another lets it go on."""

    def __init__(self) -> None:
        self._there, self._arrive = os.pipe()
        self._go, self._let = os.pipe()

    def stop(self) -> None:
        os.write(self._arrive, b".")
        os.read(self._go, 1)

    def wait(self) -> None:
        os.read(self._there, 1)

    def release(self) -> None:
        os.write(self._let, b".")


def _write_all_slowly(root: Path, pause: Pause) -> None:
    """All batches, whoever else has written them, with a pause when some of it is committed."""
    writer = new_writer(root)
    for batch in range(PROGRAM.n_batches):
        samples = PROGRAM.samples(batch)
        writer.append(samples, *PROGRAM.values(samples))
        if batch == 2:
            pause.stop()
        if batch % 2:
            writer.commit()
    writer.close()


def zombie(folder: Path) -> Iterator[str]:
    """A writer stands still, another run does all of it, and then the first one goes on."""
    root, pause = folder / "acts", Pause()
    child = _fork(lambda: _write_all_slowly(root, pause))
    pause.wait()
    if present(Archive(root, LocalFiles())) != {0, 1, 2, 3}:
        yield "the first commit of the writer that stands still is not there"
    unfinished = sorted(root.glob("w-*/*.tmp"))
    if not unfinished:
        yield "the writer that stands still has nothing unfinished"
    for _ in write_rest(root):
        pass
    if sorted(root.glob("w-*/*.tmp")) != unfinished:
        yield "files of a live writer were removed"
    if present(Archive(root, LocalFiles())) != set(range(PROGRAM.n_samples)):
        yield "the second run has not written the rest"
    pause.release()
    yield from _wait_well(child)
    yield from _check(root, list(range(PROGRAM.n_samples)))


def dead_zombie(folder: Path) -> Iterator[str]:
    """The same, but it is killed while it stands still: what it left goes, what it saved stays."""
    root, pause = folder / "acts", Pause()
    child = _fork(lambda: _write_all_slowly(root, pause))
    pause.wait()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not clean(root, LocalFiles()) or list(root.glob("w-*/*.tmp")):
        yield "what a dead writer left is still there"
    for _ in write_rest(root):
        pass
    yield from _check(root, [0, 1, 2, 3])


def two_runs(folder: Path) -> Iterator[str]:
    """Several processes do the same work at once, and nobody tells them of each other."""
    root, flag = folder / "acts", mmap.mmap(-1, 1)
    children = [spawn(root, flag, rank) for rank in (0, 0, 1)]
    saved = []
    for child, pipe in children:
        yield from _wait_well(child)
        saved += read_all(pipe)
    yield from _check(root, saved)


def full_disk(folder: Path) -> Iterator[str]:
    """The disk is full until something else is removed."""
    root, ballast = folder / "acts", folder / "ballast"
    ballast.write_bytes(bytes(BALLAST_BYTES))
    saved: list[int] = []
    try:
        for found in write_rest(root):
            saved += found or []
        yield "the disk did not fill up"
    except ArchiveWriteError as error:
        if error.errno != errno.ENOSPC or "free there" not in str(error):
            yield f"another error: {error}"
    yield from filter(None, [problem_of(root, saved)])
    ballast.unlink()
    for _ in write_rest(root):
        pass
    yield from _check(root, saved)


SCENARIOS = {each.__name__: each for each in (zombie, dead_zombie, two_runs, full_disk)}
WELL = "nothing is wrong"


def main() -> int:
    torch.set_num_threads(1)
    found = []
    for name in sys.argv[2:]:
        folder = Path(sys.argv[1]) / name
        folder.mkdir()
        found += [f"{name}: {problem}" for problem in SCENARIOS[name](folder)]
    sys.stdout.write("\n".join(found) or WELL)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
