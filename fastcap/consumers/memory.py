"""Results in memory: rows of one tensor per site, allocated once and filled as passes land."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from fastcap.consumers.base import RowConsumer
from fastcap.engine import Pass
from fastcap.errors import HostMemoryError, ResultError, ResultTooLargeError
from fastcap.formatting import format_bytes
from fastcap.host_memory import available_bytes, bytes_tensor, empty_bytes
from fastcap.transfer.base import Capture, Transfer
from fastcap.transfer.pinned_out import PinnedRows

_Specs: TypeAlias = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape of one row, and dtype, by site."""


MOST_OF_MEMORY = 0.9
"""Share of available memory that a dataset without a length reserves: the rest moves meanwhile."""


@dataclass(slots=True)
class _Rows:
    """One site's result.

    Attributes:
        memory: All of it, in bytes; `None` for the caller's.
        view: The same as rows.
        is_pinned: Whether copies can write it.
    """

    memory: Tensor | None
    view: Tensor
    is_pinned: bool = False


class MemoryResult(RowConsumer):
    """Collects `(n_samples, ...)` per site.

    Args:
        n_samples: How many samples there will be; `None` when the dataset does not say.
        max_samples: Where to stop; `None` for all.
        check_memory: Whether to refuse a result that cannot fit in available memory.
    """

    def __init__(
        self, n_samples: int | None, max_samples: int | None, check_memory: bool = True
    ) -> None:
        super().__init__()
        if n_samples is not None and max_samples is not None:
            n_samples = min(n_samples, max_samples)
        self.n_expected = n_samples
        self._max_samples = max_samples
        self._check_memory = check_memory
        self._out: dict[str, _Rows] | None = None
        self._rows: dict[str, _Rows] | None = None
        self._first_rows: dict[str, _Rows] = {}
        self._placed: set[str] = set()
        self._written: set[str] = set()
        self._unsettled: deque[tuple[Transfer, Capture]] = deque()
        self._n_kept = 0

    def write_into(self, out: Mapping[str, Tensor], reaches: Callable[[Tensor], bool]) -> None:
        """Before the first pass: take the caller's memory, by site, and none of its own.

        Args:
            out: See `fastcap.consumers.out.check_out`.
            reaches: Whether copies can write host memory.
        """
        self._out = {site: _Rows(None, view, reaches(view)) for site, view in out.items()}

    @property
    def is_full(self) -> bool:
        return self._max_samples is not None and self.n_done >= self._max_samples

    # Around one pass

    def begin(self, n_samples: int) -> None:
        """A pass over `n_samples` is about to run; the last one is run whole and cropped."""
        self._begin_batch(n_samples)
        self._placed.clear()
        self._written.clear()
        self._n_kept = n_samples
        if self._max_samples is not None:
            self._n_kept = min(n_samples, self._max_samples - self.n_done)
        if self._out is not None:
            self._refuse_longer(self._rows or self._out, self.n_done + self._n_kept)
        elif self._rows is not None:
            self._make_room(self.n_done + self._n_kept)

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor | PinnedRows | None]:
        """In the hook: the rows that are kept and, where that is known already, where they go."""
        self._placed.discard(site)
        if not self._has_row_per_sample(site, value):
            return value, None
        value = value[: self._n_kept]
        rows = self._rows_for(site, value, dtype) if self._rows is None else self._rows.get(site)
        if rows is None or not _fits(rows.view, value.shape, dtype):
            return value, None
        if rows.is_pinned and site in self._written:
            return value, None  # a host worker may be writing an earlier call: go behind it
        self._placed.add(site)
        self._written.add(site)
        target = rows.view[self.n_done : self.n_done + self._n_kept]
        return value, PinnedRows(target) if rows.is_pinned else target

    def _rows_for(self, site: str, value: Tensor, dtype: torch.dtype) -> _Rows | None:
        """In the first pass: rows for all samples, if it is known how many there will be.

        Whether all sites' rows fit in memory is seen at the end of the pass. Until then little but
        address space is taken.
        """
        if self._out is not None:
            return self._out.get(site)
        if self.n_expected is None:
            return None
        rows = self._first_rows.get(site)
        if rows is None or not _fits(rows.view, value.shape, dtype):
            try:
                rows = _new_rows(value.shape[1:], dtype, max(self.n_expected, self._n_kept))
            except HostMemoryError:  # raised at the end of the pass, and not into the model (R9)
                return None
            self._first_rows[site] = rows
        return rows

    def end(self, finished: Pass) -> None:
        """The pass is over: check what it captured and start delivering it."""
        self._check(finished)
        if self._rows is None:
            self._allocate(finished)
        assert self._rows is not None
        while self._unsettled and self._unsettled[0][1].is_delivered:
            self._settle_next()
        for site, (transfer, capture) in finished.captures.items():
            if site not in self._placed:
                rows = self._rows[site].view
                transfer.deliver(capture, rows[self.n_done : self.n_done + self._n_kept])
            self._unsettled.append((transfer, capture))
        self._end_batch(self._n_kept)

    def settle(self) -> None:
        """Wait until every row given to `end` so far is in place.

        Raises:
            The error of a capture that failed.
        """
        while self._unsettled:
            self._settle_next()

    def _settle_next(self) -> None:
        transfer, capture = self._unsettled.popleft()
        transfer.settle(capture)

    def tensors(self) -> dict[str, Tensor]:
        """Every site's result, its storage exactly its own."""
        self.settle()
        return {site: self._cropped(rows) for site, rows in (self._rows or {}).items()}

    def _cropped(self, rows: _Rows) -> Tensor:
        if len(rows.view) == self.n_done:
            return rows.view
        if rows.memory is None:
            return rows.view[: self.n_done]
        shape = (self.n_done, *rows.view.shape[1:])
        n_bytes = prod(shape) * rows.view.dtype.itemsize
        return _typed(bytes_tensor(rows.memory.numpy()[:n_bytes]), rows.view.dtype, shape)

    # Checks

    def _check(self, finished: Pass) -> None:
        self._refuse_misfits()
        if self._rows is None:
            return
        for site in self._rows.keys() - finished.captures.keys():
            self._refuse_gap(site, "captured nothing", "earlier ones did")
        for site, (_, capture) in finished.captures.items():
            if site not in self._rows:
                self._refuse_gap(site, "captured something", "earlier ones did not")
            self._refuse_other_rows(site, tuple(capture.shape[1:]), capture.dtype)

    def _check_out(self, site: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        assert self._rows is not None
        view = self._rows[site].view
        if (tuple(view.shape[1:]), view.dtype) != (shape, dtype):
            dims = "".join(f", {size}" for size in shape)
            raise ResultError(
                f"out[{site!r}] has rows of shape {tuple(view.shape[1:])} in {view.dtype}, and the "
                f"site gave {shape} in {dtype}. Give torch.empty((n_samples{dims}), "
                f"dtype={dtype}), or ask for another selection or dtype=."
            )

    @staticmethod
    def _refuse_longer(out: Mapping[str, _Rows], n_rows: int) -> None:
        capacity = min(len(rows.view) for rows in out.values())
        if n_rows > capacity:
            instead = f", or pass max_samples={capacity}" if capacity else ""
            raise ResultError(
                f"out has {capacity} rows, and the dataset has given {n_rows} samples and may give "
                f"more. Give it more rows{instead}."
            )

    def _refuse_gap(self, site: str, what: str, others: str) -> None:
        raise ResultError(
            f"Site {site!r} {what} in batch {self._n_passes}, but {others}: its rows would not "
            "match the samples. Leave this site out, or receive it with fastcap.stream()."
        )

    def _refuse_other_rows(self, site: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        assert self._rows is not None
        view = self._rows[site].view
        if shape != tuple(view.shape[1:]):
            raise ResultError(
                f"Site {site!r} produced rows of shape {shape} in batch {self._n_passes} and "
                f"{tuple(view.shape[1:])} before. Rows of one result need one shape: pad all "
                "samples to one length, or select what has one shape in every batch "
                "(positions='last', reduce='mean'), or receive batches as they are with "
                "fastcap.stream()."
            )
        if dtype != view.dtype:
            raise ResultError(
                f"Site {site!r} produced {dtype} in batch {self._n_passes} and {view.dtype} "
                "before. Ask for one with dtype=, such as dtype=torch.float32."
            )

    # Memory

    def _allocate(self, first: Pass) -> None:
        specs = {
            site: (tuple(capture.shape[1:]), capture.dtype)
            for site, (_, capture) in first.captures.items()
        }
        if self._out is not None:
            self._rows = {site: self._out[site] for site in specs}
            for site, (shape, dtype) in specs.items():
                self._check_out(site, shape, dtype)
            return
        if self.n_expected is not None:
            self._rows = self._new_rows(specs, max(self.n_expected, self._n_kept), self._first_rows)
            self._first_rows = {}
            return
        try:
            most = self._most_rows(specs)
            self._rows = self._new_rows(specs, max(self._n_kept, most or 0))
        except HostMemoryError:  # address space is limited: start small and grow
            self._rows = self._new_rows(specs, self._n_kept)

    def _most_rows(self, specs: _Specs) -> int | None:
        """Rows that available memory holds and `max_samples` allows; `None` where neither says.

        So many are reserved when the dataset has no length. Only address space is taken at first,
        and pages as rows arrive, so nothing has to be moved later.
        """
        most = [] if self._max_samples is None else [self._max_samples]
        available, row_bytes = available_bytes(), sum(_sizes(specs, 1).values())
        if available is not None and row_bytes:
            most.append(int(MOST_OF_MEMORY * available) // row_bytes)
        return min(most, default=None)

    def _make_room(self, n_rows: int) -> None:
        """Grow when a dataset turns out longer than it said, or said nothing."""
        assert self._rows is not None
        capacity = min((len(rows.view) for rows in self._rows.values()), default=n_rows)
        if n_rows <= capacity:
            return
        specs = {site: (tuple(r.view.shape[1:]), r.view.dtype) for site, r in self._rows.items()}
        most = self._most_rows(specs)
        capacity = 2 * capacity if most is None else min(2 * capacity, most)
        grown = self._new_rows(specs, max(n_rows, capacity))
        self.settle()
        for site, rows in self._rows.items():
            grown[site].view[: self.n_done].copy_(rows.view[: self.n_done])
        self._rows = grown

    def _new_rows(
        self, specs: _Specs, n_rows: int, known: Mapping[str, _Rows] | None = None
    ) -> dict[str, _Rows]:
        sizes = _sizes(specs, n_rows)
        if self._check_memory:
            self._refuse_too_large(sizes, n_rows)
        rows = {}
        for site, (shape, dtype) in specs.items():
            found = None if known is None else known.get(site)
            if found is None or not _fits(found.view, (n_rows, *shape), dtype):
                found = _new_rows(shape, dtype, n_rows)
            rows[site] = found
        return rows

    def _refuse_too_large(self, sizes: Mapping[str, int], n_rows: int) -> None:
        available, n_bytes = available_bytes(), sum(sizes.values())
        if available is None or n_bytes <= available:
            return
        fitting = int(n_rows * available / n_bytes)
        raise ResultTooLargeError(
            f"The result needs {format_bytes(n_bytes)} (samples: {n_rows}, sites: {len(sizes)}), "
            f"and {format_bytes(available)} of memory is available. Select less (positions=, "
            "reduce=), narrow it (dtype=torch.float16), ask for fewer sites or "
            f"max_samples={fitting}, or receive it batch by batch with fastcap.stream(). To try "
            "anyway: check_memory=False."
        )


def _sizes(specs: _Specs, n_rows: int) -> dict[str, int]:
    return {site: n_rows * prod(shape) * dtype.itemsize for site, (shape, dtype) in specs.items()}


def _fits(rows: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether values of this shape, whatever its first dimension, are rows like these."""
    return rows.shape[1:] == shape[1:] and rows.dtype == dtype


def _new_rows(shape: tuple[int, ...], dtype: torch.dtype, n_rows: int) -> _Rows:
    memory = empty_bytes(n_rows * prod(shape) * dtype.itemsize)
    return _Rows(memory, _typed(memory, dtype, (n_rows, *shape)))


def _typed(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    with torch.inference_mode(False):
        if prod(shape) == 0:  # memory of no bytes has strides that no view accepts
            return torch.empty(shape, dtype=dtype, device="cpu")
        return memory.view(dtype).view(shape)
