"""What a caller passes as a dataset, and how its samples become batches."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    default_collate,
)

from fastcap.batching.collation import Batched, Collation
from fastcap.batching.columns import Columns, is_columns, refuse_other_kinds
from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.spec import BATCH_SIZE, as_callable, as_count
from fastcap.warn import warn

FIXED_ORDER = "has_fixed_order"
"""The attribute by which an iterable dataset promises one order for any number of workers."""

Collate = Callable[[list[Any]], Any]
"""Makes a batch of samples."""


@dataclass(frozen=True, slots=True)
class Source:
    """Samples, and how they become batches.

    Attributes:
        dataset: The samples, as the caller has them.
        batch_size: Samples per batch; `None` for those of a `DataLoader` that says no number.
        num_workers: Processes that load them.
        collate_fn: Makes a batch of samples; `None` for torch's.
        given: The caller's `DataLoader`, if the dataset came in one.
        options: Its settings that values do not depend on.
        start_worker: Its `worker_init_fn`.
    """

    dataset: Any
    batch_size: int | None
    num_workers: int
    collate_fn: Collate | None
    given: DataLoader[Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    start_worker: Callable[[int], None] | None = None

    @property
    def n_samples(self) -> int | None:
        """How many samples there are; `None` where nothing says."""
        if self.given is None or self.is_iterable:
            n_samples = length_of(self.dataset)
        elif self.batch_size is None:
            return None
        else:
            n_samples = length_of(self.given.sampler)
        if n_samples is None or not self.drops_last:
            return n_samples
        assert self.batch_size is not None
        return n_samples - n_samples % self.batch_size

    @property
    def is_iterable(self) -> bool:
        """Whether samples come in the dataset's own order, and cannot be asked for by index."""
        return isinstance(self.dataset, IterableDataset) or not hasattr(self.dataset, "__getitem__")

    @property
    def drops_last(self) -> bool:
        """Whether a last batch that would be smaller is left out."""
        return self.given is not None and self.batch_size is not None and self.given.drop_last

    def batches(self) -> Batched:
        """All batches, in order."""
        collation = Collation(self.collate_fn)
        if self.given is None:
            loader: DataLoader[Any] = DataLoader(
                as_iterated(self.dataset),
                batch_size=self.batch_size,
                num_workers=self.num_workers,
                collate_fn=collation,
            )
        elif self.given.batch_sampler is None:
            loader = self.given
        else:
            loader = copy.copy(self.given)
            loader.collate_fn = collation
        return Batched(loader)

    @property
    def is_shared_out(self) -> bool:
        """Whether the order of samples depends on the number of workers."""
        has_fixed_order = bool(getattr(self.dataset, FIXED_ORDER, False))
        return self.is_iterable and self.num_workers > 1 and not has_fixed_order

    def refuse_other_order(self) -> None:
        """For who numbers samples by their place in the dataset.

        Raises:
            ArgumentError: A `DataLoader` that does not give its dataset's samples one after the
                other, in batches of one size, or an iterable dataset shared out among workers.
        """
        if self.is_shared_out:
            raise ArgumentError(
                f"{self._sharing()}, and samples of an archive are numbered in one order, so that "
                f"a run can be continued. {self._without_sharing()}"
            )
        if (reason := self._other_order()) is not None:
            raise ArgumentError(
                f"{reason}, and samples of an archive are numbered in the dataset's own order, so "
                "that a run can be continued. Make the DataLoader with shuffle=False and a "
                "batch_size, or pass its dataset with batch_size=."
            )

    def warn_of_other_order(self) -> None:
        """Say that rows are not in the dataset's order, where they are not."""
        if self.is_shared_out:
            warn(
                f"{self._sharing()}: rows of the result are in the order of this number. "
                f"{self._without_sharing()}"
            )
        if self.batch_size is None and self.given is not None and self.given.batch_sampler is None:
            return  # batches as the dataset gives them, in its order
        if (reason := self._other_order()) is not None:
            warn(
                f"{reason}: rows of the result are in the order in which it gives samples, and not "
                "in the dataset's. Make the DataLoader with shuffle=False, or pass its dataset."
            )

    def _sharing(self) -> str:
        return (
            f"{self.num_workers} workers share out the samples of an iterable dataset "
            f"({type(self.dataset).__name__}), whose order then depends on their number"
        )

    def _without_sharing(self) -> str:
        return (
            "Pass num_workers=1 or a map-style dataset; or, if it gives the same samples in the "
            f"same order for any number of workers, set {FIXED_ORDER} = True on it."
        )

    def _other_order(self) -> str | None:
        if self.given is None:
            return None
        sampler, batches = self.given.sampler, self.given.batch_sampler
        if batches is None:
            return "The DataLoader has batch_size=None and takes batches as the dataset gives them"
        if type(batches) is not BatchSampler:
            return f"The DataLoader makes its batches with a {type(batches).__name__}"
        if self.is_iterable or isinstance(sampler, SequentialSampler):
            return None
        return f"The DataLoader draws its samples with a {type(sampler).__name__}"


