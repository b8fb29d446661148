"""`fastcap inspect`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fastcap
from fastcap.cli.command import STATUS_ERROR, command
from fastcap.formatting import format_bytes

if TYPE_CHECKING:
    from fastcap.archive.layout import StreamSpec
    from fastcap.archive.reader import Archive
    from fastcap.archive.recovery import WriterState
    from fastcap.archive.verification import Problem

MOST_RANGES = 5
"""Of missing samples that are shown; `--json` has all."""

RUNNING = {True: "running", False: "ended", None: "not known whether it runs"}


@command
def inspect(
    archive: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of an archive.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every committed byte and compare checksums.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False,
) -> None:
    """Show what an archive holds, who wrote it, and what is missing or damaged.

    Exits with 1 if a committed file is damaged. Without --verify only the sizes of files are
    looked at.
    """
    opened = fastcap.open_archive(archive)
    problems = opened.verify() if verify else None
    found = summarise(opened, problems)
    if json:
        typer.echo(json_module.dumps(found, indent=1))
    else:
        for line in to_lines(found):
            typer.echo(line)
    if found["damaged"]:
        raise typer.Exit(STATUS_ERROR)


def summarise(archive: Archive, problems: Sequence[Problem] | None) -> dict[str, Any]:
    """An archive as JSON.

    Args:
        archive: An open archive.
        problems: What `verify` found; `None` where it did not run.
    """
    from fastcap.archive.verification import Problem

    writers = [_summarise_writer(writer) for writer in archive.writers]
    if problems is None:
        damaged = [
            Problem(each.directory, each.reason, each.group.samples) for each in archive.damages
        ]
    else:
        damaged = list(problems)
    return {
        "path": str(archive.path),
        "n_samples": len(archive),
        "n_expected": archive.n_samples,
        "missing": missing_ranges(archive),
        "bytes": sum(writer["bytes"] for writer in writers),
        "streams": [_summarise_stream(spec) for spec in archive.meta.streams],
        "writers": writers,
        "damaged": [
            {"path": str(each.path), "what": each.what, "samples": list(map(list, each.samples))}
            for each in damaged
        ],
        "is_verified": problems is not None,
        "batch_size": archive.meta.batch_size,
        "config": archive.meta.config,
        "config_hash": archive.meta.config_hash,
        "creator": archive.meta.creator,
    }


def _summarise_stream(spec: StreamSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "kind": spec.kind,
        "dtype": "text" if spec.is_text else str(spec.torch_dtype).removeprefix("torch."),
        "shape": list(spec.shape),
        "is_ragged": spec.is_ragged,
    }


def _summarise_writer(writer: WriterState) -> dict[str, Any]:
    info = writer.journal.info
    return {
        "directory": writer.directory.name,
        "rank": None if info is None else info.rank,
        "check": {} if info is None else info.check,
        "is_running": writer.is_live,
        "n_groups": len(writer.groups),
        "n_samples": sum(group.n_samples for group in writer.groups),
        "bytes": sum(file.n_bytes for group in writer.groups for file in group.files),
        "is_torn": writer.journal.is_torn,
        "n_unlisted_files": len(writer.unlisted) if writer.is_live is not True else 0,
        "n_files_set_aside": len(writer.orphans),
        "n_uncommitted_files": len(writer.leftovers),
        "uncommitted_bytes": sum(leftover.n_bytes for leftover in writer.leftovers),
    }


def missing_ranges(archive: Archive) -> list[list[int]]:
    """The ids that are not there, as `[start, stop]`, of those that are expected."""
    stop = archive.n_samples if archive.n_samples is not None else 0
    edges = [0, *chain.from_iterable(archive.ids), stop]
    gaps = list(pairwise(edges))[::2]
    return [[start, end] for start, end in gaps if start < end]


def to_lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    of_all = "" if found["n_expected"] is None else f" of {found['n_expected']}"
    yield f"{found['path']}: {found['n_samples']}{of_all} samples, {format_bytes(found['bytes'])}"
    if found["missing"]:
        yield f"Missing samples: {show_ranges(found['missing'])}"
    yield ""
    yield from _table(
        ("stream", "dtype", "shape of a sample"),
        [(each["name"], each["dtype"], _shape(each)) for each in found["streams"]],
    )
    yield ""
    yield from _table(
        ("writer", "rank", "groups", "samples", "size", "state"),
        [_writer_row(writer) for writer in found["writers"]],
    )
    yield ""
    made_by = ", ".join(f"{key} {value}" for key, value in found["creator"].items())
    yield f"Made in batches of {found['batch_size']}, with {made_by}."
    yield from _damage(found)


def _damage(found: dict[str, Any]) -> Iterator[str]:
    for each in found["damaged"]:
        samples = f" Samples {show_ranges(each['samples'])}." if each["samples"] else ""
        yield f"Damaged: {each['path']}: {each['what']}{samples}"
    if any(writer["n_unlisted_files"] for writer in found["writers"]):
        yield f"To bring back what is whole and not named: fastcap repair {found['path']}"
    if found["damaged"]:
        yield "Remove the writer's directory and run the extraction again to have them anew."
    elif found["is_verified"]:
        yield "Verified: every committed byte is as it was written."


def _writer_row(writer: dict[str, Any]) -> tuple[str, ...]:
    state = [RUNNING[writer["is_running"]]]
    if writer["is_torn"]:
        state.append("last line of its journal torn")
    if writer["n_uncommitted_files"]:
        size = format_bytes(writer["uncommitted_bytes"])
        state.append(f"{writer['n_uncommitted_files']} files not committed ({size})")
    if writer["n_unlisted_files"]:
        state.append(f"{writer['n_unlisted_files']} whole files that its journal does not name")
    if writer["n_files_set_aside"]:
        state.append(f"{writer['n_files_set_aside']} whole files set aside (.orphan)")
    rank = "?" if writer["rank"] is None else str(writer["rank"])
    counts = (str(writer["n_groups"]), str(writer["n_samples"]), format_bytes(writer["bytes"]))
    return (writer["directory"], rank, *counts, ", ".join(state))


def _shape(stream: dict[str, Any]) -> str:
    if stream["dtype"] == "text":
        return ""
    sizes = ["n"] if stream["is_ragged"] else []
    sizes += map(str, stream["shape"])
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def show_ranges(ranges: Sequence[Sequence[int]]) -> str:
    """Ids for people."""
    shown = [
        str(start) if stop == start + 1 else f"{start} to {stop - 1}"
        for start, stop in ranges[:MOST_RANGES]
    ]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more ranges" if more else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
