"""From what one pass showed to the bytes, the memory and the time of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import META, dtype_name
from fastcap.devices import open_device
from fastcap.errors import ArgumentError, ResultError, SelectionError
from fastcap.host_memory import available_bytes
from fastcap.planning.costs import Into, Load, costs_of
from fastcap.planning.examples import bytes_beside
from fastcap.planning.machine import Machine, RunDevice
from fastcap.planning.measure import PassSecs, nearest_folder
from fastcap.planning.observe import Call, Observed
from fastcap.planning.plans import Plan
from fastcap.planning.sizes import MemoryPlan, SitePlan, Size
from fastcap.spec import UNPADDED, Selection
from fastcap.transfer.budget import Budget, Limits, plan_budget, settled_budget
from fastcap.transfer.synchronous import QUEUED_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """What was asked, checked; see `fastcap.plan`."""

    selection: Selection
    n_samples: int
    into: Into
    lends: bool
    keeps_all: bool
    folder: Path
    limits: Limits

    @property
    def archive_folder(self) -> Path | None:
        """Where the disk matters."""
        return self.folder if self.into == "archive" else None


@dataclass(frozen=True, slots=True)
class _Transfer:
    """The captures of one device, and the memory that they take their way through."""

    calls: tuple[Call, ...]
    budget: Budget | None
    free_bytes: int | None

    @property
    def staging_bytes(self) -> int:
        return 0 if self.budget is None else self.budget.staging_bytes

    def lends(self, call: Call) -> bool:
        """Whether a record would be lent out of a slot instead of copied."""
        is_as_sent = call.delivered_bytes == call.link_bytes
        n_bytes, budget = call.delivered_bytes, self.budget
        if budget is None or not is_as_sent:
            return False
        return budget.chunk_bytes <= 2 * n_bytes <= 2 * budget.chunk_bytes


def assemble(
    run: PlannedRun,
    observed: Observed,
    batch: Any,
    place: RunDevice,
    machine: Machine,
    passes: PassSecs,
) -> Plan:
    """The plan.

    Args:
        run: What was asked.
        observed: What one pass captures.
        batch: What of that pass an archive would store beside its values.
        place: Where the run will be.
        machine: The rates that are known.
        passes: What a pass takes without hooks.

    Raises:
        ArgumentError: Nothing says how many samples the example has.
        ResultError: Unless into a loop, a site whose first dimension is not the batch.
        ArchiveError: A dtype that files of an archive cannot hold.
        SelectionError: The last pass has fewer samples than `positions` has lists.
    """
    batch_size = observed.n_rows
    if not batch_size:
        raise ArgumentError(
            "Cannot tell how many samples the example has: it holds no tensor and no list, or an "
            "empty one. Give a dict, tensor or list with at least one sample."
        )
    is_even = _check_rows(run, observed, batch_size)
    sites = tuple(
        _site(name, calls, run.keeps_all, place.is_direct) for name, calls in observed.calls.items()
    )
    _check_files(run, sites)
    size = Size(run.n_samples, batch_size)
    _check_last_pass(run.selection, size)
    transfers = _transfers(run, observed, place, size)
    memory = _memory(run, sites, transfers, size, _beside_bytes(run, batch, sites, size))
    load = _load(run, sites, transfers, place, size, passes, memory.archive_bytes)
    return Plan(
        sites=sites,
        silent=observed.silent,
        size=size,
        into=run.into,
        selection=run.selection,
        is_exact=run.selection.positions != UNPADDED and (is_even or size.is_whole),
        memory=memory,
        machine=machine,
        costs=costs_of(load, machine),
        forward_secs=passes.forward,
        assumed=(*place.assumed, *observed.doubts, *_there(run)),
    )


def _there(run: PlannedRun) -> Iterator[str]:
    """What an archive that is there adds to a run, which is planned as if there were none."""
    folder = run.archive_folder
    if folder is not None and (folder / META).is_file():
        yield (
            f"{folder} has an archive. A run that goes on with it makes the passes that are "
            "missing, and one more, which compares values (check='fingerprint' leaves it out)."
        )


def _check_last_pass(selection: Selection, size: Size) -> None:
    if selection.by_sample is not None and not size.is_whole:
        raise SelectionError(
            f"positions= has lists for {size.batch_size} samples, and the last pass of "
            f"{size.n_samples:,} samples has {size.n_samples % size.batch_size}, where the run "
            "would fail. Let the batches hold the positions (positions='key'), or plan a number "
            f"of samples that {size.batch_size} divides."
        )


def _check_files(run: PlannedRun, sites: Sequence[SitePlan]) -> None:
    """That files can hold every dtype."""
    if run.into == "archive":
        for site in sites:
            dtype_name(site.dtype, site.name)


def _check_rows(run: PlannedRun, observed: Observed, batch_size: int) -> bool:
    """Whether the rows of every site are samples."""
    needs_rows = run.into != "loop" and run.selection.positions != UNPADDED
    is_even = True
    for name, calls in observed.calls.items():
        shape = calls[-1].shape
        is_even = is_even and all(call.shape[:1] == (batch_size,) for call in calls)
        if needs_rows and shape[:1] != (batch_size,):
            raise ResultError(
                f"Site {name!r} produced shape {shape} for a batch of {batch_size} samples: its "
                "first dimension is not the batch, so its rows cannot be matched to samples. Name "
                "the dimension that counts samples with batch_dim=, leave this site out, or plan "
                "to receive it batch by batch with into='loop'."
            )
    return is_even


def _site(name: str, calls: Sequence[Call], keeps_all: bool, is_direct: bool) -> SitePlan:
    last = calls[-1]
    kept = calls if keeps_all else calls[-1:]
    return SitePlan(
        name=name,
        produced=last.produced,
        shape=last.shape,
        dtype=last.dtype,
        n_calls=len(calls),
        pass_bytes=sum(call.delivered_bytes for call in kept),
        link_bytes=sum(call.delivered_bytes if is_direct else call.link_bytes for call in calls),
    )


def _transfers(
    run: PlannedRun, observed: Observed, place: RunDevice, size: Size
) -> list[_Transfer]:
    """One for each device that values live on, as the engine has them."""
    by_device: dict[torch.device, list[Call]] = {}
    for call in observed.in_order:
        by_device.setdefault(call.device, []).append(call)
    transfers = []
    for torch_device, calls in by_device.items():
        device = place.device if torch_device.type == "meta" else open_device(torch_device)
        if device is not None and device.direct:
            transfers.append(_Transfer(tuple(calls), None, None))
            continue
        free_bytes = None if device is None else device.free_bytes()
        budget = _budget(run, observed.n_sites, calls, free_bytes, size)
        transfers.append(_Transfer(tuple(calls), budget, free_bytes))
    return transfers


def _budget(
    run: PlannedRun, n_sites: int, calls: Sequence[Call], free_bytes: int | None, size: Size
) -> Budget:
    """What a transfer takes at the first record, and after the first pass if there is a second."""
    sent = [call.link_bytes for call in calls]
    known = run.limits, free_bytes, available_bytes()
    expected_bytes = n_sites * next(filter(None, sent), 0)
    first = plan_budget(*known, expected_bytes, max(sent[:1]))
    pass_bytes = max(expected_bytes, sum(sent))
    settled = settled_budget(first, plan_budget(*known, pass_bytes, max(sent)))
    if size.n_passes > 1:
        return settled
    n_slots = max(first.n_slots, settled.slot_bytes // first.chunk_bytes)
    return replace(first, n_slots=n_slots, slots_reason=settled.slots_reason)


def _beside_bytes(run: PlannedRun, batch: Any, sites: Sequence[SitePlan], size: Size) -> int:
    if run.into != "archive":
        return 0
    n_ragged_sites = len(sites) if run.selection.positions == UNPADDED else 0
    return size.total(bytes_beside(batch, size.batch_size, n_ragged_sites))


def _memory(
    run: PlannedRun,
    sites: Sequence[SitePlan],
    transfers: Sequence[_Transfer],
    size: Size,
    beside_bytes: int,
) -> MemoryPlan:
    pass_bytes = sum(site.pass_bytes for site in sites)
    budgets = [transfer.budget for transfer in transfers if transfer.budget is not None]
    free_bytes = [transfer.free_bytes for transfer in transfers if transfer.budget is not None]
    known = [n_bytes for n_bytes in free_bytes if n_bytes is not None]
    folder = run.archive_folder
    return MemoryPlan(
        staging_bytes=sum(budget.staging_bytes for budget in budgets),
        slot_bytes=sum(budget.slot_bytes for budget in budgets),
        first_slot_bytes=sum(budget.chunk_bytes * budget.n_first_slots for budget in budgets),
        result_bytes=_result_bytes(run, transfers, size, pass_bytes),
        archive_bytes=0 if folder is None else size.total(pass_bytes) + beside_bytes,
        beside_bytes=beside_bytes,
        free_device_bytes=sum(known) if known and len(known) == len(free_bytes) else None,
        available_host_bytes=available_bytes(),
        free_disk_bytes=LocalFiles().free_bytes(nearest_folder(run.folder)),
        chosen=tuple(map(str, budgets)),
    )


def _result_bytes(
    run: PlannedRun, transfers: Sequence[_Transfer], size: Size, pass_bytes: int
) -> int:
    """Host memory beside the slots: a result, or the records on their way to somewhere else."""
    if run.into == "memory":
        return size.total(pass_bytes)
    if run.into == "loop":
        calls = [(transfer, call) for transfer in transfers for call in transfer.calls]
        lent_bytes = sum(
            c.delivered_bytes for transfer, c in calls if run.lends and transfer.lends(c)
        )
        return size.n_under_way * max(0, pass_bytes - lent_bytes)
    # Files are written out of slots, and on the CPU out of what hooks have copied.
    copied = [call.delivered_bytes for ln in transfers if ln.budget is None for call in ln.calls]
    return max(sum(copied), min(QUEUED_BYTES, size.total(sum(copied))))


def _load(
    run: PlannedRun,
    sites: Sequence[SitePlan],
    transfers: Sequence[_Transfer],
    place: RunDevice,
    size: Size,
    passes: PassSecs,
    disk_bytes: int,
) -> Load:
    link_bytes = sum(site.link_bytes for site in sites)
    calls = [call for transfer in transfers for call in transfer.calls]
    largest_bytes = max((call.link_bytes for call in calls), default=0)
    staged = [transfer for transfer in transfers if transfer.budget is not None]
    chunk_bytes = max(
        (transfer.budget.chunk_bytes for transfer in staged if transfer.budget), default=0
    )
    staging_bytes = sum(transfer.staging_bytes for transfer in staged)
    return Load(
        n_passes=size.n_passes,
        n_calls=len(calls),
        link_bytes=size.total(link_bytes),
        read_bytes=size.total(sum(call.read_bytes for call in calls)),
        result_bytes=size.total(sum(site.pass_bytes for site in sites)),
        disk_bytes=disk_bytes,
        last_bytes=min(link_bytes, chunk_bytes),
        stall_bytes=max(0, largest_bytes - staging_bytes),
        into=run.into,
        lends=run.lends,
        is_direct=place.is_direct,
        forward_secs=passes.forward,
        launch_secs=passes.launch,
    )
