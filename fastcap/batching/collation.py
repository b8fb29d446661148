"""Samples into a batch: torch's own collation, whose errors name the sample, the key and a way out.

What fails is not raised where it fails, which may be in another process: it takes the place of the
batch, and is raised where batches are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import default_collate

from fastcap.errors import CollationError
from fastcap.formatting import a_kind
from fastcap.model.rows import count_rows

STACKED: tuple[Any, ...] = (Mapping, (list, tuple), (Tensor, np.ndarray), str, (int, float))
"""Kinds of values, of which all samples need the same."""

IMAGES = (
    "turn images into tensors of one size in the dataset (the model's image processor, or "
    "torchvision's transforms)"
)

ELSE = "or make batches yourself: collate_fn=."


@dataclass(frozen=True, slots=True)
class Uncollated:
    """What stands for a batch that could not be made.

    Attributes:
        position: Of the sample in the batch, from 0.
        where: Which part of it.
        what: What is wrong with it.
        advice: What to do.
    """

    position: int
    where: str
    what: str
    advice: str

    def error(self, first_sample: int) -> CollationError:
        """The error, if the batch begins with this sample."""
        number = first_sample + self.position
        return CollationError(
            f"The samples of a batch cannot be stacked: {self.where}sample {number} {self.what}. "
            f"{self.advice[:1].upper()}{self.advice[1:]}, {ELSE}"
        )


class Collated(NamedTuple):
    """A batch, and the number of samples it was made of."""

    batch: Any
    n_samples: int


class Collation:
    """Makes a batch of samples, and says how many there were.

    Args:
        collate_fn: The caller's; `None` for torch's.
    """

    def __init__(self, collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        self._collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> Collated | Uncollated:
        """The batch; where torch cannot make it, what is wrong."""
        if self._collate_fn is not None:
            return Collated(self._collate_fn(samples), len(samples))
        try:
            return Collated(default_collate(samples), len(samples))
        except Exception as error:  # noqa: BLE001 - raised where batches are counted
            return _find(samples, "") or Uncollated(
                0, "", f"is {a_kind(type(samples[0]))} ({error})", "give tensors, numbers and texts"
            )


class Batched:
    """The batches of a loader that collates with a `Collation`, or as it likes.

    Args:
        loader: It.

    Attributes:
        n_before: Samples before the next batch.
        n_made_of: Samples that the latest batch was made of; `None` where the loader does not say.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self._loader = loader
        self.n_before = 0
        self.n_made_of: int | None = None

    def __iter__(self) -> Iterator[Any]:
        """Each batch.

        Raises:
            CollationError: One could not be made.
        """
        for item in self._loader:
            if isinstance(item, Uncollated):
                raise item.error(self.n_before)
            batch, self.n_made_of = item if isinstance(item, Collated) else (item, None)
            self.n_before += self.count(batch) or 0
            yield batch

    def lacks_samples(self, batch: Any) -> bool:
        """Whether the latest batch is known to have fewer rows than samples went into it."""
        n_rows = self.count(batch)
        return n_rows is not None and self.n_made_of is not None and n_rows < self.n_made_of

    def count(self, batch: Any) -> int | None:
        """Samples in the latest batch, as it was or as it is now on the model's device."""
        return count_rows(batch, self.n_made_of)


def _find(samples: list[Any], where: str) -> Uncollated | None:
    """The first value that cannot be stacked with the others."""
    for position, value in enumerate(samples):
        found = _misfit(value) or _difference(value, samples[0], where)
        if found is not None:
            return Uncollated(position, where, *found)
    return _find_inside(samples, where)


def _difference(value: Any, first: Any, where: str) -> tuple[str, str] | None:
    """What is said of a value that does not stack with the first, and what to do."""
    kind: Any = next((kind for kind in STACKED if isinstance(first, kind)), object)
    if not isinstance(value, kind):
        others = f"is {a_kind(type(value))}, and others {a_kind(type(first))}"
        return others, "give every sample the same kind"
    if kind is Mapping and value.keys() != first.keys():
        others = f"has the keys {_keys(value)}, and others {_keys(first)}"
        return others, "give every sample the same keys"
    if kind == (list, tuple) and len(value) != len(first):
        return f"has {len(value)} items, and others {len(first)}", _padding(where)
    if kind == (Tensor, np.ndarray) and value.shape != first.shape:
        return f"has shape {tuple(value.shape)}, and others {tuple(first.shape)}", _padding(where)
    return None


def _find_inside(samples: list[Any], where: str) -> Uncollated | None:
    first = samples[0]
    keys: Iterable[Any] = ()
    if isinstance(first, Mapping):
        keys = first
    elif isinstance(first, list | tuple):
        keys = range(len(first))
    for key in keys:
        found = _find([sample[key] for sample in samples], f"{key!r} of ")
        if found is not None:
            return found
    return None


def _misfit(value: Any) -> tuple[str, str] | None:
    """What is said of a value that no batch can hold."""
    if value is None:
        return "is None", "leave the key out of the samples, or give it a value"
    if isinstance(value, str | bytes | int | float | Tensor | np.ndarray | np.generic):
        return None
    if isinstance(value, Mapping | list | tuple):
        return None
    if hasattr(value, "getbands"):  # an image of PIL, which may not be installed
        return f"is {a_kind(type(value))}", IMAGES
    return f"is {a_kind(type(value))}", "give tensors, numbers and texts"


def _padding(where: str) -> str:
    if "input_ids" in where or "mask" in where:
        return (
            "pad samples to one length (fastcap.huggingface.Collator does it for texts), pass "
            "batch_size=1 with positions= or reduce="
        )
    return "give every sample the same shape, pass batch_size=1"


def _keys(first: Mapping[Any, Any]) -> list[str]:
    return sorted(map(str, first))