def make_source(
    dataset: Any, batch_size: int, num_workers: int, collate_fn: Collate | None
) -> Source:
    """Take apart what a caller passes as a dataset.

    A `DataLoader` comes with a batch size, workers and a collate function of its own.

    Raises:
        ArgumentError: An argument out of range, or one that a `DataLoader` has otherwise.
        ArgumentTypeError: It is no dataset.
    """
    batch_size = as_count("batch_size", batch_size)
    num_workers = as_count("num_workers", num_workers, at_least=0)
    as_callable("collate_fn", collate_fn, "that makes a batch of a list of samples")
    if isinstance(dataset, DataLoader):
        return _from_loader(dataset, batch_size, num_workers, collate_fn)
    if is_columns(dataset):
        dataset = Columns(dataset)
    refuse_other_kinds(dataset)
    if not isinstance(dataset, IterableDataset) and not hasattr(dataset, "__getitem__"):
        _check_iterated(dataset, num_workers)
    return Source(dataset, batch_size, num_workers, collate_fn)


def _from_loader(
    loader: DataLoader[Any], batch_size: int, num_workers: int, collate_fn: Collate | None
) -> Source:
    asked = {
        "batch_size": (batch_size, BATCH_SIZE, loader.batch_size),
        "num_workers": (num_workers, 0, loader.num_workers),
        "collate_fn": (collate_fn, None, loader.collate_fn),
    }
    for name, (value, default, own) in asked.items():
        if value not in (default, own):
            raise ArgumentError(
                f"{name}={_shown(value)}, and the dataset is a DataLoader with "
                f"{name}={_shown(own)}. Leave {name}= out, or pass the dataset in it: "
                "loader.dataset."
            )
    collate: Collate = loader.collate_fn
    return Source(
        loader.dataset,
        loader.batch_size,
        loader.num_workers,
        None if collate is default_collate else collate,
        loader,
        {
            "pin_memory": loader.pin_memory,
            "timeout": loader.timeout,
            "prefetch_factor": loader.prefetch_factor,
            "multiprocessing_context": loader.multiprocessing_context,
        },
        loader.worker_init_fn,
    )


def _shown(value: Any) -> str:
    """A function by its name, which says more than its address."""
    return str(getattr(value, "__qualname__", repr(value)))


def length_of(dataset: Any) -> int | None:
    """Samples of a dataset; `None` where it does not say."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


class _Iterated(IterableDataset[Any]):
    """A generator, or anything else that can only be iterated, as `DataLoader` wants it."""

    def __init__(self, samples: Iterable[Any]) -> None:
        self._samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self._samples)


def as_iterated(dataset: Any) -> Any:
    """What a `DataLoader` accepts: the dataset, or something that iterates over it."""
    if isinstance(dataset, IterableDataset) or hasattr(dataset, "__getitem__"):
        return dataset
    return _Iterated(dataset)


def _check_iterated(dataset: Any, num_workers: int) -> None:
    if not isinstance(dataset, Iterable):
        raise ArgumentTypeError(
            f"dataset must be a dataset or a list of samples; got {type(dataset).__name__}."
        )
    if num_workers > 1:
        raise ArgumentError(
            f"Each of {num_workers} workers would give every sample of a "
            f"{type(dataset).__name__}, which can only be iterated. Pass num_workers=1, a "
            "list, or an IterableDataset that shares its samples out among workers."
        )
