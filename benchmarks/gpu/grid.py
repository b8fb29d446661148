"""What the grid asks: models, selections and ways, and what bounds a pass on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

import fastcap
from benchmarks.gpu.report import Range, UnavailableError
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN
from benchmarks.gpu.toolbox import Gpu
from benchmarks.workloads import Workload
from fastcap.bench import Case
from fastcap.bench.case import Values
from fastcap.bench.ways import Way, archived_in, in_memory, into_reused, lent
from fastcap.devices import open_device
from fastcap.errors import SaveError
from fastcap.formatting import format_bytes
from fastcap.host_memory import available_bytes
from fastcap.planning.machine import Machine
from fastcap.planning.measure import measure_machine

FEWEST_PASSES = 3  # of which the steady state is the second
HOST_SHARE = 7  # results, the oracle's values, slots, pinned rows and an archive's pages
DISK_SHARE = 6  # an archive's first run is at most this part of its time
HOOK_SECS = 10e-6  # the goal for one site
SCRIBBLE = 0xAB

SLOTS, LOOP, FRESH = "slots", "slots, plain loop", "fresh memory"
PINNED, ARCHIVE = "pinned result", "archive"
OURS = (SLOTS, FRESH, PINNED, LOOP)
HOOK = "hook, .cpu()"
FORWARD, LINK, LAUNCH, HOST, DISK = "forward", "link", "launch and hooks", "fresh copy", "disk"

HIDDEN = "compute-bound: at most 1.02 of the time without capture", Range(high=1.02)
SHARES = {
    (SLOTS, LINK): ("link-bound, slots: 0.95 of the measured link", Range(low=0.95)),
    (PINNED, LINK): ("link-bound, pinned result: 0.95 of the measured link", Range(low=0.95)),
    (FRESH, HOST): ("fresh memory: 0.9 of the measured first touch and copy", Range(low=0.9)),
    (ARCHIVE, LINK): ("archive: 0.9 of the slower of link and plain write", Range(low=0.9)),
    (ARCHIVE, DISK): ("archive: 0.9 of the slower of link and plain write", Range(low=0.9)),
}
"""What was promised of the share of its bound that a way reaches, by way and bound."""


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection, by the name that reports give it."""

    name: str
    positions: int | slice | None


ALL, LAST = Picked("all positions", None), Picked("last", -1)
SLICE = Picked("slice 64", slice(0, 64))


@dataclass(frozen=True, slots=True)
class Group:
    """One question to one model, that several ways answer.

    Attributes:
        subject: The model, and its batches.
        picked: The selection.
        n_passes: Passes of one run: long enough that setting up is little of it, and no longer
            than its values fit in memory several times.
        likely_secs: What each way may take of the time.
        ways: The names of the grid's ways.
    """

    subject: Workload
    picked: Picked
    n_passes: int
    likely_secs: float
    ways: tuple[str, ...] = OURS

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}"

    @property
    def pass_bytes(self) -> int:
        return self.workload(1).result_bytes

    def workload(self, n_passes: int) -> Workload:
        """The samples of fewer passes are the first of those of more."""
        n_samples = n_passes * self.subject.batch_size
        return replace(self.subject, n_samples=n_samples, positions=self.picked.positions)


GRID = (
    Group(LLAMA, ALL, 4, 20),
    Group(LLAMA, ALL, 4, 40, (ARCHIVE,)),
    Group(LLAMA, LAST, 8, 7, (SLOTS, FRESH, PINNED, ARCHIVE)),
    Group(LLAMA, SLICE, 8, 7, (SLOTS, FRESH, PINNED)),
    Group(THIN, ALL, 6, 10),
    Group(THIN, ALL, 6, 20, (ARCHIVE,)),
    Group(GPT2, ALL, 24, 6, (*OURS, ARCHIVE)),
    Group(GPT2, LAST, 96, 4, (SLOTS, FRESH, PINNED, ARCHIVE)),
)
"""Large archives have groups of their own: a slow disk allows them fewer passes than the others."""


# The machine


