"""Batches of loaders that fill one buffer again, kept as they were.

A stream runs ahead of the batch it hands out, so the loader has filled its buffer with the next
batch by then. Which loaders do is seen by their memory: a batch that is still held cannot share
its memory with the next one, unless that was written over it.
"""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.model.hooks import modes_off
from fastcap.warn import warn

Span = tuple[int, int]
"""Addresses of a tensor's memory: the first, and the one behind the last."""


class Held:
    """A batch that is handed out later.

    Args:
        batch: As it came.

    Attributes:
        batch: What is handed out.
        spans: The memory of its tensors.
    """

    __slots__ = ("_twin", "batch", "spans")

    def __init__(self, batch: Any) -> None:
        self.batch = batch
        self.spans = list(_spans(batch))
        self._twin: Any = None

    def copy(self) -> None:
        """Keep a copy, since the batch may be written over."""
        with modes_off():
            self._twin = _copied(self.batch)

    def is_under(self, other: Held) -> bool:
        """Whether another batch lies where this one does."""
        return any(a < d and c < b for a, b in self.spans for c, d in other.spans)

    def restore(self) -> bool:
        """Hand out the copy; whether there is one."""
        if self._twin is None:
            return False
        self.batch, self._twin, self.spans = self._twin, None, []
        return True


class Holder:
    """Holds the batches of one stream until they are handed out.

    The first ones are copied, since the next may be written over them. A loader that has not done
    that by then is taken at its word, and copies are made no more.

    Args:
        batches: Where they come from. A list has memory for all of its own.
        n_ahead: How many are held while the next one is loaded.
    """

    def __init__(self, batches: Iterable[Any], n_ahead: int) -> None:
        self._is_list = isinstance(batches, list | tuple)
        self._n_ahead = n_ahead
        self._n_to_copy = 0 if self._is_list else n_ahead + 1
        self._reuses = False
        self._has_warned = False

    def hold(self, batch: Any, earlier: Iterable[Held]) -> Held:
        """Hold one more batch, and see to those that it was written over."""
        if self._is_list or not self._n_ahead:
            return Held(batch)
        held = Held(batch)
        for other in earlier:
            if other.is_under(held):
                self._reuses = True
                if not other.restore():
                    self._warn()
        if self._reuses or self._n_to_copy > 0:
            held.copy()
        self._n_to_copy -= 1
        return held

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn(
                "A batch came in the memory of one that had not been handed out, and none had "
                "before: that one's records.batch holds the later batch. Values are right. Pass "
                "prefetch=0, or give batches of their own memory."
            )


def _spans(value: Any) -> Iterator[Span]:
    if isinstance(value, Tensor):
        if value.layout is torch.strided and not value.is_nested and value.numel():
            last = sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
            yield value.data_ptr(), value.data_ptr() + (last + 1) * value.itemsize
    elif isinstance(value, np.ndarray):
        start = value.__array_interface__["data"][0]
        yield start, start + value.nbytes
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _spans(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _spans(item)


def _copied(value: Any) -> Any:
    """The same structure with tensors and arrays of its own."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, UserDict):  # transformers' BatchEncoding
        twin = copy.copy(value)
        twin.data = {key: _copied(item) for key, item in value.data.items()}
        return twin
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value
