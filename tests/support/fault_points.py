"""Every fault at every file call, what is judged afterwards, and the count of it.

A point is a program, the operation at which something happens, what happens, and a seed. A crash is
not played again from the start: its disk is made from a copy that was taken when the operation was
about to run. Recovering from equal disks is done once, and counts for every point that led there.
"""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from tests.support.disk import Disk, Loss
from tests.support.fault_judging import (
    SHARD,
    find_incomplete,
    find_lost,
    find_problem,
    find_unmended,
)
from tests.support.fault_play import (
    History,
    fresh_disk,
    judge_error,
    live,
    numbered_names,
    play,
    resume,
)
from tests.support.fault_programs import Program
from tests.support.filesystem import ERRORS, Crash, Effect, Fault, SimulatedFiles, Watch, crash

N_MOST = 200
"""More file calls than any run of a program has."""


@dataclass(frozen=True)
class Depth:
    """How much is played.

    Attributes:
        power_seeds: Power cuts at each operation.
        second_power_seeds: The same in a recovery.
        error_seeds: Of each error at each operation; odd ones last until a process begins.
        deaths: In each operation, while another run goes on.
        step_share: Of the places in another run where a process takes a step.
        share: Of the first faults, drawn by `seed`.
        second_share: Of the recoveries whose every operation has a second fault.
    """

    power_seeds: int = 8
    second_power_seeds: int = 2
    error_seeds: int = 2
    deaths: int = 8
    step_share: float = 0.25
    share: float = 1.0
    second_share: float = 1.0
    seed: int = 0

    def takes(self, *what: object) -> bool:
        return self._draws(self.share, what)

    def goes_on(self, *what: object) -> bool:
        return self._draws(self.second_share, ("second", *what))

    def steps(self, *what: object) -> bool:
        return self._draws(self.share * self.step_share, ("step", *what))

    def _draws(self, share: float, what: object) -> bool:
        return share >= 1 or zlib.crc32(repr((self.seed, what)).encode()) < share * (1 << 32)


@dataclass
class Tally:
    """What was played.

    Attributes:
        points: By kind of fault.
        n_recoveries: From how many different disks the program was run again.
        failures: Where a judge refused something, and what.
    """

    points: Counter[str] = field(default_factory=Counter)
    n_recoveries: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.points += other.points
        self.n_recoveries += other.n_recoveries
        self.failures += other.failures


@dataclass(frozen=True)
class Moment:
    """A disk when an operation was about to run, and what was acknowledged by then."""

    operation: int
    name: str
    disk: Disk
    effect: Effect
    n_saved: int


class _Recorder:
    """Keeps the moments of a run. Between two operations that change nothing, one copy serves."""

    def __init__(self, disk: Disk) -> None:
        self.moments: list[Moment] = []
        self._disk = disk

    def watch(self, history: History) -> Watch:
        def look(operation: int, name: str, effect: Effect) -> None:
            last = self.moments[-1].disk if self.moments else None
            if last is None or last.version != self._disk.version:
                last = self._disk.copy()
            self.moments.append(Moment(operation, name, last, effect, len(history.saved)))

        return look


