"""Which samples run together, and which of the batches are still to be run.

Values depend on the batch a sample is in (float32 rows differ between batch sizes), so the grid is
part of an archive: whoever continues it runs the original batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Protocol

from torch.utils.data import DataLoader

from fastcap.archive.layout import MOST_RANKS
from fastcap.archive.reader import Archive
from fastcap.batching.collation import Batched, Collation
from fastcap.batching.source import Source, as_iterated
from fastcap.errors import ArgumentError, ResultError
from fastcap.extraction.resume import check_same_inputs
from fastcap.extraction.signals import leave_signals_to_parent
from fastcap.spec import as_count


class BatchListener(Protocol):
    """Told of every batch before it runs."""

    def expect(self, samples: range, batch: Any, n_batch: int) -> None:
        """The next pass is over `n_batch` samples, of which these ids are wanted."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How samples are cut into batches: batch `b` begins with sample `b * batch_size`.

    Attributes:
        batch_size: Samples per batch; the last may have fewer.
        n_data: Samples of the data; `None` where it does not say.
        max_samples: How many are wanted; `None` for all.
    """

    batch_size: int
    n_data: int | None
    max_samples: int | None

    @property
    def n_samples(self) -> int | None:
        """Samples of the whole run; `None` while that is not known."""
        if self.n_data is None or self.max_samples is None:
            return self.n_data
        return min(self.n_data, self.max_samples)

    def describe(self) -> dict[str, int | None]:
        """What a run depends on beside its `n_samples`: where to stop, if there are none."""
        return {} if self.n_data is not None else {"max_samples": self.max_samples}

    def wanted(self, batch: int, n_batch: int) -> range:
        """The ids that are wanted of a batch of `n_batch` samples."""
        start = batch * self.batch_size
        stop = start + n_batch
        return range(start, stop if self.max_samples is None else min(stop, self.max_samples))

    def numbers(self) -> Iterator[int]:
        """The batches that hold anything wanted; without end where that is not known."""
        limits = [n for n in (self.n_data, self.max_samples) if n is not None]
        if not limits:
            return count()
        return iter(range(-(-min(limits) // self.batch_size)))

    def n_batch(self, batch: int) -> int:
        """Samples of a batch, where the data says how many it has."""
        assert self.n_data is not None
        return min(self.batch_size, self.n_data - batch * self.batch_size)


@dataclass(frozen=True, slots=True)
class Share:
    """Batches of one process: those whose number is `rank` modulo `world_size`."""

    rank: int
    world_size: int

    @property
    def is_whole(self) -> bool:
        return self.world_size == 1

    def has(self, batch: int) -> bool:
        return batch % self.world_size == self.rank


def make_grid(source: Source, max_samples: int | None) -> Grid:
    """The grid of a dataset.

    Raises:
        ArgumentError, ArgumentTypeError: A number out of range, an empty dataset, or batches that
            are in another order than its samples.
    """
    source.refuse_other_order()
    assert source.batch_size is not None
    n_data = source.n_samples
    if n_data == 0:
        raise ArgumentError("The dataset is empty: there is nothing to extract.")
    if max_samples is not None:
        max_samples = as_count("max_samples", max_samples)
    return Grid(source.batch_size, n_data, max_samples)


def _start_worker(own: Callable[[int], None] | None, worker: int) -> None:
    leave_signals_to_parent(worker)
    if own is not None:
        own(worker)


def make_share(rank: int, world_size: int) -> Share:
    """One of several processes.

    Raises:
        ArgumentError, ArgumentTypeError: Numbers out of range.
    """
    rank = as_count("rank", rank, at_least=0)
    if rank >= MOST_RANKS:
        raise ArgumentError(f"rank must be below {MOST_RANKS}; got {rank}.")
    world_size = as_count("world_size", world_size)
    if rank >= world_size:
        raise ArgumentError(
            f"rank={rank}, but there are world_size={world_size} processes, counted from 0."
        )
    return Share(rank, world_size)


class Batches:
    """The batches that one process still has to run.

    Args:
        source: The samples.
        grid: How they are cut.
        share: Which batches are this process's.
        earlier: What is done already; `None` for nothing.
        columns: Keys of the batch that are stored beside the sites.

    Attributes:
        n_total: Samples of the data, once all of it has been seen that did not say before.
        n_run: Batches that have been run.
        loading_secs: Seconds spent on loading, or on waiting for the processes that load.
    """

    def __init__(
        self,
        source: Source,
        grid: Grid,
        share: Share,
        earlier: Archive | None,
        columns: Sequence[str] = (),
    ) -> None:
        if earlier is not None and isinstance(source.dataset, Iterator):
            raise ArgumentError(
                f"A {type(source.dataset).__name__} can be read once, so its samples cannot be "
                "matched to those that are archived. Pass a list, or a dataset that begins anew "
                "each time."
            )
        self._source = source
        self._grid = grid
        self._share = share
        self._earlier = earlier
        self._columns = columns
        self._by_number = grid.n_data is not None and not source.is_iterable
        by_size = {"batch_size": grid.batch_size, "drop_last": source.drops_last}
        loader: DataLoader[Any] = DataLoader(
            as_iterated(source.dataset),
            num_workers=source.num_workers,
            collate_fn=Collation(source.collate_fn),
            worker_init_fn=partial(_start_worker, source.start_worker),
            **source.options,
            **({"batch_sampler": self} if self._by_number else by_size),
        )
        self._batched = Batched(loader)
        self.count = self._batched.count
        self.n_total: int | None = None
        self.n_run = 0
        self.loading_secs = 0.0

    def only(self, number: int) -> Batches:
        """One of the batches, done or not: the first that these give."""
        source = self._source
        if self._by_number:  # starting workers takes longer than one batch
            source = Source(source.dataset, source.batch_size, 0, source.collate_fn)
        share = Share(number, number + 1)  # whose first batch is this one
        return Batches(source, self._grid, share, None, self._columns)

    def run(self, listener: BatchListener) -> Iterator[Any]:
        """Each batch, announced to its listener."""
        found = self._some() if self._by_number else self._all()
        for batch, wanted, n_batch in found:
            listener.expect(wanted, batch, n_batch)
            self.n_run += 1
            yield batch

    def __iter__(self) -> Iterator[list[int]]:
        """The indices of each batch to run, for a `DataLoader`."""
        for number in self._missing():
            start = number * self._grid.batch_size
            yield list(range(start, start + self._grid.n_batch(number)))

    def _missing(self) -> Iterator[int]:
        for number in self._grid.numbers():
            if self._share.has(number) and not self._is_done(number, self._grid.n_batch(number)):
                yield number

    def _announced(self) -> Iterator[int]:
        for number in self._missing():
            self._batched.n_before = number * self._grid.batch_size
            yield number

    def _is_done(self, number: int, n_batch: int) -> bool:
        wanted = self._grid.wanted(number, n_batch)
        return self._earlier is not None and self._earlier.has(wanted.start, wanted.stop)

    def _loaded(self) -> Iterator[Any]:
        started = time.monotonic()
        for batch in self._batched:
            self.loading_secs += time.monotonic() - started
            yield batch
            started = time.monotonic()

    def _some(self) -> Iterator[tuple[Any, range, int]]:
        for number, batch in zip(self._announced(), self._loaded(), strict=True):
            n_batch = self._grid.n_batch(number)
            yield batch, self._grid.wanted(number, n_batch), n_batch

    def _all(self) -> Iterator[tuple[Any, range, int]]:
        """Load every batch, to know the numbers of those that are missing."""
        n_seen = 0
        numbers = self._grid.numbers()
        batches = iter(self._loaded())
        for number, batch in zip(numbers, batches, strict=False):
            n_batch = self.count(batch) or 0
            if n_batch != self._grid.batch_size:
                self._check_last(number, n_batch, batches)
            wanted = self._grid.wanted(number, n_batch)
            n_seen = wanted.stop
            if self._is_done(number, n_batch):
                self._check_same(wanted, batch, n_batch)
            elif self._share.has(number):
                yield batch, wanted, n_batch
        self.n_total = n_seen

    def _check_same(self, samples: range, batch: Any, n_batch: int) -> None:
        if self._earlier is not None:
            check_same_inputs(self._earlier, self._columns, samples, batch, n_batch)

    def _check_last(self, number: int, n_batch: int, following: Iterator[Any]) -> None:
        """Only the last batch may have other than `batch_size` samples, and only fewer.

        Raises:
            ResultError: It is another.
        """
        size = self._grid.batch_size
        if n_batch > size or next(following, None) is not None:
            raise ResultError(
                f"Batch {number} has {n_batch} samples instead of {size}, and is not the last: the "
                "ids of what follows cannot be told. collate_fn must keep every sample, as one "
                "row. An IterableDataset that shares its samples out among workers ends with a "
                "short batch for each: use num_workers=1."
            )

    @property
    def n_samples(self) -> int | None:
        """Samples of the whole run, all processes together; `None` while that is not known."""
        return self._grid.n_samples

    def missing(self, archive: Archive) -> Iterator[range]:
        """Which samples of this process are not in an archive, once all of its batches have run."""
        n_samples = self._grid.n_samples if self.n_total is None else self.n_total
        assert n_samples is not None
        if self._share.is_whole and archive.has(0, n_samples):
            return
        size = self._grid.batch_size
        for number in range(-(-n_samples // size)):
            wanted = range(number * size, min((number + 1) * size, n_samples))
            if self._share.has(number) and not archive.has(wanted.start, wanted.stop):
                yield wanted

    def check_any(self) -> None:
        """A share without a batch has nothing to show for itself.

        Raises:
            ArgumentError: This process had nothing to run, and nobody has begun the archive.
        """
        if self.n_run == 0 and self._earlier is None:
            raise ArgumentError(
                f"There is no batch for rank {self._share.rank} of {self._share.world_size}: the "
                "data has too few samples. Use fewer processes, a smaller batch_size or more data."
            )
