"""Devices that note when they do what they are asked, for a timeline of a run.

A stamp is a moment on a stream that may not have come yet: an event on an accelerator, a number on
the CPU and on the virtual clock. Stamps become seconds when the run is over. Recording costs a
little, so timelines are made in a run of their own and are not a measurement of overhead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastcap import devices
from fastcap.bench.case import Case
from fastcap.bench.timeline import (
    COMPUTE_STREAM,
    COPY,
    COPY_STREAM,
    DELIVER,
    FORWARD,
    HOST,
    MODEL_THREAD,
    PACK,
    WAIT,
    Span,
    Timeline,
    between,
)
from fastcap.devices.accelerator import AcceleratorDevice
from fastcap.devices.base import Destination, HostBuffer, Staging, Ticket
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from fastcap.devices.simulated import timed as virtual
from fastcap.records import Statistics
from fastcap.streaming import stream

Stamp = Callable[[], float]
"""Seconds on the recorder's clock; asked when the run is over."""


@dataclass(frozen=True, slots=True)
class _Noted:
    start: Stamp
    end: Stamp
    stream: str
    kind: str
    n_bytes: int

    def span(self, started: float) -> Span:
        start, end = self.start() - started, self.end() - started
        return Span(start, max(start, end), self.stream, self.kind, self.n_bytes)


class Recorder:
    """What a recording device writes to, from any thread."""

    def __init__(self) -> None:
        self._noted: list[_Noted] = []
        self._passes: list[_Noted] = []
        self._lock = threading.Lock()

    def note(self, start: Stamp, end: Stamp, stream: str, kind: str, n_bytes: int = 0) -> None:
        """Remember a piece of work."""
        noted = _Noted(start, end, stream, kind, n_bytes)
        with self._lock:
            (self._passes if kind == FORWARD else self._noted).append(noted)

    def timeline(self, clock: str, first_pass: int = 0) -> Timeline:
        """What began since a pass did, when all of it is over. Packs and copies in the hook are
        cut out of the passes they lie in.
        """
        starts = [noted.start() for noted in self._passes + self._noted]
        started = self._passes[first_pass].start() if self._passes else min(starts, default=0.0)
        others = [noted.span(started) for noted in self._noted]
        spans = [span for span in others if span.secs > 0]
        for noted in self._passes:
            whole = noted.span(started)
            spans += between(whole, [span for span in others if span.stream == whole.stream])
        return Timeline(tuple(sorted(span for span in spans if span.start_secs >= 0)), clock)


def _now() -> Stamp:
    secs = time.perf_counter()
    return lambda: secs


class RecordingCpu(SynchronousDevice):
    """The copy in the hook, on the model's thread."""

    forward_stream = MODEL_THREAD

    def __init__(self, torch_device: torch.device, recorder: Recorder) -> None:
        super().__init__(torch_device)
        self._recorder = recorder

    def stamp(self) -> Stamp:
        return _now()

    def place(self, value: Tensor, dtype: torch.dtype, target: Tensor | None = None) -> Tensor:
        start = _now()
        placed = super().place(value, dtype, target)
        self._recorder.note(start, _now(), MODEL_THREAD, COPY, placed.nbytes)
        return placed


class RecordingAccelerator(AcceleratorDevice):
    """Packs and copies between timing events; deliveries and waits on the host's clock."""

    forward_stream = COMPUTE_STREAM

    def __init__(self, torch_device: torch.device, recorder: Recorder) -> None:
        super().__init__(torch_device)
        self._recorder = recorder
        self._base = self._can.new_timing_event(self.torch_device)
        self._base.record(self.current_stream())
        self._base.synchronize()
        self._base_secs = time.perf_counter()

    def stamp(self) -> Stamp:
        return self._stamp_on(self.current_stream())

    def _stamp_on(self, stream: Any) -> Stamp:
        event = self._can.new_timing_event(self.torch_device)
        event.record(stream)

        def secs() -> float:
            event.synchronize()
            return self._base_secs + float(self._base.elapsed_time(event)) / 1e3

        return secs

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        start = self.stamp()
        super().pack(value, staging, offset, dtype)
        n_bytes = value.numel() * dtype.itemsize
        self._recorder.note(start, self.stamp(), COMPUTE_STREAM, PACK, n_bytes)

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[Any],
        then: Iterable[Any],
        offset: int = 0,
    ) -> None:
        for event in after:  # before the stamp: waiting is not copying
            self._copy_stream.wait_event(event)
        start = self._stamp_on(self._copy_stream)
        super().copy(staging, target, n_bytes, (), then, offset)
        end = self._stamp_on(self._copy_stream)
        self._recorder.note(start, end, COPY_STREAM, COPY, n_bytes)

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        start = _now()
        super().read(slot, offset, dtype, target)
        self._recorder.note(start, _now(), HOST, DELIVER, target.nbytes)

    def _read_after(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: Any,
    ) -> None:
        if after is not None:  # before the stamp: waiting is not delivering
            self._block_until(after)
        start = _now()
        super()._read_after(slot, offset, dtype, target, None)
        name = threading.current_thread().name  # fastcap-worker-0_0
        stream = name.removeprefix("fastcap-").removesuffix("_0").replace("-", " ")
        self._recorder.note(start, _now(), stream, DELIVER, target.nbytes)

    def synchronize(self, event: Any) -> None:
        start = _now()
        super().synchronize(event)
        self._recorder.note(start, _now(), HOST, WAIT)


