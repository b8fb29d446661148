"""Selections that differ from sample to sample, taken on the value's own device and stream."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice
from fastcap.errors import PositionError, SelectionError
from fastcap.selection.padding import Padding, SamplePositions
from fastcap.spec import MEAN, UNPADDED, Selection, Site


def take_of_samples(
    value: Tensor,
    dim: int,
    selection: Selection,
    rows: Padding | SamplePositions,
    device: AnyDevice,
    site: Site,
) -> Tensor:
    """What `rows` says of each sample; dimension 0 counts samples, and `dim` positions.

    Args:
        value: `(batch, ..., sequence, ...)`, detached.
        dim: The dimension of positions, not negative.
        selection: Which of the ways to take it.
        rows: What the pass says of its samples.
        device: Where the value is.
        site: Named in errors.

    Raises:
        SelectionError: The shapes do not fit each other, or a mean is asked of integers.
        PositionError: A position out of range.
    """
    if dim == 0:
        raise SelectionError(
            f"Site {site.name!r} produced shape {tuple(value.shape)}{selection.moved}: "
            f"seq_dim={selection.seq_dim} is its first dimension, which has to count samples where "
            "each of them is selected from on its own. Name the dimension that counts samples "
            "with batch_dim=; seq_dim= counts with that one first."
        )
    if isinstance(rows, SamplePositions):
        _check_positions(value, dim, selection, rows, site)
        samples, positions = rows.resolved(value.shape[dim])
        taken = _gather(value, dim, samples.on(device), positions.on(device))
        return taken if rows.drops_dimension else taken.movedim(1, dim)
    _check_mask(value, dim, selection, rows, site)
    if selection.reduce == MEAN:
        mean = _mean(value, dim, rows, device, site)
        return mean if selection.dtype is not None else mean.to(value.dtype)
    samples, positions = rows.real if selection.positions == UNPADDED else rows.last
    return _gather(value, dim, samples.on(device), positions.on(device))


def _gather(value: Tensor, dim: int, samples: Tensor, positions: Tensor) -> Tensor:
    # (batch, ..., sequence, ...) → (batch, sequence, ...), indexed by two tensors of one shape:
    # (n,) for rows one after another → (n, ...); (batch, n_positions) → (batch, n_positions, ...).
    return as_indexable(value).movedim(dim, 1)[samples, positions].view(value.dtype)


def as_indexable(value: Tensor) -> Tensor:
    """float8 as its bytes, which torch 2.6 cannot index on the CPU otherwise."""
    is_float8 = value.itemsize == 1 and value.is_floating_point()
    return value.view(torch.uint8) if is_float8 else value


def _mean(value: Tensor, dim: int, padding: Padding, device: AnyDevice, site: Site) -> Tensor:
    """Over real tokens, in float32 (float64 for float64; complex for complex)."""
    if not (value.is_floating_point() or value.is_complex()):
        raise SelectionError(
            f"Site {site.name!r} produced {value.dtype}, and reduce='mean' takes floating-point "
            "or complex values. Say how with a callable, such as "
            "reduce=lambda acts: acts.float().mean(dim=1)."
        )
    precise = (
        torch.promote_types(value.dtype, torch.float32) if value.itemsize > 1 else torch.float32
    )
    if value.itemsize == 1:  # torch cannot fill float8
        value = value.to(precise)
    is_padding = padding.padded.on(device)  # (batch, sequence)
    shape = [1] * value.ndim
    shape[0], shape[dim] = is_padding.shape  # (batch, 1, ..., sequence, ..., 1): broadcasts
    # Dense, so that sums run in the same order whatever the layout of the value.
    total = value.masked_fill(is_padding.view(shape), 0).contiguous().sum(dim, dtype=precise)
    counts = padding.counts.on(device)  # (batch,); total is value's shape without `dim`
    return total / counts.view([-1] + [1] * (total.ndim - 1))


def _check_mask(
    value: Tensor, dim: int, selection: Selection, padding: Padding, site: Site
) -> None:
    found = (value.shape[0], value.shape[dim])
    if padding.shape != found:
        raise SelectionError(
            f"Site {site.name!r} produced shape {tuple(value.shape)}{selection.moved}, which has "
            f"{found[0]} samples (dimension 0) and {found[1]} positions (dimension {dim}), but the "
            f"attention mask has shape {padding.shape}. Name the dimension of samples with "
            "batch_dim= and that of positions with seq_dim=, give a mask of that shape with mask=, "
            "or leave this site out."
        )


def _check_positions(
    value: Tensor, dim: int, selection: Selection, rows: SamplePositions, site: Site
) -> None:
    n_samples, length = value.shape[0], value.shape[dim]
    if rows.n_samples != n_samples:
        raise SelectionError(
            f"Site {site.name!r} produced shape {tuple(value.shape)}{selection.moved}, which has "
            f"{n_samples} samples (dimension 0), but positions= has lists for {rows.n_samples}. "
            "If another dimension counts samples, name it with batch_dim=."
        )
    for position in rows.extremes:
        if not -length <= position < length:
            raise PositionError(
                f"Site {site.name!r} produced shape {tuple(value.shape)}{selection.moved}: "
                f"position {position} is out of range for the {length} of dimension {dim}."
            )
