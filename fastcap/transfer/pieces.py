"""A capture's bytes in pieces: what does not fit in a chunk crosses the link in several."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastcap.host_memory import normal_mode
from fastcap.transfer.base import Capture, Target
from fastcap.transfer.pool import Piece


def part_of(target: Target | None, piece: Piece) -> Target:
    """The part of a capture's target that a piece's bytes become."""
    assert target is not None
    if piece.n_bytes == piece.owner.n_bytes:
        return target
    itemsize = piece.owner.wire_dtype.itemsize
    first, last = piece.start // itemsize, (piece.start + piece.n_bytes) // itemsize
    if not isinstance(target, Tensor):
        return target.segment(first, last)
    with normal_mode():
        return target.view(-1)[first:last]


def split(value: Tensor, capture: Capture, most_bytes: int) -> Iterator[tuple[Tensor, Piece]]:
    """A value as pieces of at most `most_bytes`, in order."""
    if capture.n_bytes <= most_bytes:
        yield value, Piece(capture, 0, capture.n_bytes)
        return
    flat = value.reshape(-1)  # dense: a view where it can be, else a copy on the same stream
    itemsize = capture.wire_dtype.itemsize
    step = most_bytes // itemsize
    for first in range(0, flat.numel(), step):
        part = flat[first : first + step]
        yield part, Piece(capture, first * itemsize, part.numel() * itemsize)
