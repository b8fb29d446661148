"""What chunks and slots hold: runs of the bytes of captures."""

from __future__ import annotations

from typing import Any

from fastcap.devices.base import HostBuffer


class Piece:
    """A run of one capture's bytes: a whole record, or a part of one that exceeds a chunk.

    Attributes:
        owner: The capture the bytes belong to.
        start: Where the run starts among the capture's bytes.
        n_bytes: Its length.
        held: The `Load` it is part of, or the memory it was spilled to; `None` when dropped.
        offset: Where it starts in its home.
    """

    __slots__ = ("held", "n_bytes", "offset", "owner", "start")

    def __init__(self, owner: Any, start: int, n_bytes: int) -> None:
        self.owner = owner
        self.start = start
        self.n_bytes = n_bytes
        self.held: Load | HostBuffer | None = None
        self.offset = 0

    @property
    def home(self) -> object:
        """The chunk, the slot or the spill memory that holds it now; `None` when dropped."""
        return self.held.place if isinstance(self.held, Load) else self.held

    @property
    def is_wanted(self) -> bool:
        """Whether its owner still looks for it here: an interrupt may come within `unlink`."""
        return self in self.owner.pieces and not self.owner.dropped

    def unlink(self) -> None:
        """Take it from its owner and out of its home. Under the transfer's lock."""
        if self in self.owner.pieces:  # else another thread was first
            self.owner.pieces.remove(self)
        if isinstance(self.held, Load):
            self.held.pop(self, None)
        self.held = None


class Load(dict[Piece, None]):
    """Pieces that lie in one place: the chunk they were packed into, then the slot it was copied
    to; `None` once they are in nobody's.
    """

    __slots__ = ("place",)

    def __init__(self, place: object) -> None:
        super().__init__()
        self.place: object = place
