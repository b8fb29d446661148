"""Repair, when it is asked for: whole shards that no journal line names, adopted by their headers.

A shard has its ids, its group and its streams inside, so a journal that was damaged, cut or emptied
can be written anew. Checksums are those of the bytes that are there now.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastcap.archive.files import Files, LocalFiles
from fastcap.archive.index import SampleIndex
from fastcap.archive.journal import (
    FileRecord,
    GroupRecord,
    WriterInfo,
    check_line,
    group_line,
    total_line,
    writer_line,
)
from fastcap.archive.layout import (
    BLOCK_IDS,
    JOURNAL,
    ORPHAN,
    SAMPLES,
    UNFINISHED,
    check_header,
    shard_metadata,
    shard_tensors,
)
from fastcap.archive.limits import GroupLimits
from fastcap.archive.mapping import data_crc32, map_file, map_shard, read_header
from fastcap.archive.meta import Meta
from fastcap.archive.parsing import parse_object, take
from fastcap.archive.ranges import Ranges
from fastcap.archive.recovery import Scan, WriterState, check_streams, orphan_path, scan
from fastcap.errors import ArchiveError, ArchiveFormatError
from fastcap.spec import as_path

MOST_RANGES = 16 * GroupLimits().ranges
"""Of one shard that is adopted; more are not written, and not what a shard of ours holds."""

UNKNOWN_CREATOR = {"unknown": "the first line was lost, and fastcap repair wrote this one"}
"""In the place of versions and machine: values whose maker is not known are compared as those of
another one are, within rounding."""


@dataclass(frozen=True, slots=True)
class Repaired:
    """What became of the shards of one group that no journal line named.

    Attributes:
        paths: The shards, as they are called now.
        samples: Their ids, as ranges `(start, stop)`; empty where they cannot be read.
        why_not: Why they were set aside; `None` where the journal names them now.
    """

    paths: tuple[Path, ...]
    samples: tuple[tuple[int, int], ...]
    why_not: str | None


def repair(folder: str | os.PathLike[str]) -> list[Repaired]:
    """Adopt whole shards that no journal line names, or set them aside; no run may be writing.

    Journals are written anew, from their valid lines and from what the headers of such shards say,
    and take the place of the old ones in one step. Nothing is removed.

    Args:
        folder: The archive's directory.

    Raises:
        ArchiveError: There is no archive, or it cannot be read or written.
        ArgumentTypeError: `folder` is not a path.
    """
    return repair_archive(as_path("folder", folder).absolute(), LocalFiles())


def repair_archive(root: Path, files: Files) -> list[Repaired]:
    """The same, on any file system."""
    there = scan(root, files)
    done: list[Repaired] = []
    for writer in there.writers:
        if writer.is_live is True:
            continue
        try:
            done += _Repair(there, writer, files).run()
        except ArchiveError:
            raise
        except OSError as error:
            raise ArchiveError(
                f"Cannot repair {writer.directory}: {error.strerror or error}."
            ) from error
    return done


@dataclass(frozen=True, slots=True)
class _Shard:
    """A whole shard that no line names."""

    path: Path
    record: FileRecord
    samples: tuple[tuple[int, int], ...]
    rows: Mapping[str, int]


class _Repair:
    """One writer's directory."""

    def __init__(self, there: Scan, writer: WriterState, files: Files) -> None:
        self._meta = there.meta
        self._index = SampleIndex(there)
        self._writer = writer
        self._files = files
        self._groups = list(writer.journal.groups)
        self._done: list[Repaired] = []

    def run(self) -> list[Repaired]:
        n_before = len(self._groups)
        for shards in self._read().values():
            self._adopt(shards)
        if len(self._groups) > n_before or self._writer.journal.is_damaged:
            self._write_journal()
        return self._done

    def _read(self) -> dict[str, list[_Shard]]:
        """The shards that can be read, by group."""
        unlisted = [leftover.path for leftover in self._writer.unlisted]
        taken = {orphan_path(path) for path in unlisted}
        orphans = [path for path in sorted(self._writer.orphan_paths) if path not in taken]
        found: dict[str, list[_Shard]] = {}
        for path in (*unlisted, *orphans):
            try:
                group, shard = _read_shard(path, self._meta, self._files)
            except ArchiveError as error:
                self._leave([path], (), str(error))
            else:
                found.setdefault(group, []).append(shard)
        return found

    def _adopt(self, shards: list[_Shard]) -> None:
        paths, samples = [shard.path for shard in shards], shards[0].samples
        if all(self._index.has(start, stop) for start, stop in samples):
            self._leave(paths, samples, "their samples are in the archive")
            return
        rows = {name: n_rows for shard in shards for name, n_rows in shard.rows.items()}
        records = tuple(shard.record for shard in shards)
        group = GroupRecord(len(self._groups), samples, rows, records)
        try:
            check_streams(group, self._meta, self._writer.directory)
            for shard in shards:
                map_shard(shard.path, group, shard.record, self._meta, self._files)
            check_line(group_line(group), group, 0)
        except ArchiveError as error:
            self._leave(paths, samples, f"they are not a whole group: {error}")
            return
        for shard in shards:
            if shard.path.name != shard.record.name:
                self._files.rename(shard.path, self._writer.directory / shard.record.name)
        self._groups.append(group)
        named = tuple(self._writer.directory / record.name for record in records)
        self._done.append(Repaired(named, samples, None))

    def _leave(
        self, paths: Iterable[Path], samples: tuple[tuple[int, int], ...], why_not: str
    ) -> None:
        """Set shards aside that are not adopted, unless they are already."""
        moved = []
        for path in paths:
            aside = orphan_path(path)
            if not path.name.endswith(ORPHAN) and aside not in self._writer.orphan_paths:
                self._files.rename(path, aside)
                self._files.sync_dir(path.parent)
                moved.append(aside)
        if moved:
            self._done.append(Repaired(tuple(moved), samples, why_not))

    def _write_journal(self) -> None:
        """Put a journal in the place of the old one, in one step."""
        directory, files = self._writer.directory, self._files
        content = b"".join(self._lines())
        unfinished = directory / (JOURNAL + UNFINISHED)
        with contextlib.suppress(FileNotFoundError):  # left by a repair that was killed
            files.remove(unfinished)
        file = files.create(unfinished)
        try:
            done = 0
            while done < len(content):
                n_written = file.write_at(done, memoryview(content)[done:])
                if n_written <= 0:
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(unfinished))
                done += n_written
            file.sync()
        finally:
            file.close()
        files.sync_dir(directory)  # the shards have their names before the lines that say them
        files.rename(unfinished, directory / JOURNAL)
        files.sync_dir(directory)

    def _lines(self) -> Iterable[bytes]:
        journal = self._writer.journal
        _, rank, restart, _ = self._writer.directory.name.split("-")
        yield writer_line(
            journal.info
            or WriterInfo(
                self._meta.archive,
                int(rank),
                int(restart),
                os.getpid(),
                self._files.machine(),
                UNKNOWN_CREATOR,
            )
        )
        for group in self._groups:
            yield group_line(group)
        if journal.n_total is not None:
            yield total_line(journal.n_total)


