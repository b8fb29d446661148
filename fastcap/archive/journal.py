"""What one writer has committed: a file of lines, each with a checksum of its own.

The first line says who writes; every other line commits one group. A reader takes the longest run
of valid lines from the start and nothing after it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastcap.archive.layout import FORMAT, MOST_IDS, SHARD_NAME
from fastcap.archive.parsing import check_depth, parse_object, take, take_count
from fastcap.errors import ArchiveFormatError

LINE_LIMIT = 64 << 20
JOURNAL_LIMIT = 4 << 30
_CRC_DIGITS = 8
_CRC = re.compile(r"[0-9a-f]{8}")
_ID_BYTES = 8


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One shard as its group's line describes it."""

    name: str
    n_bytes: int
    header_crc32: int
    data_crc32: int
    streams: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One committed group.

    Attributes:
        number: Counted from 0 within its journal.
        samples: Ids in the order of the rows, as ranges `(start, stop)`.
        rows: How many rows each ragged stream has.
        files: Every stream of the archive is in exactly one of them.
    """

    number: int
    samples: tuple[tuple[int, int], ...]
    rows: Mapping[str, int]
    files: tuple[FileRecord, ...]

    @property
    def n_samples(self) -> int:
        return sum(stop - start for start, stop in self.samples)

    @property
    def n_bytes(self) -> int:
        return sum(file.n_bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class WriterInfo:
    """Who writes a journal.

    Attributes:
        creator: Versions and machine, where they are not those of the archive's meta.
        check: What was compared before this writer went on with the archive, if anything was.
    """

    archive: str
    rank: int
    restart: int
    pid: int
    machine: str
    creator: Mapping[str, Any] = field(default_factory=dict)
    check: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Journal:
    """The valid part of one journal.

    Attributes:
        info: Its first line; `None` where not even that is whole.
        groups: What it commits.
        n_total: How many samples the data had, once a writer has seen its end.
        n_bytes: Length of the valid part.
        is_torn: Whether bytes follow it.
        is_damaged: Whether valid lines are among them. A crash does not leave that: each line is on
            disk before the next one is written.
    """

    info: WriterInfo | None = None
    groups: list[GroupRecord] = field(default_factory=list)
    n_total: int | None = None
    n_bytes: int = 0
    is_torn: bool = False
    is_damaged: bool = False

    def describe_damage(self) -> str:
        return (
            f"its line at byte {self.n_bytes} is not as it was written, and valid lines follow: "
            "groups from there on are not read, and their files are kept"
        )


def writer_line(info: WriterInfo) -> bytes:
    return _line(
        {
            "format": FORMAT,
            "archive": info.archive,
            "rank": info.rank,
            "restart": info.restart,
            "pid": info.pid,
            "machine": info.machine,
            **({"creator": info.creator} if info.creator else {}),
            **({"check": info.check} if info.check else {}),
        }
    )


def group_line(group: GroupRecord) -> bytes:
    files = [
        {
            "name": file.name,
            "bytes": file.n_bytes,
            "header_crc32": f"{file.header_crc32:08x}",
            "data_crc32": f"{file.data_crc32:08x}",
            "streams": list(file.streams),
        }
        for file in group.files
    ]
    return _line(
        {
            "group": group.number,
            "samples": [list(each) for each in group.samples],
            "rows": dict(group.rows),
            "files": files,
        }
    )


def total_line(n_samples: int) -> bytes:
    return _line({"total": n_samples})


def check_line(line: bytes, record: WriterInfo | GroupRecord | int, n_before: int) -> None:
    """Read a line back before it is written behind `n_before` bytes of its journal.

    Args:
        line: What would be written.
        record: What it should say; an int is a total.
        n_before: Bytes that are in the journal.

    Raises:
        ArchiveFormatError: A reader would refuse it, or read something else.
    """
    where = "the line of the journal"
    if len(line) > LINE_LIMIT:
        raise ArchiveFormatError(
            f"{where} takes {len(line)} bytes, and readers take at most {LINE_LIMIT}"
        )
    if n_before + len(line) > JOURNAL_LIMIT:
        raise ArchiveFormatError(
            f"its journal would have {n_before + len(line)} bytes, and readers take at most "
            f"{JOURNAL_LIMIT}"
        )
    text = _checked(line[:-1])
    if text is None or _parse_line(text, isinstance(record, WriterInfo), where) != record:
        raise ArchiveFormatError(f"{where} would be read as something else")


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_journal(blocks: Iterable[bytes | memoryview], where: str) -> Journal:
    """The longest run of valid lines.

    Args:
        blocks: The file's bytes, in order; no more than a line and a block is kept of them.
        where: What errors call the file.

    Raises:
        ArchiveFormatError: A line whose checksum holds says something impossible, so that it is
            not a torn write but another program's, or a newer version's.
    """
    journal = Journal()
    for begin, line in _split(blocks):
        text = None if line is None else _checked(line)
        if not journal.is_torn and line is not None and text is not None:
            _add(journal, text, f"{where}, byte {begin}")
            journal.n_bytes = begin + len(line) + 1
        elif text is not None:
            journal.is_damaged = True
            break
        journal.is_torn |= text is None
    return journal


def _split(blocks: Iterable[bytes | memoryview]) -> Iterator[tuple[int, bytes | None]]:
    """Where each piece begins that a line feed ends, and what is before it.

    `None` stands for a piece that nothing ends, and for one that is longer than any line. Nothing
    is read behind that: a file may claim gigabytes that no disk holds.
    """
    begin = n_bytes = 0
    parts: list[bytes] = []
    for block in blocks:
        content, first = bytes(block), 0
        while first < len(content):
            end = content.find(b"\n", first) + 1
            parts.append(content[first : end or None])
            n_bytes += len(parts[-1])
            first += len(parts[-1])
            if n_bytes > LINE_LIMIT:
                yield begin, None
                return
            if end:
                yield begin, b"".join(parts)[:-1]
                begin, n_bytes, parts = begin + n_bytes, 0, []
    if n_bytes:
        yield begin, None


def _checked(line: bytes) -> bytes | None:
    """The JSON of a line whose checksum holds."""
    digits, text = line[:_CRC_DIGITS], line[_CRC_DIGITS + 1 :]
    return text if digits + b" " == b"%08x " % zlib.crc32(text) and line[8:9] == b" " else None


def _add(journal: Journal, text: bytes, where: str) -> None:
    record = _parse_line(text, journal.info is None, where)
    if isinstance(record, WriterInfo):
        journal.info = record
    elif isinstance(record, int):
        journal.n_total = record
    else:
        if record.number != len(journal.groups):
            raise ArchiveFormatError(
                f"{where}: group {record.number} where group {len(journal.groups)} was expected."
            )
        journal.groups.append(record)


def _parse_line(text: bytes, is_first: bool, where: str) -> WriterInfo | GroupRecord | int:
    found = parse_object(text, where)
    if is_first:
        return _parse_info(found, where)
    return take_count(found, "total", where) if "total" in found else _parse_group(found, where)


def _parse_info(found: Mapping[str, Any], where: str) -> WriterInfo:
    version = take_count(found, "format", where)
    if version != FORMAT:
        raise ArchiveFormatError(
            f"{where}: written in format {version}, and this fastcap reads format {FORMAT}. "
            "Install a newer fastcap."
        )
    return WriterInfo(
        take(found, "archive", str, where),
        take_count(found, "rank", where),
        take_count(found, "restart", where),
        take_count(found, "pid", where),
        take(found, "machine", str, where),
        _take_object(found, "creator", where),
        _take_object(found, "check", where),
    )


def _take_object(found: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """What is for people, and may be missing."""
    value = found.get(key)
    if not isinstance(value, dict):
        return {}
    check_depth(value, f"{where}: {key!r}")
    return value


def _parse_group(found: Mapping[str, Any], where: str) -> GroupRecord:
    files = take(found, "files", list, where)
    group = GroupRecord(
        take_count(found, "group", where),
        tuple(_parse_range(each, where) for each in take(found, "samples", list, where)),
        _parse_rows(take(found, "rows", dict, where), where),
        tuple(_parse_file(each, where) for each in files),
    )
    if len({file.name for file in group.files}) != len(group.files):
        raise ArchiveFormatError(f"{where}: a file is named twice.")
    if any(file.n_bytes < group.n_samples * _ID_BYTES for file in group.files):
        raise ArchiveFormatError(f"{where}: {group.n_samples} samples do not fit in its files.")
    return group


def _parse_range(found: Any, where: str) -> tuple[int, int]:
    if isinstance(found, list) and len(found) == 2 and all(type(n) is int for n in found):
        start, stop = found
        if 0 <= start < stop < MOST_IDS:
            return start, stop
    raise ArchiveFormatError(f"{where}: samples must be ranges [start, stop].")


def _parse_rows(found: Mapping[str, Any], where: str) -> dict[str, int]:
    return {name: take_count(found, name, where) for name in found}


def _parse_file(found: Any, where: str) -> FileRecord:
    if not isinstance(found, dict):
        raise ArchiveFormatError(f"{where}: a file is described by an object.")
    name = take(found, "name", str, where)
    if not SHARD_NAME.fullmatch(name):
        raise ArchiveFormatError(f"{where}: {name[:80]!r} is not a valid shard name.")
    streams = take(found, "streams", list, where)
    if not all(isinstance(stream, str) for stream in streams):
        raise ArchiveFormatError(f"{where}: streams of {name} must be names.")
    return FileRecord(
        name,
        take_count(found, "bytes", where),
        _parse_crc(found, "header_crc32", where),
        _parse_crc(found, "data_crc32", where),
        tuple(streams),
    )


def _parse_crc(found: Mapping[str, Any], key: str, where: str) -> int:
    text = take(found, key, str, where)
    if not _CRC.fullmatch(text):
        raise ArchiveFormatError(f"{where}: {key} must be 8 hexadecimal digits.")
    return int(text, 16)
