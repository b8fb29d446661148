"""What is wrong with an archive: damaged files, damaged journals, and shards that no line names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fastcap.archive.files import Files
from fastcap.archive.journal import FileRecord, GroupRecord
from fastcap.archive.layout import JOURNAL
from fastcap.archive.mapping import check_shard, data_crc32, map_shard
from fastcap.archive.meta import Meta
from fastcap.archive.recovery import Scan, WriterState

UNLISTED = (
    "it is whole, and no valid line of its journal names it, so its samples are not read: the "
    "journal is damaged, or its writer was killed just before it committed. fastcap repair adopts "
    "what is whole"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something `Archive.verify` has found.

    Attributes:
        path: The file.
        what: What is wrong with it.
        samples: Ids whose values it holds, as ranges `(start, stop)`.
    """

    path: Path
    what: str
    samples: tuple[tuple[int, int], ...]


def find_problems(scan: Scan, files: Files) -> Iterator[Problem]:
    """Read every committed byte of what a scan has found."""
    for writer in scan.writers:
        yield from _find_in_journal(writer)
    for writer in scan.writers:
        for group in writer.groups:
            for record in group.files:
                path = writer.directory / record.name
                what = _find_in_file(path, group, record, scan.meta, files)
                if what is not None:
                    yield Problem(path, what, group.samples)


def _find_in_journal(writer: WriterState) -> Iterator[Problem]:
    for damage in writer.damages:
        yield Problem(damage.directory, damage.reason, damage.group.samples)
    if writer.journal.is_damaged:
        yield Problem(writer.directory / JOURNAL, writer.journal.describe_damage(), ())
    if writer.is_live is not True:  # a live writer may be about to name them
        for leftover in writer.unlisted:
            yield Problem(leftover.path, UNLISTED, ())


def _find_in_file(
    path: Path, group: GroupRecord, record: FileRecord, meta: Meta, files: Files
) -> str | None:
    try:
        first = check_shard(path, group, record, meta, files)
        if data_crc32(path, len(first), files) != record.data_crc32:
            return "its bytes are not those that were written: the checksum differs"
        map_shard(path, group, record, meta, files)
    except OSError as error:
        return str(error)
    return None
