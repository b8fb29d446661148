"""What to do about a run that does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import torch

from fastcap.formatting import format_bytes
from fastcap.planning.costs import Into
from fastcap.planning.sizes import MemoryPlan, SitePlan, Size
from fastcap.spec import Selection

NARROW = torch.bfloat16


def ways_out(
    sites: Sequence[SitePlan], size: Size, into: Into, selection: Selection, memory: MemoryPlan
) -> tuple[str, ...]:
    """First what does not fit, then the ways out, each with what it would take."""
    lines: list[str] = []
    if _is_over(memory.staging_bytes, memory.free_device_bytes):
        lines.append(_over("of staging", memory.staging_bytes, memory.free_device_bytes))
        lines.append("smaller: staging_bytes=, or smaller batches")
    pass_bytes = sum(site.pass_bytes for site in sites)
    smaller = [] if into == "loop" else list(_smaller(sites, size, selection))
    if _is_over(memory.host_bytes, memory.available_host_bytes):
        free_bytes = memory.available_host_bytes or 0
        lines.append(_over("of host memory", memory.host_bytes, free_bytes))
        if into == "memory":
            lines += _verdicts(smaller, memory.first_slot_bytes, free_bytes)
            lines += _fewer(size, pass_bytes, free_bytes - memory.first_slot_bytes)
            lines += _elsewhere(size, pass_bytes, memory)
        else:
            lines.append("smaller: smaller batches, or pinned_bytes=")
    if _is_over(memory.archive_bytes, memory.free_disk_bytes):
        free_bytes = memory.free_disk_bytes or 0
        lines.append(_over("on disk", memory.archive_bytes, free_bytes))
        lines += _verdicts(smaller, memory.beside_bytes, free_bytes)
        lines += _fewer(size, memory.archive_bytes * size.batch_size / size.n_samples, free_bytes)
    return tuple(lines)


def _over(what: str, needed_bytes: int, free_bytes: int | None) -> str:
    there_is = format_bytes(free_bytes or 0)
    return f"Does not fit: {format_bytes(needed_bytes)} {what}, and there is {there_is}."


def _verdict(needed_bytes: float, free_bytes: int | None) -> str:
    if free_bytes is None:
        return "free space not known"
    return "fits" if needed_bytes <= free_bytes else "still does not fit"


def _is_over(needed_bytes: int, free_bytes: int | None) -> bool:
    return free_bytes is not None and needed_bytes > free_bytes


def _smaller(
    sites: Sequence[SitePlan], size: Size, selection: Selection
) -> Iterator[tuple[str, int]]:
    """The same run with a part of every value, and its bytes."""
    sliced_bytes = _sliced_bytes(sites, size, selection)
    if sliced_bytes is not None:
        yield "slice: one position ('last', or -1 without padding)", sliced_bytes
    cast_bytes = size.total(sum(site.pass_bytes // _narrowed_by(site) for site in sites))
    if cast_bytes < size.total(sum(site.pass_bytes for site in sites)):
        yield "cast: dtype=torch.bfloat16", cast_bytes


def _verdicts(
    options: Sequence[tuple[str, int]], other_bytes: int, free_bytes: int
) -> Iterator[str]:
    for how, n_bytes in options:
        verdict = _verdict(n_bytes + other_bytes, free_bytes)
        yield f"{how} takes {format_bytes(n_bytes)}, {verdict}"


def _fewer(size: Size, pass_bytes: float, free_bytes: int) -> Iterator[str]:
    n_fitting = int(max(0, free_bytes) // max(pass_bytes / size.batch_size, 1))
    if n_fitting:
        yield f"fewer: {n_fitting:,} of {size.n_samples:,} samples fit"


def _elsewhere(size: Size, pass_bytes: int, memory: MemoryPlan) -> Iterator[str]:
    """Batch by batch, to a disk or to a loop."""
    total_bytes = size.total(pass_bytes)
    verdict = _verdict(total_bytes, memory.free_disk_bytes)
    yield f"archive: {format_bytes(total_bytes)} on disk instead (fastcap.extract), {verdict}"
    under_way = pass_bytes * size.n_under_way
    verdict = _verdict(under_way + memory.first_slot_bytes, memory.available_host_bytes)
    yield f"stream: {format_bytes(under_way)} at a time instead (fastcap.stream), {verdict}"


def _sliced_bytes(sites: Sequence[SitePlan], size: Size, selection: Selection) -> int | None:
    """Bytes of the run with one position of each site that has positions."""
    if selection.positions is not None or selection.reduce is not None:
        return None
    dim = 1 if selection.seq_dim is None else selection.seq_dim
    if not all(len(site.shape) >= 3 and -3 <= dim < len(site.shape) for site in sites):
        return None
    per_pass = sum(
        prod(site.shape) // max(site.shape[dim], 1) * site.dtype.itemsize for site in sites
    )
    return size.total(per_pass)


def _narrowed_by(site: SitePlan) -> int:
    is_float = site.dtype.is_floating_point
    return site.dtype.itemsize // NARROW.itemsize if is_float and site.dtype.itemsize > 2 else 1
