"""Streams of operations, and events with CUDA's semantics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from fastcap.devices.simulated.order import Clock

STREAM_KINDS = ("compute", "copy", "worker")


@dataclass(slots=True, eq=False)
class SimulatedStream:
    """Operations that run in the order they were given.

    Attributes:
        name: What reports call it.
        kind: One of `STREAM_KINDS`; schedules are as eager as the kind.
        pending: What has been given and has not run.
        lasts: Whether it cannot be ended.
        is_ended: Whether its owner has ended it: what it was given before runs all the same, and
            nothing may be asked of it any more.
    """

    name: str
    kind: str = "compute"
    lasts: bool = True
    is_ended: bool = False
    pending: deque[Operation] = field(default_factory=deque)

    def check_is_there(self, note: Callable[[str], None]) -> None:
        """Note what is asked of a stream that was ended."""
        if self.is_ended:
            note(f"{self.name} is asked for something after its owner ended it")

    @property
    def is_runnable(self) -> bool:
        if not self.pending:
            return False
        blocker = self.pending[0].waits_for
        return blocker is None or blocker.reached


@dataclass(slots=True, eq=False)
class Mark:
    """One recording of an event: reached when its stream gets there.

    Attributes:
        stream: Whose progress it stands for.
        clock: What the stream had seen when the mark was made, for the order judge.
        reached: Whether the stream has got there.
    """

    stream: SimulatedStream
    clock: Clock
    reached: bool = False


@dataclass(slots=True, eq=False)
class Operation:
    """One entry of a stream: it may run once `waits_for` is reached."""

    label: str
    run: Callable[[], object]
    waits_for: Mark | None = None


@dataclass(slots=True, eq=False)
class SimulatedEvent:
    """An event that can be marked again; `last` is what a wait captures, `None` if never marked."""

    last: Mark | None = None


class SimulatedTicket:
    """A delivery on a simulated worker; `is_reached` answers for the device and its judge."""

    __slots__ = ("_is_reached", "_join", "failure", "mark")

    def __init__(
        self, is_reached: Callable[[Mark], bool], join: Callable[[SimulatedTicket], None]
    ) -> None:
        self._is_reached = is_reached
        self._join = join
        self.mark: Mark | None = None
        self.failure: BaseException | None = None

    def done(self) -> bool:
        return self.mark is not None and self._is_reached(self.mark)

    def wait(self) -> None:
        self._join(self)

    def error(self) -> BaseException | None:
        return self.failure
