"""From an example to a batch of the size that the run will have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastcap.consumers.batch_columns import BatchColumns
from fastcap.errors import ArgumentError
from fastcap.model.rows import count_rows, resized
from fastcap.selection.token_count import count_tokens
from fastcap.spec import BATCH_SIZE

ID_BYTES = 8
"""Of a sample's id, and of where its rows of a ragged stream begin."""


def batch_like(example: Any, batch_size: int | None, n_tokens: int | None) -> Any:
    """The example with its samples, and its tokens, repeated or cropped to these numbers.

    Args:
        example: A batch as `stream` takes it; `None` for token ids alone.
        batch_size: Samples; `None` for what the example has, and for 32 without one.
        n_tokens: Tokens per sample; `None` for what the example has.

    Raises:
        ArgumentError: There is nothing to repeat: no example and no number of tokens, or an example
            whose samples or tokens cannot be told.
    """
    if example is None:
        if n_tokens is None:
            raise ArgumentError(
                "Nothing says what the model is called with. Give an example batch, or, for a "
                "model of token ids, the tokens of each sample (n_tokens=, --tokens)."
            )
        ids = torch.zeros(batch_size or BATCH_SIZE, n_tokens, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    n_rows, length = count_rows(example), tokens_per_sample(example)
    if batch_size not in (None, n_rows):
        if n_rows == 0:
            raise ArgumentError(
                f"The example cannot be repeated to batch_size={batch_size}: it has no sample. "
                "Give one with at least one."
            )
        if n_rows is None:
            raise ArgumentError(
                f"The example cannot be repeated to batch_size={batch_size}: nothing in it says "
                f"how many samples it has. Give one of {batch_size} samples, and leave batch_size= "
                "out."
            )
        example = resized(example, 0, n_rows, int(batch_size or 0))
    if n_tokens not in (None, length):
        if not length:
            raise ArgumentError(
                f"The example cannot be repeated to n_tokens={n_tokens}: it has no (batch, "
                "sequence) token ids. Give one of the length wanted, and leave n_tokens= out."
            )
        example = resized(example, 1, length, int(n_tokens or 0))
    return example


def bytes_beside(batch: Any, n_rows: int, n_ragged_sites: int) -> int:
    """What an archive stores of one pass beside its values, in bytes.

    Raises:
        ResultError: Token ids or a mask that do not have a row for each sample.
    """
    found = BatchColumns().take(batch, n_rows, n_rows).tensors.values()
    n_ragged = n_ragged_sites + len([lengths for _, lengths in found if lengths is not None])
    return sum(value.nbytes for value, _ in found) + n_rows * (1 + n_ragged) * ID_BYTES


def tokens_per_sample(batch: Any) -> int | None:
    """Token ids per sample, where the batch begins with a tensor of them."""
    if isinstance(batch, Mapping):
        batch = batch.get("input_ids")
    elif isinstance(batch, list | tuple) and batch:
        batch = batch[0]
    return count_tokens(batch)
