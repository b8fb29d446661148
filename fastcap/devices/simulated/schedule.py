"""Who runs when, decided by a seed."""

from __future__ import annotations

import random
import zlib

from fastcap.devices.simulated.queues import QUEUE_KINDS, Queue

EXTREMES = {
    "late": (0.0, 0.0, 0.0),
    "early": (1.0, 1.0, 1.0),
    "compute first": (1.0, 0.0, 0.0),
    "copies first": (0.0, 1.0, 0.0),
    "workers last": (1.0, 1.0, 0.0),
}
"""Eagerness of compute queues, copy queue and host workers, where bugs show first. Late means only
what somebody waits for, and what that needs."""


class Schedule:
    """An adversary: it decides at every call into the device which queues advance, and how far.

    Since `done` lets it decide first, it also chooses what the engine is told.

    Args:
        kind: A name in `EXTREMES`, or `"random"` to draw how eager each kind of queue is.
        seed: Decides every choice.

    Attributes:
        fingerprint: A hash of everything that has run, in order, and of every answer given.
    """

    def __init__(self, kind: str = "random", seed: int = 0) -> None:
        self.kind = kind
        self.seed = seed
        self.fingerprint = 0
        self._random = random.Random(seed)
        drawn = [self._random.choice((0.0, 0.1, 0.5, 0.9, 1.0)) for _ in QUEUE_KINDS]
        eagerness = drawn if kind == "random" else EXTREMES[kind]
        self._eagerness = dict(zip(QUEUE_KINDS, eagerness, strict=True))

    def order(self, queues: list[Queue]) -> list[Queue]:
        """In which order queues get a chance to run."""
        return self._random.sample(queues, len(queues))

    def goes_on(self, queue: Queue) -> bool:
        """Whether a queue that could run an operation now does."""
        eagerness = self._eagerness[queue.kind]
        return eagerness == 1.0 or (eagerness > 0.0 and self._random.random() < eagerness)

    def note(self, what: str) -> None:
        """Add an event to the fingerprint."""
        self.fingerprint = zlib.crc32(what.encode(), self.fingerprint)
