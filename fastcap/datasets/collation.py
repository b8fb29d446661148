"""From samples with several columns to batches that keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, BatchError

_DTYPES = {bool: torch.bool, int: torch.int64, float: torch.float64}


class ColumnCollator:
    """A `collate_fn` for samples such as those of `LineFile`.

    Args:
        collate: Collates a list of texts or chats, such as `fastcap.huggingface.Collator`.
        text_key: The key of a sample that holds its text.
        columns: Keys of a sample to keep: numbers as a tensor of shape `(n_samples,)`, bool,
            int64 or float64; texts as a list.

    Raises:
        ArgumentError: A column has the name of a model input.
        BatchError: A sample lacks a key, or a column is neither a number nor a text.

    Examples:
        >>> collate = ColumnCollator(lambda texts: {"input_ids": torch.zeros(len(texts), 3)},
        ...                         columns=["label"])
        >>> collate([{"text": "One.", "label": 1}, {"text": "Two.", "label": 0}])["label"]
        tensor([1, 0])
    """

    def __init__(
        self,
        collate: Callable[[list[Any]], Mapping[str, Any]],
        *,
        text_key: str = "text",
        columns: Sequence[str] = (),
    ) -> None:
        self._collate = collate
        self._text_key = text_key
        self._columns = [columns] if isinstance(columns, str) else list(columns)

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch that `collate` makes, and the columns that are kept."""
        batch = dict(self._collate(self._column(samples, self._text_key)))
        if taken := sorted(set(self._columns) & set(batch)):
            raise ArgumentError(
                f"Columns cannot be called {taken}: batches have inputs of these names. Rename "
                "them."
            )
        return batch | {column: self._values(samples, column) for column in self._columns}

    def fingerprint(self) -> dict[str, Any]:
        """What a batch depends on."""
        return {"collate": self._collate, "text_key": self._text_key, "columns": self._columns}

    def _values(self, samples: Sequence[Mapping[str, Any]], column: str) -> Tensor | list[str]:
        values = self._column(samples, column)
        kinds = {type(value) for value in values}
        if kinds == {str}:
            return values
        if not kinds <= _DTYPES.keys():
            wrong = next(value for value in values if type(value) not in _DTYPES)
            raise BatchError(
                f"The column {column!r} is {wrong!r:.40}, a {type(wrong).__name__}, in a batch. "
                "Columns are numbers for all samples, or texts for all samples."
            )
        return torch.tensor(values, dtype=_DTYPES[max(kinds, key=list(_DTYPES).index)])

    @staticmethod
    def _column(samples: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
        for sample in samples:
            if not isinstance(sample, Mapping) or key not in sample:
                has = sorted(sample) if isinstance(sample, Mapping) else type(sample).__name__
                raise BatchError(f"A sample has no {key!r}; it is or has {has}.")
        return [sample[key] for sample in samples]
