"""Token ids of a batch: checked before the model sees them."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from fastcap.errors import BatchError

ID_DTYPES = (torch.int64, torch.int32)
"""What embeddings take."""

INSTEAD = (
    "If the model takes them as they are, say so: forward=lambda model, batch: model(batch{key})."
)


def takes_ids_first(model: nn.Module) -> bool:
    """Whether what the model is called with by place are token ids, by the name it gives them."""
    return next(iter(inspect.signature(model.forward).parameters), None) == "input_ids"


def check_ids(ids: Tensor, key: str | None) -> None:
    """Token ids are `(batch, sequence)`: of any other rank, rows are not the samples.

    Args:
        ids: What the model is given.
        key: Their key in the batch; `None` for a batch that is a tensor.

    Raises:
        BatchError: Integers of another rank, or of a dtype that embeddings do not take.
    """
    if not _are_integers(ids):
        return
    name = "The batch" if key is None else f"{key!r}"
    instead = INSTEAD.format(key="" if key is None else f"[{key!r}]")
    if ids.ndim != 2:
        raise BatchError(
            f"{name} has shape {tuple(ids.shape)}, and token ids are (batch, sequence). "
            f"{_reason(ids)} {instead}"
        )
    if ids.dtype not in ID_DTYPES:
        raise BatchError(
            f"{name} has dtype {ids.dtype}, and embeddings take int64 or int32. Convert the ids in "
            "the dataset: ids.long(), or ids.astype('int64') in NumPy."
        )


def check_no_batches_of_one(ids: Tensor) -> None:
    """The same of integers that may not be token ids: what cannot be meant is refused.

    Raises:
        BatchError: Integers of shape `(batch, 1, n)`.
    """
    if ids.ndim == 3 and ids.shape[1] == 1 and ids.dtype in ID_DTYPES:
        check_ids(ids, None)


def _reason(ids: Tensor) -> str:
    if ids.ndim == 3 and ids.shape[1] == 1:
        return (
            "Each sample is a batch of one, as tokenizers make with return_tensors='pt'. Give its "
            "row (ids[0]), or tokenize without return_tensors."
        )
    if ids.ndim == 3:
        return (
            "Each sample is a batch already. Pass the samples, or the DataLoader that makes the "
            "batches, or receive them as they are with fastcap.stream()."
        )
    if ids.ndim == 1:
        return (
            "A batch is a row of ids per sample: for one sample, ids[None]; for samples of one "
            "token each, ids[:, None]."
        )
    return "Give one row of ids per sample."


def _are_integers(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool)
