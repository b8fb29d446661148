"""What makes two runs the same run: everything values depend on, as JSON and as a hash.

Where the data and the model came from (paths, machines, devices) is not part of it: only what they
are. Descriptions are the same in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.utils.data import IterableDataset

from fastcap.fingerprint.behaviour import describe_behaviour
from fastcap.fingerprint.creator import describe_creator as describe_creator
from fastcap.fingerprint.creator import device_name as device_name
from fastcap.fingerprint.digests import JSON as JSON
from fastcap.fingerprint.digests import hash_of as hash_of
from fastcap.fingerprint.digests import name_of
from fastcap.fingerprint.models import describe_model
from fastcap.fingerprint.values import describe
from fastcap.spec import Selection

SAMPLED_ITEMS = 16
"""Items of a dataset that are looked at, the first and the last among them."""

MOST_LINES = 5
"""Differences shown of things that belong together, such as the parameters of a model."""

MOST_CHARACTERS = 200
"""Of each value in a difference."""


def describe_run(
    model: nn.Module,
    dataset: Any,
    sites: Sequence[str],
    selection: Selection,
    *,
    batch_size: int,
    n_samples: int | None,
    calls: str = "last",
    model_inputs: Iterable[str] | None = None,
    forward: Callable[..., Any] | None = None,
    mask: Callable[..., Any] | None = None,
    collate_fn: Callable[..., Any] | None = None,
    columns: Sequence[str] = (),
) -> dict[str, JSON]:
    """Everything that the values of a run depend on, arguments as for `fastcap.extract`.

    Of the model: class, modules and their settings, of parameters and persistent buffers names,
    shapes, dtypes and 64 elements each, and what `describe_behaviour` says. Of the dataset: its
    `fingerprint()` if it has such a method, else length and 16 items. Of functions: name, source,
    defaults, and the values they close over or read as globals, in functions that they call too;
    not what they read from objects or modules, and nothing of what is in libraries.

    Returns:
        A dict that is equal to what `json` makes of it.
    """
    return {
        "sites": list(sites),
        "selection": _describe_selection(selection, mask),
        "calls": calls,
        "model_inputs": _as_list(model_inputs),
        "forward": describe(forward),
        "columns": list(columns),
        "batch_size": batch_size,
        "n_samples": n_samples,
        "dataset": describe_dataset(dataset),
        "collate_fn": describe(collate_fn),
        "model": {**describe_model(model), **describe_behaviour(model)},
    }


def _as_list(keys: Iterable[str] | None) -> list[JSON]:
    return [keys] if isinstance(keys, str) else list(keys or ())


def _describe_selection(selection: Selection, mask: Callable[..., Any] | None) -> dict[str, JSON]:
    # Left out where it is the first, as in archives from before it could be another.
    batch_dim: dict[str, JSON] = {"batch_dim": selection.batch_dim} if selection.batch_dim else {}
    return {
        "positions": describe(selection.positions),
        "reduce": describe(selection.reduce),
        "dtype": describe(selection.dtype),
        "seq_dim": selection.seq_dim,
        "mask": describe(mask),
        **batch_dim,
    }


def describe_dataset(dataset: Any) -> dict[str, JSON]:
    """The class of a dataset, and its `fingerprint()` or its length and a hash of 16 items.

    What can only be iterated is described by its class alone.
    """
    described = {"class": name_of(type(dataset))}
    if callable(getattr(dataset, "fingerprint", None)):
        return {**described, "fingerprint": describe(dataset.fingerprint())}
    is_indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
    if isinstance(dataset, IterableDataset) or not is_indexed:
        return described
    n_items = len(dataset)
    which = np.unique(np.linspace(0, n_items - 1, min(n_items, SAMPLED_ITEMS)).astype(int))
    items = [describe(dataset[int(index)]) for index in which]
    return {**described, "n_items": n_items, "sampled_items": hash_of(items)}


def differences(
    asked: Mapping[str, JSON], found: Mapping[str, JSON], owner: str = "the archive has"
) -> list[str]:
    """One line for each difference between two descriptions, at most 5 for one part.

    Examples:
        >>> differences({"sites": ["a"], "batch_size": 8}, {"sites": ["b"], "batch_size": 8})
        ["sites: asked ['a'], the archive has ['b']"]
    """
    return list(_differences((), asked, found, owner))


def _differences(
    name: tuple[str, ...], mine: Mapping[str, JSON], theirs: Mapping[str, JSON], owner: str
) -> Iterator[str]:
    n_more = -MOST_LINES
    for key in {**mine, **theirs}:
        asked, found = mine.get(key, "nothing"), theirs.get(key, "nothing")
        if isinstance(asked, Mapping) and isinstance(found, Mapping):
            yield from _differences((*name, key), asked, found, owner)
        elif asked != found:
            n_more += 1
            if n_more <= 0 or not name:
                where = ": ".join((*name, key))
                yield f"{where}: asked {_short(asked)}, {owner} {_short(found)}"
    if n_more > 0 and name:
        yield f"{': '.join(name)}: {n_more} more differ"


def _short(value: JSON) -> str:
    text = repr(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