def _read_shard(path: Path, meta: Meta, files: Files) -> tuple[str, _Shard]:
    """A shard as its own bytes describe it, and the group it says it is of.

    Raises:
        ArchiveError: It cannot be read, or is of another archive.
    """
    try:
        n_bytes = files.size(path)
        first = read_header(path, n_bytes, files)
        found = parse_object(first[8:].rstrip(b" "), f"the header of {path}")
        described = take(found, "__metadata__", dict, str(path))
        group = take(described, "group", str, str(path))
        if described != shard_metadata(meta.archive, group):
            raise ArchiveFormatError(f"{path} is a shard of another archive.")
        specs = [meta.stream(name) for name in found if name in {s.name for s in meta.streams}]
        n_samples = _first_size(found, SAMPLES, path)
        rows = {s.name: _first_size(found, s.name, path) for s in specs if s.is_ragged}
        check_header(first, n_bytes, shard_tensors(specs, n_samples, rows), str(path))
        record = FileRecord(
            path.name.removesuffix(ORPHAN),
            n_bytes,
            zlib.crc32(first),
            data_crc32(path, len(first), files),
            tuple(spec.name for spec in specs),
        )
        return group, _Shard(path, record, _ranges_of(map_file(path, files)[SAMPLES], path), rows)
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"Cannot read {path}: {error.strerror or error}.") from error


def _first_size(header: Mapping[str, Any], name: str, path: Path) -> int:
    shape = take(take(header, name, dict, str(path)), "shape", list, str(path))
    if not shape or type(shape[0]) is not int or shape[0] < 0:
        raise ArchiveFormatError(f"{path}: the shape of {name!r} is not one.")
    return int(shape[0])


def _ranges_of(ids: Tensor, path: Path) -> tuple[tuple[int, int], ...]:
    """The ids of a shard as ranges; in blocks, as files may be sparse."""
    ranges = Ranges()
    for start in range(0, len(ids), BLOCK_IDS):
        block = ids[start : start + BLOCK_IDS].numpy()
        edges = np.flatnonzero(np.diff(block) != 1) + 1
        if len(ranges.pairs) + len(edges) > MOST_RANGES:
            raise ArchiveFormatError(f"{path}: its ids are more ranges than a line can name.")
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), len(block)], strict=True):
            ranges.extend(range(int(block[first]), int(block[last - 1]) + 1))
    return tuple(ranges.pairs)
