"""Blocks of lines for a terminal: sites, memory, time, and what to do."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from fastcap.formatting import GAP, WIDTH, columns, counted, format_bytes, format_secs
from fastcap.planning.costs import Costs, Into
from fastcap.planning.sizes import MemoryPlan, SitePlan, Size, dtype_name
from fastcap.spec import Selection

MOST_LINES = 8
"""Of sites, so that the page stays one screen."""

FEWEST_CHARACTERS = 12
"""Of a site's name, however long its shape is."""

_INTO = {"memory": "memory", "loop": "a loop", "archive": "an archive"}
_NUMBER = re.compile(r"\d+")


def page(*blocks: Iterable[str]) -> str:
    """The blocks that have lines, with an empty line between them."""
    found = ["\n".join(block) for block in blocks]
    return "\n\n".join(block for block in found if block)


def of_run(size: Size, selection: Selection, into: Into) -> Iterator[str]:
    """What was asked, in a line."""
    line = (
        f"{counted(size.n_samples, 'sample')} in {counted(size.n_passes, 'pass')} of "
        f"{size.batch_size:,}, {_chosen(selection)}, into {_INTO[into]}"
    )
    yield from textwrap.wrap(line, WIDTH, subsequent_indent=GAP)


def of_sites(sites: Sequence[SitePlan], size: Size, is_exact: bool) -> Iterator[str]:
    """Bytes of sites; those that differ in numbers only are one line."""
    groups: dict[tuple[object, ...], list[SitePlan]] = {}
    for site in sites:
        groups.setdefault(_look(site), []).append(site)
    shown = list(groups.values())[:MOST_LINES]
    rows = [("one pass", "dtype", "calls", "per sample", "in all")]
    for group in shown:
        shape = " x ".join(map(str, group[0].shape)) or "scalar"
        rows.append((shape, dtype_name(group[0].dtype), *_amounts(group, size)))
    hidden = [site for group in list(groups.values())[MOST_LINES:] for site in group]
    if hidden:
        rows.append(("", "", *_amounts(hidden, size)))
    others = [len(GAP) + max(map(len, column)) for column in zip(*rows, strict=True)]
    room = max(FEWEST_CHARACTERS, WIDTH - sum(others))
    names = ["site", *(_shortened(_label([site.name for site in g]), room) for g in shown)]
    if hidden:
        names.append(f"and {len(hidden)} more")
    yield from columns([(name, *row) for name, row in zip(names, rows, strict=True)], "<<<>>>")
    per_sample = sum(site.pass_bytes for site in sites) / size.batch_size
    total_bytes = size.total(sum(site.pass_bytes for site in sites))
    sent_bytes = size.total(sum(site.link_bytes for site in sites))
    sign = "" if is_exact else "about "
    line = (
        f"In all: {sign}{per_sample:,.0f} B per sample, {sign}{total_bytes:,} B "
        f"({format_bytes(total_bytes)})"
    )
    yield from textwrap.wrap(line, WIDTH, subsequent_indent=GAP)
    if sent_bytes != total_bytes:
        yield f"Leaving the model's device: {sign}{sent_bytes:,} B"


def of_memory(memory: MemoryPlan, into: Into) -> Iterator[str]:
    """What is needed of each kind of memory, and what there is."""
    results = "result" if into == "memory" else "records under way"
    values_bytes = memory.archive_bytes - memory.beside_bytes
    rows = [("memory", "needed", "there is", "")]
    if memory.staging_bytes:
        staging = memory.staging_bytes, memory.free_device_bytes
        rows.append(_needed("staging, on the device", *staging))
    rows += _parts(("slots at first", memory.first_slot_bytes), (results, memory.result_bytes))
    rows.append(_needed("host memory in all", memory.host_bytes, memory.available_host_bytes))
    if memory.archive_bytes:
        rows += _parts(("values", values_bytes), ("ids and masks", memory.beside_bytes))
        rows.append(_needed("disk in all", memory.archive_bytes, memory.free_disk_bytes))
    yield from columns(rows, "<>><")
    for line in memory.chosen:
        yield from textwrap.wrap(line, WIDTH, subsequent_indent=GAP)


