"""From a group's unfinished files to synced files under their final names."""

from __future__ import annotations

import contextlib
import errno
import zlib
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fastcap.archive.files import Files, WritableFile
from fastcap.archive.groups import Group
from fastcap.archive.guard import Guard
from fastcap.archive.journal import FileRecord
from fastcap.archive.layout import (
    BLOCK_IDS,
    MOST_IDS,
    UNFINISHED,
    StreamSpec,
    check_header,
    header,
    header_bytes,
    shard_name,
    shard_tensors,
)
from fastcap.archive.limits import GroupLimits
from fastcap.archive.shards import StreamFile, write_all
from fastcap.errors import ArchiveFormatError


def finish_files(
    group: Group, limits: GroupLimits, files: Files, guard: Guard
) -> tuple[FileRecord, ...]:
    """Make every file of a group whole, and put it on disk. It has no final name yet.

    Raises:
        ArchiveWriteError: A file call failed.
        ArchiveFormatError: Readers would not take a header.
    """
    with contextlib.ExitStack() as opened:
        shards = []
        for index, together in enumerate(plan_files(group, limits)):
            if len(together) == 1:
                shard = _alone(together[0], group, files, guard)
            else:
                path = group.directory / shard_name(group.number, len(group.streams) + index)
                shard = _new(path, [stream.spec for stream in together], group, files, guard)
            opened.callback(shard.close)
            shards.append(shard)
            if len(together) > 1:
                _move(together, shard, files, guard)
        return tuple(shard.finish() for shard in shards)


def name_files(group: Group, records: Iterable[FileRecord], files: Files, guard: Guard) -> None:
    """Give every file of a group its final name. It is not committed yet.

    Raises:
        ArchiveWriteError: A file call failed.
    """
    for record in records:
        path = group.directory / record.name
        unfinished = path.with_name(path.name + UNFINISHED)
        with guard("Renaming", unfinished):
            files.rename(unfinished, path)
    with guard("Syncing", group.directory):
        files.sync_dir(group.directory)


def plan_files(group: Group, limits: GroupLimits) -> list[list[StreamFile]]:
    """Which streams share a file: the small ones, until they are large together."""
    streams = list(group.streams.values())
    if group.n_bytes < 2 * limits.own_file_bytes:
        return [_aligned(streams)]
    alone = [[stream] for stream in streams if stream.n_bytes >= limits.own_file_bytes]
    shared: list[list[StreamFile]] = [[]]
    for stream in streams:
        if stream.n_bytes < limits.own_file_bytes:
            if sum(each.n_bytes for each in shared[-1]) >= limits.own_file_bytes:
                shared.append([])
            shared[-1].append(stream)
    return [*alone, *(_aligned(together) for together in shared if together)]


def _aligned(streams: list[StreamFile]) -> list[StreamFile]:
    """Wide dtypes first, so that every value lies at a multiple of its size."""
    return sorted(streams, key=lambda stream: -stream.spec.torch_dtype.itemsize)


class _Shard:
    """A file that has its values, and still needs what follows them and its header."""

    def __init__(
        self,
        file: WritableFile,
        path: Path,
        specs: list[StreamSpec],
        group: Group,
        files: Files,
        guard: Guard,
        header_bytes: int,
    ) -> None:
        self.path = path
        self.unfinished = path.with_name(path.name + UNFINISHED)
        self.header_bytes = header_bytes
        self.n_bytes = header_bytes
        self.crc32 = 0
        self._file = file
        self._specs = specs
        self._group = group
        self._files = files
        self._guard = guard

    def append(self, data: memoryview) -> None:
        write_all(self._file, self._guard, self.unfinished, self.n_bytes, data)
        self.n_bytes += len(data)
        self.crc32 = zlib.crc32(data, self.crc32)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what matters was said by `sync`
            self._file.close()

    def finish(self) -> FileRecord:
        """Offsets and samples, the header, and everything on disk."""
        group = self._group
        for spec in self._specs:
            if spec.is_ragged:
                for offsets in _offsets(group.lengths[spec.name]):
                    self.append(offsets)
        for ids in _ids(group.samples.pairs, str(self.path)):
            self.append(ids)
        tensors = shard_tensors(self._specs, group.samples.n_samples, group.rows())
        first = header(tensors, group.metadata, self.header_bytes)
        header_bytes(first[:8], self.n_bytes, str(self.path))
        check_header(first, self.n_bytes, tensors, str(self.path))
        write_all(self._file, self._guard, self.unfinished, 0, memoryview(first))
        with self._guard("Syncing", self.unfinished):
            self._file.truncate(self.n_bytes)  # a pass that failed may have written further
            self._files.protect(self.unfinished)
            self._file.sync()
            self._file.close()
        return FileRecord(
            self.path.name,
            self.n_bytes,
            zlib.crc32(first),
            self.crc32,
            tuple(spec.name for spec in self._specs),
        )


def _alone(stream: StreamFile, group: Group, files: Files, guard: Guard) -> _Shard:
    specs = [stream.spec]
    shard = _Shard(stream.file, stream.path, specs, group, files, guard, stream.header_bytes)
    shard.n_bytes += stream.n_bytes
    shard.crc32 = stream.crc32
    return shard


def _new(path: Path, specs: list[StreamSpec], group: Group, files: Files, guard: Guard) -> _Shard:
    tensors = shard_tensors(specs, group.samples.n_samples, group.rows())
    n_bytes = len(header(tensors, group.metadata))
    unfinished = path.with_name(path.name + UNFINISHED)
    with guard("Making", unfinished):
        file = files.create(unfinished)
    return _Shard(file, path, specs, group, files, guard, n_bytes)


def _move(streams: list[StreamFile], shard: _Shard, files: Files, guard: Guard) -> None:
    """Streams that share a file leave their own."""
    for stream in streams:
        crc32 = 0
        for block in stream.blocks():
            crc32 = zlib.crc32(block, crc32)
            shard.append(block)
        with guard("Reading back", stream.unfinished):
            if crc32 != stream.crc32:
                raise OSError(errno.EIO, "it does not hold what was written to it")
        stream.close()
        if stream.is_made:
            with guard("Removing", stream.unfinished):
                files.remove(stream.unfinished)


def _ids(pairs: Iterable[tuple[int, int]], where: str) -> Iterator[memoryview]:
    """The ids of some ranges, in blocks."""
    block = array("q")
    for start, stop in pairs:
        if not 0 <= start < stop < MOST_IDS:
            raise ArchiveFormatError(f"{where}: ids are 0 to {MOST_IDS - 2}, and not {start}")
        for first in range(start, stop, BLOCK_IDS):
            block.extend(range(first, min(first + BLOCK_IDS, stop)))
            if len(block) >= BLOCK_IDS:
                yield memoryview(block).cast("B")
                block = array("q")
    yield memoryview(block).cast("B")


def _offsets(lengths: array[int]) -> Iterator[memoryview]:
    """Where the rows of each sample begin, and where the last end, in blocks."""
    edges = np.zeros(1, np.int64)
    for first in range(0, len(lengths), BLOCK_IDS):
        block = np.asarray(lengths[first : first + BLOCK_IDS], np.int64)
        following = edges[-1] + np.cumsum(block)
        edges = following if first else np.concatenate([edges, following])
        yield edges.data.cast("B")
