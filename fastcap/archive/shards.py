"""One group's values while they are written: a file per stream, and stretches of it per batch."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fastcap.archive import crc
from fastcap.archive.files import Files, WritableFile
from fastcap.archive.guard import Guard
from fastcap.archive.layout import MANY, UNFINISHED, StreamSpec, header, shard_tensors

CAST_ELEMENTS = 1 << 18
"""How many values are converted at a time, where they are stored in another dtype."""

_COPY_BYTES = 1 << 20


class StreamFile:
    """The unfinished file of one stream of one group.

    A batch has its place once its sizes are known (`reserve`), and is part of the stream once it is
    written (`finish`). What a batch writes before it has its place, the next one writes over.

    Args:
        files: The file system.
        guard: The writer's.
        path: The final path; the file has `.tmp` behind it until it is committed.
        spec: The stream.
        metadata: What the header will say.
        checksums: A thread for checksums; `None` computes them between writes.
    """

    def __init__(
        self,
        files: Files,
        guard: Guard,
        path: Path,
        spec: StreamSpec,
        metadata: dict[str, str],
        checksums: Executor | None,
    ) -> None:
        self.spec = spec
        self.path = path
        self.unfinished = path.with_name(path.name + UNFINISHED)
        self.n_reserved = 0
        self.n_bytes = 0
        self.crc32 = 0
        tensors = shard_tensors([spec], MANY, {spec.name: MANY})
        self.header_bytes = len(header(tensors, metadata))
        self._files = files
        self._guard = guard
        self._checksums = checksums
        self._lock = threading.Lock()
        self._file: WritableFile | None = None

    def part(self, shape: Sequence[int]) -> Part:
        """Where values of the next batch go."""
        return Part(self, torch.Size(shape))

    def reserve(self, part: Part) -> None:
        """A batch is known: what comes next goes behind it."""
        assert part.begin == self.n_reserved
        self.n_reserved += part.nbytes

    def finish(self, part: Part) -> None:
        """A batch is written. Batches finish in the order of their places."""
        assert part.begin == self.n_bytes
        self.n_bytes += part.nbytes
        self.crc32 = crc.combine(self.crc32, part.crc32, part.nbytes)

    @property
    def file(self) -> WritableFile:
        with self._lock:
            if self._file is None:
                with self._guard("Making", self.unfinished):
                    self._file = self._files.create(self.unfinished)
            return self._file

    def write(self, offset: int, data: memoryview, crc32: int) -> int:
        """Write `data` at `offset` of the values, and return its checksum, `crc32` continued."""
        started = time.perf_counter()
        later = None
        if self._checksums is not None:
            later = self._checksums.submit(zlib.crc32, data, crc32)
        write_all(self.file, self._guard, self.unfinished, self.header_bytes + offset, data)
        with self._guard("Writing", self.unfinished, self.header_bytes + offset):
            self.file.behind(self.header_bytes + offset + len(data))
        self._guard.count(len(data), time.perf_counter() - started)
        return zlib.crc32(data, crc32) if later is None else later.result()

    def blocks(self) -> Iterator[memoryview]:
        """The bytes of finished batches, read back."""
        done = 0
        while done < self.n_bytes:
            offset = self.header_bytes + done
            with self._guard("Reading back", self.unfinished, offset):
                block = self.file.read_at(offset, min(_COPY_BYTES, self.n_bytes - done))
                if not block:
                    raise OSError(errno.EIO, "the file ends early")
            yield memoryview(block)
            done += len(block)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # what matters was said by `sync`
                self._file.close()

    @property
    def is_made(self) -> bool:
        """Whether the file exists; one of no values does not before it is asked for."""
        return self._file is not None


class Part:
    """Values of one batch of one stream, on their way into its file: a delivery's destination.

    Segments arrive in order, perhaps from a host worker. Nothing is written once it is abandoned.

    Attributes:
        shape: Of the values.
        begin: Where its bytes begin among those of the stream.
        crc32: Of its bytes, once it is whole.
    """

    def __init__(self, stream: StreamFile, shape: torch.Size) -> None:
        self.shape = shape
        self.crc32 = 0
        self._stream = stream
        self.begin = stream.n_reserved
        self._n_done = 0
        self._lock = threading.Lock()
        self._is_abandoned = False

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self._stream.spec.torch_dtype

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def segment(self, first: int, last: int) -> Segment:
        """The destination of some of its elements, counted in order."""
        return Segment(self, first, last - first)

    def copy_(self, values: Tensor) -> None:
        self.write(0, values)

    def write(self, first: int, values: Tensor) -> None:
        """Write elements from `first` on.

        Raises:
            ArchiveWriteError: The file system failed, now or before.
        """
        with self._lock:
            if self._is_abandoned:
                return
            assert first == self._n_done, "segments of one part arrive in order"
            for block in self._as_bytes(values):
                offset = self.begin + self._n_done * self.dtype.itemsize
                self.crc32 = self._stream.write(offset, block, self.crc32)
                self._n_done += len(block) // self.dtype.itemsize

    def _as_bytes(self, values: Tensor) -> Iterator[memoryview]:
        flat = values.detach().reshape(-1)
        if flat.numel() == 0:
            return
        if flat.dtype == self.dtype:
            yield _bytes(flat)
            return
        for first in range(0, flat.numel(), CAST_ELEMENTS):
            yield _bytes(flat[first : first + CAST_ELEMENTS].to(self.dtype))

    def abandon(self) -> None:
        """Nothing is wanted here any more. Returns when nothing is being written."""
        with self._lock:
            self._is_abandoned = True

    @property
    def is_whole(self) -> bool:
        return self._n_done == self.numel()


class Elements(Protocol):
    """What takes values by the number of their first element."""

    @property
    def dtype(self) -> torch.dtype:
        """Of each."""

    def write(self, first: int, values: Tensor) -> None:
        """Take some."""


class Segment:
    """Consecutive elements of a destination."""

    def __init__(self, whole: Elements, first: int, n_elements: int) -> None:
        self._whole = whole
        self._first = first
        self.shape = torch.Size([n_elements])

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def nbytes(self) -> int:
        return self.numel() * self._whole.dtype.itemsize

    def segment(self, first: int, last: int) -> Segment:
        return Segment(self._whole, self._first + first, last - first)

    def copy_(self, values: Tensor) -> None:
        self._whole.write(self._first, values)


def write_all(file: WritableFile, guard: Guard, path: Path, offset: int, data: memoryview) -> None:
    """Write all of `data`: one call may write less, and the next one says why."""
    while len(data) > 0:
        with guard("Writing", path, offset):
            n_written = file.write_at(offset, data)
            if n_written <= 0:
                raise OSError(errno.EIO, "nothing was written")
        offset += n_written
        data = data[n_written:]


def _bytes(values: Tensor) -> memoryview:
    with torch.inference_mode(False):
        return values.contiguous().view(torch.uint8).numpy().data