def of_time(costs: Costs, overhead: float | None) -> Iterator[str]:
    """What the run takes of each resource, and which of them bounds it."""
    is_known = costs.secs is not None
    rows = [("time", "at least", "work")]
    for term in costs.terms:
        secs = "not known" if term.secs is None else format_secs(term.secs)
        mark = f"{GAP}<- bound" if is_known and term.name == costs.bound else ""
        rows.append((term.name, secs, term.work + mark))
    yield from columns(rows, "<><")
    if costs.secs is not None:
        share = "" if overhead is None else f", {overhead:.2f} times the passes alone"
        yield f"The run: {format_secs(costs.secs)}{share}; {costs.bound} is the bound."
        return
    known = "" if costs.bound is None else f", at least {format_secs(costs.at_least_secs)}"
    yield f"The run: not known{known}."
    yield "What is not known can be measured (--measure, measure=True) or given."


def of_notes(notes: Iterable[str]) -> Iterator[str]:
    """Sentences."""
    for note in notes:
        yield from textwrap.wrap(note, WIDTH)


def of_advice(lines: Iterable[str]) -> Iterator[str]:
    """What does not fit, and below it the ways out."""
    for line in lines:
        indent = "" if line.startswith("Does not fit") else GAP
        yield from textwrap.wrap(line, WIDTH, initial_indent=indent, subsequent_indent=indent + GAP)


def of_comparison(rows: Sequence[tuple[str, float | None, float | None, str]]) -> Iterator[str]:
    """Name, planned, found and unit: one line per quantity."""
    cells = [("", "planned", "found", "found / planned")]
    for name, planned, found, unit in rows:
        show = format_bytes if unit == "bytes" else format_secs
        missing = "given back" if unit == "bytes" else "not known"
        ratio = f"{found / planned:.3f}" if planned and found is not None else ""
        cells.append(
            (
                name,
                "not known" if planned is None else show(planned),
                missing if found is None else show(found),
                ratio,
            )
        )
    yield from columns(cells, "<>>>")


def _chosen(selection: Selection) -> str:
    positions = selection.positions
    if selection.reduce is not None:
        what = "the mean of each" if selection.reduce == "mean" else "reduced"
    elif positions is None:
        what = "all positions"
    elif isinstance(positions, slice):
        parts = (positions.start, positions.stop, positions.step)
        what = "positions " + ":".join("" if part is None else str(part) for part in parts)
    elif isinstance(positions, tuple):
        what = _listed_positions(positions)
    else:
        what = f"positions {positions!r}"
    return what if selection.dtype is None else f"{what} as {dtype_name(selection.dtype)}"


def _listed_positions(positions: Sequence[object]) -> str:
    first = positions[0] if positions else None
    if isinstance(first, tuple):
        return f"{counted(len(first), 'position')} of each sample"
    return f"positions {_listed(positions)}"


def _amounts(sites: Sequence[SitePlan], size: Size) -> tuple[str, str, str]:
    """Calls, bytes per sample and bytes in all."""
    pass_bytes = sum(site.pass_bytes for site in sites)
    return (
        str(sum(site.n_calls for site in sites)),
        format_bytes(pass_bytes / size.batch_size),
        format_bytes(size.total(pass_bytes)),
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


def _shortened(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    end = room // 2
    return f"{name[: room - end - 3].rstrip('.')}...{name[-end:].lstrip('.')}"


def _listed(values: Sequence[object]) -> str:
    if len(values) <= 6:
        return ",".join(map(str, values))
    return f"{values[0]},{values[1]}...{values[-1]}"


def _parts(*parts: tuple[str, int]) -> list[tuple[str, str, str, str]]:
    """What the next line adds up; nothing of what is nothing."""
    return [(f"  {name}", format_bytes(n_bytes), "", "") for name, n_bytes in parts if n_bytes]


def _needed(name: str, n_bytes: int, free_bytes: int | None) -> tuple[str, str, str, str]:
    if free_bytes is None:
        return name, format_bytes(n_bytes), "not known", ""
    verdict = "fits" if n_bytes <= free_bytes else "DOES NOT FIT"
    return name, format_bytes(n_bytes), format_bytes(free_bytes), verdict
