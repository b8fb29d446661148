"""The staging ring and the slots of one transfer: allocated when first needed, and grown."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from fastcap.devices.base import AnyDevice, HostBuffer
from fastcap.errors import DeviceMemoryError, HostMemoryError
from fastcap.formatting import format_bytes
from fastcap.host_memory import available_bytes
from fastcap.transfer.base import TooLateError
from fastcap.transfer.budget import Budget, Limits, halved, plan_budget, settled_budget
from fastcap.transfer.pieces import Piece
from fastcap.transfer.pool import Slot, SlotPool, StagingRing, reading


class TransferMemory:
    """Memory within `limits`, sized by the first record and once more by the first whole pass.

    Staging and the first slots are taken at the first capture, for a pass in which every site
    gives as much. Where a pass turns out larger, chunks are added between passes, and slots
    whenever one more spares the host a spill. The transfer calls this under its lock, except where
    memory is pinned: that may take milliseconds, and is done by the thread that moves bytes. What
    was closed stays closed: a pass that another thread still runs must not take memory again.

    Args:
        device: Where captures come from.
        limits: What the user allows.
        n_sites: How many sites a pass has.
    """

    def __init__(self, device: AnyDevice, limits: Limits, n_sites: int) -> None:
        self._device = device
        self._limits = limits
        self._n_sites = n_sites
        self._pass_bytes = 0  # of the pass at hand, so far
        self._longest_bytes = 0  # of the longest pass that is known or expected
        self._largest_bytes = 0
        self._known: tuple[int | None, int | None] | None = None
        self._budget: Budget | None = None
        self._may_pin = True
        self._opened: tuple[StagingRing, SlotPool] | None = None
        self._refusal: tuple[type[DeviceMemoryError | HostMemoryError], str] | None = None
        self.is_sized = False
        self.is_closed = False  # to what is captured from now on; what was may still be delivered

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def ring(self) -> StagingRing:
        return (self._opened or self._open())[0]

    def ring_to_fill(self) -> StagingRing:
        """For captures.

        Raises:
            TooLateError: They come after `close`, in a pass that another thread still runs.
        """
        if self.is_closed:
            raise TooLateError
        return self.ring

    def reading(
        self, pieces: Iterable[Piece], lock: threading.Lock
    ) -> AbstractContextManager[list[tuple[Piece, Slot | HostBuffer]]]:
        """See `fastcap.transfer.pool.reading`."""
        return reading(pieces, lock, self._opened[1] if self._opened else None)

    def nobody_reads(self) -> None:
        """The thread that moves bytes begins: a mark that an interrupt has left is none."""
        if self._opened is not None:
            self._opened[1].being_read = frozenset()

    @property
    def slots(self) -> SlotPool:
        return (self._opened or self._open())[1]

    def _open(self) -> tuple[StagingRing, SlotPool]:
        if self._opened is None:
            assert not self.is_closed
            if self._refusal is not None:
                kind, message = self._refusal
                raise kind(message)
            try:
                self._allocate(self._plan())
            except (DeviceMemoryError, HostMemoryError) as error:
                # Trying again at every hook would cost every hook. The error itself would keep
                # the frames of every hook that raises it, and so the model's values.
                self._refusal = type(error), str(error)
                raise
        assert self._opened is not None
        return self._opened

    def note(self, n_bytes: int) -> None:
        """A capture of so many bytes is to be staged."""
        if self._longest_bytes == 0:
            self._longest_bytes = self._n_sites * n_bytes
        self._pass_bytes += n_bytes
        self._largest_bytes = max(self._largest_bytes, n_bytes)

    def end_pass(self) -> None:
        """What was noted since the last time was a pass, or one turn of a loop."""
        longest_bytes = max(self._longest_bytes, self._pass_bytes)
        self._longest_bytes, self._pass_bytes = longest_bytes, 0

    def settle(self) -> Budget | None:
        """Size staging for passes like those seen, once: by chunks that are added or, where larger
        ones are needed, by the budget that is returned and that `resize` allocates.
        """
        if self.is_sized or self._budget is None or not self.is_open:
            return None
        settled = settled_budget(self._budget, self._plan())
        if settled.chunk_bytes > self._budget.chunk_bytes:
            return None if self.slots.any_lent() else settled  # what is lent stays: later
        self.is_sized = True
        with torch.inference_mode(False):  # R10
            self.ring.extend(self._device, settled.n_chunks - len(self.ring))
        self._budget = settled
        return None

    def resize(self, budget: Budget) -> None:
        """Allocate again, once. Nothing may be staged, held or lent."""
        first = self._budget
        assert first is not None
        self.is_sized = True
        self._give_back()
        try:
            self._allocate(budget)
        except (DeviceMemoryError, HostMemoryError):
            self._allocate(first)  # slower, and as exact

    def add_slot(self, lock: threading.Lock) -> bool:
        """Pin one more slot, if there is room: in the budget for the longest pass so far and,
        unless the user set that, in what a growing result has left of the host's memory.

        For one thread at a time, and not under the transfer's lock, which is taken to add the slot:
        pinning takes milliseconds.
        """
        if not (self._may_pin and self.is_open and len(self.slots) < self._most_slots()):
            return False
        chunk_bytes = self.ring.chunk_bytes
        if self._limits.pinned_bytes is None and (left_bytes := available_bytes()) is not None:
            held_bytes = len(self.slots) * chunk_bytes
            if held_bytes + chunk_bytes > (held_bytes + left_bytes) // 4:
                return False
        pinned: list[Slot] = []
        try:
            with torch.inference_mode(False):  # R10
                pinned.append(Slot(self._device, chunk_bytes))
            with lock:
                self.slots.add(pinned[0])
        except HostMemoryError:  # for good: fewer slots are slower, and as exact
            self._may_pin = False
        except BaseException:
            with lock:
                for slot in pinned:
                    self.slots.add(slot)
            raise
        return bool(pinned)

    def _most_slots(self) -> int:
        return max(1, self._plan().slot_bytes // self.ring.chunk_bytes)

    def _plan(self) -> Budget:
        if self._known is None:  # before anything of fastcap's is in it
            self._known = self._device.free_bytes(), available_bytes()
        pass_bytes = max(self._longest_bytes, self._pass_bytes)
        return plan_budget(self._limits, *self._known, pass_bytes, self._largest_bytes)

    def _allocate(self, budget: Budget) -> None:
        parts: list[StagingRing | SlotPool] = []
        try:
            with torch.inference_mode(False):  # R10: staging must be writable outside it too
                parts.append(ring := self._allocate_ring(budget))
                n_slots = budget.n_first_slots
                parts.append(slots := SlotPool(self._device, ring.chunk_bytes, n_slots))
            chosen = replace(budget, chunk_bytes=ring.chunk_bytes, n_chunks=len(ring))
            self._opened, self._budget = (ring, slots), chosen
        except BaseException:
            for part in parts:
                part.release()
            raise

    def _allocate_ring(self, budget: Budget) -> StagingRing:
        smaller: Budget | None = budget
        while smaller is not None:
            budget = smaller
            try:
                return StagingRing(self._device, budget.chunk_bytes, budget.n_chunks)
            except DeviceMemoryError as error:
                reason = error
                smaller = halved(budget)
        raise DeviceMemoryError(
            f"Staging does not fit on {self._device.torch_device}, not even "
            f"{format_bytes(budget.chunk_bytes)} of it. Free some memory there, use smaller "
            "batches, or pass a smaller staging_bytes=."
        ) from reason

    def chosen(self) -> tuple[str, ...]:
        """What is allocated now and why, in a line; nothing where nothing is."""
        opened, budget = self._opened, self._budget
        if opened is None or budget is None:
            return ()
        n_slots, n_most = len(opened[1]), self._most_slots()
        slots = f"{n_slots} of at most {max(n_slots, n_most)}"
        chunk = format_bytes(budget.chunk_bytes)
        said = f"{budget.of_staging()}; slots: {slots} x {chunk} ({self._plan().slots_reason})"
        return (f"{self._device.torch_device}: {said}",)

    def undelivered(self) -> list[Piece]:
        """What lies in staging or in a slot."""
        if self._opened is None:
            return []
        ring, slots = self._opened
        return [
            piece
            for load in (ring.open.pieces, *(slot.pieces for slot in slots.all()))
            for piece in load
        ]

    def refuse(self) -> None:
        """Nothing more is captured here, whatever a pass that another thread runs still sends."""
        self.is_closed = True

    def close(self) -> None:
        """Give everything up for good; what is lent lives as long as its last reader."""
        self.refuse()
        self._give_back()

    def _give_back(self) -> None:
        if self._opened is not None:
            ring, slots = self._opened
            ring.release()
            slots.release()
            self._opened = None  # after an interrupt before this line they are released again
