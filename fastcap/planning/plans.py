"""What a run will take."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastcap.archive.reader import Archive
from fastcap.errors import ArgumentTypeError
from fastcap.formatting import html_text
from fastcap.planning import advice, table
from fastcap.planning.costs import BoundName, Costs, Into
from fastcap.planning.machine import Machine
from fastcap.planning.sizes import MemoryPlan, SitePlan, Size, dtype_name
from fastcap.records import Statistics
from fastcap.spec import Selection


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity: planned, and as it was; `None` where not known.

    Attributes:
        name: `captured`, `staging`, `slots`, `result`, `disk` or `time`.
        planned: What the plan said.
        found: What the run took.
        unit: `bytes` or `secs`.
    """

    name: str
    planned: float | None
    found: float | None
    unit: str = "bytes"

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
        cells = [(row.name, row.planned, row.found, row.unit) for row in self.rows]
        return table.page(table.of_comparison(cells))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan:
    """What a run will take. It prints as the table of `fastcap plan`.

    Attributes:
        sites: What each site will produce, in the order requested.
        silent: Sites that captured nothing in the example's pass, with reasons.
        size: Samples, samples per pass, and passes.
        into: What receives the values: `"memory"`, `"loop"` or `"archive"`.
        selection: What is kept.
        is_exact: Whether byte counts are exact. With `positions="unpadded"`, and for sites whose
            first dimension is not the batch, they are extrapolated from the example.
        memory: The memory fastcap will take.
        machine: The rates used for times.
        costs: What the run takes of each resource.
        forward_secs: One pass without hooks; `None` if neither measured nor given.
        assumed: The assumptions made, in sentences.
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
        """Bytes delivered per sample, over all sites."""
        return sum(site.pass_bytes for site in self.sites) / self.size.batch_size

    @property
    def total_bytes(self) -> int:
        """Bytes delivered by the run: the size of the result."""
        return self.size.total(sum(site.pass_bytes for site in self.sites))

    @property
    def captured_bytes(self) -> int:
        """The run's `Statistics.captured_bytes`: bytes that leave the model's device."""
        return self.size.total(sum(site.link_bytes for site in self.sites))

    @property
    def fits(self) -> bool | None:
        """Whether it fits in memory and on disk; `None` if unknown."""
        return self.memory.fits

    @property
    def bound(self) -> BoundName | None:
        """The bottleneck of the run, among the known terms."""
        return self.costs.bound

    @property
    def secs(self) -> float | None:
        """Seconds the run takes; `None` if a rate is unknown."""
        return self.costs.secs

    @property
    def overhead(self) -> float | None:
        """The run's time as a multiple of the same passes without hooks; `None` if unknown."""
        if self.secs is None or not self.forward_secs:
            return None
        return self.secs / (self.size.n_passes * self.forward_secs)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to do if it does not fit."""
        return advice.ways_out(self.sites, self.size, self.into, self.selection, self.memory)

    def compare(
        self, found: Statistics | Mapping[str, Tensor] | Archive, secs: float | None = None
    ) -> Comparison:
        """Compare the plan with a run.

        Args:
            found: The statistics of an iterator or store (memory is counted while it is open), the
                result of `extract_representations`, or the archive from `extract`.
            secs: Seconds the run took.

        Raises:
            ArgumentTypeError: `found` is none of these.
        """
        if isinstance(found, Statistics):
            rows = [
                Compared("captured", self.captured_bytes, found.captured_bytes),
                _held("staging", self.memory.staging_bytes, found.staging_bytes),
                _held("slots", self.memory.slot_bytes, found.pinned_bytes),
            ]
        elif isinstance(found, Archive):
            groups = [group for writer in found.writers for group in writer.groups]
            n_bytes = sum(group.n_bytes for group in groups)
            rows = [Compared("disk", self.memory.archive_bytes, n_bytes)]
        elif isinstance(found, Mapping):
            n_bytes = sum(value.nbytes for value in found.values())
            rows = [Compared("result", self.memory.result_bytes, n_bytes)]
        else:
            raise ArgumentTypeError(
                "compare takes the statistics of a stream or store, a result (a dict of tensors) "
                f"or an archive; got a {type(found).__name__}."
            )
        return Comparison((*rows, Compared("time", self.secs, secs, "secs")))

    def as_dict(self) -> dict[str, Any]:
        """The whole plan as plain values, as `fastcap plan --json` prints it."""
        found = dataclasses.asdict(dataclasses.replace(self, selection=Selection()))
        for site in found["sites"]:
            site["dtype"] = dtype_name(site["dtype"])
        chosen = self.selection
        found["selection"] = {
            "positions": None if chosen.positions is None else str(chosen.positions),
            "reduce": None if chosen.reduce is None else str(chosen.reduce),
            "dtype": chosen.dtype and dtype_name(chosen.dtype),
            "seq_dim": chosen.seq_dim,
            "batch_dim": chosen.batch_dim,
        }
        derived = ("bytes_per_sample", "total_bytes", "captured_bytes")
        asked = ("fits", "overhead", "advice")
        return found | {name: getattr(self, name) for name in (*derived, *asked)}

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html_text(str(self))

    def __str__(self) -> str:
        return table.page(
            table.of_run(self.size, self.selection, self.into),
            table.of_sites(self.sites, self.size, self.is_exact),
            table.of_memory(self.memory, self.into),
            table.of_time(self.costs, self.overhead),
            table.of_notes((*self.assumed, *self.silent)),
            table.of_advice(self.advice),
        )


def _held(name: str, planned_bytes: int, found_bytes: int) -> Compared:
    """Memory that a run has while it runs: none of it is left afterwards."""
    is_over = planned_bytes > 0 and found_bytes == 0
    return Compared(name, planned_bytes, None if is_over else found_bytes)
