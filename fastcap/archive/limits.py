"""How much a group holds before it is committed, and which of its streams share a file."""

from __future__ import annotations

from dataclasses import dataclass

GROUP_SECS = 600.0


@dataclass(frozen=True, slots=True)
class GroupLimits:
    """A group ends after the batch with which it reaches one of these.

    What a crash can cost is one group. A larger group makes fewer and larger files.

    Attributes:
        group_bytes: Bytes of all streams; `None` for 1 GiB, or 32 MiB for each stream where that
            is more, so that large streams never have to share a file.
        stream_bytes: Bytes of one stream.
        secs: Seconds since its first batch.
        samples: Ids, so that what is kept of each in memory until the commit is bounded.
        ranges: Ranges of consecutive ids, so that the line of the journal stays small. A process
            that runs every second batch of one sample has one for each sample.
        own_file_bytes: A stream with so many bytes has a file of its own, and smaller ones share,
            unless the whole group has less than twice as many.
    """

    group_bytes: int | None = None
    stream_bytes: int = 256 << 20
    secs: float = GROUP_SECS
    samples: int = 1 << 20
    ranges: int = 1 << 16
    own_file_bytes: int = 32 << 20

    def most_bytes(self, n_streams: int) -> int:
        if self.group_bytes is not None:
            return self.group_bytes
        return max(1 << 30, n_streams * self.own_file_bytes)
