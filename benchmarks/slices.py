"""A round in which the ways alternate batch by batch, in one thread.

Speed on shared machines drifts within minutes by more than what is measured, and a round of whole
runs compares minutes. Here fastcap's run is the outer one. Whenever it asks for the first sample of
a batch, every other way runs its next batch, and what that takes is not counted as fastcap's.

Not for accelerators: at every change of way the device would have to be waited for, and nothing
would overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.ways import FASTCAP, STEPPED, WAYS, Steps, Values
from benchmarks.workloads import Case, Sample


class Interrupted(list[Sample]):
    """Samples that call `interrupt` before they give the first one of a batch."""

    def __init__(self, samples: Sequence[Sample], batch_size: int) -> None:
        super().__init__(samples)
        self._batch_size = batch_size
        self.interrupt: Callable[[], None] = lambda: None

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if index % self._batch_size == 0:
            self.interrupt()
        return super().__getitem__(index)


class Stepper:
    """One way, run batch by batch, with the seconds it took."""

    def __init__(self, steps: Steps) -> None:
        self.secs = 0.0
        self.values: Values | None = None
        self._steps = steps

    def step(self) -> None:
        """The next batch, or what is left after the last one. Then nothing."""
        started = time.perf_counter()
        try:
            next(self._steps)
        except StopIteration as end:
            if self.values is None:
                self.values = end.value
        self.secs += time.perf_counter() - started


def play_round(cases: Mapping[str, Case], order: Sequence[str]) -> dict[str, tuple[float, Values]]:
    """Run every way once; returns seconds and values by way.

    Args:
        cases: For each way a case of its own: one way's hooks would fire in another's batches.
        order: The ways; those other than fastcap take their turns in this order.
    """
    steppers = {way: Stepper(STEPPED[way](cases[way])) for way in order if way != FASTCAP}
    case, others_secs = cases[FASTCAP], 0.0

    def let_others_step() -> None:
        nonlocal others_secs
        started = time.perf_counter()
        for stepper in steppers.values():
            stepper.step()
        others_secs += time.perf_counter() - started

    samples = Interrupted(case.dataset, case.workload.batch_size)
    samples.interrupt = let_others_step
    started = time.perf_counter()
    values = WAYS[FASTCAP](replace(case, dataset=samples))
    secs = time.perf_counter() - started - others_secs
    for stepper in steppers.values():
        while stepper.values is None:
            stepper.step()
    return {FASTCAP: (secs, values), **dict(_outcomes(steppers))}


def _outcomes(steppers: Mapping[str, Stepper]) -> Iterator[tuple[str, tuple[float, Values]]]:
    for way, stepper in steppers.items():
        assert stepper.values is not None
        yield way, (stepper.secs, stepper.values)
