"""One group: the samples that will be committed together, and a file per stream."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

from fastcap.archive.files import Files
from fastcap.archive.guard import Guard
from fastcap.archive.layout import shard_metadata, shard_name
from fastcap.archive.limits import GroupLimits
from fastcap.archive.meta import Meta
from fastcap.archive.ranges import Ranges
from fastcap.archive.shards import Part, StreamFile
from fastcap.errors import ArchiveError


class Group:
    """Batches that are written, or are being written, and are not committed yet.

    Attributes:
        number: Its place in the journal.
        directory: The writer's.
        streams: In the order of the archive's.
        samples: Ids of what is written, in the order of the rows.
        lengths: Rows of each sample, for each ragged stream.
    """

    def __init__(
        self,
        number: int,
        directory: Path,
        meta: Meta,
        files: Files,
        guard: Guard,
        checksums: Executor | None,
        started: float,
    ) -> None:
        self.number = number
        self.directory = directory
        self.metadata = shard_metadata(meta.archive, number)
        self.streams = {
            spec.name: StreamFile(
                files,
                guard,
                directory / shard_name(number, index),
                spec,
                self.metadata,
                checksums,
            )
            for index, spec in enumerate(meta.streams)
        }
        self.samples = Ranges()
        self.lengths = {s.name: array("q") for s in meta.streams if s.is_ragged}
        self._started = started
        self._reserved = Ranges()

    def part(self, stream: str, shape: Sequence[int]) -> Part:
        """Where one stream's values of the next batch go: `(samples, *shape)`, or of all rows."""
        return self.streams[stream].part(shape)

    def reserve(self, samples: Sequence[int], parts: Mapping[str, Part]) -> None:
        """A batch is known, with a part of every stream: the next one goes behind it."""
        assert parts.keys() == self.streams.keys(), "every stream has a part of every batch"
        for name, part in parts.items():
            self.streams[name].reserve(part)
        self._reserved.extend(samples)

    def add(
        self,
        samples: Sequence[int],
        parts: Mapping[str, Part],
        lengths: Mapping[str, Sequence[int]],
    ) -> None:
        """A batch that was reserved is written.

        Args:
            samples: Ids, in the order of the rows.
            parts: Those that were reserved, whole now.
            lengths: Rows of each sample, of every ragged stream.
        """
        self._check(samples, parts, lengths)
        for name, part in parts.items():
            self.streams[name].finish(part)
        for name, found in self.lengths.items():
            found.extend(lengths[name])
        self.samples.extend(samples)

    def _check(
        self,
        samples: Sequence[int],
        parts: Mapping[str, Part],
        lengths: Mapping[str, Sequence[int]],
    ) -> None:
        """A batch becomes part of every stream or of none: nothing is changed before this."""
        for name, stream in self.streams.items():
            part, n_rows = parts[name], len(samples)
            if stream.spec.is_ragged:
                n_rows = sum(lengths[name])
            is_fitting = part.shape[:1] == (n_rows,) and part.begin == stream.n_bytes
            if not (part.is_whole and is_fitting) or (
                stream.spec.is_ragged and len(lengths[name]) != len(samples)
            ):
                raise ArchiveError(
                    f"{name!r} of samples {samples[0]} to {samples[-1]} was not written as it "
                    "should be, so they are not committed."
                )

    @property
    def n_bytes(self) -> int:
        return sum(stream.n_bytes for stream in self.streams.values())

    def rows(self) -> dict[str, int]:
        """Rows of each ragged stream."""
        return {name: sum(found) for name, found in self.lengths.items()}

    @property
    def is_empty(self) -> bool:
        """Whether it has no batch, not even one that is being written."""
        return self._reserved.n_samples == 0

    def is_full(self, limits: GroupLimits, now: float) -> bool:
        """Whether it should be committed as soon as its batches are written."""
        if self.is_empty:
            return False
        reserved = [stream.n_reserved for stream in self.streams.values()]
        return (
            max(reserved, default=0) >= limits.stream_bytes
            or sum(reserved) >= limits.most_bytes(len(self.streams))
            or self._reserved.n_samples >= limits.samples
            or len(self._reserved.pairs) >= limits.ranges
            or now - self._started >= limits.secs
        )

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()
