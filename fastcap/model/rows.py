"""How many samples a batch has, and the same batch with more or fewer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def count_rows(batch: Any, asked: int | None = None) -> int | None:
    """Samples in a batch; `None` where nothing in it says so.

    The first dimension of `input_ids`, else the `num_graphs` of a batch of graphs, else the first
    dimension of the first tensor in it that is a field of the batch, else the length of the first
    list that holds one thing per sample.

    Args:
        batch: A batch as the model or `forward` takes it.
        asked: The number of samples that it was made of, if that is known: it is the answer where
            the batch may be read that way, and where nothing in it says anything.
    """
    readings = list(_readings(batch))
    if asked is not None and (asked in readings or not readings):
        return asked
    return readings[0] if readings else None


def _readings(batch: Any) -> Iterator[int]:
    """Numbers of samples that a batch may have, the likeliest first."""
    if isinstance(batch, Mapping):
        yield from _of_mapping(batch)
    elif isinstance(batch, Tensor):
        if batch.ndim:
            yield batch.shape[0]
    elif isinstance(getattr(batch, "num_graphs", None), int):
        yield batch.num_graphs
    elif isinstance(batch, list | tuple):
        yield from _of_sequence(batch)


def _of_mapping(batch: Mapping[Any, Any]) -> Iterator[int]:
    if "input_ids" in batch:
        yield from _readings(batch["input_ids"])
        return
    values = list(batch.values())
    for value in sorted(values, key=lambda value: not _holds_tensor(value)):
        yield from _readings(value)


def _of_sequence(batch: Sequence[Any]) -> Iterator[int]:
    if not any(isinstance(item, Tensor | Mapping | list | tuple) for item in batch):
        yield len(batch)
    elif _are_samples(batch):
        yield len(batch)
        for item in batch:
            yield from _readings(item)
    else:
        if all(isinstance(item, list | tuple) for item in batch):
            yield len(batch[0])  # fields that are lists, with an item per sample
        for item in sorted(batch, key=lambda item: not _holds_tensor(item)):
            yield from _readings(item)
        yield len(batch)


def _are_samples(batch: Sequence[Any]) -> bool:
    """Whether items are samples, and not the fields that samples were taken apart into."""
    if all(isinstance(item, Tensor) for item in batch):
        return len({item.shape[:1] for item in batch}) > 1
    if all(isinstance(item, Mapping) for item in batch):
        return True
    if not all(isinstance(item, list | tuple) for item in batch):
        return False
    if len({len(item) for item in batch}) > 1:
        return True
    return any(len({type(part) for part in item}) > 1 for item in batch)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_tensor, value))
    return isinstance(value, Tensor) and value.ndim > 0


def resized(value: Any, dim: int, length: int, wanted: int) -> Any:
    """Every tensor of this length along `dim` as a copy, repeated or cropped along it."""
    if isinstance(value, Tensor):
        if value.ndim <= dim or value.shape[dim] != length:
            return value
        return value.index_select(dim, torch.arange(wanted, device=value.device) % length)
    if isinstance(value, Mapping):
        return {key: resized(item, dim, length, wanted) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if dim == 0 and len(value) == length and not any(_is_nested(item) for item in value):
            return [value[index % length] for index in range(wanted)]
        items = [resized(item, dim, length, wanted) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


def may_list_samples(value: Any, n_samples: int) -> bool:
    """Whether a list in it is as long as the batch: its items may be the samples, or the inputs
    that each of them has, and `resized` cuts the items.
    """
    if isinstance(value, Mapping):
        return any(may_list_samples(item, n_samples) for item in value.values())
    is_as_long = isinstance(value, list | tuple) and len(value) == n_samples
    return is_as_long and any(_is_nested(item) for item in value)


def _is_nested(item: Any) -> bool:
    return isinstance(item, Tensor | Mapping | list | tuple)