def _pick_places(n_places: int, seed: int) -> list[int]:
    """Some of the operations of a run: half of them are where it looks at what others do."""
    draw = Random(seed)
    early = draw.sample(range(12), min(12, n_places // 2))
    return [*early, *draw.sample(range(12, 60), min(48, n_places - len(early)))]


class Player:
    """Plays the points of one program.

    Args:
        program: What is written.
        depth: How much of it is played.
        stop_at_first: Whether the first failure is enough.
    """

    def __init__(self, program: Program, depth: Depth, stop_at_first: bool = False) -> None:
        self.tally = Tally()
        self._program = program
        self._depth = depth
        self._stop = stop_at_first
        self._known: dict[object, str | None] = {}

    def play_all(self) -> Tally:
        for play_some in (
            self._play_well,
            self._play_cuts,
            self._play_deaths,
            self._play_crashes,
            self._play_errors,
            self._play_races,
            self._play_overlaps,
        ):
            try:
                play_some()
            except _EnoughError:
                break
        return self.tally

    def _note(self, kind: str, where: str, problem: str | None) -> None:
        self.tally.points[kind] += 1
        if problem is not None:
            self.tally.failures.append((f"{self._program}: {where}", problem))
            if self._stop:
                raise _EnoughError

    def _play_well(self) -> None:
        """Without a fault, and once more on top of that."""
        disk = fresh_disk(self._program)
        history = play(self._program, disk)
        problem = next(iter(history.wrong), None) or find_lost(
            self._program, disk, set(history.saved)
        )
        self._note("none", "no fault", problem or self._recover(disk, history.saved, "", 0))

    def _play_cuts(self) -> None:
        """Somebody cuts a committed file short, when all is done."""
        whole = fresh_disk(self._program)
        play(self._program, whole)
        resume(self._program, self._program.process(whole), 100, History())
        for path, content in whole.image().items():
            if content is not None and SHARD.search(path):
                disk = whole.copy()
                number = disk.find(Path(path))
                disk.truncate(number, len(content) - 1)
                disk.sync(number)
                self._note("cut", f"{path} is cut", self._mend(disk))

    def _mend(self, disk: Disk) -> str | None:
        try:
            resume(self._program, self._program.process(disk), 200, History())
        except Exception as error:  # noqa: BLE001 - any way to fail is a finding
            return f"running it again failed: {error!r}"
        return find_unmended(self._program, disk)

    # Crashes

    def _play_crashes(self) -> None:
        disk = fresh_disk(self._program)
        recorder = _Recorder(disk)
        history = play(self._program, disk, watch=recorder.watch)
        for moment in recorder.moments:
            saved = history.saved[: moment.n_saved]
            for kind, seed, after in self._crashes(moment, self._depth.power_seeds, ()):
                where = f"{kind} (seed {seed}) at operation {moment.operation}, {moment.name}"
                self._note(kind, where, self._recover(after, saved, where, 1))

    def _crashes(
        self, moment: Moment, power_seeds: int, path: tuple[str, ...]
    ) -> Iterator[tuple[str, int, Disk]]:
        # An interrupted write may have done nothing, a part or all.
        kill_seeds = 3 if moment.effect.verb == "write" and not path else 1
        for kind, n_seeds in (("kill", kill_seeds), ("power", power_seeds)):
            for seed in range(n_seeds):
                if path or self._depth.takes(str(self._program), moment.operation, kind, seed):
                    yield kind, seed, crash(moment.disk, moment.effect, kind, seed)

    def _recover(self, disk: Disk, saved: list[int], where: str, depth: int) -> str | None:
        """Judge a disk, run the program again on it, and judge that.

        Args:
            disk: After the crash; no process lives. It is used up.
            saved: What was acknowledged.
            where: How it came to be.
            depth: 1 after a first crash, whose recovery may have crashes of its own.
        """
        key = (disk.fingerprint(), frozenset(saved), depth)
        if key not in self._known:
            self._known[key] = self._recover_anew(disk, saved, where, depth)
        return self._known[key]

    def _recover_anew(self, disk: Disk, saved: list[int], where: str, depth: int) -> str | None:
        self.tally.n_recoveries += 1
        problem = find_lost(self._program, disk, saved)
        if problem is not None:
            return problem
        goes_on = depth == 1 and self._depth.goes_on(str(self._program), where)
        before = disk.copy() if goes_on else None
        recorder = _Recorder(disk)
        history = History()
        watch = recorder.watch(history) if goes_on else None
        try:
            resume(
                self._program, self._program.process(disk, watch=watch), 100 * (depth + 1), history
            )
        except Exception as error:  # noqa: BLE001 - any way to fail is a finding
            return f"running it again failed: {error!r}"
        problem = find_problem(self._program, disk)
        if problem is None and before is not None:
            for moment in recorder.moments:
                self._play_second(moment, [*saved, *history.saved[: moment.n_saved]], where)
            self._play_second_errors(before, saved, where, len(recorder.moments))
        return problem

    def _play_second(self, moment: Moment, saved: list[int], where: str) -> None:
        for kind, seed, after in self._crashes(moment, self._depth.second_power_seeds, (where,)):
            then = f"{where}; then {kind} (seed {seed}) at {moment.operation}, {moment.name}"
            self._note(f"second {kind}", then, self._recover(after, saved, then, 2))

    # Errors

    def _play_errors(self) -> None:
        n_operations = play(self._program, fresh_disk(self._program)).n_operations
        kinds = ("short", *ERRORS) if self._program.is_alone else ("kill", "short", *ERRORS)
        for operation in range(n_operations):
            for kind in kinds:
                for seed in range(self._depth.error_seeds):
                    if self._depth.takes(str(self._program), operation, kind, seed, "error"):
                        fault = Fault(operation, kind, seed, is_lasting=seed % 2 == 1)
                        self._play_error(fault)

    def _play_error(self, fault: Fault) -> None:
        disk = fresh_disk(self._program)
        log: list[str] = []

        def watch(_: History) -> Watch:
            return lambda number, name, _: log.append(name) if number == fault.operation else None

        history = play(self._program, disk, fault, watch)
        lasting = " for good" if fault.is_lasting else ""
        where = (
            f"{fault.kind} (seed {fault.seed}{lasting}) at operation {fault.operation}, {log[0]}"
        )
        problem = next(iter(history.wrong), None)
        if problem is None:
            after = disk.copy()
            after.cut_power(Loss(Loss.ALL))
            problem = find_lost(self._program, after, history.saved)
        if problem is None:
            disk.evict()
            problem = self._recover(disk, history.saved, where, 0)
        self._note("one kill" if fault.kind == "kill" else fault.kind, where, problem)

    def _play_races(self) -> None:
        """At each operation another process does the whole of it."""
        if not self._program.has_links:
            return
        n_operations = play(self._program, fresh_disk(self._program)).n_operations
        for operation in range(n_operations):
            if self._depth.takes(str(self._program), operation, "race"):
                self._play_race(operation)

    def _play_race(self, operation: int) -> None:
        disk = fresh_disk(self._program)
        other = self._program.process(disk)
        names: list[str] = []

        def watch(history: History) -> Watch:
            def look(number: int, name: str, _: Effect) -> None:
                if number == operation:
                    names.append(name)
                    resume(self._program, other, 500, history)

            return look

        history = play(self._program, disk, watch=watch)
        where = f"another run at operation {operation}, {names[0]}"
        self._judge_two("another run", where, disk, history)

    def _play_overlaps(self) -> None:
        """A process stands somewhere, and takes a step while another runs."""
        if not self._program.has_links:
            return
        n_steps = sum(1 for _ in self._first_life(fresh_disk(self._program), History())[1])
        for begun in range(n_steps + 1):
            for operation in range(N_MOST):
                if self._depth.steps(
                    str(self._program), begun, operation
                ) and not self._play_overlap(begun, operation):
                    break

    def _play_overlap(self, begun: int, operation: int) -> bool:
        """Whether the other run has so many operations."""
        disk, history, names = fresh_disk(self._program), History(), list[str]()

        def look(number: int, name: str, _: Effect) -> None:
            if number == operation:
                names.append(name)
                next(life, None)

        with numbered_names(1):
            _, life = self._first_life(disk, history)
            for _ in range(begun):
                next(life, None)
            resume(self._program, self._program.process(disk, watch=look), 500, history)
            list(life)
        if names:
            where = f"a step after {begun}, at operation {operation} of another run, {names[0]}"
            self._judge_two("a step of another", where, disk, history)
        return bool(names)

    def _play_deaths(self) -> None:
        """A process is at a file call; another runs, and in the midst of that the call is done and
        its process dies.
        """
        if not self._program.has_links:
            return
        life = self._program.stages[0][0]
        alone = replace(self._program, stages=((life,),))
        n_operations = play(alone, fresh_disk(self._program)).n_operations
        for operation in reversed(range(n_operations)):
            for second in _pick_places(self._depth.deaths, operation):
                if self._depth.takes(str(self._program), operation, second, "death"):
                    self._play_death(operation, second)

    def _play_death(self, operation: int, second: int) -> None:
        disk, history = fresh_disk(self._program), History(keeps_disks=True)

        def stop(number: int, _: str, effect: Effect) -> None:
            def die(inner: int, _: str, __: Effect) -> None:
                if inner == second:
                    with suppress(OSError):  # what it asked for is there by now
                        effect.apply(disk)
                    files.kill()

            if number == operation:
                resume(self._program, self._program.process(disk, watch=die), 500, history)
                files.kill()

        with numbered_names(1), suppress(Crash):
            files, life = self._first_life(disk, history, stop)
            list(life)
        where = f"a death in operation {operation}, at operation {second} of another run"
        for after in history.disks:  # what a run has called complete is so, whoever wrote it
            after.cut_power(Loss(Loss.ALL))
            problem = find_incomplete(self._program, after)
            if problem is not None:
                history.wrong.append(f"after a power cut when the other run was done: {problem}")
        self._judge_two("a death of another", where, disk, history)

    def _judge_two(self, kind: str, where: str, disk: Disk, history: History) -> None:
        wrong = [*history.wrong, *map(repr, history.errors)]
        problem = next(iter(wrong), None) or find_lost(self._program, disk, history.saved)
        if problem is None:
            problem = self._recover(disk, history.saved, where, 0)
        self._note(kind, where, problem)

    def _first_life(
        self, disk: Disk, history: History, watch: Watch | None = None
    ) -> tuple[SimulatedFiles, Iterator[None]]:
        files = self._program.process(disk, watch=watch)
        clock = itertools.count().__next__
        return files, live(self._program, self._program.stages[0][0], files, history, clock)

    def _play_second_errors(
        self, before: Disk, saved: list[int], where: str, n_operations: int
    ) -> None:
        """An error at each operation of a recovery, which is then run again."""
        for operation in range(n_operations):
            kind = ERRORS[operation % len(ERRORS)]
            disk = before.copy()
            fault = Fault(operation, kind, operation, operation % 3 == 0)
            files = self._program.process(disk, fault)
            history = History()
            problem = None
            try:
                resume(self._program, files, 200, history)
            except Exception as error:  # noqa: BLE001 - any way to fail is judged
                problem = next(judge_error(error, files), None)
            files.kill()
            disk.evict()
            then = f"{where}; then {kind} at {operation}, {files.log[operation]}"
            problem = problem or self._recover(disk, [*saved, *history.saved], then, 2)
            self._note("second error", then, problem)


class _EnoughError(Exception):
    """A failure was found, and one is enough."""


def play_program(program: Program, depth: Depth, stop_at_first: bool = False) -> Tally:
    """Every point of a program that `depth` takes."""
    return Player(program, depth, stop_at_first).play_all()
