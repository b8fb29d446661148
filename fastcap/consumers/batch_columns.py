"""What is stored beside the activations: what the model was given, and the columns asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.archive.layout import StreamSpec, dtype_name
from fastcap.errors import ArgumentTypeError, MissingInputError, ResultError

STORED_INPUTS = ("input_ids", "attention_mask")
"""Keys of a batch that are stored where they are there."""


@dataclass(slots=True)
class Values:
    """One batch's values beside its activations, by stream, with rows per sample if ragged."""

    specs: list[StreamSpec] = field(default_factory=list)
    tensors: dict[str, tuple[Tensor, Sequence[int] | None]] = field(default_factory=dict)


class BatchColumns:
    """Takes token ids, masks and the columns asked for out of batches.

    Token ids and masks are stored as the model saw them, padding included: ragged, since batches
    differ in length. Columns are numbers (`label:<key>`, one value or row per sample) or texts.

    Args:
        columns: Keys of the batch.
    """

    def __init__(self, columns: Sequence[str] = ()) -> None:
        if isinstance(columns, str) or not all(isinstance(column, str) for column in columns):
            raise ArgumentTypeError(
                f"columns must be a list of keys of the batch; got {columns!r}."
            )
        self._columns = tuple(dict.fromkeys(columns))
        self._specs: dict[str, StreamSpec] | None = None

    def take(self, batch: Any, n_samples: int, n_batch: int) -> Values:
        """The values of the first `n_samples` of a batch of `n_batch`, as they are now.

        Raises:
            MissingInputError: A column is not in the batch.
            ArgumentTypeError: A column of a kind that cannot be stored.
            ResultError: Its kind, shape or dtype differs from the first batch's.
        """
        values = Values()
        if isinstance(batch, Tensor):
            batch = {"input_ids": batch}
        if isinstance(batch, Mapping):
            for key in STORED_INPUTS:
                found = batch.get(key)
                if isinstance(found, Tensor) and found.ndim >= 2:
                    _check_rows(f"The batch's {key!r}", found.shape, n_batch)
                    self._add_rows(values, key, found[:n_samples])
        for key in self._columns:
            if not isinstance(batch, Mapping) or key not in batch:
                has = sorted(map(str, batch)) if isinstance(batch, Mapping) else "no keys"
                raise MissingInputError(
                    f"The batch has no column {key!r}; it has {has}. Let the dataset give it, or "
                    "leave it out of columns=."
                )
            self._add_column(values, key, batch[key], n_samples, n_batch)
        self._compare(values)
        return values

    def _add_rows(self, values: Values, key: str, rows: Tensor) -> None:
        n_samples, n_rows = rows.shape[:2]
        # A copy: the model may write to what it is given.
        flat = rows.detach().reshape(n_samples * n_rows, *rows.shape[2:]).to("cpu", copy=True)
        name = f"batch:{key}"
        dtype = dtype_name(flat.dtype, name)
        spec = StreamSpec(name, "batch", dtype, tuple(flat.shape[1:]), is_ragged=True)
        values.specs.append(spec)
        values.tensors[name] = flat, [n_rows] * n_samples

    def _add_column(
        self, values: Values, key: str, found: Any, n_samples: int, n_batch: int
    ) -> None:
        name = f"label:{key}"
        if not isinstance(found, Tensor) and _are_texts(found):
            _check_rows(f"Column {key!r}", (len(found),), n_batch)
            encoded = [_encode(text, key) for text in found[:n_samples]]
            tensor = torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), np.uint8))
            values.specs.append(StreamSpec(name, "label", "U8", (), is_ragged=True, is_text=True))
            values.tensors[name] = tensor, [len(text) for text in encoded]
            return
        try:
            tensor = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            raise ArgumentTypeError(
                f"Column {key!r} is {_kind(found)} in a batch. Columns are numbers or texts, one "
                "per sample: give a tensor, or a list of strings."
            ) from None
        _check_rows(f"Column {key!r}", tensor.shape, n_batch)
        tensor = tensor[:n_samples].detach().to("cpu", copy=True)
        dtype = dtype_name(tensor.dtype, name)
        values.specs.append(StreamSpec(name, "label", dtype, tuple(tensor.shape[1:])))
        values.tensors[name] = tensor, None

    def _compare(self, values: Values) -> None:
        found = {spec.name: spec for spec in values.specs}
        if self._specs is None:
            self._specs = found
        for name in self._specs.keys() | found.keys():
            if self._specs.get(name) != found.get(name):
                raise ResultError(
                    f"{name!r} is {_describe(found.get(name))} in this batch, and was "
                    f"{_describe(self._specs.get(name))} in the first. An archive needs one kind, "
                    "shape and dtype for all samples."
                )


def _check_rows(what: str, shape: Sequence[int], n_batch: int) -> None:
    if tuple(shape[:1]) != (n_batch,):
        raise ResultError(
            f"{what} has shape {tuple(shape)} in a batch of {n_batch} samples: it needs one value, "
            "or one row, per sample."
        )


def _encode(text: str, key: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ArgumentTypeError(
            f"Column {key!r} has a text that is not valid Unicode: {text[:80]!r}. Repair it, such "
            "as with text.encode(errors='replace').decode()."
        ) from None


def _are_texts(found: Any) -> bool:
    return isinstance(found, list | tuple) and all(isinstance(text, str) for text in found)


def _kind(found: Any) -> str:
    if isinstance(found, list | tuple) and found:
        return f"a list with a {type(found[0]).__name__}"
    return f"a {type(found).__name__}"


def _describe(spec: StreamSpec | None) -> str:
    if spec is None:
        return "missing"
    return "text" if spec.is_text else f"{spec.dtype} of shape {list(spec.shape)} per sample"
