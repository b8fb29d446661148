"""Runs queued operations when the schedule says so, or when somebody waits for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from fastcap.devices.simulated.schedule import Schedule
from fastcap.devices.simulated.streams import Mark, Operation, SimulatedStream


class StuckError(RuntimeError):
    """The engine asks and asks, and gets nowhere."""


class Runner:
    """The streams of one device, and what has become of them.

    Args:
        streams: Those there are from the start.
        schedule: Who runs when.
        patience: Calls into the device after which `StuckError` is raised; `None` for any number.
        muted: Hides what operations do from whoever watches the model.

    Attributes:
        lock: Held in every call into the device, and while operations run.
        n_steps: Operations run so far.
    """

    def __init__(
        self,
        streams: list[SimulatedStream],
        schedule: Schedule,
        patience: int | None,
        muted: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.streams = streams
        self.lock = threading.RLock()
        self.n_steps = 0
        self._schedule = schedule
        self._patience = patience
        self._muted = muted
        self._n_calls = 0
        self._is_running = False

    def give(
        self,
        stream: SimulatedStream,
        label: str,
        run: Callable[[], object],
        waits_for: Mark | None = None,
    ) -> None:
        """Add an operation that may run once `waits_for` is reached."""
        stream.pending.append(Operation(label, run, waits_for))

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """A call into the device: afterwards the schedule lets some operations run."""
        with self.lock:
            self._n_calls += 1
            if self._patience is not None and self._n_calls > self._patience:
                raise StuckError(f"still going after {self._patience} calls into the device")
            yield
            if not self._is_running:
                self._run_some()

    def _run_some(self) -> None:
        runnable = [stream for stream in self.streams if stream.is_runnable]
        while runnable:
            for stream in self._schedule.order(runnable):
                while stream.is_runnable and self._schedule.goes_on(stream):
                    self._step(stream)
            # What one stream did may have unblocked another; one that paused is not asked again.
            before, runnable = runnable, [stream for stream in self.streams if stream.is_runnable]
            if runnable == before:
                return

    def run_until(self, mark: Mark) -> None:
        """Run what `mark` needs and no more: everything else happens as late as it may."""
        with self.lock:
            while not mark.reached:
                stream = mark.stream
                while not stream.is_runnable:
                    blocker = stream.pending[0].waits_for if stream.pending else None
                    if blocker is None:
                        raise RuntimeError("simulated: a wait for something that nobody will do")
                    stream = blocker.stream
                self._step(stream)

    def _step(self, stream: SimulatedStream) -> None:
        operation = stream.pending.popleft()
        self.n_steps += 1
        self._schedule.note(f"{stream.name} {operation.label}")
        self._is_running = True
        try:
            with self._muted(), torch.inference_mode(False), torch.no_grad():
                operation.run()
        finally:
            self._is_running = False
