"""What to do about a run that does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING

import torch

from fastcap.host_memory import format_bytes

if TYPE_CHECKING:
    from fastcap.planning.plans import Plan, SitePlan

PASSES_UNDER_WAY = 3
"""Of a stream with `lookahead=1`: two that run or have run, and one that the loop holds."""

NARROW = torch.bfloat16


def of(plan: Plan) -> tuple[str, ...]:
    """First what does not fit, then the ways out, each with what it would take."""
    memory = plan.memory
    lines: list[str] = []
    if _is_over(memory.device_bytes, memory.free_device_bytes):
        lines.append(_over("of staging", memory.device_bytes, memory.free_device_bytes))
        lines.append("smaller: device_bytes=, or smaller batches")
    if _is_over(memory.host_bytes, memory.available_host_bytes):
        lines.append(_over("of host memory", memory.host_bytes, memory.available_host_bytes))
        lines += _smaller(plan, memory.slot_bytes, memory.available_host_bytes or 0)
        lines += _elsewhere(plan, memory.available_host_bytes or 0)
    if _is_over(memory.archive_bytes, memory.free_disk_bytes):
        lines.append(_over("on disk", memory.archive_bytes, memory.free_disk_bytes))
        lines += _smaller(plan, 0, memory.free_disk_bytes or 0)
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


def _smaller(plan: Plan, other_bytes: int, free_bytes: int) -> Iterator[str]:
    """The same run with a part of it."""

    def option(verb: str, how: str, total_bytes: int) -> str:
        verdict = _verdict(total_bytes + other_bytes, free_bytes)
        return f"{verb}: {how} takes {format_bytes(total_bytes)}, {verdict}"

    if plan.into == "loop":
        yield "smaller: smaller batches, or host_bytes="
        return
    sliced_bytes = _sliced_bytes(plan)
    if sliced_bytes is not None:
        yield option("slice", "positions=-1", sliced_bytes)
    cast_bytes = sum(site.pass_bytes // _narrowed_by(site) for site in plan.sites)
    if plan.size.total(cast_bytes) < plan.total_bytes:
        yield option("cast", "dtype=torch.bfloat16", plan.size.total(cast_bytes))
    n_fitting = int(max(0, free_bytes - other_bytes) // max(plan.bytes_per_sample, 1))
    if n_fitting:
        yield f"fewer: {n_fitting:,} of {plan.size.n_samples:,} samples fit"


def _elsewhere(plan: Plan, free_bytes: int) -> Iterator[str]:
    """Batch by batch, to a disk or to a loop."""
    if plan.into != "memory":
        return
    total, free_disk_bytes = plan.total_bytes, plan.memory.free_disk_bytes
    verdict = _verdict(total, free_disk_bytes)
    yield f"archive: {format_bytes(total)} on disk instead (fastcap.extract), {verdict}"
    n_passes = min(plan.size.n_passes, PASSES_UNDER_WAY)
    under_way = plan.bytes_per_sample * plan.size.batch_size * n_passes
    verdict = _verdict(under_way + plan.memory.slot_bytes, free_bytes)
    yield f"stream: {format_bytes(under_way)} at a time instead (fastcap.stream), {verdict}"


def _sliced_bytes(plan: Plan) -> int | None:
    """Bytes of the run with one position of each site that has positions."""
    selection = plan.selection
    if selection.positions is not None or selection.reduce is not None:
        return None
    dim = 1 if selection.seq_dim is None else selection.seq_dim
    if not all(len(site.produced) >= 3 and -3 <= dim < len(site.produced) for site in plan.sites):
        return None
    per_pass = sum(
        prod(site.produced) // max(site.produced[dim], 1) * site.dtype.itemsize
        for site in plan.sites
    )
    return plan.size.total(per_pass)


def _narrowed_by(site: SitePlan) -> int:
    is_float = site.dtype.is_floating_point
    return site.dtype.itemsize // NARROW.itemsize if is_float and site.dtype.itemsize > 2 else 1
