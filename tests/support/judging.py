"""One program under one schedule, and what each judge says of it.

* Order: `OrderJudge`, on what the engine and the watched model asked for.
* Value: the oracle.
* Resources: what is allocated at the end, and whether the program ends.

The judge of time has a device of its own, with a clock (`tests/test_virtual_time.py`).
"""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice, StuckError
from fastcap.engine import close_orphans
from tests.support.programs import Program, shrink
from tests.support.runs import RunProgram, back_pressure, draw_any, run_on

JUDGES = ("order", "value", "resources", "crash")
PATIENCE = 20_000  # calls into the device; the longest program drawn so far needed 2,700


@dataclass(frozen=True)
class Verdict:
    """What the judges found.

    Attributes:
        found: By judge, what was wrong, in words.
        fingerprint: Which interleaving it was.
        paths: What happened in it.
    """

    found: dict[str, str] = field(default_factory=dict)
    fingerprint: int = 0
    paths: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.found)


def play(program: Program | RunProgram, schedule: Schedule, is_watched: bool = False) -> Verdict:
    """Run a program on a simulated accelerator and hear every judge; none can silence another."""
    device = SimulatedDevice(schedule, patience=PATIENCE)
    found: dict[str, str] = {}
    paths: set[str] = set()
    with device.watching() if is_watched else nullcontext():
        try:
            paths = back_pressure(run_on(program, device)) | program.paths()
        except AssertionError as error:
            found["value"] = str(error)
        except StuckError as error:
            found["resources"] = str(error)
        except Exception as error:  # noqa: BLE001 - any way to fail is a finding
            found["crash"] = f"{type(error).__name__}: {error}"
    if device.judge.violations:
        found["order"] = device.judge.violations[0]
    if not found.keys() & {"value", "crash", "resources"} and (excess := _excess(program, device)):
        found["resources"] = excess
    if found:
        clear_up()
    return Verdict(found, schedule.fingerprint, frozenset(paths))


@functools.cache
def warm_up() -> None:
    """Have torch import what it imports in a first run, and leave all that is there out of garbage
    collections, which programs ask for often.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        play(draw_any(0), Schedule("early"), is_watched=True)
    gc.collect()
    gc.freeze()


def clear_up() -> None:
    """Close what a program that failed left behind, so that the next one does not have to."""
    gc.collect()
    is_clear = False
    while not is_clear:
        with suppress(Exception):  # it is broken, which has been said
            close_orphans()
            is_clear = True


def _excess(program: Program | RunProgram, device: SimulatedDevice) -> str:
    """Memory beyond what was allowed, or still allocated at the end, in words."""
    for kind, peak, limit, left in (
        ("staging", device.peak_device_bytes, program.staging_bytes, device.counters.staging_bytes),
        ("slots", device.peak_host_bytes, program.pinned_bytes, device.counters.pinned_bytes),
    ):
        if peak > limit * program.n_engines:
            return f"{peak} bytes of {kind} at once, and {limit} were allowed"
        if left:
            return f"{left} bytes of {kind} left at the end"
    return ""


def schedules(seed: int, n_random: int) -> Iterator[Schedule]:
    """Every extreme, and some drawn ones."""
    for kind in EXTREMES:
        yield Schedule(kind, seed)
    for number in range(n_random):
        yield Schedule("random", seed * 1000 + number)


def is_watched(seed: int) -> bool:
    """Every fourth program runs with the model's own accesses watched, which takes longer."""
    return seed % 4 == 0


@dataclass(frozen=True)
class Failure:
    """The first program and schedule that a judge refused."""

    seed: int
    schedule: Schedule
    verdict: Verdict

    def report(self) -> str:
        """What was found, and what to run to see it again: a seed, and a shrunk program."""
        kind, schedule_seed = self.schedule.kind, self.schedule.seed
        watched = is_watched(self.seed)

        def fails(program: Program | RunProgram) -> bool:
            return bool(play(program, Schedule(kind, schedule_seed), watched))

        command = (
            f"python -m tests.races --seed {self.seed} "
            f"--schedule '{kind}' --schedule-seed {schedule_seed}"
        )
        smallest = shrink(draw_any(self.seed), fails)
        return "\n".join(
            [
                *(f"{judge}: {what}" for judge, what in self.verdict.found.items()),
                f"replay: {command}",
                f"shrunk: {smallest}",
            ]
        )


def search(
    seeds: Iterable[int],
    n_random: int,
    heed: Callable[[int, Schedule, Verdict], object] = lambda *_: None,
    judges: Iterable[str] = JUDGES,
) -> Failure | None:
    """Play programs until one of `judges` refuses one; `heed` sees every verdict."""
    wanted = set(judges)
    for seed in seeds:
        program = draw_any(seed)
        for schedule in schedules(seed, n_random):
            verdict = play(program, schedule, is_watched(seed))
            heed(seed, schedule, verdict)
            if wanted & verdict.found.keys():
                return Failure(seed, schedule, verdict)
    return None
