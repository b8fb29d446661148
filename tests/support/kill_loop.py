"""Real processes on the real file system, killed while they write.

A trial has a directory of its own. A child writes there and says through a pipe which samples it
was told are safe; it is killed at a moment drawn from how long it would take. Some trials kill a
second child that goes on. Then a run goes to its end, and everything is compared.

    python -m tests.support.kill_loop TRIALS SEED    prints the toll as JSON

Children are forks of this process, which has imported everything and has one thread.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

import torch

from fastcap.archive.files import LocalFiles
from fastcap.archive.reader import Archive, reopen
from fastcap.archive.writer import Writer
from fastcap.errors import FastcapError
from tests.support.fault_judging import ORPHAN, find_wrong_value, valid_lines
from tests.support.fault_play import present
from tests.support.fault_programs import MIXED, WIDE, A, Life, Program, R

PROGRAM = Program("killed", (A, R, WIDE), ((Life(tuple(range(6))),),), n_samples=12, limits=MIXED)
SECOND_SHARE = 0.3
_ID = struct.Struct("<i")


@dataclass
class Toll:
    """What was done to real processes.

    Attributes:
        n_trials: Archives that were begun.
        n_kills: Children that were killed before their end.
        n_in_commit: Of those, while they were inside a commit.
        n_saved: Samples that were acknowledged to children that were killed.
        secs: How long it all took.
        failures: What was refused.
    """

    n_trials: int = 0
    n_kills: int = 0
    n_in_commit: int = 0
    n_saved: int = 0
    secs: float = 0.0
    failures: list[str] = field(default_factory=list)

    def table(self) -> str:
        return (
            f"real processes: {self.n_trials:,} trials, {self.n_kills:,} kills, of which "
            f"{self.n_in_commit:,} inside a commit; {self.n_saved:,} acknowledged samples checked; "
            f"{len(self.failures)} refused; {self.secs:.0f} s"
        )


def kill_many(n_trials: int, seed: int) -> Toll:
    """Run the trials in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(n_trials), str(seed)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return Toll(**json.loads(done.stdout))


def write_rest(root: Path, rank: int = 0) -> Iterator[list[int] | None]:
    """Tidy and write what is missing, a batch to a commit.

    Yields:
        `None` when a commit is about to begin, and what it made safe when it is over.
    """
    done: set[int] = set()
    if (root / "meta.json").exists():
        done = present(reopen(root, LocalFiles()))
    writer = new_writer(root, rank)
    try:
        yield from _write(writer, done)
    finally:
        writer.close()


def new_writer(root: Path, rank: int = 0) -> Writer:
    return Writer(root, PROGRAM.meta(), rank=rank, limits=PROGRAM.limits)


def _write(writer: Writer, done: set[int]) -> Iterator[list[int] | None]:
    for batch in range(PROGRAM.n_batches):
        todo = [sample for sample in PROGRAM.samples(batch) if sample not in done]
        if todo:
            writer.append(todo, *PROGRAM.values(todo))
            yield None
            commit = writer.commit()
            assert commit is not None
            yield [i for start, stop in commit.samples for i in range(start, stop)]


def spawn(root: Path, flag: mmap.mmap, rank: int = 0) -> tuple[int, int]:
    """A child that writes, and the pipe on which it tells what is safe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        for saved in write_rest(root, rank):
            flag[0] = saved is None
            if saved is not None:
                os.write(writing, b"".join(map(_ID.pack, saved)))
        status = 0
    finally:
        os._exit(status)


def read_all(pipe: int) -> list[int]:
    """Every sample that a child that is dead was told is safe."""
    content = b""
    while part := os.read(pipe, 1 << 16):
        content += part
    os.close(pipe)
    return [sample for (sample,) in _ID.iter_unpack(content[: len(content) // 4 * 4])]


def problem_of(root: Path, saved: list[int]) -> str | None:
    """What was acknowledged and is not there, or is there and wrong."""
    if not (root / "meta.json").exists():
        return f"acknowledged samples are lost with the archive: {saved}" if saved else None
    archive = Archive(root, LocalFiles())
    missing = sorted(set(saved) - present(archive))
    if missing:
        return f"acknowledged samples are lost: {missing}"
    return find_wrong_value(PROGRAM, archive)


def end_problem_of(root: Path) -> str | None:
    """After a run that went to its end."""
    archive = reopen(root, LocalFiles())
    if archive.ids != [(0, PROGRAM.n_samples)] or len(archive) != PROGRAM.n_samples:
        return f"the archive has {archive.ids}"
    problems = archive.verify()
    if problems:
        return f"verify: {problems[0].path}: {problems[0].what}"
    for directory in root.glob("w-*"):
        journal = directory / "journal.jsonl"
        lines = list(valid_lines(journal.read_bytes())) if journal.exists() else []
        named = {file["name"] for line in lines[1:] for file in line.get("files", ())}
        found = {path.name for path in directory.iterdir() if not ORPHAN.fullmatch(path.name)}
        left = found - named - {"journal.jsonl"}
        if left:
            return f"left behind: {sorted(left)}"
    return find_wrong_value(PROGRAM, archive)


class KillLoop:
    """Trials, one after another."""

    def __init__(self, seed: int) -> None:
        self.toll = Toll()
        self._random = Random(seed)
        self._flag = mmap.mmap(-1, 1)
        self._secs = self._time_one()

    def try_once(self, root: Path) -> None:
        """Kill a child or two that write to `root`, then write the rest and compare."""
        self.toll.n_trials += 1
        saved: list[int] = []
        try:
            self._kill_one(root, saved)
            if self._random.random() < SECOND_SHARE:
                self._kill_one(root, saved)
            problem = problem_of(root, saved)
            for _ in write_rest(root):
                pass
            problem = problem or end_problem_of(root)
        except FastcapError as error:
            problem = f"running it again failed: {error}"
        if problem:
            self.toll.failures.append(f"trial {self.toll.n_trials}: {problem}")

    def _kill_one(self, root: Path, saved: list[int]) -> None:
        self._flag[0] = 0
        child, pipe = spawn(root, self._flag)
        time.sleep(self._random.uniform(0, self._secs))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found = read_all(pipe)
        saved += found
        if os.WIFSIGNALED(status):
            self.toll.n_kills += 1
            self.toll.n_in_commit += self._flag[0]
            self.toll.n_saved += len(found)
        elif status:
            self.toll.failures.append(f"trial {self.toll.n_trials}: a child failed: {status}")

    def _time_one(self) -> float:
        secs = []
        for _ in range(5):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                child, pipe = spawn(Path(folder) / "acts", self._flag)
                os.waitpid(child, 0)
                secs.append(time.perf_counter() - started)
                os.close(pipe)
        return sorted(secs)[2]


def main() -> int:
    torch.set_num_threads(1)
    n_trials, seed = map(int, sys.argv[1:])
    started = time.perf_counter()
    loop = KillLoop(seed)
    folder = Path(tempfile.mkdtemp())
    try:
        for number in range(n_trials):
            loop.try_once(folder / str(number))
            shutil.rmtree(folder / str(number), ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    loop.toll.secs = time.perf_counter() - started
    sys.stdout.write(json.dumps(asdict(loop.toll)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