def measure_floors(gpu: Gpu, scratch: Path) -> Machine:
    """What this machine can do at best; without a disk where none can be written."""
    device = open_device(gpu.device)
    try:
        return measure_machine(device, scratch)
    except SaveError:  # a full disk: everything but archives can still be measured
        return measure_machine(device)
    finally:
        device.close()


def make_terms(
    floors: Machine,
    pass_bytes: float,
    n_sites: int,
    forward_secs: float,
    launch_secs: float,
    way: str,
) -> dict[str, float]:
    """The cost model's terms for one pass, in seconds. With capture it takes at least the largest.

    Args:
        floors: The machine.
        pass_bytes: Captured in one pass.
        n_sites: Hooks.
        forward_secs: A pass without capture.
        launch_secs: What the host takes to issue one.
        way: Where values go.
    """
    rates = {LINK: floors.link_bytes_per_sec}
    if way == FRESH:
        rates[HOST] = floors.fresh_bytes_per_sec
    if way == ARCHIVE:
        rates[DISK] = floors.disk_bytes_per_sec
    terms = {FORWARD: forward_secs, LAUNCH: launch_secs + n_sites * HOOK_SECS}
    return terms | {name: pass_bytes / rate for name, rate in rates.items() if rate is not None}


def bound_of(terms: Mapping[str, float]) -> str:
    return max(terms, key=lambda name: terms[name])


def fitted(gpu: Gpu, group: Group, floors: Machine | None) -> int:
    """A group's passes; fewer where memory could not hold what exists at once, or where writing
    its archive would take most of its time.
    """
    most = group.n_passes
    if ARCHIVE in group.ways and floors is not None and floors.disk_bytes_per_sec is not None:
        written_bytes = floors.disk_bytes_per_sec * group.likely_secs / DISK_SHARE
        most = min(most, int(written_bytes / group.pass_bytes))

    def n_fitting() -> int:
        host_bytes = available_bytes()
        if host_bytes is None:
            return most
        return min(most, host_bytes // HOST_SHARE // group.pass_bytes)

    if n_fitting() < most:
        gpu.give_back_pinned()  # what earlier groups pinned, and torch keeps
    return max(FEWEST_PASSES, n_fitting())


# The grid's ways


def named_ways(group: Group, scratch: Path) -> dict[str, Way]:
    """The group's ways by name, with archives in a folder."""
    found: dict[str, Way] = {
        SLOTS: lent_and_dropped,
        LOOP: lent,
        FRESH: in_memory,
        PINNED: lambda case: Overwritten(into_reused(case)),
        ARCHIVE: partial(archived, scratch, group.pass_bytes),
    }
    return {name: found[name] for name in group.ways}


def lent_and_dropped(case: Case) -> Iterator[Values]:
    """`stream(zero_copy=True)`, in a loop that drops each batch before it asks for the next."""
    options = {**case.calling, **case.options}
    with fastcap.stream(
        case.model, case.batches, case.sites, device=case.device, zero_copy=True, **options
    ) as run:
        values: dict[str, torch.Tensor] = {}
        for _ in case.batches:
            values.clear()
            values = dict(next(run))
            yield values


class Overwritten(dict[str, torch.Tensor]):
    """Memory that every run is given again, and that changes when a run's values are dropped: none
    is right because an earlier one was.
    """

    def __del__(self) -> None:
        for value in self.values():
            value.reshape(-1).view(torch.uint8).fill_(SCRIBBLE)


def archived(scratch: Path, pass_bytes: int, case: Case) -> Values | Iterator[Values]:
    """`fastcap.extract` into a new directory, which goes with its values."""
    needs_room(scratch, pass_bytes * len(case.batches))
    return archived_in(scratch)(case)


def needs_room(folder: Path, n_bytes: int) -> None:
    """Raises:
    UnavailableError: An archive of `n_bytes` cannot be written there, or not read.
    """
    if find_spec("safetensors") is None:
        raise UnavailableError("safetensors is not installed, and archives are read with it")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 1.2 * n_bytes:
        raise UnavailableError(
            f"{folder} has {format_bytes(free_bytes)} free, and the archive takes "
            f"{format_bytes(n_bytes)}"
        )
