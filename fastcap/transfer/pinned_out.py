"""Rows of a result that copies can reach: from staging to where they stay, with no slot between.

A chunk holds pieces that go straight, or pieces for a slot, and never both: the first kind is
copied piece by piece, the second kind all at once.
"""

from __future__ import annotations

import queue
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice, HostBuffer
from fastcap.host_memory import normal_mode
from fastcap.transfer.base import Capture
from fastcap.transfer.pieces import Piece
from fastcap.transfer.pool import Chunk, Slot, StagingRing

PINNED_OUT_BYTES = 1 << 20
"""Below this a copy of its own takes the link longer than its bytes do."""

MANY_PIECES = 8
"""A record of which a chunk holds more does not go straight, either."""


class PinnedRows:
    """Rows in pinned memory: a `fastcap.devices.base.Destination` that copies can write."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def numel(self) -> int:
        return self.tensor.numel()

    def copy_(self, values: Tensor) -> None:
        self.tensor.copy_(values)

    def segment(self, first: int, last: int) -> PinnedRows:
        with normal_mode():
            return PinnedRows(self.tensor.view(-1)[first:last])

    def part(self, piece: Piece) -> HostBuffer:
        """The memory that a piece's bytes become."""
        with normal_mode():
            memory = self.tensor.view(-1).view(torch.uint8)
            return HostBuffer(memory[piece.start : piece.start + piece.n_bytes])


class Landing:
    """A ticket for what a copy brings straight to its rows; see `fastcap.devices.base.Ticket`."""

    __slots__ = ("_device", "_event", "_spare")

    def __init__(self, device: AnyDevice, event: Any, spare: queue.SimpleQueue[Any]) -> None:
        self._device = device
        self._spare = spare
        self._event = event

    def done(self) -> bool:
        return self._device.query(self._event)

    def wait(self) -> None:
        self._device.synchronize(self._event)

    def error(self) -> None:
        return None

    def __del__(self) -> None:
        # Nobody holds the ticket, so nobody will wait for its event: another copy may mark it. As
        # every finalizer it may run at any moment, and only puts (R6).
        self._spare.put(self._event)


class Landings:
    """Tickets for copies that go straight. An event is made only while all others are in use.

    Attributes:
        were_used: Whether any copy went straight.
    """

    def __init__(self, device: AnyDevice) -> None:
        self._device = device
        self.were_used = False
        self._spare: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def copy(self, chunk: Chunk) -> None:
        """Copy the pieces of a chunk to their rows; they are delivered when the landing is done.
        Under the transfer's lock.
        """
        self.were_used = True
        try:
            event = self._spare.get_nowait()
        except queue.Empty:
            event = self._device.event()
        copy_to_rows(self._device, chunk, event)
        landing = Landing(self._device, event, self._spare)
        for piece in chunk.reset():
            piece.owner.tickets.append(landing)
            piece.unlink()


def choose_way(capture: Capture, ring: StagingRing) -> None:
    """Settle how a capture will travel, by its size, its target and the chunks there are."""
    if isinstance(capture.target, PinnedRows):
        is_large = capture.n_bytes >= min(PINNED_OUT_BYTES, ring.chunk_bytes // MANY_PIECES)
        capture.is_pinned_out = is_large and capture.dtype == capture.wire_dtype
        if not capture.is_pinned_out:
            capture.target = capture.target.tensor
    # By the bytes that are delivered: all calls whose rows are the same go one way, in order.
    capture.is_small = capture.shape.numel() * capture.dtype.itemsize < ring.small_bytes
    capture.is_lendable = ring.chunk_bytes <= 2 * capture.n_bytes <= 2 * ring.chunk_bytes


def copy_to_rows(device: AnyDevice, chunk: Chunk, landed: Any) -> None:
    """Copy the pieces of a chunk to their rows, and mark an event when they are there."""
    pieces = list(chunk.pieces)
    after = chunk.record_packed()
    chunk.is_given = True
    for piece in pieces:
        target = piece.owner.target
        assert isinstance(target, PinnedRows)
        then = (landed, chunk.copied) if piece is pieces[-1] else ()
        device.copy(chunk.staging, target.part(piece), piece.n_bytes, after, then, piece.offset)
        after = []  # the others come after this one


def wait_for_copies(device: AnyDevice, chunk: Chunk, slot: Slot) -> None:
    """Block the host until no copy is under way, also where an interrupt came before its event.

    The rows are the caller's, who may free them next.
    """
    event = device.event()
    device.copy(chunk.staging, slot.buffer, 0, after=(), then=(event,))
    device.synchronize(event)
