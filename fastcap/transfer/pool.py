"""The memory of a transfer: staging chunks in a ring, slots in a pool, and leases on slots.

Pure bookkeeping over one device's buffers. Nothing here blocks the host. The transfer calls it
under its `_lock` (`reading` takes that itself): every arrow below is one step under the lock.

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

    who holds a slot       counted by      taken by                          given back by
    a value still wanted   `pieces`        the copy of its chunk             unlink, or a spill (R7)
    a host worker          `tickets`       _hand_over                        the ticket, when done
    a thread that reads    `n_readers`     reading, around the bytes' move   the same
    a tensor of the user   `n_leases`      lend                              collect_returned

A piece has one home: chunk, then slot, then perhaps memory that it was spilled to; `None` once it
was handed over, read or dropped. What goes on without the lock changes nobody's home: streams run,
in the order that events give them; workers and threads read slots that they hold; and the finalizer
of a lease, on any thread, puts into a `SimpleQueue` (R6).
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeAlias

from torch import Tensor

from fastcap.devices.base import AnyDevice, HostBuffer, Staging, Ticket
from fastcap.errors import HostMemoryError
from fastcap.host_memory import bytes_tensor
from fastcap.transfer.budget import ALIGNMENT_BYTES

Event: TypeAlias = Any
"""An event of the device at hand; opaque here."""


SMALL_BYTES = 1 << 17
"""Where giving a record to a host worker begins to cost the caller less than the copy would."""

MANY_RECORDS = 32
"""A record of which a chunk holds more is small, too."""


class Piece:
    """A run of one capture's bytes: a whole record, or a part of one that exceeds a chunk.

    Attributes:
        owner: The capture the bytes belong to.
        start: Where the run starts among the capture's bytes.
        n_bytes: Its length.
        home: The chunk, the slot or the spill memory that holds it now; `None` when dropped.
        offset: Where it starts in its home.
    """

    __slots__ = ("home", "n_bytes", "offset", "owner", "start")

    def __init__(self, owner: Any, start: int, n_bytes: int) -> None:
        self.owner = owner
        self.start = start
        self.n_bytes = n_bytes
        self.home: Chunk | Slot | HostBuffer | None = None
        self.offset = 0

    def unlink(self) -> None:
        """Take it out of its home and from its owner. Under the transfer's lock."""
        home, self.home = self.home, None
        if home is not None and not isinstance(home, HostBuffer):
            home.pieces.pop(self, None)
        if self in self.owner.pieces:  # else another thread was first
            self.owner.pieces.remove(self)


class Chunk:
    """A part of staging that is filled by packs and emptied by one copy.

    Attributes:
        is_pinned_out: Whether what it holds goes to rows of a result, by a copy for each piece.
        is_fleeting: Whether the stream it was last opened to may be ended by its owner.
    """

    def __init__(self, device: AnyDevice, n_bytes: int) -> None:
        self._device = device
        self.staging: Staging = device.staging(n_bytes)
        self.n_bytes = n_bytes
        self.fill_bytes = 0
        self.is_pinned_out = False
        self.is_fleeting = False
        self.pieces: dict[Piece, None] = {}
        self.streams: dict[Hashable, Event] = {}
        self._is_recorded = False
        self._ended: list[Event] = []  # of streams that nothing may be asked of any more
        self._spare_events: list[Event] = [device.event()]
        # Recorded when the memory may be written again: first by the stream it was allocated on
        # (other streams know nothing of that allocation), then by every copy.
        self.copied: Event = device.event()
        device.record(self.copied, device.current_stream())

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
            self.streams[compute_stream] = event
            self.is_fleeting = not self._device.lasts(compute_stream)

    def close_to(self, compute_stream: Hashable) -> None:
        """Record an event behind a pack at once, and forget its stream: it may be gone when the
        chunk is copied, and a stream that has its handle by then is another.
        """
        event = self.streams.pop(compute_stream)
        self._device.record(event, compute_stream)
        self._ended.append(event)
        self.is_fleeting = False

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
        """Start over without a copy, when nobody wants the packs of the one stream that packed."""
        if self.pieces or len(self.streams) != 1 or self._ended:
            return False
        self._device.record(self.copied, next(iter(self.streams)))
        self.reset()
        return True

    def reset(self) -> None:
        self.fill_bytes = 0
        self.pieces.clear()
        self._spare_events += [*self.streams.values(), *self._ended]
        self.streams.clear()
        self._ended.clear()

    def release(self) -> None:
        self._device.release(self.staging, [*self.record_packed(), self.copied])


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
        for chunk in self._chunks:
            chunk.release()
        self._chunks.clear()


class Slot:
    """One reusable host buffer: the destination of one copy."""

    def __init__(self, device: AnyDevice, n_bytes: int) -> None:
        self.buffer: HostBuffer = device.host(n_bytes)
        self.n_bytes = n_bytes
        self.landed: Event = device.event()
        self.pieces: dict[Piece, None] = {}
        self.tickets: list[Ticket] = []
        self.n_leases = 0
        self.n_readers = 0


