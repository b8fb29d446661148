"""What the grid asks: models, selections and ways, and what bounds a pass on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

import fastcap
from benchmarks.gpu.report import Range, UnavailableError
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Subject
from benchmarks.gpu.toolbox import Gpu, MiB
from fastcap.bench import Case
from fastcap.bench.case import Values
from fastcap.bench.ways import Way, archived_in, in_memory
from fastcap.devices import open_device
from fastcap.errors import SaveError
from fastcap.formatting import format_bytes
from fastcap.host_memory import available_bytes
from fastcap.planning.machine import Machine
from fastcap.planning.measure import measure_machine

FEWEST_PASSES = 2
HOST_SHARE = 7  # results, the oracle's values, slots, pinned rows and an archive's pages
DISK_SHARE = 6  # an archive's first run is at most this part of a group's time
SMALLEST_CHUNK, LARGEST_CHUNK = 8 * MiB, 64 * MiB
HOOK_SECS = 10e-6  # the goal for one site

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

Ways = Mapping[str, Way]


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection, by the name that reports give it."""

    name: str
    positions: int | slice | None


ALL, LAST = Picked("all positions", None), Picked("last", -1)
SLICE = Picked("slice 64", slice(0, 64))


@dataclass(frozen=True, slots=True)
class Group:
    """One question to one model, that every way answers in turns.

    Attributes:
        subject: The model.
        picked: The selection.
        likely_secs: What it may take of the time.
        n_passes: Passes of one run: long enough that setting up is little of it, and no longer
            than its values fit in memory several times.
        ways: The names of the grid's ways, or ways by name.
        mark: What tells it from another group of the same model and selection.
    """

    subject: Subject
    picked: Picked
    likely_secs: float
    n_passes: int
    ways: tuple[str, ...] | Ways = OURS
    mark: str = ""

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}{self.mark}"

    @property
    def pass_bytes(self) -> int:
        n_tokens, positions = self.subject.n_tokens, self.picked.positions
        n_taken = 1 if isinstance(positions, int) else n_tokens
        if isinstance(positions, slice):
            n_taken = len(range(n_tokens)[positions])
        return self.subject.site_bytes * n_taken // n_tokens * self.subject.shape.n_layers


GRID = (
    Group(LLAMA, ALL, 75, 4),
    Group(LLAMA, ALL, 40, 4, (ARCHIVE,)),
    Group(LLAMA, LAST, 25, 8, (SLOTS, FRESH, PINNED, ARCHIVE)),
    Group(LLAMA, SLICE, 20, 8, (SLOTS, FRESH, PINNED)),
    Group(THIN, ALL, 40, 6),
    Group(THIN, ALL, 20, 6, (ARCHIVE,)),
    Group(GPT2, ALL, 30, 24, (*OURS, ARCHIVE)),
    Group(GPT2, LAST, 15, 96, (SLOTS, FRESH, PINNED, ARCHIVE)),
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


def named_ways(
    group: Group, rows: dict[str, Tensor], counted: dict[str, Any], scratch: Path
) -> dict[str, Way]:
    """The group's ways by name.

    Args:
        group: Which.
        rows: What the pinned result is written to.
        counted: Is told what the engine counts.
        scratch: Where archives are made.
    """
    if isinstance(group.ways, Mapping):
        return dict(group.ways)
    budget = slot_budget(group.pass_bytes, group.subject.shape.n_layers)
    found: dict[str, Way] = {
        SLOTS: partial(lent, budget, counted),
        LOOP: partial(lent, {}, counted),
        FRESH: in_memory,
        PINNED: lambda case: into_rows(rows, case),
        ARCHIVE: partial(archived, scratch, group.pass_bytes),
    }
    return {name: found[name] for name in group.ways}


def slot_budget(pass_bytes: int, n_sites: int) -> dict[str, int]:
    """Slots for the pass that is held and the one that is under way, and chunks that records fill.

    A slot is lent only for a record that fills half of it or more.
    """
    record_bytes = max(1, pass_bytes // n_sites)
    chunk_bytes = min(max(1 << (record_bytes - 1).bit_length(), SMALLEST_CHUNK), LARGEST_CHUNK)
    if record_bytes > chunk_bytes:
        n_per_pass = n_sites * -(-record_bytes // chunk_bytes)
    else:
        n_per_pass = -(-n_sites // (chunk_bytes // record_bytes))
    return {"staging_bytes": 4 * chunk_bytes, "pinned_bytes": (2 * n_per_pass + 6) * chunk_bytes}


def lent(budget: Mapping[str, int], counted: dict[str, Any], case: Case) -> Iterator[Values]:
    """`stream(zero_copy=True)`, with a budget or fastcap's own; counts what the engine counts."""
    options: dict[str, Any] = {**case.calling, **case.options, **budget}
    with fastcap.stream(
        case.model, case.batches, case.sites, device=case.device, zero_copy=True, **options
    ) as run:
        while (records := next(run, None)) is not None:
            yield dict(records)
            del records
        counted.update(asdict(run.statistics()))


def into_rows(rows: dict[str, Tensor], case: Case) -> Values:
    """`extract_representations(out=)`, into rows that every run is given again."""
    in_memory(case, out=rows)
    return rows


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
