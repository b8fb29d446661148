"""How often the sites of a model fire within a pass, and which call of a module is which."""

from __future__ import annotations

import threading


class CallCounts:
    """Counts calls, in one pass or in many.

    Passes over one root module may run in several threads. A call in one thread follows none of
    another's.

    Attributes:
        n_passes: Passes over the root module that have begun, where they are counted.
        n_calls: How often each site has captured.
        n_repeats: How often a site has captured in this pass, where it has more than once.
    """

    __slots__ = ("_last", "_turns", "n_calls", "n_passes", "n_repeats")

    def __init__(self) -> None:
        self.n_passes = 0
        self.n_calls: dict[str, int] = {}
        self.n_repeats: dict[str, int] = {}
        self._last: dict[str, tuple[int, int]] = {}  # pass and thread of a site's last capture
        self._turns: dict[int, tuple[tuple[int, int], int]] = {}

    def begin(self) -> None:
        """A pass over the root module begins."""
        self.n_passes += 1
        self.n_repeats.clear()

    def note(self, site: str) -> None:
        """A site has captured."""
        this_pass = self.n_passes, threading.get_ident()
        if self._last.get(site) == this_pass:
            self.n_repeats[site] = self.n_repeats.get(site, 1) + 1
        self.n_calls[site] = self.n_calls.get(site, 0) + 1
        self._last[site] = this_pass

    def age(self, site: str) -> int | None:
        """How many passes ago a site has captured; `None` for never."""
        last = self._last.get(site)
        return None if last is None else self.n_passes - last[0]

    def next_call(self, index: int, is_alone: bool) -> int:
        """The call of a module that has just ended, from 0 in each pass.

        Args:
            index: Of the site.
            is_alone: Whether the module was called outside of the root, which is a pass too.
        """
        this_pass = self.n_passes, threading.get_ident()
        then, last = self._turns.get(index, (None, -1))
        call_index = last + 1 if then == this_pass and not is_alone else 0
        self._turns[index] = this_pass, call_index
        return call_index

    def clear(self) -> None:
        """Forget what has captured; the pass goes on."""
        for counts in (self.n_calls, self.n_repeats, self._last):
            counts.clear()
