"""The staging ring and the slots of one lane: allocated when first needed, resized once."""

from __future__ import annotations

import torch

from fastcap.budget import Budget, Limits, halved, plan_budget
from fastcap.devices.base import AnyDevice
from fastcap.errors import DeviceMemoryError, HostMemoryError
from fastcap.host_memory import available_bytes, format_bytes
from fastcap.pool import Piece, SlotPool, StagingRing


class LaneMemory:
    """Memory within `limits`: a small ring at first, and what one pass needs once that is known.

    The lane calls this under its lock.
    """

    def __init__(self, device: AnyDevice, limits: Limits) -> None:
        self._device = device
        self._limits = limits
        self._pass_bytes = 0
        self._largest_bytes = 0
        self._opened: tuple[StagingRing, SlotPool] | None = None
        self._refusal: tuple[type[DeviceMemoryError | HostMemoryError], str] | None = None
        self.is_sized = False

    @property
    def is_open(self) -> bool:
        return self._opened is not None

    @property
    def ring(self) -> StagingRing:
        return (self._opened or self._open())[0]

    @property
    def slots(self) -> SlotPool:
        return (self._opened or self._open())[1]

    def _open(self) -> tuple[StagingRing, SlotPool]:
        if self._opened is None:
            if self._refusal is not None:
                kind, message = self._refusal
                raise kind(message)
            try:
                self._opened = self._allocate(self._plan(0, 0))
            except (DeviceMemoryError, HostMemoryError) as error:
                # Trying again at every hook would cost every hook. The error itself would keep
                # the frames of every hook that raises it, and so the model's values.
                self._refusal = type(error), str(error)
                raise
        return self._opened

    def note(self, n_bytes: int) -> None:
        """A capture of so many bytes is to be staged."""
        self._pass_bytes += n_bytes
        self._largest_bytes = max(self._largest_bytes, n_bytes)

    def better_budget(self) -> Budget | None:
        """What suits passes like the one seen; `None`, for good, where that is what there is."""
        budget, first = self._plan(self._pass_bytes, self._largest_bytes), self._budget()
        self.is_sized = budget == first or budget.chunk_bytes < first.chunk_bytes
        return None if self.is_sized else budget

    def _budget(self) -> Budget:
        return Budget(self.ring.chunk_bytes, len(self.ring), len(self.slots))

    def resize(self, budget: Budget) -> None:
        """Allocate again, once. Nothing may be staged, held or lent."""
        first = self._budget()
        self.is_sized = True
        self.close()
        try:
            self._opened = self._allocate(budget)
        except (DeviceMemoryError, HostMemoryError):
            self._opened = self._allocate(first)  # slower, and as exact

    def _plan(self, pass_bytes: int, largest_bytes: int) -> Budget:
        free_bytes = self._device.free_bytes()
        return plan_budget(self._limits, free_bytes, available_bytes(), pass_bytes, largest_bytes)

    def _allocate(self, budget: Budget) -> tuple[StagingRing, SlotPool]:
        with torch.inference_mode(False):  # R10: staging must be writable outside it too
            ring = self._allocate_ring(budget)
            try:
                return ring, SlotPool(self._device, ring.chunk_bytes, budget.n_slots)
            except BaseException:
                ring.release()
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
            "batches, or pass a smaller device_bytes=."
        ) from reason

    def staged(self) -> list[Piece]:
        """What is packed and not yet being copied."""
        return [] if self._opened is None else list(self.ring.open.pieces)

    def close(self) -> None:
        """Give everything up; what is lent lives as long as its last reader."""
        if self._opened is not None:
            ring, slots = self._opened
            self._opened = None
            ring.release()
            slots.release()
