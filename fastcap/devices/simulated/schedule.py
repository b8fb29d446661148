"""Who runs when, decided by a seed."""

from __future__ import annotations

import random
import zlib

from fastcap.devices.simulated.streams import STREAM_KINDS, SimulatedStream

EXTREMES = {
    "late": (0.0, 0.0, 0.0),
    "early": (1.0, 1.0, 1.0),
    "compute first": (1.0, 0.0, 0.0),
    "copies first": (0.0, 1.0, 0.0),
    "workers last": (1.0, 1.0, 0.0),
}
"""Eagerness of compute streams, copy stream and host workers, where bugs show first. Late means
only what somebody waits for, and what that needs."""


class Schedule:
    """An adversary: it decides at every call into the device which streams advance, and how far.

    Since `done` lets it decide first, it also chooses what the engine is told.

    Args:
        kind: A name in `EXTREMES`, or `"random"` to draw how eager each kind of stream is.
        seed: Decides every choice.

    Attributes:
        fingerprint: A hash of everything that has run, in order, and of every answer given.
    """

    def __init__(self, kind: str = "random", seed: int = 0) -> None:
        self.kind = kind
        self.seed = seed
        self.fingerprint = 0
        self._random = random.Random(seed)
        drawn = [self._random.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for _ in STREAM_KINDS]
        eagerness = drawn if kind == "random" else EXTREMES[kind]
        self._eagerness = dict(zip(STREAM_KINDS, eagerness, strict=True))

    def order(self, streams: list[SimulatedStream]) -> list[SimulatedStream]:
        """In which order streams get a chance to run."""
        return self._random.sample(streams, len(streams))

    def goes_on(self, stream: SimulatedStream) -> bool:
        """Whether a stream that could run an operation now does."""
        eagerness = self._eagerness[stream.kind]
        return eagerness == 1.0 or (eagerness > 0.0 and self._random.random() < eagerness)

    def note(self, what: str) -> None:
        """Add an event to the fingerprint."""
        self.fingerprint = zlib.crc32(what.encode(), self.fingerprint)
