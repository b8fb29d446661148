"""The order judge: vector clocks over byte ranges.

Two accesses to the same byte conflict when one of them writes. They are ordered when a chain of
events, waits and issues leads from the first to the second. A conflict without such a chain is a
race, whether or not this run happened to get away with it: the judge looks at what was issued,
never at what ran first.

Who acts: every stream, and the host. All host threads count as one actor, because locks between
threads are not the subject here. An operation comes after everything before it on its stream, after
everything that the host knew when it issued it, and after the marks that its stream waited for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeAlias

Clock: TypeAlias = dict[Hashable, int]
"""By actor, how far its work is known to be finished."""

HOST = "host"


@dataclass(frozen=True, slots=True)
class Access:
    """One operation's use of some bytes."""

    label: str
    actor: Hashable
    tick: int
    start: int
    stop: int
    is_write: bool

    def conflicts_with(self, start: int, stop: int, is_write: bool) -> bool:
        return (self.is_write or is_write) and self.start < stop and start < self.stop


class OrderJudge:
    """Collects accesses and reports conflicting pairs that nothing orders.

    Attributes:
        violations: What was found, in words. It only grows: an exception that an operation raises
            afterwards cannot hide a finding.
    """

    def __init__(self) -> None:
        self.violations: list[str] = []
        self._clocks: dict[Hashable, Clock] = {}
        self._accesses: dict[Hashable, list[Access]] = {}
        self._gone: dict[Hashable, str] = {}

    # Edges

    def issue(self, actor: Hashable) -> None:
        """The host gives `actor` something to do: it comes after what the host knows."""
        self.learn(actor, self._clock(HOST))

    def snapshot(self, actor: Hashable) -> Clock:
        """What an edge from `actor`, as it is now, would tell."""
        return dict(self._clock(actor))

    def learn(self, actor: Hashable, seen: Clock) -> None:
        """An edge to `actor`: everything in `seen` is finished before its next operation."""
        clock = self._clock(actor)
        for other, tick in seen.items():
            if tick > clock.get(other, 0):
                clock[other] = tick

    def _clock(self, actor: Hashable) -> Clock:
        return self._clocks.setdefault(actor, {})

    # Accesses

    def access(
        self,
        actor: Hashable,
        label: str,
        memory: Hashable,
        start: int,
        stop: int,
        is_write: bool,
    ) -> None:
        """`actor`'s next operation reads or writes bytes `start` to `stop` of `memory`."""
        clock = self._clock(actor)
        tick = clock.get(actor, 0) + 1
        clock[actor] = tick
        if start >= stop:
            return
        if memory in self._gone:
            self._report(label, actor, memory, f"memory given up by {self._gone[memory]}")
        known = self._accesses.setdefault(memory, [])
        for earlier in known:
            is_ordered = clock.get(earlier.actor, 0) >= earlier.tick
            if not is_ordered and earlier.conflicts_with(start, stop, is_write):
                other = f"{_verb(earlier.is_write)} by {earlier.label} on {_name(earlier.actor)}"
                self._report(label, actor, memory, f"{other} is not ordered before it", is_write)
        self._accesses[memory] = [
            *(
                earlier
                for earlier in known
                if not _is_covered(earlier, clock, start, stop, is_write)
            ),
            Access(label, actor, tick, start, stop, is_write),
        ]

    def forget(self, actor: Hashable, label: str, memory: Hashable, n_bytes: int) -> None:
        """`actor` gives memory up, which is a last write: whoever gets it next writes it."""
        self.access(actor, label, memory, 0, n_bytes, is_write=True)
        self._gone[memory] = label

    def note(self, violation: str) -> None:
        """Record a finding that is not a pair of accesses."""
        self.violations.append(violation)

    def _report(
        self, label: str, actor: Hashable, memory: Hashable, what: str, is_write: bool = True
    ) -> None:
        self.violations.append(
            f"{_verb(is_write)} by {label} on {_name(actor)} of {_name(memory)}: {what}"
        )


def _is_covered(earlier: Access, clock: Clock, start: int, stop: int, is_write: bool) -> bool:
    """Whether any race with `earlier` would also be a race with the write that follows it."""
    is_ordered = clock.get(earlier.actor, 0) >= earlier.tick
    return is_write and is_ordered and start <= earlier.start and earlier.stop <= stop


def _verb(is_write: bool) -> str:
    return "write" if is_write else "read"


def _name(thing: Hashable) -> str:
    return str(getattr(thing, "name", thing))
