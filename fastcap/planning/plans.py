"""What a run will take: a plan, and what it is held against afterwards."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import torch

from fastcap.planning import advice, table
from fastcap.planning.costs import BoundName, Costs, Into
from fastcap.planning.machine import Machine
from fastcap.planning.table import dtype_name
from fastcap.records import Statistics
from fastcap.spec import Selection


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What one site will give.

    Attributes:
        name: The site.
        produced: The shape of what the module produces in one pass.
        shape: The shape delivered per pass, after selection.
        dtype: The dtype delivered.
        n_calls: Captured calls of one pass.
        pass_bytes: Bytes delivered per pass.
        link_bytes: Bytes that leave the model's device per pass, those of earlier calls included.
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

    def total(self, pass_bytes: int) -> int:
        """From the bytes of one pass to those of the run."""
        return -(-pass_bytes * self.n_samples // self.batch_size)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes that fastcap will take, and that there are; `None` where that is not known.

    Attributes:
        device_bytes: Staging on the accelerator.
        slot_bytes: Slots in (pinned) host memory.
        result_bytes: The result, or the records under way to a loop or an archive.
        archive_bytes: On the disk.
        free_device_bytes: On the accelerator now.
        available_host_bytes: Of host memory now.
        free_disk_bytes: On the disk now.
    """

    device_bytes: int
    slot_bytes: int
    result_bytes: int
    archive_bytes: int
    free_device_bytes: int | None
    available_host_bytes: int | None
    free_disk_bytes: int | None

    @property
    def host_bytes(self) -> int:
        """Slots and results together."""
        return self.slot_bytes + self.result_bytes

    @property
    def fits(self) -> bool | None:
        """Whether all of it fits; `None` where nothing says no and something is not known."""
        pairs = [
            (self.device_bytes, self.free_device_bytes),
            (self.host_bytes, self.available_host_bytes),
            (self.archive_bytes, self.free_disk_bytes),
        ]
        found = [None if free is None else needed <= free for needed, free in pairs if needed]
        return False if False in found else None if None in found else True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run will take. `str(plan)` is the table that `fastcap plan` prints.

    Attributes:
        sites: What each site will give, in the order asked.
        silent: Sites that captured nothing in the example's pass, in sentences that say why.
        size: Samples, samples per pass, and passes.
        into: Who receives them: `"memory"`, `"loop"` or `"archive"`.
        selection: What is taken.
        is_exact: Whether bytes are what the run will capture to the byte. With
            `positions="unpadded"`, and for sites whose first dimension is not the batch, they are
            those of the example, scaled.
        memory: What fastcap will take.
        machine: The rates that times are made of.
        costs: What the run takes of each resource.
        forward_secs: One pass without hooks; `None` where not measured and not given.
        assumed: What was taken for granted, in sentences.
    """

    sites: tuple[SitePlan, ...]
    silent: tuple[str, ...]
    size: Size
    into: Into
    selection: Selection
    is_exact: bool
    memory: MemoryPlan
    machine: Machine
    costs: Costs
    forward_secs: float | None
    assumed: tuple[str, ...]

    @property
    def bytes_per_sample(self) -> float:
        """Bytes delivered per sample, of all sites."""
        return sum(site.pass_bytes for site in self.sites) / self.size.batch_size

    @property
    def total_bytes(self) -> int:
        """Bytes delivered by the run: the size of the result."""
        return self.size.total(sum(site.pass_bytes for site in self.sites))

    @property
    def captured_bytes(self) -> int:
        """What `Statistics.captured_bytes` will be: bytes that leave the model's device."""
        return self.size.total(sum(site.link_bytes for site in self.sites))

    @property
    def fits(self) -> bool | None:
        """Whether memory and disk hold it; `None` where that is not known."""
        return self.memory.fits

    @property
    def bound(self) -> BoundName | None:
        """What sets the time of the run, of what is known."""
        return self.costs.bound

    @property
    def secs(self) -> float | None:
        """Seconds of the run; `None` where a rate is not known."""
        return self.costs.secs

    @property
    def overhead(self) -> float | None:
        """The run's time as a multiple of the same passes without hooks; `None` if not known."""
        if self.secs is None or not self.forward_secs:
            return None
        return self.secs / (self.size.n_passes * self.forward_secs)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do, where it does not fit."""
        return advice.of(self)

    def compare(self, statistics: Statistics, secs: float | None = None) -> Comparison:
        """Hold the plan against a run.

        Args:
            statistics: Of the stream or store. Memory is counted while it is open.
            secs: What the run took.
        """
        memory = self.memory
        return Comparison(
            (
                Compared("captured", self.captured_bytes, statistics.captured_bytes, "bytes"),
                _held("staging", memory.device_bytes, statistics.device_bytes),
                _held("slots", memory.slot_bytes, statistics.host_bytes),
                Compared("time", self.secs, secs, "secs"),
            )
        )

    def as_dict(self) -> dict[str, Any]:
        """The whole plan in plain values, as `fastcap plan --json` prints it."""
        found = dataclasses.asdict(dataclasses.replace(self, selection=Selection()))
        for site in found["sites"]:
            site["dtype"] = dtype_name(site["dtype"])
        chosen = self.selection
        found["selection"] = {
            "positions": None if chosen.positions is None else str(chosen.positions),
            "reduce": None if chosen.reduce is None else str(chosen.reduce),
            "dtype": chosen.dtype and dtype_name(chosen.dtype),
            "seq_dim": chosen.seq_dim,
        }
        derived = ("bytes_per_sample", "total_bytes", "captured_bytes")
        asked = ("fits", "overhead", "advice")
        return found | {name: getattr(self, name) for name in (*derived, *asked)}

    def to_json(self) -> str:
        """`as_dict` as text."""
        return json.dumps(self.as_dict(), indent=2)

    def __str__(self) -> str:
        return table.of_plan(self)


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity: planned, and as it was; `None` where not known.

    Attributes:
        name: `captured`, `staging`, `slots` or `time`.
        planned: What the plan said.
        found: What the run took.
        unit: `bytes` or `secs`.
    """

    name: str
    planned: float | None
    found: float | None
    unit: str

    @property
    def ratio(self) -> float | None:
        """Found by planned."""
        if self.found is None or not self.planned:
            return None
        return self.found / self.planned


@dataclass(frozen=True, slots=True)
class Comparison:
    """Planned against measured; `str` is a table.

    Attributes:
        rows: Quantity by quantity.
    """

    rows: tuple[Compared, ...]

    def __str__(self) -> str:
        return table.of_comparison(self)


def _held(name: str, planned_bytes: int, found_bytes: int) -> Compared:
    """Memory that a run has while it runs: none of it is left afterwards."""
    is_over = planned_bytes > 0 and found_bytes == 0
    return Compared(name, planned_bytes, None if is_over else found_bytes, "bytes")
