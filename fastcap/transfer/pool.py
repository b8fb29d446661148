"""The memory of a transfer: staging chunks in a ring, slots in a pool, and leases on slots.

Pure bookkeeping over one device's buffers. Nothing here blocks the host. The transfer calls it
under its `_lock` (`reading` takes that itself): every arrow below is one step under the lock. A
Ctrl-C may come between any two lines: what belongs together is assigned in one statement that calls
nothing, and who holds a slot is never counted, but looked at.

A chunk is staging that hooks fill and a copy empties, to a slot or (`pinned_out`) straight to the
caller's rows. The ring has one open chunk at a time:

              reserve, pack                    full, or somebody flushes
    empty ───────────────────► filling ──────────────────────────────────► copying
      ▲ ▲                         │       record_packed: an event on each     │
      │ └── abandon: no piece ────┘       stream that packed (R2)             │
      │     is wanted any more                                                │
      └───────────────────────────────────────────────────────────────────────┘
        opened again, oldest copy first. The host does not wait for that copy: each stream
        that packs does (`open_to` has it wait for `copied`, R3). A chunk that is full while no
        slot is free stays open, and whoever packs next makes room first

A slot is pinned memory that one copy writes and the host reads:

             take               `landed` is done            nobody holds it
     free ──────────► copying ───────────────────► landed ───────────────────► free (R6)

    who holds a slot       known by        taken by                          given back by
    a value still wanted   `pieces`        the copy of its chunk             unlink, or a spill (R7)
    a host worker          `tickets`       _hand_over                        the ticket, when done
    a thread that reads    `being_read`    reading, around the bytes' move   the same, or the next
    a tensor of the user   `leases`        lend                              its end

A piece has one home: chunk, then slot, then perhaps memory that it was spilled to; `None` once it
was handed over, read or dropped. The pieces of a chunk move to a slot all at once. What goes on
without the lock changes nobody's home: streams run, in the order that events give them; workers and
threads read slots that they hold; and a lease is a weak reference, which ends on any thread (R6).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from fastcap.devices.base import AnyDevice, Bytes, HostBuffer, Staging, Ticket
from fastcap.errors import HostMemoryError
from fastcap.host_memory import bytes_tensor
from fastcap.transfer.budget import ALIGNMENT_BYTES
from fastcap.transfer.pieces import Load, Piece

Event: TypeAlias = Any
"""An event of the device at hand; opaque here."""


SMALL_BYTES = 1 << 17
"""Where giving a record to a host worker begins to cost the caller less than the copy would."""

MANY_RECORDS = 32
"""A record of which a chunk holds more is small, too."""


class Chunk:
    """A part of staging that is filled by packs and emptied by one copy.

    Attributes:
        is_pinned_out: Whether what it holds goes to rows of a result, by a copy for each piece.
        is_fleeting: Whether the stream it was last opened to may be ended by its owner.
        is_given: Whether a copy of it may be under way: an interrupt can come before `move_to`.
    """

    def __init__(self, device: AnyDevice, n_bytes: int) -> None:
        self._device = device
        self.n_bytes = n_bytes
        self.fill_bytes = 0
        self.is_pinned_out = False
        self.is_fleeting = False
        self.is_given = False
        self.pieces = Load(self)
        self.streams: dict[Hashable, Event] = {}
        self._is_recorded = False
        self._ended: list[Event] = []  # of streams that nothing may be asked of any more
        self._spare_events: list[Event] = [device.event()]
        # Recorded when the memory may be written again: first by the stream it was allocated on
        # (other streams know nothing of that allocation), then by every copy.
        self.copied: Event = device.event()
        try:
            self.staging: Staging = device.staging(n_bytes)
            device.record(self.copied, device.current_stream())
        except BaseException:
            if hasattr(self, "staging"):
                device.release(self.staging)
            raise

    def reserve(self, n_bytes: int) -> int | None:
        """Take the next `n_bytes`; returns their offset, or `None` when there is no room."""
        offset = self.fill_bytes + -self.fill_bytes % ALIGNMENT_BYTES
        end = offset + n_bytes
        if end > self.n_bytes:
            return None
        self.fill_bytes = end
        return offset

    def open_to(self, compute_stream: Hashable) -> None:
        """Let a stream pack here: the first time since the last copy, only after that copy (R3)."""
        self._is_recorded = False
        if compute_stream not in self.streams:
            self._device.wait_event(compute_stream, self.copied)
            event = self._spare_events.pop() if self._spare_events else self._device.event()
            self.is_fleeting = not self._device.lasts(compute_stream)
            self.streams[compute_stream] = event

    def close_to(self, compute_stream: Hashable) -> None:
        """Record an event behind a pack at once, and forget its stream: it may be gone when the
        chunk is copied, and a stream that has its handle by then is another.
        """
        self._device.record(self.streams[compute_stream], compute_stream)
        others = {other: event for other, event in self.streams.items() if other != compute_stream}
        ended = [*self._ended, self.streams[compute_stream]]
        self._ended, self.streams, self.is_fleeting = ended, others, False

    def record_packed(self) -> list[Event]:
        """An event behind the packs of every stream that packed here, whoever is asking (R2).

        Recorded when the chunk is full, even if no slot is free yet: later, it would come
        behind what the model has launched since, and the copy would wait for that.
        """
        if not self._is_recorded:
            for compute_stream, event in self.streams.items():
                self._device.record(event, compute_stream)
            self._is_recorded = True
        return [*self.streams.values(), *self._ended]

    def abandon(self) -> bool:
        """Start over without a copy, when nobody wants the packs of the one stream that packed, or
        an interrupt came before any did.
        """
        if self.pieces or len(self.streams) > 1 or self._ended or self.is_given:
            return False
        if self.streams:
            self._device.record(self.copied, next(iter(self.streams)))
        self.reset()
        return True

    def reset(self) -> list[Piece]:
        """Start over; returns the pieces that were here."""
        pieces, events = self.pieces, [*self.streams.values(), *self._ended]
        pieces.place, self.pieces, self.streams = None, Load(self), {}
        self._start_over(events)
        return list(pieces)

    def move_to(self, slot: Slot) -> list[Piece]:
        """Start over: a copy was given, and what was packed here lies in a slot. Until this one
        step the same copy may be given again, to any slot, and afterwards it is not.
        """
        pieces, events = self.pieces, [*self.streams.values(), *self._ended]
        slot.pieces, pieces.place, self.pieces, self.streams = pieces, slot, Load(self), {}
        self._start_over(events)
        return list(pieces)

    def _start_over(self, events: list[Event]) -> None:
        self.fill_bytes, self._ended, self.is_given = 0, [], False
        self._spare_events += events

    def release(self) -> None:
        self._device.release(self.staging, [*self.record_packed(), self.copied])
        self.pieces.place = None  # no cycle: memory goes with its last reference, and not later


class StagingRing:
    """Chunks used in turn. One is open to packs; the others are being copied, or are empty."""

    def __init__(self, device: AnyDevice, chunk_bytes: int, n_chunks: int) -> None:
        self._chunks: deque[Chunk] = deque()
        self.chunk_bytes = chunk_bytes
        self.small_bytes = min(SMALL_BYTES, chunk_bytes // MANY_RECORDS)
        try:
            self.extend(device, n_chunks)
        except BaseException:
            self.release()
            raise

    def extend(self, device: AnyDevice, n_chunks: int) -> None:
        """Add chunks, to be opened before those that are being copied."""
        for _ in range(n_chunks):
            self._chunks.insert(1, Chunk(device, self.chunk_bytes))

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def open(self) -> Chunk:
        return self._chunks[0]

    def advance(self) -> None:
        """Close the open chunk and open the one whose copy is the oldest."""
        self._chunks.rotate(-1)

    def release(self) -> None:
        """Give every chunk up, once or again: an interrupt may come in between."""
        for chunk in self._chunks:
            chunk.release()


class Slot:
    """One reusable host buffer: the destination of one copy."""

    def __init__(self, device: AnyDevice, n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.landed: Event = device.event()
        self.pieces = Load(self)
        self.tickets: list[Ticket] = []
        self.leases: list[Lease] = []
        self.buffer: HostBuffer = device.host(n_bytes)  # last: an interrupt must not lose it

    @property
    def is_lent(self) -> bool:
        return not all(lease.is_over for lease in self.leases)


@dataclass(slots=True, eq=False)
class Lease:
    """Bytes of a slot that are lent, while the array over them is held, or about to be."""

    offset: int
    n_bytes: int
    array_ref: weakref.ref[Bytes] | None = None

    @property
    def is_over(self) -> bool:
        return self.array_ref is None or self.array_ref() is None


@contextlib.contextmanager
def reading(
    pieces: Iterable[Piece], lock: threading.Lock, pool: SlotPool | None
) -> Iterator[list[tuple[Piece, Slot | HostBuffer]]]:
    """Pieces with their homes, whose slots are not reused until the block ends. For the thread that
    moves bytes: no other reads, so a mark that an interrupt has left means nothing.

    Args:
        pieces: Of one transfer.
        lock: The transfer's. It is not held in the block, which may wait (R11).
        pool: Of their slots; `None` where none is used again.
    """
    with lock:
        homes = [(piece, piece.home) for piece in pieces]
        placed = [(p, home) for p, home in homes if isinstance(home, Slot | HostBuffer)]
        if pool is not None:
            pool.being_read = frozenset(home for _, home in placed if isinstance(home, Slot))
    try:
        yield placed
    finally:
        if pool is not None:
            pool.being_read = frozenset()


class SlotPool:
    """The slots of a transfer, the least recently used first.

    Attributes:
        being_read: Those that the thread that moves bytes is reading now. No other thread reads.
    """

    def __init__(self, device: AnyDevice, n_bytes: int, n_slots: int) -> None:
        self._device = device
        self._slots: deque[Slot] = deque()
        self.being_read: frozenset[Slot] = frozenset()
        try:
            for _ in range(n_slots):
                self._slots.append(Slot(device, n_bytes))
        except HostMemoryError:
            if not self._slots:
                raise  # else: fewer slots are slower, and as exact
        except BaseException:
            self.release()
            raise

    def __len__(self) -> int:
        return len(self._slots)

    def all(self) -> tuple[Slot, ...]:
        return tuple(self._slots)

    def add(self, slot: Slot) -> None:
        """One more slot, to be taken next, if it is not here."""
        if slot not in self._slots:
            self._slots.appendleft(slot)

    def any_lent(self) -> bool:
        return any(slot.is_lent for slot in self._slots)

    def all_reusable(self) -> bool:
        self.collect_returned()
        return all(self.is_reusable(slot) for slot in self._slots)

    def is_reusable(self, slot: Slot) -> bool:
        """Landed, delivered and neither lent nor being read (R6)."""
        return (
            not slot.pieces
            and not slot.leases
            and slot not in self.being_read
            and all(ticket.done() for ticket in slot.tickets)
            and self._device.query(slot.landed)
        )

    def take(self) -> Slot | None:
        """A slot for the next copy, or `None` when every slot is in use."""
        self.collect_returned()
        for slot in self._slots:
            if self.is_reusable(slot):
                self._slots = deque((*(other for other in self._slots if other is not slot), slot))
                slot.tickets.clear()
                return slot
        return None

    def victim(self) -> Slot | None:
        """The slot to empty when none is free: one that only has to be waited for if there is
        one, else the oldest that is not lent. `None` when one has become free meanwhile.
        """
        self.collect_returned()
        usable = [slot for slot in self._slots if not slot.is_lent]
        if any(self.is_reusable(slot) for slot in usable):
            return None
        return min(usable, key=lambda slot: bool(slot.pieces))

    def next_to_land(self) -> Slot | None:
        """The oldest slot whose copy is under way; `None` when every copy has landed."""
        return next((slot for slot in self._slots if not self._device.query(slot.landed)), None)

    # Leases

    def is_last(self, slot: Slot) -> bool:
        """Whether no other slot would stay for the copies, if this one were lent."""
        return not slot.is_lent and sum(not other.is_lent for other in self._slots) == 1

    def may_lend(self, slot: Slot, n_bytes: int) -> bool:
        """Whether a record is worth a whole slot, and another slot stays for the copies."""
        return 2 * n_bytes >= slot.n_bytes and not self.is_last(slot)

    def lend(self, slot: Slot, offset: int, n_bytes: int) -> Tensor:
        """The bytes as a uint8 tensor whose storage, while anybody holds it, holds the slot."""
        lease = Lease(offset, n_bytes)
        slot.leases.append(lease)
        array = self._device.lend(slot.buffer, offset, n_bytes)
        lease.array_ref = weakref.ref(array)
        return bytes_tensor(array)

    def collect_returned(self) -> None:
        """Account for the leases that nobody holds any more, in slots that hold nothing else: after
        an interrupt, what was about to be lent is still wanted.
        """
        for slot in [each for each in self._slots if each.leases and not each.pieces]:
            for lease in [each for each in slot.leases if each.is_over]:
                self._device.take_back(slot.buffer, lease.offset, lease.n_bytes)
                slot.leases.remove(lease)

    def release(self) -> None:
        """Give every slot up, once or again: an interrupt may come in between. A slot that is still
        lent lives as long as its last reader.
        """
        for slot in self._slots:
            self._device.release(slot.buffer, [slot.landed])
            slot.pieces.place = None
