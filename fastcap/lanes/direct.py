"""The lane of devices with nothing to overlap: one copy, in the hook, to where it is wanted."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice
from fastcap.errors import FastcapError
from fastcap.lanes.base import Capture, without_frames
from fastcap.pool import HostBuffers
from fastcap.records import Statistics


class DirectLane:
    """See `fastcap.lanes.base.Lane`."""

    def __init__(self, device: AnyDevice, buffers: HostBuffers) -> None:
        self._device = device
        self._buffers = buffers
        self._n_captures = 0
        self._captured_bytes = 0
        self._superseded_bytes = 0

    @property
    def device(self) -> AnyDevice:
        return self._device

    def capture(
        self, value: Tensor, dtype: torch.dtype, target: Tensor | None, route: int
    ) -> Capture:
        capture = Capture(value.shape, dtype, dtype, route)
        try:
            if target is None and capture.n_bytes >= HostBuffers.SMALLEST_BYTES:
                target = self._buffers.tensor(value.shape, dtype)
            capture.target = self._device.place(value, dtype, target)
        except FastcapError as error:
            capture.error = without_frames(error)
            return capture
        self._n_captures += 1
        self._captured_bytes += capture.n_bytes
        return capture

    def drop(self, capture: Capture) -> None:
        if not capture.dropped:
            capture.dropped = True
            capture.target = None
            if not capture.was_read:
                self._superseded_bytes += capture.n_bytes

    def deliver(self, capture: Capture, target: Tensor | None = None, lend: bool = False) -> None:
        if target is None or capture.target is target or capture.error:
            return
        assert capture.target is not None
        target.copy_(capture.target)
        capture.target = target
        self._buffers.trim()  # with a target known from now on, owned memory is not needed again

    def result(self, capture: Capture, lend: bool = False) -> Tensor | None:
        if capture.error is not None:
            raise without_frames(capture.error)
        capture.was_read = True
        return capture.target

    def flush(self) -> None:
        """Nothing is ever on its way."""

    def replan(self) -> None:
        """Nothing is planned: memory is taken by the value."""

    def statistics(self) -> Statistics:
        return Statistics(
            captures=self._n_captures,
            captured_bytes=self._captured_bytes,
            superseded_bytes=self._superseded_bytes,
            **dataclasses.asdict(self._device.counters),
        )

    def close(self) -> None:
        self._device.close()
