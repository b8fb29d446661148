"""A selection applied to a value, on the value's own device and stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastcap.devices.base import AnyDevice
from fastcap.errors import CastError, PositionError, SelectionError
from fastcap.formatting import a_kind
from fastcap.selection.indexing import as_indexable, take_of_samples
from fastcap.selection.padding import Padding, SamplePositions, Uploaded
from fastcap.selection.token_count import TokenCounter
from fastcap.spec import Selection, Site

MOST_INDICES = 64  # guessed: lengths of one run that are worth an index tensor each


class Selector:
    """A selection, ready to be applied to one value after another."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._takes_all = selection == Selection()
        self._indices: dict[int, Uploaded] = {}

    def __call__(
        self,
        value: Tensor,
        site: Site,
        tokens: TokenCounter,
        rows: Padding | SamplePositions | None = None,
        device: AnyDevice | None = None,
    ) -> Tensor:
        """A detached view, or a selection made on the value's own device.

        Args:
            value: What the site produced, any shape; in errors, its samples come first.
            site: Named in errors.
            tokens: Knows the token ids per sample in this pass: what `seq_dim` must measure.
            rows: What the pass says of each sample, if that is asked for.
            device: Where the value is; asked for index tensors. Without it they are waited for.

        Raises:
            PositionError: No such dimension or position, or no dimension `batch_dim`.
            SelectionError: `seq_dim` is a guess and does not measure the tokens, `reduce`
                returned no tensor, or `rows` do not fit the value.
            CastError: The dtype asked for cannot hold the values.
        """
        if self._takes_all and type(value) is Tensor and not _is_tracked(value):
            return value
        value = value.detach()
        selection = self._selection
        if type(value) is not Tensor:
            value = value.as_subclass(Tensor)
        if self._takes_all:
            return value
        value = _samples_first(value, selection.batch_dim, site)
        if rows is not None:
            assert device is not None
            dim = self._sequence_dim(value, site, tokens)
            value = take_of_samples(value, dim, selection, rows, device, site)
        elif selection.positions is not None:
            dim = self._sequence_dim(value, site, tokens)
            value = self._take_positions(value, dim, site, device)
        if callable(selection.reduce):
            value = _apply_reduce(selection.reduce, value, site)
        if selection.dtype is not None and selection.dtype != value.dtype:
            _check_cast(value, selection.dtype, site)
        return value

    def _sequence_dim(self, value: Tensor, site: Site, tokens: TokenCounter) -> int:
        asked = self._selection.seq_dim
        dim = 1 if asked is None else asked
        if not -value.ndim <= dim < value.ndim:
            raise PositionError(
                f"Site {site.name!r} produced shape {tuple(value.shape)}{self._selection.moved}, "
                f"which has no dimension {dim} to take {self._selection.asked} from. Leave "
                f"{self._selection.argument}= out for this site, or name the dimension with "
                "seq_dim=."
            )
        n_tokens = tokens.n_tokens if asked is None else None
        is_other = n_tokens is not None and n_tokens != value.shape[dim]
        if is_other and tokens.is_within_pass():
            raise SelectionError(
                f"Site {site.name!r} produced shape {tuple(value.shape)}{self._selection.moved}, "
                f"but the pass has {n_tokens} tokens per sample, so dimension 1 does not count "
                "tokens. Name the dimension with seq_dim= (seq_dim=1 if this is what you want)."
            )
        return dim % value.ndim

    def _take_positions(
        self, value: Tensor, dim: int, site: Site, device: AnyDevice | None
    ) -> Tensor:
        positions: Any = self._selection.positions
        if isinstance(positions, int):
            try:
                return value.select(dim, positions)  # (batch, sequence, ...) → (batch, ...)
            except IndexError:
                raise self._out_of_range(value, dim, positions, site) from None
        if isinstance(positions, slice):
            return value[(slice(None),) * dim + (positions,)]  # a view
        length = value.shape[dim]
        for position in positions:
            if not -length <= position < length:
                raise self._out_of_range(value, dim, position, site)
        index = self._index(length)
        where = index.host.to(value.device) if device is None else index.on(device)
        # (batch, sequence, ...) → (batch, n_positions, ...)
        return as_indexable(value).index_select(dim, where).view(value.dtype)

    def _out_of_range(self, value: Tensor, dim: int, position: int, site: Site) -> PositionError:
        return PositionError(
            f"Site {site.name!r} produced shape {tuple(value.shape)}{self._selection.moved}: "
            f"position {position} is out of range for the {value.shape[dim]} of dimension {dim}."
        )

    def _index(self, length: int) -> Uploaded:
        """The positions as a tensor, built once for each sequence length."""
        positions: Any = self._selection.positions
        index = self._indices.get(length)
        if index is None:
            if len(self._indices) >= MOST_INDICES:
                self._indices.clear()
            resolved = [position % length for position in positions]
            with torch.inference_mode(False):
                index = Uploaded(torch.tensor(resolved, dtype=torch.int64, device="cpu"))
            self._indices[length] = index
        return index


def _is_tracked(value: Tensor) -> bool:
    """Whether there is a gradient to detach a value from, backward or forward."""
    return value.requires_grad or forward_ad._current_level >= 0


def _check_cast(value: Tensor, dtype: torch.dtype, site: Site) -> None:
    if not torch.can_cast(value.dtype, dtype):
        raise CastError(
            f"Site {site.name!r} produced {value.dtype}, which dtype={dtype} cannot hold. Leave "
            "dtype= out, or say how to convert with reduce=, such as reduce=lambda acts: "
            "acts.abs() for complex values or acts.round().to(torch.int32)."
        )


def _samples_first(value: Tensor, batch_dim: int, site: Site) -> Tensor:
    if batch_dim == 0:
        return value
    if not -value.ndim <= batch_dim < value.ndim:
        raise PositionError(
            f"Site {site.name!r} produced shape {tuple(value.shape)}, which has no dimension "
            f"{batch_dim} to count samples. Name the one that does with batch_dim=, or capture "
            "this site in a run of its own."
        )
    return value.movedim(batch_dim, 0)  # (..., batch, ...) → (batch, ...)


def _apply_reduce(reduce: Callable[[Tensor], Tensor], value: Tensor, site: Site) -> Tensor:
    with torch.no_grad():
        reduced = reduce(value)
    if not isinstance(reduced, Tensor):
        raise SelectionError(
            f"reduce returned {a_kind(type(reduced))} for site {site.name!r} (input shape "
            f"{tuple(value.shape)}); it must return a tensor."
        )
    return reduced.detach()
