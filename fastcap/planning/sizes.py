"""The bytes of a run: site by site, pass by pass, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch

PASSES_UNDER_WAY = 3
"""Of a stream with `prefetch=1`: two that run or have run, and one that the loop holds."""


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What one site will produce.

    Attributes:
        name: The site.
        produced: The shape the module produces in one pass.
        shape: The shape delivered per pass, after selection.
        dtype: The dtype delivered.
        n_calls: Captured calls of one pass.
        pass_bytes: Bytes delivered per pass.
        link_bytes: Bytes that leave the model's device per pass, including earlier calls.
    """

    name: str
    produced: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    n_calls: int
    pass_bytes: int
    link_bytes: int


@dataclass(frozen=True, slots=True)
class Size:
    """How long a run is.

    Attributes:
        n_samples: Samples of the run.
        batch_size: Samples per pass; the last one may have fewer.
    """

    n_samples: int
    batch_size: int

    @property
    def n_passes(self) -> int:
        """Passes, the last one included."""
        return -(-self.n_samples // self.batch_size)

    @property
    def is_whole(self) -> bool:
        """Whether the last pass is as large as the others."""
        return self.n_samples % self.batch_size == 0

    @property
    def n_under_way(self) -> int:
        """Passes whose records a loop over a stream has in memory at once."""
        return min(self.n_passes, PASSES_UNDER_WAY)

    def total(self, pass_bytes: int) -> int:
        """From the bytes of one pass to those of the run."""
        return -(-pass_bytes * self.n_samples // self.batch_size)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that fastcap will take, and that there are; `None` where that is not known.

    Attributes:
        staging_bytes: Staging on the accelerator.
        slot_bytes: Slots in (pinned) host memory, at most.
        first_slot_bytes: The slots that a run begins with. It pins more where a value would have
            to be spilled, or the consumer is behind.
        result_bytes: The result, or the records under way to a loop or an archive.
        archive_bytes: On the disk, without the headers of files, 4 KiB each.
        beside_bytes: Of these: token ids, masks and the ids of samples.
        free_device_bytes: On the accelerator now.
        available_host_bytes: Of host memory now.
        free_disk_bytes: On the disk now.
        chosen: Staging and slots of each accelerator, and what set their sizes.
    """

    staging_bytes: int
    slot_bytes: int
    first_slot_bytes: int
    result_bytes: int
    archive_bytes: int
    beside_bytes: int
    free_device_bytes: int | None
    available_host_bytes: int | None
    free_disk_bytes: int | None
    chosen: tuple[str, ...]

    @property
    def host_bytes(self) -> int:
        """The first slots and results together. More slots are pinned only where there is room."""
        return self.first_slot_bytes + self.result_bytes

    @property
    def fits(self) -> bool | None:
        """Whether all of it fits; `None` where nothing says no and something is not known."""
        pairs = [
            (self.staging_bytes, self.free_device_bytes),
            (self.host_bytes, self.available_host_bytes),
            (self.archive_bytes, self.free_disk_bytes),
        ]
        found = [None if free is None else needed <= free for needed, free in pairs if needed]
        return False if False in found else None if None in found else True


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")
