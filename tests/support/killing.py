"""Which judge sees which mutant, and after how many schedules."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastcap.devices.simulated import EXTREMES, Schedule, StuckError
from tests.support.judging import JUDGES, is_watched, play, schedules, warm_up
from tests.support.mutants import Mutant
from tests.support.runs import draw_any

N_RANDOM = 5  # schedules per program beside the extremes
SCHEDULES_PER_PROGRAM = len(EXTREMES) + N_RANDOM
LONGEST_SECS = 20.0  # a run takes a hundredth of that, on a machine with other work
MOST_STUCK = 20  # schedules that hang or leak before the other judges are not asked any more


@dataclass
class Kill:
    """What was seen of one mutant.

    Attributes:
        first: By judge, the number of the first schedule it refused, from 1.
        n_schedules: How many were played.
        n_stuck: How many of them hung, or went on with memory that they may not have.
        message: What the first judge said.
    """

    first: dict[str, int] = field(default_factory=dict)
    n_schedules: int = 0
    n_stuck: int = 0
    message: str = ""

    @property
    def is_dead(self) -> bool:
        return bool(self.first)


def hunt(mutant: Mutant, seeds: Iterable[int], stop_at_first: bool = True) -> Kill:
    """Play programs on a mutant until it is seen, or until order and value have both seen it."""
    warm_up()
    kill = Kill()
    with mutant.applied():
        if mutant.scenario is not None:
            _try_scenario(mutant, kill)
            return kill
        for seed in seeds:
            for schedule in schedules(seed, N_RANDOM):
                _play(seed, schedule, kill)
                if kill.is_dead and (stop_at_first or {"order", "value"} <= kill.first.keys()):
                    return kill
            if kill.n_stuck >= MOST_STUCK:  # each takes seconds
                return kill
    return kill


@contextmanager
def time_limit(secs: float) -> Iterator[None]:
    """Interrupt what hangs: a lock that is never released makes no call into the device.

    Raises:
        StuckError: The block took longer.
    """

    def stop(*_: object) -> None:
        raise StuckError(f"still going after {secs:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, secs, 0.5)  # again, should its cleaning up hang too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _try_scenario(mutant: Mutant, kill: Kill) -> None:
    assert mutant.scenario is not None
    kill.n_schedules = 1
    try:
        with time_limit(LONGEST_SECS):
            mutant.scenario()
    except Exception as error:  # noqa: BLE001 - any way to fail is a finding
        kill.first[mutant.scenario.__name__.replace("_", " ")] = 1
        kill.message = str(error)


def _play(seed: int, schedule: Schedule, kill: Kill) -> None:
    kill.n_schedules += 1
    with time_limit(LONGEST_SECS):
        verdict = play(draw_any(seed), schedule, is_watched(seed))
    kill.n_stuck += "resources" in verdict.found
    for judge in JUDGES:
        if judge in verdict.found and judge not in kill.first:
            kill.first[judge] = kill.n_schedules
            kill.message = kill.message or verdict.found[judge]


def passes_in_order(mutant: Mutant, n_programs: int) -> bool:
    """Whether values are right when everything runs as soon as it is asked for."""
    with mutant.applied():
        return not any(
            {"value", "crash"} & play(draw_any(seed), Schedule("early", seed)).found.keys()
            for seed in range(n_programs)
        )
