"""Devices that tests run on: what is here, what is simulated, and a stand-in for streams."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fastcap.devices import accelerator
from fastcap.devices.accelerator import Abilities, AcceleratorDevice
from fastcap.devices.base import AnyDevice
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice


@dataclass(eq=False)
class LoggedStream:
    """A stream on which everything has run as soon as it is issued, and which writes a log."""

    name: str
    log: list[str]

    def wait_event(self, event: LoggedEvent) -> None:
        self.log.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")

    def query(self) -> bool:
        return True


@dataclass(eq=False)
class LoggedEvent:
    """An event on such a stream."""

    name: str
    log: list[str]
    recorded_on: list[str] = field(default_factory=list)
    secs: float = 0.0

    def record(self, stream: LoggedStream) -> None:
        self.secs = time.perf_counter()
        self.recorded_on.append(stream.name)
        self.log.append(f"{self.name} on {stream.name}")

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: LoggedEvent) -> float:
        return 1e3 * (later.secs - self.secs)  # milliseconds, as torch has it

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class LoggedStreams:
    """Streams and events of a pretended accelerator whose memory is the CPU's."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.default = LoggedStream("default", self.log)
        self.current = self.default
        self.current_index = 0
        self.fleeting: list[LoggedStream] = []
        self._n_events = 0
        self._n_streams = 0

    def abilities(self) -> Abilities:
        return Abilities(
            new_stream=self._new_stream,
            new_event=self._new_event,
            new_timing_event=self._new_event,
            current_stream=lambda device: self.current,
            lasting_stream=lambda device: self.default,
            lasts=lambda stream: stream not in self.fleeting,
            use_stream=self._use,
            current_index=lambda: self.current_index,
            set_index=lambda index: self.log.append(f"thread begins on device {index}"),
            use_index=self._use_index,
            new_pinned=lambda n_bytes: torch.empty(n_bytes, dtype=torch.uint8),
            free_bytes=lambda device: 1 << 30,
            is_capturing=lambda: False,
        )

    def _new_stream(self, device: torch.device) -> LoggedStream:
        self._n_streams += 1
        return LoggedStream(f"copy stream {self._n_streams}", self.log)

    def _new_event(self, device: torch.device) -> LoggedEvent:
        self._n_events += 1
        return LoggedEvent(f"event {self._n_events}", self.log)

    @contextlib.contextmanager
    def _use_index(self, index: int) -> Iterator[None]:
        before, self.current_index = self.current_index, index
        self.log.append(f"to device {index}")
        try:
            yield
        finally:
            self.current_index = before
            self.log.append(f"back to device {before}")

    @contextlib.contextmanager
    def _use(self, stream: LoggedStream) -> Iterator[None]:
        before, self.current = self.current, stream
        self.log.append(f"enter {stream.name}")
        try:
            yield
        finally:
            self.current = before
            self.log.append(f"leave {stream.name}")


@contextlib.contextmanager
def logged_accelerator(streams: LoggedStreams) -> Iterator[AcceleratorDevice]:
    """The real accelerator device, over pretended streams."""
    accelerator._copy_stream.cache_clear()
    accelerator.ABILITIES["cpu"] = streams.abilities()
    try:
        yield AcceleratorDevice(torch.device("cpu"))
    finally:
        del accelerator.ABILITIES["cpu"]
        accelerator._copy_stream.cache_clear()


@contextlib.contextmanager
def _plain(make: Callable[[], AnyDevice]) -> Iterator[AnyDevice]:
    yield make()


def _simulated(kind: str) -> AnyDevice:
    return SimulatedDevice(Schedule(kind, seed=1))


def open_devices() -> dict[str, Callable[[], Any]]:
    """Every kind of device the contract is checked on, as context managers by name."""
    kinds: dict[str, Callable[[], Any]] = {
        "cpu": lambda: _plain(lambda: SynchronousDevice(torch.device("cpu"))),
        "logged accelerator": lambda: logged_accelerator(LoggedStreams()),
    }
    for kind in (*EXTREMES, "random"):
        kinds[f"simulated {kind}"] = partial(_plain, partial(_simulated, kind))
    if torch.cuda.is_available():
        kinds["cuda"] = lambda: _plain(lambda: AcceleratorDevice(torch.device("cuda", 0)))
    return kinds
