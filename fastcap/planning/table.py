"""A plan as a page of text, and a comparison."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from fastcap.host_memory import format_bytes
from fastcap.planning.costs import format_secs

if TYPE_CHECKING:
    from fastcap.planning.plans import Comparison, Plan, SitePlan

MOST_LINES = 8
"""Of sites, so that the page stays one screen."""

MOST_CHARACTERS = 28
"""Of a site's name."""

WIDTH = 80
_INTO = {"memory": "memory", "loop": "a loop", "archive": "an archive"}
_NUMBER = re.compile(r"\d+")


def of_plan(plan: Plan) -> str:
    """Sites and bytes, then memory, then time, then what to do."""
    size = plan.size
    passes = "1 pass" if size.n_passes == 1 else f"{size.n_passes:,} passes"
    head = f"{size.n_samples:,} samples in {passes} of {size.batch_size:,}, {_chosen(plan)}"
    lines = [
        f"{head}, into {_INTO[plan.into]}",
        "",
        *_sites(plan),
        "",
        *_memory(plan),
        "",
        *_times(plan),
    ]
    notes = [*plan.assumed, *plan.silent]
    if notes:
        lines.append("")
        for note in notes:
            lines += textwrap.wrap(note, WIDTH)
    if plan.advice:
        lines.append("")
        for line in plan.advice:
            indent = "" if line.startswith("Does not fit") else "  "
            lines += textwrap.wrap(
                line, WIDTH, initial_indent=indent, subsequent_indent=indent + "  "
            )
    return "\n".join(lines)


def of_comparison(comparison: Comparison) -> str:
    """One line per quantity."""
    rows = [("", "planned", "found", "found / planned")]
    for row in comparison.rows:
        is_bytes = row.unit == "bytes"
        show = format_bytes if is_bytes else format_secs
        planned = "not known" if row.planned is None else show(row.planned)
        missing = "given back" if is_bytes else "not known"
        found = missing if row.found is None else show(row.found)
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        rows.append((row.name, planned, found, ratio))
    return "\n".join(_aligned(rows, "<>>>"))


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def _chosen(plan: Plan) -> str:
    selection = plan.selection
    if selection.reduce is not None:
        what = "the mean of each" if selection.reduce == "mean" else "reduced"
    elif selection.positions is None:
        what = "all positions"
    elif isinstance(selection.positions, slice):
        parts = (selection.positions.start, selection.positions.stop, selection.positions.step)
        what = "positions " + ":".join("" if part is None else str(part) for part in parts)
    else:
        what = f"positions {selection.positions!r}"[:40]
    return what if selection.dtype is None else f"{what} as {dtype_name(selection.dtype)}"


def _sites(plan: Plan) -> Iterator[str]:
    groups = [list(found) for _, found in groupby(plan.sites, _look)]
    rows = [("site", "one pass", "dtype", "calls", "per sample", "in all")]
    for group in groups[:MOST_LINES]:
        shape = " x ".join(map(str, group[0].shape)) or "scalar"
        name = _shortened(_label([site.name for site in group]))
        rows.append((name, shape, dtype_name(group[0].dtype), *_amounts(plan, group)))
    hidden = [site for group in groups[MOST_LINES:] for site in group]
    if hidden:
        rows.append((f"and {len(hidden)} more sites", "", "", *_amounts(plan, hidden)))
    yield from _aligned(rows, "<<<>>>")
    total_bytes, sign = plan.total_bytes, "" if plan.is_exact else "about "
    yield (
        f"In all: {sign}{plan.bytes_per_sample:,.0f} B per sample, {sign}{total_bytes:,} B "
        f"({format_bytes(total_bytes)})"
    )
    if plan.captured_bytes != total_bytes:
        yield f"Leaving the model's device: {sign}{plan.captured_bytes:,} B"


