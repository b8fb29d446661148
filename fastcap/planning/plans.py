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
from fastcap.planning.comparison import Compared, Comparison
from fastcap.planning.costs import BoundName, Costs, Into
from fastcap.planning.machine import Machine
from fastcap.planning.sizes import MemoryPlan, SitePlan, Size, dtype_name
from fastcap.records import Statistics
from fastcap.spec import Selection


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan:
    """What a run will take. It prints as the table of `fastcap plan`.

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
        return advice.ways_out(self.sites, self.size, self.into, self.selection, self.memory)

    def compare(
        self, found: Statistics | Mapping[str, Tensor] | Archive, secs: float | None = None
    ) -> Comparison:
        """Hold the plan against a run.

        Args:
            found: The statistics of a stream or store (memory is counted while it is open), what
                `extract_representations` returned, or the archive that `extract` did.
            secs: What the run took.

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
