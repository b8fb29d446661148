"""Where a pass learns what to take of each sample: its batch, its mask, or given lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    BatchError,
    MissingInputError,
    SelectionError,
)
from fastcap.selection.masks import MaskReader
from fastcap.selection.padding import Padding, SamplePositions
from fastcap.spec import UNPADDED, Selection, Site

MASK = "attention_mask"

Rows: TypeAlias = Padding | SamplePositions
"""What a pass says of its samples."""

MaskOf: TypeAlias = Tensor | Callable[..., Any] | None
"""What callers may pass as `mask` to a store."""

MaskOfBatch: TypeAlias = Callable[[Any], Any] | None
"""What callers may pass as `mask` where fastcap runs the batches."""


class RowSource:
    """What one selection takes of each sample, pass by pass.

    Args:
        selection: What is asked.
        mask: For every pass, or how to make it of the arguments of the model's call.
        mask_of_batch: How to make it of a batch.

    Attributes:
        shapes: The whole shape of each site's last value, where somebody wants it noted.

    Raises:
        ArgumentTypeError: A mask that is neither a tensor nor callable.
        ArgumentError: A mask that the selection does not use.
        SelectionError: A tensor that is not a mask.
    """

    def __init__(
        self, selection: Selection, mask: MaskOf = None, mask_of_batch: MaskOfBatch = None
    ) -> None:
        if mask_of_batch is not None and not callable(mask_of_batch):
            raise ArgumentTypeError(
                "mask must be a callable on the batch that returns its (batch, sequence) mask, "
                "such as lambda batch: batch['input_ids'] != 0; got a "
                f"{type(mask_of_batch).__name__}."
            )
        if mask is not None and not isinstance(mask, Tensor) and not callable(mask):
            raise ArgumentTypeError(
                "mask must be a (batch, sequence) tensor of zeros and ones, or a callable on the "
                "arguments of the model's call that returns one, such as "
                f"lambda ids: ids != 0; got a {type(mask).__name__}."
            )
        if (mask is not None or mask_of_batch is not None) and not selection.needs_mask:
            raise ArgumentError(
                "mask= is used by positions='last', positions='unpadded' and reduce='mean', and "
                "none of them was asked for. Ask for one, or leave mask= out."
            )
        self.shapes: dict[str, torch.Size] | None = None
        self.is_asked = selection.needs_mask or bool(selection.batch_key or selection.by_sample)
        self._selection = selection
        self._fixed: Rows | None = Padding(mask) if isinstance(mask, Tensor) else None
        if selection.by_sample is not None:
            self._fixed = SamplePositions.of_lists(selection.by_sample)
        self._mask_of_batch = mask_of_batch
        self._masks = MaskReader(None if isinstance(mask, Tensor) else mask)

    def before(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Put a hook on the root module that reads masks, if its calls are asked for them."""
        if self._asks_calls:
            self._masks.before(model, handles)

    def after(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Put a hook on the root module that forgets them, in the same case."""
        if self._asks_calls:
            self._masks.after(model, handles)

    @property
    def _asks_calls(self) -> bool:
        return self._fixed is None and self._selection.needs_mask

    def __call__(self, of_batch: Rows | None, site: Site) -> Rows:
        """What to take of each sample of the running pass.

        Raises:
            SelectionError: The pass has no mask, or no such one.
        """
        return self._fixed or of_batch or self._masks.padding(site, self._selection.asked)

    def of_batch(self, batch: Any) -> Rows | None:
        """What a batch says of its samples; `None` where the model's call is asked instead.

        Raises:
            MissingInputError: The batch lacks the key that holds positions.
            BatchError: What it holds is not a tensor of positions.
            SelectionError: Its mask is not one of zeros and ones, or a position that was asked for
                is padding.
        """
        _refuse_padding(batch, self._selection)
        if self._selection.batch_key is not None:
            return _positions_in(batch, self._selection.batch_key)
        if not self._selection.needs_mask:
            return None
        if self._mask_of_batch is not None:
            mask = self._mask_of_batch(batch)
            if mask is None:
                raise SelectionError(
                    "mask= returned None for a batch; it must return a (batch, sequence) tensor of "
                    "zeros and ones, such as lambda batch: batch['input_ids'] != 0."
                )
        else:
            mask = batch.get(MASK) if isinstance(batch, Mapping) else None
            mask = mask if isinstance(mask, Tensor) else None
        return None if mask is None else self._masks.read(mask)

    def for_samples(self, n_samples: int) -> tuple[Selection, RowSource]:
        """The same for passes of the first samples of a batch, whose lists may be fixed."""
        selection, lists = self._selection, self._selection.by_sample
        if lists is not None:
            selection = replace(selection, positions=lists[:n_samples])
        return selection, RowSource(selection, mask_of_batch=self._mask_of_batch)

    def lengths(self, rows: Rows) -> tuple[int, ...] | None:
        """Rows per sample, where the selected value is ragged."""
        if self._selection.positions == UNPADDED and isinstance(rows, Padding):
            return rows.lengths
        return None

    @property
    def n_mask_reads(self) -> int:
        """Masks that were waited for."""
        return self._masks.n_reads


def _refuse_padding(batch: Any, selection: Selection) -> None:
    """A position is meant in every sample: where one has padding there, its row means nothing.

    Looked at where that waits for nothing: a mask of the batch in host memory.
    """
    asked, mask = selection.positions, batch.get(MASK) if isinstance(batch, Mapping) else None
    if isinstance(asked, int):
        asked = (asked,)
    if not (isinstance(asked, tuple) and asked and isinstance(mask, Tensor) and mask.is_cpu):
        return
    if mask.ndim != 2 or selection.seq_dim not in (None, 1) or isinstance(asked[0], tuple):
        return
    for position in asked:
        if -mask.shape[1] <= position < mask.shape[1]:
            padded = (mask[:, position] == 0).nonzero().flatten().tolist()  # (n_padded,)
            if padded:
                raise SelectionError(
                    f"positions={selection.positions!r}: position {position} is padding in sample "
                    f"{padded[0]} of the batch (its attention_mask is 0 there). positions='last' "
                    "takes each sample's last real token, and a slice takes padding as it is."
                )


def _positions_in(batch: Any, key: str) -> SamplePositions:
    if not isinstance(batch, Mapping) or key not in batch:
        found = (
            f"it has {sorted(map(str, batch))}"
            if isinstance(batch, Mapping)
            else f"it is a {type(batch).__name__}"
        )
        raise MissingInputError(
            f"positions={key!r} is the key of positions in the batch, and the batch has none: "
            f"{found}. positions= takes such a key, 'last', 'unpadded', an int, a slice or a list."
        )
    positions = batch[key]
    is_tensor = isinstance(positions, Tensor)
    if not is_tensor or positions.ndim not in (1, 2) or not _is_integer(positions):
        what = (
            f"a {positions.dtype} tensor of shape {tuple(positions.shape)}"
            if is_tensor
            else f"a {type(positions).__name__}"
        )
        raise BatchError(
            f"positions={key!r}: the batch has {what} there. It needs a tensor of ints, (batch,) "
            "for one position per sample or (batch, n_positions)."
        )
    return SamplePositions(positions)


def _is_integer(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex() or value.dtype is torch.bool)
