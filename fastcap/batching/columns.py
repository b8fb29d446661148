"""Datasets that are columns: a dict, or what a tokenizer returns, with a row per sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, ArgumentTypeError


class Columns:
    """Rows of columns as samples.

    Args:
        columns: By key, one value or row per sample: tensors, arrays or lists.

    Raises:
        ArgumentError: Columns of several lengths, or none.
        ArgumentTypeError: Something else than columns, such as the splits of a dataset.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self._columns = dict(columns)
        self._check()

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: _as_row(column[index]) for key, column in self._columns.items()}

    def _check(self) -> None:
        for key, column in self._columns.items():
            if _is_dataset(column):
                raise ArgumentTypeError(
                    f"dataset is a dict of datasets, {list(self._columns)}. Pass one of them, such "
                    f"as dataset[{key!r}]."
                )
            if isinstance(column, str | bytes | Mapping) or not _has_length(column):
                raise ArgumentTypeError(
                    f"dataset is a dict, whose {key!r} is a {type(column).__name__}. A dict is "
                    "columns, with one value or row per sample; for one sample, pass a list: "
                    "[sample]."
                )
        lengths = {key: len(column) for key, column in self._columns.items()}
        if not lengths:
            raise ArgumentError(
                "dataset is a dict without columns. Give it input_ids, a row of ids per sample."
            )
        if len(set(lengths.values())) > 1:
            raise ArgumentError(
                f"dataset is a dict of columns with {lengths} values. Every column needs one value "
                "or row per sample; for one sample, pass a list: [sample]."
            )


def is_columns(dataset: Any) -> bool:
    """Whether a dataset is asked for by keys, and not by the index of a sample."""
    return isinstance(dataset, Mapping) and not (
        dataset and all(isinstance(key, int) for key in dataset)
    )


def refuse_other_kinds(dataset: Any) -> None:
    """What has items, and no samples.

    Raises:
        ArgumentTypeError: A text, or a table of pandas.
    """
    if isinstance(dataset, str | bytes):
        raise ArgumentTypeError(
            f"dataset is one text: {dataset[:60]!r}. Pass a list of samples; for a file, see "
            "fastcap.datasets."
        )
    if hasattr(dataset, "iloc"):
        raise ArgumentTypeError(
            f"dataset is a {type(dataset).__name__}, whose items are columns. Pass its rows: "
            "dataset.to_dict('records')."
        )


def _is_dataset(column: Any) -> bool:
    is_column = isinstance(column, Tensor | list | tuple) or hasattr(column, "__array__")
    return not is_column and (
        isinstance(column, torch.utils.data.Dataset) or hasattr(column, "column_names")
    )


def _has_length(column: Any) -> bool:
    return hasattr(column, "__len__") and not (isinstance(column, Tensor) and column.ndim == 0)


def _as_row(value: Any) -> Any:
    """Token ids of a sample, which tokenizers give as a list, as a tensor."""
    is_numbers = isinstance(value, list) and value and all(map(_is_number, value))
    return torch.tensor(value) if is_numbers else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
