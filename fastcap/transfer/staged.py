"""The transfer of accelerators: pack on the model's stream, copy on ours, deliver on the host.

    capture, in a hook            flush                       deliver, result, settle
    compute stream                copy stream                 host worker, or the thread that asks
    pack into the open chunk  ─►  one copy, chunk to slot ─►  read, hand over or lend  ─►  free
    ──────────────────── _lock ────────────────────────────   ──── _moving, _lock at steps ────

`_copy_to_slot` issues the copy. Whoever reads a slot waits for its event, `landed`: a host worker
in its task (`Device.deliver`), any other thread in `Device.synchronize`.

The states of chunks and slots are drawn in `fastcap.transfer.pool`. Two locks, `_moving` first:

* `_lock` guards the bookkeeping: reserve, pack and link are one step under it, and so is every
  change of a piece's home. Nothing under it waits or runs a user's code (R11).
* `_moving` is for the one thread that moves bytes out of slots, or pins more of them. It may wait
  for copies and for workers, since neither takes a lock; never for a lease, which the user ends.

So a hook waits for a thread that moves bytes only where no slot is free (`_make_room`), and where
`replan` sizes memory, once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Hashable

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice, HostBuffer
from fastcap.errors import DeviceError, DeviceMemoryError, FastcapError, HostMemoryError
from fastcap.host_memory import HostBuffers, empty_bytes
from fastcap.records import Statistics
from fastcap.transfer.base import (
    NO_GRAPHS,
    Capture,
    Target,
    TransferCounters,
    as_read,
    part_of,
    split,
    wire_dtype_for,
    without_frames,
)
from fastcap.transfer.budget import Limits
from fastcap.transfer.memory import TransferMemory
from fastcap.transfer.pinned_out import Landings, choose_way, wait_for_copies
from fastcap.transfer.pool import Chunk, Piece, Slot, reading


class StagedTransfer:
    """See `fastcap.transfer.base.Transfer`. Memory is taken at the first capture."""

    def __init__(
        self, device: AnyDevice, limits: Limits, buffers: HostBuffers, n_sites: int
    ) -> None:
        self.device = self._device = device
        self._buffers = buffers
        self._lock = threading.Lock()
        self._moving = threading.RLock()
        self._memory = TransferMemory(device, limits, n_sites)
        self._small: deque[Capture] = deque()  # with targets that nobody has filled yet
        self._landings = Landings(device)
        self._counters = TransferCounters()

    # captured → staged, in the hook

    def refuse_graphs(self) -> None:
        if self._device.is_capturing():
            raise DeviceError(NO_GRAPHS)

    def capture(
        self, value: Tensor, dtype: torch.dtype, target: Target | None, route: int
    ) -> Capture:
        capture = Capture(value.shape, wire_dtype_for(value.dtype, dtype), dtype, route, target)
        try:
            self._stage(as_read(value), capture)
        except (DeviceMemoryError, HostMemoryError, torch.OutOfMemoryError) as error:
            self.drop(capture)
            # R9: raised to whoever asks for the value, not into the model.
            capture.error = without_frames(error)
        except BaseException:
            self.drop(capture)
            raise
        return capture

    def _stage(self, value: Tensor, capture: Capture) -> None:
        compute_stream = self._device.current_stream()  # R1
        whole = Piece(capture, 0, capture.n_bytes)
        with self._lock:
            self._counters.note(capture)
            self._memory.note(capture.n_bytes)
            if whole.n_bytes == 0:
                return
            ring = self._memory.ring
            choose_way(capture, ring)
            if capture.is_small and isinstance(capture.target, Tensor):
                self._small.append(capture)
            if self._pack(ring.open, compute_stream, value, whole):
                return
        for part, piece in split(value, capture, ring.chunk_bytes):
            self._stage_piece(compute_stream, part, piece)

    def _stage_piece(self, compute_stream: Hashable, value: Tensor, piece: Piece) -> None:
        while True:
            with self._lock:
                if self._pack(self._memory.ring.open, compute_stream, value, piece):
                    return
                is_flushed = self._flush_open()
            if not is_flushed:
                self._make_room()

    def _pack(self, chunk: Chunk, compute_stream: Hashable, value: Tensor, piece: Piece) -> bool:
        """Reserve, pack and link: one step, under the lock; `False` when the chunk has no room."""
        capture = piece.owner
        if chunk.fill_bytes and chunk.is_pinned_out is not capture.is_pinned_out:
            return False
        chunk.is_pinned_out = capture.is_pinned_out
        offset = chunk.reserve(piece.n_bytes)
        if offset is None:
            return False
        chunk.open_to(compute_stream)
        self._device.pack(value, chunk.staging, offset, capture.wire_dtype)
        if chunk.is_fleeting:
            chunk.close_to(compute_stream)
        piece.offset = offset
        piece.home = chunk
        chunk.pieces[piece] = None
        capture.pieces.append(piece)
        if chunk.fill_bytes + piece.n_bytes > chunk.n_bytes:  # no room for another like this one:
            chunk.record_packed()
            self._flush_open()  # copy now, if a slot is free, and not when the next one comes
        return True

    # staged → copying

    def flush(self) -> None:
        if self._small and self._moving.acquire(blocking=False):
            try:
                self._read_small(waits=False)
            finally:
                self._moving.release()
        while True:
            with self._lock:
                if not self._memory.is_open or self._flush_open():
                    return
            self._make_room()

    def _flush_open(self) -> bool:
        """Copy the open chunk and open the next; `False` when it needs a slot and none is free."""
        ring = self._memory.ring
        chunk = ring.open
        if chunk.fill_bytes == 0 or chunk.abandon():
            return True
        if chunk.is_pinned_out and chunk.pieces:
            self._landings.copy(chunk)
        elif not self._copy_to_slot(chunk):
            return False
        chunk.reset()
        ring.advance()
        return True

    def _copy_to_slot(self, chunk: Chunk) -> bool:
        slot = self._memory.slots.take()
        if slot is None:
            return False
        self._device.copy(
            chunk.staging,
            slot.buffer,
            chunk.fill_bytes,
            after=chunk.record_packed(),
            then=(slot.landed, chunk.copied),
        )
        for piece in list(chunk.pieces):
            piece.home = slot
            slot.pieces[piece] = None
            if piece.owner.wants_worker:
                self._hand_over(piece)
        return True

    # landed → delivered

    def deliver(self, capture: Capture, target: Target | None = None, lend: bool = False) -> None:
        if capture.error is not None or capture.dropped or capture.target is not None:
            return
        if target is None:
            if capture.is_small or (lend and capture.is_lendable):
                return  # until somebody asks
            target = self._buffers.tensor(capture.shape, capture.dtype)
        with self._lock:
            capture.target = target
            if not capture.wants_worker:
                self._small.append(capture)
                return
            for piece in [p for p in capture.pieces if not isinstance(p.home, Chunk)]:
                self._hand_over(piece)

    def _hand_over(self, piece: Piece) -> None:
        """Give a piece to a host worker. Its slot is in use until the ticket is done."""
        capture, home = piece.owner, piece.home
        assert isinstance(home, Slot | HostBuffer)
        buffer, after = (home.buffer, home.landed) if isinstance(home, Slot) else (home, None)
        target = part_of(capture.target, piece)
        ticket = self._device.deliver(
            buffer, piece.offset, capture.wire_dtype, target, after, capture.route
        )
        capture.tickets.append(ticket)
        if isinstance(home, Slot):
            home.tickets.append(ticket)
        piece.unlink()

    def result(self, capture: Capture, lend: bool = False) -> Tensor | None:
        with self._moving:
            capture.note_read()  # under the lock: `close` gives errors to what it drops
            self._put_on_its_way(capture)
            if not capture.dropped:
                if capture.target is None and lend:
                    capture.target = self._lend(capture)
                if capture.target is None:
                    capture.target = self._buffers.tensor(capture.shape, capture.dtype)
            self._finish(capture)
            target = None if capture.dropped else capture.target
            assert target is None or isinstance(target, Tensor)
            return target

    def settle(self, capture: Capture) -> None:
        with self._moving:
            capture.note_read()
            self._put_on_its_way(capture)
            self._finish(capture)

    def _finish(self, capture: Capture) -> None:
        """Read what no worker was given, and wait for what one was."""
        if capture.pieces and capture.target is not None:  # none: another thread is dropping it
            self._read(capture)
        for ticket in capture.tickets:
            ticket.wait()  # whoever asks for the value reads it next, or lets go of its memory
            if (error := ticket.error()) is not None:
                raise error

    def _put_on_its_way(self, capture: Capture) -> None:
        while any(isinstance(piece.home, Chunk) for piece in list(capture.pieces)):
            self.flush()

    def _read_small(self, waits: bool) -> None:
        """Read the small values that are out of staging; unless it `waits`, those that landed."""
        while self._small:
            homes = [piece.home for piece in self._small[0].pieces]
            if any(isinstance(home, Chunk) for home in homes):
                return
            slots = [home for home in homes if isinstance(home, Slot)]
            if not (waits or all(self._device.query(slot.landed) for slot in slots)):
                return
            self._read(self._small.popleft())

    def _read(self, capture: Capture) -> None:
        """Move a value to its target, in this thread."""
        with reading(capture.pieces, self._lock) as pieces:
            for piece, home in pieces:
                self._read_piece(piece, home)
        self._unlink_all(capture)

    def _read_piece(self, piece: Piece, home: Slot | HostBuffer) -> None:
        target = part_of(piece.owner.target, piece)
        assert isinstance(target, Tensor)  # anything else is for workers
        if isinstance(home, Slot):
            self._device.synchronize(home.landed)  # R5: each piece by its own event
            home = home.buffer
        self._device.read(home, piece.offset, piece.owner.wire_dtype, target)

    def _lend(self, capture: Capture) -> Tensor | None:
        """The bytes of a slot without a copy, where the slot is worth it; else `None`."""
        with reading(capture.pieces, self._lock) as pieces:
            if len(pieces) != 1 or capture.dtype != capture.wire_dtype:
                return None
            piece, slot = pieces[0]
            if not isinstance(slot, Slot):
                return None
            self._device.synchronize(slot.landed)  # R5: who is lent it reads without asking again
            if self._memory.is_open and self._memory.slots.is_last(slot):
                self._memory.add_slot(self._lock)
            with self._lock:
                if not self._memory.is_open or not self._memory.slots.may_lend(slot, piece.n_bytes):
                    return None
                memory = self._memory.slots.lend(slot, piece.offset, piece.n_bytes)
        self._counters.lends += 1
        self._unlink_all(capture)
        with torch.inference_mode(False):
            return memory.view(capture.dtype).view(capture.shape)

    # delivered → free

    def drop(self, capture: Capture) -> None:
        if capture.dropped:
            return
        capture.dropped = True
        if not capture.was_read:
            self._counters.superseded_bytes += capture.n_bytes
        if capture.pieces:
            self._unlink_all(capture)
        capture.spilled = None

    def _unlink_all(self, capture: Capture) -> None:
        with self._lock:
            for piece in list(capture.pieces):
                piece.unlink()

    def _make_room(self) -> None:
        """Come nearer to a free slot: wait for a copy, pin another slot, or empty one. Waits for
        nothing that the calling thread would have to do: only for copies and host workers, never
        for a lease.
        """
        with self._moving:
            with self._lock:
                victim = self._memory.slots.victim()
                if victim is None:
                    return
                would_spill = any(piece.owner.target is None for piece in victim.pieces)
                copying = None if victim.pieces else self._memory.slots.next_to_land()
            if copying is not None:
                # Slots come free one after another as copies land. Waiting for the worker that has
                # the oldest could take as long as a disk takes to sync.
                self._device.synchronize(copying.landed)
            elif not ((would_spill or not victim.pieces) and self._memory.add_slot(self._lock)):
                self._empty(victim)

    def _empty(self, slot: Slot) -> None:
        with self._lock:
            pieces, tickets = list(slot.pieces), list(slot.tickets)
        with reading(pieces, self._lock):
            for ticket in tickets:
                ticket.wait()  # its error is raised by `result`
            self._device.synchronize(slot.landed)  # R5, and no copy may write it from here on
            for piece in pieces:
                self._spill(piece, slot)

    def _spill(self, piece: Piece, slot: Slot) -> None:
        """Move a wanted piece out of its slot, so that the value outlives the slot (R7)."""
        capture = piece.owner
        if capture.target is not None and not capture.wants_worker:
            self._read_piece(piece, slot)
            with self._lock:
                piece.unlink()
            return
        spilled = capture.spilled  # another thread may drop the capture meanwhile
        if spilled is None:
            # Sized for the whole record, which may still be packing its later pieces.
            capture.spilled = spilled = HostBuffer(empty_bytes(capture.n_bytes))
            self._counters.spills += 1
        part = spilled.bytes[piece.start : piece.start + piece.n_bytes]
        self._device.read(slot.buffer, piece.offset, torch.uint8, part)
        with self._lock:
            if piece in slot.pieces:
                del slot.pieces[piece]
                piece.home, piece.offset = spilled, piece.start
                self._counters.spilled_bytes += piece.n_bytes

    # Memory and counts

    def replan(self) -> None:
        self._memory.end_pass()
        if self._memory.is_sized:  # for good: asked without the lock, since hooks ask every time
            return
        # Memory of another size is faster and not more exact, and this is in a hook (R9).
        with contextlib.suppress(DeviceMemoryError, HostMemoryError), self._moving:
            with self._lock:
                budget = self._memory.settle()
                if budget is None:
                    return
                slots = self._memory.slots.all()
            self.flush()
            for slot in slots:
                self._empty(slot)
            with self._lock:
                if not self._memory.ring.open.fill_bytes and self._memory.slots.all_reusable():
                    self._memory.resize(budget)

    def statistics(self) -> Statistics:
        return self._counters.with_those_of(self._device, self._memory.chosen())

    def close(self) -> None:
        with self._moving:
            self._read_small(waits=True)
            self._small.clear()
            if self._landings.were_used and self._memory.is_open:
                # The caller's memory: nothing writes it from here on.
                ring, slots = self._memory.ring, self._memory.slots
                wait_for_copies(self._device, ring.open, slots.all()[0])
            self._device.close()
            with self._lock:
                for piece in self._memory.staged():
                    piece.owner.error = FastcapError(
                        "This value was still on its way when its store was disabled or its stream "
                        "closed, by an error or from another thread. Run the pass again."
                    )
                    piece.unlink()
                self._memory.close()