@contextlib.contextmanager
def reading(
    pieces: Iterable[Piece], lock: threading.Lock
) -> Iterator[list[tuple[Piece, Slot | HostBuffer]]]:
    """Pieces with their homes, whose slots are not reused until the block ends.

    Args:
        pieces: Of one transfer.
        lock: The transfer's. It is not held in the block, which may wait (R11).
    """
    with lock:
        homes = [(piece, piece.home) for piece in pieces]
        placed = [(p, home) for p, home in homes if isinstance(home, Slot | HostBuffer)]
        slots = {home for _, home in placed if isinstance(home, Slot)}
        for slot in slots:
            slot.n_readers += 1
    try:
        yield placed
    finally:
        with lock:
            for slot in slots:
                slot.n_readers -= 1


Lease: TypeAlias = tuple[Slot, int, int]
"""A slot, and the offset and length of the bytes that are lent."""


class SlotPool:
    """The slots of a transfer, the least recently used first."""

    def __init__(self, device: AnyDevice, n_bytes: int, n_slots: int) -> None:
        self._device = device
        self._slots: deque[Slot] = deque()
        self._returned: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        for _ in range(n_slots):
            try:
                self._slots.append(Slot(device, n_bytes))
            except HostMemoryError:
                if not self._slots:
                    raise
                break  # fewer slots are slower, and as exact

    def __len__(self) -> int:
        return len(self._slots)

    def all(self) -> tuple[Slot, ...]:
        return tuple(self._slots)

    def add(self, slot: Slot) -> None:
        """One more slot, to be taken next."""
        self._slots.appendleft(slot)

    def any_lent(self) -> bool:
        self.collect_returned()
        return any(slot.n_leases for slot in self._slots)

    def all_reusable(self) -> bool:
        self.collect_returned()
        return all(self.is_reusable(slot) for slot in self._slots)

    def is_reusable(self, slot: Slot) -> bool:
        """Landed, delivered and neither lent nor being read (R6)."""
        return (
            not slot.pieces
            and not slot.n_leases
            and not slot.n_readers
            and all(ticket.done() for ticket in slot.tickets)
            and self._device.query(slot.landed)
        )

    def take(self) -> Slot | None:
        """A slot for the next copy, or `None` when every slot is in use."""
        self.collect_returned()
        for slot in self._slots:
            if self.is_reusable(slot):
                self._slots.remove(slot)
                self._slots.append(slot)
                slot.tickets.clear()
                return slot
        return None

    def victim(self) -> Slot | None:
        """The slot to empty when none is free: one that only has to be waited for if there is
        one, else the oldest that is not lent. `None` when one has become free meanwhile.
        """
        self.collect_returned()
        usable = [slot for slot in self._slots if not slot.n_leases]
        if any(self.is_reusable(slot) for slot in usable):
            return None
        return min(usable, key=lambda slot: bool(slot.pieces))

    def next_to_land(self) -> Slot | None:
        """The oldest slot whose copy is under way; `None` when every copy has landed."""
        return next((slot for slot in self._slots if not self._device.query(slot.landed)), None)

    # Leases

    def is_last(self, slot: Slot) -> bool:
        """Whether no other slot would stay for the copies, if this one were lent."""
        return not slot.n_leases and sum(not other.n_leases for other in self._slots) == 1

    def may_lend(self, slot: Slot, n_bytes: int) -> bool:
        """Whether a record is worth a whole slot, and another slot stays for the copies."""
        return 2 * n_bytes >= slot.n_bytes and not self.is_last(slot)

    def lend(self, slot: Slot, offset: int, n_bytes: int) -> Tensor:
        """The bytes as a uint8 tensor whose storage, while anybody holds it, holds the slot."""
        array = self._device.lend(slot.buffer, offset, n_bytes)
        slot.n_leases += 1
        lease = (slot, offset, n_bytes)
        weakref.finalize(array, _end_lease, weakref.ref(self), lease).atexit = False
        return bytes_tensor(array)

    def take_returned(self, lease: Lease) -> None:
        """Runs in a finalizer, on any thread and at any moment: no lock, and no call."""
        if self._slots:  # else released, and nobody would collect it
            self._returned.put(lease)

    def collect_returned(self) -> None:
        """Account for the leases that nobody holds any more."""
        while True:
            try:
                slot, offset, n_bytes = self._returned.get_nowait()
            except queue.Empty:
                return
            self._device.take_back(slot.buffer, offset, n_bytes)
            slot.n_leases -= 1

    def release(self) -> None:
        """Give every slot up. A slot that is still lent lives as long as its last reader."""
        for slot in self._slots:
            self._device.release(slot.buffer, [slot.landed])
        self._slots.clear()


def _end_lease(pool_ref: weakref.ref[SlotPool], lease: Lease) -> None:
    pool = pool_ref()
    if pool is not None:
        pool.take_returned(lease)
