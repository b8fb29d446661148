"""The engine: hooks that fire become captures, keyed by pass and site.

A capture goes captured → staged → copying → landed → delivered → free. The way from the hook to
host memory is a transfer's business (`fastcap.transfer`), one for each device that the model's
values live on. The engine decides which pass a value belongs to, selects, and keeps the last call
of each site. It knows no kind of device.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.devices import open_device
from fastcap.host_memory import HostBuffers
from fastcap.model.call_counts import CallCounts
from fastcap.model.early_stop import CallsSeen
from fastcap.model.hooks import attach, calls_on_stack, detach, modes_are_on, modes_off
from fastcap.model.parts import as_capturable, describe_miss, is_fake, take_part
from fastcap.model.sites import BoundSite
from fastcap.model.unfired import describe_repeated, explain_unfired
from fastcap.records import Statistics
from fastcap.selection.per_sample import Rows, RowSource
from fastcap.selection.reading import SiteReader
from fastcap.spec import Selection, Site
from fastcap.transfer.base import Capture, Target, Transfer
from fastcap.transfer.budget import Limits
from fastcap.transfer.staged import StagedTransfer
from fastcap.transfer.synchronous import SynchronousTransfer
from fastcap.warn import warn

IDLE_BYTES = 2 << 30
"""Most of the memory of dropped results that is kept for later ones, unless `pinned_bytes` says."""


PlaceHook: TypeAlias = Callable[
    [str, Tensor, torch.dtype, tuple[int, ...] | None], tuple[Tensor, Target | None]
]
"""`fastcap.Consumer.place`, which explains it."""


class Pass:
    """What one pass has captured, or many: whoever drives the model decides.

    Args:
        place: The consumer's method; `None` for owned memory.
        calls_seen: Told of every site that fires; may end the pass.
        keeps_all: Whether earlier calls of a site are kept beside the last.
        rows: What the batch says of its samples; `None` where the model's call has to.

    Attributes:
        captures: The last capture of each site, in the order sites first fired.
        earlier: The captures before it, where they are kept.
        counts: How often sites have fired.
    """

    __slots__ = (
        "_lock",
        "_superseded",
        "calls_seen",
        "captures",
        "counts",
        "earlier",
        "keeps_all",
        "place",
        "rows",
    )

    def __init__(
        self,
        place: PlaceHook | None = None,
        calls_seen: CallsSeen | None = None,
        keeps_all: bool = False,
        rows: Rows | None = None,
    ) -> None:
        self.captures: dict[str, tuple[Transfer, Capture]] = {}
        self.earlier: dict[str, list[tuple[Transfer, Capture]]] = {}
        self.counts = CallCounts()
        self.place = place
        self.calls_seen = calls_seen
        self.keeps_all = keeps_all
        self._lock = threading.Lock()
        self._superseded: dict[str, list[tuple[Transfer, Capture]]] = {}
        self.rows = rows

    def calls(self, site: str) -> list[tuple[Transfer, Capture]]:
        """The captures of a site that are kept, in the order of its calls."""
        with self._lock:
            return self._calls(site)

    def _calls(self, site: str) -> list[tuple[Transfer, Capture]]:
        last = self.captures.get(site)
        return [] if last is None else [*self.earlier.get(site, ()), last]

    def all(self) -> list[tuple[Transfer, Capture]]:
        """Every capture that is kept."""
        return [found for site in list(self.captures) for found in self.calls(site)]

    # For consumers, when the pass is over

    @property
    def sites(self) -> list[str]:
        """Sites that captured something, in the order in which they first did."""
        return list(self.captures)

    def deliver(self) -> None:
        """Have host threads copy every value to memory of its own, while the next pass runs."""
        for transfer, capture in self.all():
            transfer.deliver(capture)

    def tensor(self, site: str) -> Tensor:
        """What the last call of a site produced: on the CPU, contiguous, detached, the caller's.
        Waits for its copy. Not for what `fastcap.Consumer.place` had delivered to a tensor or file
        of its own: `settle` waits for that.

        Raises:
            DeviceMemoryError, HostMemoryError: It could not be captured for lack of memory.
        """
        transfer, capture = self.captures[site]
        value = transfer.result(capture)
        assert value is not None  # what a finished pass has captured is nobody else's to drop
        return value

    def settle(self) -> None:
        """Wait until every value is where `deliver`, or `fastcap.Consumer.place`, had it sent."""
        for transfer, capture in self.all():
            transfer.settle(capture)

    def lengths(self, site: str) -> tuple[int, ...] | None:
        """With `positions="unpadded"`, how many rows each sample has; else `None`."""
        return self.captures[site][1].lengths

    # For the engine

    def file(
        self, site: str, transfer: Transfer, capture: Capture
    ) -> tuple[Transfer, Capture] | None:
        """Make it the last capture of its site; returns the one that nobody keeps any more."""
        with self._lock:
            previous = self.captures.get(site)
            self.captures[site] = (transfer, capture)
            self.counts.note(site)
            if previous is not None and self.keeps_all:
                self.earlier.setdefault(site, []).append(previous)
                return None
            if previous is not None and self.place is not None and previous[1].tickets:
                self._superseded.setdefault(site, []).append(previous)
            return previous

    def finish_elsewhere(self, site: str, transfer: Transfer) -> None:
        """Wait for the site's earlier calls, where another transfer may still write their rows.

        What that transfer has not begun to write it never will: the call before is being dropped.
        """
        last = self.captures.get(site)
        if last is None or last[0] is transfer:
            return
        for _, capture in [*self._superseded.pop(site, ()), last]:
            for ticket in capture.tickets:  # its error is nobody's any more
                ticket.wait()

    def clear(self) -> None:
        with self._lock:
            dropped = [found for site in self.captures for found in self._calls(site)]
            self.captures.clear()
            self.earlier.clear()
            self.counts.clear()
        for transfer, capture in dropped:
            transfer.drop(capture)


class _OfThread(threading.local):
    """The pass that a thread runs, if fastcap runs one there."""

    current: Pass | None = None


_orphans: queue.SimpleQueue[dict[torch.device, Transfer]] = queue.SimpleQueue()
"""Lanes of engines that were dropped without `close`. A finalizer may not touch a device, and
memory that is freed while streams still use it would be handed to the model."""


def close_orphans() -> None:
    """Give back the memory of engines that were dropped while attached."""
    while not _orphans.empty():
        for transfer in _orphans.get().values():
            transfer.close()


class Engine:
    """Captures values of some sites of one model.

    Args:
        model: The root module, whose calls are passes.
        sites: Where.
        selection: What.
        limits: How much memory transfers may use.
        always: The pass that every call belongs to which is not `running` one; `None`
            captures nothing outside of one.
        rows: Where passes learn what to take of each sample.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[BoundSite],
        selection: Selection,
        limits: Limits,
        always: Pass | None = None,
        rows: RowSource | None = None,
    ) -> None:
        self._model = model
        self._bound = list(sites)
        self._rows = rows or RowSource(selection)
        self._read = SiteReader(selection, self._rows)
        self._sites = [bound.site for bound in sites]
        self._dtype = selection.dtype
        self._may_move = callable(selection.reduce)  # to another device: it is the user's code
        self._limits = limits
        self._always = always
        self._of_thread = _OfThread()
        self._buffers = HostBuffers(limits.pinned_bytes or IDLE_BYTES)
        self._transfers: dict[torch.device, Transfer] = {}
        self._transfers_lock = threading.Lock()
        self._fired: set[int] = set()
        self._n_turns: dict[int, int] = {}
        self._closed = Statistics()
        self._n_reads_before = 0 if rows is None else rows.n_mask_reads
        self._reported: set[str] = set()
        self._settled = {site.name for site in self._sites if site.call is not None}
        self.handles: list[RemovableHandle] = []
        weakref.finalize(self, _orphans.put, self._transfers).atexit = False

    # Hooks

    def attach(self) -> None:
        self._buffers.keeps = True
        # Around the sites' own hooks: what a pass is called with is read before the first of them
        # (a site may be the root's input), and forgotten after the last (it may be its output).
        first = self._read.before(self._model)
        try:
            self.handles += attach(self._bound, self)
        except BaseException:
            detach(first)
            raise
        self.handles += first  # behind the sites' own, which `report_unfired` counts on
        self.handles += self._read.after(self._model)

    def detach(self) -> None:
        detach(self.handles)

    def receive(self, index: int, output: Any) -> None:
        """A hook has fired; see `fastcap.model.hooks.Receiver`."""
        current = self._of_thread.current or self._always
        if current is None or (current.calls_seen is not None and current.calls_seen.is_stopped):
            return
        site = self._sites[index]
        if site.call is None or self._is_wanted(current, index, site):
            self._take(current, site, index, output)
        if current.calls_seen is not None:
            current.calls_seen.note(index)

    def _is_wanted(self, current: Pass, index: int, site: Site) -> bool:
        """Whether this call of a module is the one that the site's name asks for."""
        is_alone = current is self._always and not calls_on_stack(self._model)
        call_index = current.counts.next_call(index, is_alone)
        self._n_turns[index] = max(call_index + 1, self._n_turns.get(index, 0))
        return site.takes(call_index)

    def _take(self, current: Pass, site: Site, index: int, output: Any) -> None:
        value = take_part(output, site)
        if value is None:
            self._report(site, describe_miss(output, site))
        elif type(value) is not Tensor and is_fake(value):
            self._report(site, f"Nothing is captured at site {site.name!r}: its value is fake.")
        elif modes_are_on():
            with modes_off():
                self._capture(current, site, index, value)
        else:
            self._capture(current, site, index, value)
        self._fired.add(index)

    def _capture(self, current: Pass, site: Site, index: int, value: Tensor) -> None:
        value = as_capturable(value, site)
        transfer = self._transfer(value.device)
        transfer.refuse_graphs()  # before anything is read, uploaded, waited for or allocated
        value, lengths = self._read(value, site, current.rows, transfer.device)
        if self._may_move:
            transfer = self._transfer(value.device)
            transfer.refuse_graphs()
        dtype = self._dtype or value.dtype
        target: Target | None = None
        if current.place is not None:
            current.finish_elsewhere(site.name, transfer)
            value, target = current.place(site.name, value, dtype, lengths)
        if current is self._always and index in self._fired:
            transfer.replan()  # its second call: one pass, or one turn of a loop, is known
        capture = transfer.capture(value, dtype, target, index)
        capture.lengths = lengths
        previous = current.file(site.name, transfer, capture)
        if previous is not None:
            previous[0].drop(previous[1])

    def _report(self, site: Site, message: str) -> None:
        if site.name not in self._reported:
            self._reported.add(site.name)
            warn(message)

    def report_unfired(self) -> None:
        """A pass is over: say once of each site that has not fired yet why that is."""
        if len(self._fired) == len(self._bound):
            return
        for index, (bound, handle) in enumerate(zip(self._bound, self.handles, strict=False)):
            if index not in self._fired and bound.site.name not in self._reported:
                hooks = bound.module._forward_hooks, bound.module._forward_pre_hooks
                is_hooked = any(handle.id in each for each in hooks)
                n_calls = self._n_turns.get(index, 0)
                self._report(bound.site, explain_unfired(self._model, bound, is_hooked, n_calls))

    def report_repeated(self, finished: Pass) -> None:
        """A pass is over: say once of which sites only the last of several calls is kept."""
        repeats = finished.counts.n_repeats.copy()
        found = {name: n for name, n in repeats.items() if name not in self._settled}
        if found:
            self._settled |= found.keys()
            warn(describe_repeated(found))

    # Transfers

    def _transfer(self, torch_device: torch.device) -> Transfer:
        return self._transfers.get(torch_device) or self._open_transfer(torch_device)

    def _open_transfer(self, torch_device: torch.device) -> Transfer:
        close_orphans()
        with self._transfers_lock:
            if torch_device not in self._transfers:
                device = open_device(torch_device)
                self._transfers[torch_device] = (
                    SynchronousTransfer(device, self._buffers)
                    if device.direct
                    else StagedTransfer(device, self._limits, self._buffers, len(self._sites))
                )
            return self._transfers[torch_device]

    def transfers(self) -> list[Transfer]:
        with self._transfers_lock:
            return list(self._transfers.values())

    # Passes that fastcap runs itself

    @contextlib.contextmanager
    def running(self, current: Pass) -> Iterator[None]:
        """What this thread's hooks capture in the block belongs to `current`."""
        self._of_thread.current = current
        try:
            yield
        finally:
            self._of_thread.current = None

    def replan(self) -> None:
        """A whole pass has been seen: size every transfer's memory for the next ones."""
        for transfer in self.transfers():
            transfer.replan()

    @property
    def site_names(self) -> list[str]:
        """The keys of results, in the order asked."""
        return [site.name for site in self._sites]

    def statistics(self) -> Statistics:
        """Counts since the engine was made."""
        counted = self._closed + Statistics(
            mask_reads=self._rows.n_mask_reads - self._n_reads_before
        )
        return sum((transfer.statistics() for transfer in self.transfers()), counted)

    def rows_of(self, batch: Any) -> Rows | None:
        """What a batch says of its samples, for its `Pass`; see `RowSource.of_batch`."""
        return self._rows.of_batch(batch)

    def close(self) -> None:
        """Off first, then drain, then give memory back (R12). The engine can be attached again."""
        self.detach()
        for transfer in self.transfers():
            transfer.close()
        with self._transfers_lock:
            for transfer in self._transfers.values():
                self._closed += transfer.statistics()
            self._transfers.clear()
        self._buffers.keeps = False
        self._buffers.trim()