def _amounts(plan: Plan, sites: Sequence[SitePlan]) -> tuple[str, str, str]:
    """Calls, bytes per sample and bytes in all."""
    pass_bytes = sum(site.pass_bytes for site in sites)
    return (
        str(sum(site.n_calls for site in sites)),
        format_bytes(pass_bytes / plan.size.batch_size),
        format_bytes(plan.size.total(pass_bytes)),
    )


def _look(site: SitePlan) -> tuple[object, ...]:
    """What sites of one line have in common."""
    pattern = _NUMBER.sub("#", site.name)
    return pattern, site.shape, site.dtype, site.n_calls, site.link_bytes


def _label(names: Sequence[str]) -> str:
    """`layers.{0..31}.mlp` for names that differ in numbers."""
    if len(names) == 1:
        return names[0] or '""'
    numbers = [tuple(map(int, _NUMBER.findall(name))) for name in names]
    differing = [i for i in range(len(numbers[0])) if len({found[i] for found in numbers}) > 1]
    if len(differing) != 1:
        return f"{names[0]} ... {names[-1]}"
    values = [found[differing[0]] for found in numbers]
    is_range = values == list(range(values[0], values[0] + len(values)))
    inner = f"{values[0]}..{values[-1]}" if is_range else _listed(values)
    parts = iter(range(len(numbers[0])))
    return _NUMBER.sub(
        lambda match: f"{{{inner}}}" if next(parts) == differing[0] else match[0], names[0]
    )


def _shortened(name: str) -> str:
    if len(name) <= MOST_CHARACTERS:
        return name
    end = MOST_CHARACTERS // 2
    return f"{name[: MOST_CHARACTERS - end - 3]}...{name[-end:]}"


def _listed(values: Sequence[int]) -> str:
    if len(values) <= 6:
        return ",".join(map(str, values))
    return f"{values[0]},{values[1]}...{values[-1]}"


def _memory(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    results = "result" if plan.into == "memory" else "records under way"
    parts = [("slots", memory.slot_bytes), (results, memory.result_bytes)]
    rows = [("memory", "needed", "there is", "")]
    if memory.device_bytes:
        staging = memory.device_bytes, memory.free_device_bytes
        rows.append(_needed("staging, on the device", *staging))
    rows += [(f"  {name}", format_bytes(n_bytes), "", "") for name, n_bytes in parts if n_bytes]
    rows.append(_needed("host memory in all", memory.host_bytes, memory.available_host_bytes))
    if memory.archive_bytes:
        rows.append(_needed("disk", memory.archive_bytes, memory.free_disk_bytes))
    yield from _aligned(rows, "<>><")


def _needed(name: str, n_bytes: int, free_bytes: int | None) -> tuple[str, str, str, str]:
    if free_bytes is None:
        return name, format_bytes(n_bytes), "not known", ""
    verdict = "fits" if n_bytes <= free_bytes else "DOES NOT FIT"
    return name, format_bytes(n_bytes), format_bytes(free_bytes), verdict


def _times(plan: Plan) -> Iterator[str]:
    costs = plan.costs
    is_known = costs.secs is not None
    rows = [("time", "at least", "work", "")]
    for term in costs.terms:
        secs = "not known" if term.secs is None else format_secs(term.secs)
        mark = "<- bound" if is_known and term.name == costs.bound else ""
        rows.append((term.name, secs, term.work, mark))
    yield from _aligned(rows, "<><<")
    if costs.secs is not None:
        share = "" if plan.overhead is None else f", {plan.overhead:.2f} times the passes alone"
        yield f"The run: {format_secs(costs.secs)}{share}; {plan.bound} is the bound."
        return
    known = "" if costs.bound is None else f", at least {format_secs(costs.at_least_secs)}"
    yield f"The run: not known{known}."
    yield "What is not known can be measured (--measure, measure=True) or given."


def _aligned(rows: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Columns two spaces apart; `<` puts a cell left, `>` right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(sides))]
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ]
        yield "  ".join(cells).rstrip()
