"""The transfer of devices with nothing to overlap: one copy, in the hook, to where it is wanted.

What is wanted in a file is copied to owned memory in the hook, and written by a host worker.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice, Destination, HostBuffer, Ticket
from fastcap.errors import FastcapError
from fastcap.host_memory import HostBuffers, normal_mode
from fastcap.records import Statistics
from fastcap.transfer.base import Capture, Target, TooLateError, TransferCounters, without_frames
from fastcap.transfer.pinned_out import PinnedRows

QUEUED_BYTES = 256 << 20  # guessed: a second of a fast disk
"""How much may wait to be written to files."""


class SynchronousTransfer:
    """See `fastcap.transfer.base.Transfer`."""

    def __init__(self, device: AnyDevice, buffers: HostBuffers) -> None:
        self.device = self._device = device
        self._buffers = buffers
        self._counters = TransferCounters()
        self._queued: deque[tuple[Ticket, int]] = deque()
        self._queued_bytes = 0
        self._queue_lock = threading.Lock()
        self._is_closed = False

    def refuse_graphs(self) -> None:
        """There are none where nothing is queued."""

    def capture(
        self, value: Tensor, dtype: torch.dtype, target: Target | None, route: int
    ) -> Capture:
        capture = Capture(value.shape, dtype, dtype, route)
        if isinstance(target, PinnedRows):
            target = target.tensor
        try:
            memory = target if isinstance(target, Tensor) else None
            if memory is None and capture.n_bytes >= HostBuffers.SMALLEST_BYTES:
                memory = self._buffers.tensor(value.shape, dtype)
            if target is None or isinstance(target, Tensor):
                capture.target = self._device.place(value, dtype, memory)
            else:
                capture.target = self._place_aside(value, dtype, memory)
                self._hand_over(capture, target)
        except FastcapError as error:
            capture.error = without_frames(error)
            return capture
        self._counters.note(capture)
        return capture

    def drop(self, capture: Capture) -> None:
        if not capture.dropped:
            capture.dropped = True
            capture.target = None
            if not capture.was_read:
                self._counters.superseded_bytes += capture.n_bytes

    def _place_aside(self, value: Tensor, dtype: torch.dtype, memory: Tensor | None) -> Tensor:
        """Copy with this thread alone: torch's others would wait for cores that workers use."""
        is_plain = value.is_cpu and value.is_contiguous() and value.dtype == dtype
        if memory is None or not is_plain or value.is_conj() or value.is_neg():
            return self._device.place(value, dtype, memory)
        with normal_mode():
            source, target = (flat.view(-1).view(torch.uint8) for flat in (value, memory))
        np.copyto(target.numpy(), source.numpy())
        self._device.counters.copies += 1
        self._device.counters.copied_bytes += memory.nbytes
        return memory

    def _hand_over(self, capture: Capture, target: Destination) -> None:
        """Have a host worker bring a value from owned memory to a target that is none."""
        if self._is_closed:
            raise TooLateError
        memory = capture.target
        assert isinstance(memory, Tensor)
        with normal_mode():
            buffer = HostBuffer(memory.view(-1).view(torch.uint8))
        self._make_room(memory.nbytes)
        ticket = self._device.deliver(buffer, 0, capture.dtype, target, None, capture.route)
        capture.target = target
        capture.tickets.append(ticket)
        with self._queue_lock:
            self._queued.append((ticket, memory.nbytes))
            self._queued_bytes += memory.nbytes

    def _make_room(self, n_bytes: int) -> None:
        limit = min(QUEUED_BYTES, self._buffers.limit_bytes)
        while True:
            with self._queue_lock:
                if not self._queued:
                    return
                ticket, queued_bytes = self._queued[0]
                if self._queued_bytes + n_bytes <= limit and not ticket.done():
                    return
                self._queued.popleft()
                self._queued_bytes -= queued_bytes
            ticket.wait()  # back-pressure: the disk is behind. Its error is raised by `settle`

    def deliver(self, capture: Capture, target: Target | None = None, lend: bool = False) -> None:
        if target is None or capture.target is target or capture.tickets or capture.error:
            return
        if not isinstance(target, Tensor):
            self._hand_over(capture, target)
            return
        assert isinstance(capture.target, Tensor)
        target.copy_(capture.target)
        capture.target = target
        self._buffers.trim()  # with a target known from now on, owned memory is not needed again

    def result(self, capture: Capture, lend: bool = False) -> Tensor | None:
        capture.note_read()
        assert capture.target is None or isinstance(capture.target, Tensor)
        return capture.target

    def settle(self, capture: Capture) -> None:
        capture.note_read()
        for ticket in capture.tickets:
            ticket.wait()
            if (error := ticket.error()) is not None:
                raise error

    def flush(self) -> None:
        """Nothing is ever on its way."""

    def replan(self) -> None:
        """Nothing is planned: memory is taken by the value."""

    def statistics(self) -> Statistics:
        return self._counters.with_those_of(self._device)

    def close(self) -> None:
        self._is_closed = True
        self._device.close()