class RecordingTwin(TimedDevice):
    """A device with a virtual clock, whose spans are known when work is issued.

    Args:
        costs: The machine's rates.

    Examples:
        >>> import torch
        >>> from fastcap.bench import RecordingTwin, make_case, record_timeline
        >>> twin = RecordingTwin()
        >>> class Layer(torch.nn.Module):
        ...     def forward(self, acts):
        ...         twin.launch(0.25)  # what the layer takes on the machine
        ...         return acts
        >>> case = make_case(torch.nn.Sequential(Layer()), [torch.zeros(4, 8)], ["0"])
        >>> timeline, statistics = record_timeline(case, twin)
        >>> sorted({span.kind for span in timeline.spans}), timeline.busy_secs("forward")
        (['copy', 'deliver', 'forward', 'pack', 'wait'], 0.25)
    """

    forward_stream = COMPUTE_STREAM

    def __init__(self, costs: SimulatedCosts | None = None) -> None:
        super().__init__(costs)
        self._recorder = Recorder()

    def record_into(self, recorder: Recorder) -> None:
        """Note everything from here on."""
        self._recorder = recorder

    def stamp(self) -> Stamp:
        secs = max(self.host_secs, self.compute.free_at)
        return lambda: secs

    def _note(self, timeline: virtual.TimedStream, secs: float, *what: Any) -> None:
        end = timeline.free_at
        self._recorder.note(lambda: end - secs, lambda: end, *what)

    def launch(self, secs: float, host_secs: float = 0.0) -> None:
        super().launch(secs, host_secs)
        self._note(self.compute, secs, COMPUTE_STREAM, FORWARD)

    def pack(self, value: Tensor, staging: Staging, offset: int, dtype: torch.dtype) -> None:
        super().pack(value, staging, offset, dtype)
        n_bytes = value.numel() * dtype.itemsize
        secs = self.costs.launch_secs + (value.nbytes + n_bytes) / self.costs.memory_bytes_per_sec
        self._note(self.compute, secs, COMPUTE_STREAM, PACK, n_bytes)

    def copy(
        self,
        staging: Staging,
        target: HostBuffer,
        n_bytes: int,
        after: Iterable[virtual.Moment],
        then: Iterable[virtual.Moment],
        offset: int = 0,
    ) -> None:
        super().copy(staging, target, n_bytes, after, then, offset)
        secs = self.costs.copy_latency_secs + n_bytes / self.costs.link_bytes_per_sec
        self._note(self.copy_stream, secs, COPY_STREAM, COPY, n_bytes)

    def deliver(
        self,
        slot: HostBuffer,
        offset: int,
        dtype: torch.dtype,
        target: Tensor | Destination,
        after: virtual.Moment | None,
        worker: int,
    ) -> Ticket:
        ticket = super().deliver(slot, offset, dtype, target, after, worker)
        number = worker % len(self.workers)
        secs = target.nbytes / self.costs.host_bytes_per_sec
        self._note(self.workers[number], secs, f"worker {number}", DELIVER, target.nbytes)
        return ticket

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        start = self.host_secs
        super().read(slot, offset, dtype, target)
        end = self.host_secs
        self._recorder.note(lambda: start, lambda: end, HOST, DELIVER, target.nbytes)

    def _wait_until(self, at: float) -> None:
        start = self.host_secs
        super()._wait_until(at)
        end = self.host_secs
        self._recorder.note(lambda: start, lambda: end, HOST, WAIT)


Recording = RecordingCpu | RecordingAccelerator | RecordingTwin


def record_timeline(case: Case, twin: RecordingTwin | None = None) -> tuple[Timeline, Statistics]:
    """Run a case's batches through fastcap, and record what runs when.

    The first batch is passed once more before, and that pass is left out: memory is sized then.

    Args:
        case: What to capture.
        twin: A virtual device that the model's values live on, instead of the real one. The model
            says what its layers cost with `twin.launch`; passes are not noted beside that, and none
            is left out.

    Returns:
        The timeline, and what the stream counted, first pass included.
    """
    recorder = Recorder()
    device = twin or _open_recording(torch.empty(0, device=case.device).device, recorder)
    if twin is not None:
        twin.record_into(recorder)

    def open_it(torch_device: torch.device) -> Recording | None:
        own = device.torch_device  # with an index, which a value on the CPU has not
        is_own = torch_device.type == own.type and torch_device.index in (None, own.index)
        return device if is_own else None

    def forward(model: torch.nn.Module, batch: Any) -> None:
        start = device.stamp()
        case.call(case.call.prepare(batch))
        if twin is None:
            recorder.note(start, device.stamp(), device.forward_stream, FORWARD)

    batches = [*case.batches[: 0 if twin else 1], *case.batches]
    with (
        devices.substitute(open_it),
        stream(
            case.model, batches, case.sites, device=case.device, forward=forward, **case.options
        ) as run,
    ):
        for _ in run:
            pass
        statistics = run.statistics()
    if twin is not None:
        return recorder.timeline("a virtual clock"), statistics
    return recorder.timeline("this machine", first_pass=1), statistics


def _open_recording(
    torch_device: torch.device, recorder: Recorder
) -> RecordingCpu | RecordingAccelerator:
    if torch_device.type in ("cpu", "mps"):
        return RecordingCpu(torch_device, recorder)
    return RecordingAccelerator(torch_device, recorder)
