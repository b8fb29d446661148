"""What a transfer is: the way from a value on one device to host memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice, Destination, HostBuffer, Ticket
from fastcap.host_memory import normal_mode
from fastcap.records import Statistics
from fastcap.transfer.pool import Piece

Target: TypeAlias = Tensor | Destination
"""Where a value is delivered."""


NO_GRAPHS = (
    "A CUDA graph is being captured, and fastcap cannot capture activations inside one: a replay "
    "runs no hooks. Disable the store around the graph's capture."
)


class Capture:
    """One captured value on its way to host memory.

    Attributes:
        shape: The shape after selection.
        wire_dtype: The dtype of the captured bytes: what the module produced, or what was asked
            for if that is not wider.
        dtype: The dtype to deliver.
        n_bytes: Bytes in `wire_dtype`.
        pieces: Where the bytes are, while they are not yet delivered.
        target: Where they are delivered: the caller's rows, owned memory, or a file.
        tickets: Deliveries to `target` that host workers have been given.
        spilled: Memory for the whole value, once a piece of it had to leave its slot.
        route: Captures with one route are delivered in order.
        is_lendable: Whether it fills enough of a slot to be lent out of it.
        is_pinned_out: Whether copies bring it to its rows, with no slot between.
        is_small: Whether it is not worth a host worker: whoever asks for it reads it.
        was_read: Whether somebody has asked for the value.
        dropped: Whether nobody wants the value any more.
        error: Why the value could not be captured; raised to whoever asks for it (R9).
        lengths: Of ragged values, how many rows each sample has.
    """

    # Of the class until they are set: one is made in every hook, and most never change.
    spilled: HostBuffer | None = None
    is_pinned_out = False
    is_small = False
    is_lendable = False
    was_read = False
    dropped = False
    error: Exception | None = None
    lengths: tuple[int, ...] | None = None

    def __init__(
        self,
        shape: torch.Size,
        wire_dtype: torch.dtype,
        dtype: torch.dtype,
        route: int,
        target: Target | None = None,
    ) -> None:
        self.shape = shape
        self.wire_dtype = wire_dtype
        self.dtype = dtype
        self.n_bytes = shape.numel() * wire_dtype.itemsize
        self.route = route
        self.target = target
        self.pieces: list[Piece] = []
        self.tickets: list[Ticket] = []

    def note_read(self) -> None:
        """Somebody asks for the value.

        Raises:
            Its `error`.
        """
        if self.error is not None:
            raise without_frames(self.error)
        self.was_read = True

    @property
    def wants_worker(self) -> bool:
        """Whether its target is known, and not for whoever asks for the value to fill."""
        is_for_worker = not (self.is_small and isinstance(self.target, Tensor))
        return self.target is not None and is_for_worker

    @property
    def is_delivered(self) -> bool:
        """Whether every byte that was captured is where `target` says."""
        return not self.pieces and all(ticket.done() for ticket in self.tickets)


@dataclass(slots=True)
class TransferCounters:
    """What a transfer has done; `Statistics` explains each field."""

    captures: int = 0
    captured_bytes: int = 0
    superseded_bytes: int = 0
    spills: int = 0
    spilled_bytes: int = 0
    lends: int = 0

    def note(self, capture: Capture) -> None:
        self.captures += 1
        self.captured_bytes += capture.n_bytes

    def with_those_of(self, device: AnyDevice, memory: tuple[str, ...] = ()) -> Statistics:
        return Statistics(**asdict(self), **asdict(device.counters), memory=memory)


class Transfer(Protocol):
    """The verbs the engine uses, whatever the device.

    `capture` is called in hooks; everything else anywhere, from any thread, also inside a pass.
    """

    @property
    def device(self) -> AnyDevice:
        """Where this transfer's values come from."""

    def refuse_graphs(self) -> None:
        """Asked before anything else is done with a value: a graph that is being recorded would
        record it, or break.

        Raises:
            DeviceError: The model's work is being recorded, and not run.
        """

    def capture(
        self, value: Tensor, dtype: torch.dtype, target: Target | None, route: int
    ) -> Capture:
        """Take the bytes of `value` as they are now.

        Args:
            value: A detached strided tensor on the transfer's device.
            dtype: The dtype to deliver.
            target: Where to deliver it if that is known already: contiguous, of the value's shape.
            route: Captures with one route are delivered in order.
        """

    def drop(self, capture: Capture) -> None:
        """Nobody wants this value any more. May be called twice."""

    def deliver(self, capture: Capture, target: Target | None = None, lend: bool = False) -> None:
        """Start delivery, to `target` or to owned memory; `result` and `settle` finish it.

        Args:
            capture: What to deliver.
            target: Where to, if that was not known when it was captured.
            lend: Whether `result` will be asked to lend it: then it stays where it is, if it can.
        """

    def settle(self, capture: Capture) -> None:
        """Wait until a value is where `deliver` was told to bring it.

        Raises:
            The capture's `error`, or that of a delivery.
        """

    def result(self, capture: Capture, lend: bool = False) -> Tensor | None:
        """The value in host memory: delivered, or lent out of a slot; `None` when dropped. Not for
        values whose target is not a memory.

        Raises:
            The capture's `error`.
        """

    def flush(self) -> None:
        """Put everything captured so far on its way."""

    def replan(self) -> None:
        """Size the memory for what one pass has shown. Effective once."""

    def statistics(self) -> Statistics:
        """What this transfer has done so far."""

    def close(self) -> None:
        """Finish deliveries and give all memory back. Undelivered values are dropped."""


def without_frames(error: Exception) -> Exception:
    """The error without tracebacks: kept beside a value, it must not keep the model's values."""
    part: BaseException | None = error
    while part is not None:
        part.__traceback__ = None
        part = part.__cause__ or part.__context__
    return error


def wire_dtype_for(produced: torch.dtype, wanted: torch.dtype) -> torch.dtype:
    """The dtype that crosses the link: narrowing happens before the copy, widening after."""
    return wanted if wanted is produced or wanted.itemsize <= produced.itemsize else produced


def part_of(target: Target | None, piece: Piece) -> Target:
    """The part of a capture's target that a piece's bytes become."""
    assert target is not None
    if piece.n_bytes == piece.owner.n_bytes:
        return target
    itemsize = piece.owner.wire_dtype.itemsize
    first, last = piece.start // itemsize, (piece.start + piece.n_bytes) // itemsize
    if not isinstance(target, Tensor):
        return target.segment(first, last)
    with normal_mode():
        return target.view(-1)[first:last]


def as_read(value: Tensor) -> Tensor:
    """The value in memory of its own, where its memory holds others than are read from it.

    Which NaN a negated NaN becomes is the kernel's choice, and a GPU has several, by size and
    alignment. Negated whole and once, a value does not depend on how it is cut.
    """
    if value.is_conj() or value.is_neg():
        return value.resolve_conj().resolve_neg()
    return value


def split(value: Tensor, capture: Capture, most_bytes: int) -> Iterator[tuple[Tensor, Piece]]:
    """A value as pieces of at most `most_bytes`, in order."""
    if capture.n_bytes <= most_bytes:
        yield value, Piece(capture, 0, capture.n_bytes)
        return
    flat = value.reshape(-1)  # dense: a view where it can be, else a copy on the same stream
    itemsize = capture.wire_dtype.itemsize
    step = most_bytes // itemsize
    for first in range(0, flat.numel(), step):
        part = flat[first : first + step]
        yield part, Piece(capture, first * itemsize, part.numel() * itemsize)
