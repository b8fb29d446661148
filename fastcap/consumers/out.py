"""`out=`: tensors of the caller that a result is written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, ArgumentTypeError


def check_out(out: Any, sites: Sequence[str], n_samples: int | None) -> dict[str, Tensor]:
    """Check what can be known before the first pass; shapes and dtypes are compared after it.

    Args:
        out: What the caller gave.
        sites: Keys of the result.
        n_samples: How many rows there will be; `None` where the dataset does not say.

    Returns:
        A tensor per site, in the order of `sites`.

    Raises:
        ArgumentTypeError: It is not a mapping of names to tensors.
        ArgumentError: Sites are missing, or a tensor cannot hold a result.
    """
    if not isinstance(out, Mapping):
        raise ArgumentTypeError(
            f"out must be a mapping from site names to tensors; got {type(out).__name__}."
        )
    missing = [site for site in sites if site not in out]
    others = [site for site in out if site not in sites]
    if missing or others:
        found = f"it has none for {missing[:5]}" if missing else f"{others[:5]} are not captured"
        raise ArgumentError(
            f"out must have one tensor for each site, and {found}. The sites are: "
            f"{', '.join(map(repr, sites[:20]))}."
        )
    taken = {site: out[site] for site in sites}  # once: a mapping may make a tensor when asked
    for site, value in taken.items():
        _check_tensor(site, value, n_samples)
    _check_apart(taken)
    return taken


def _check_tensor(site: str, value: Any, n_samples: int | None) -> None:
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"out[{site!r}] must be a tensor; got {type(value).__name__}.")
    problem = _why_not(value)
    if problem is not None:
        raise ArgumentError(
            f"out[{site!r}] {problem}. Give a tensor made for it, such as "
            "torch.empty((n_samples, ...), dtype=..., pin_memory=torch.cuda.is_available())."
        )
    if n_samples is not None and len(value) < n_samples:
        raise ArgumentError(
            f"out[{site!r}] has {len(value)} rows, and there are {n_samples} samples. Give it at "
            f"least as many{f', or pass max_samples={len(value)}' if len(value) else ''}."
        )


def _why_not(value: Tensor) -> str | None:
    if type(value) is not Tensor and not isinstance(value, torch.nn.Parameter):
        return f"is a {type(value).__name__}, and rows are written to plain tensors"
    if value.device.type != "cpu":
        return f"is on {value.device}, and results are delivered to host memory"
    if value.layout != torch.strided or not value.ndim:
        return "is sparse or has no dimension, and has no rows"
    if not value.is_contiguous():
        return "is not contiguous"
    if value.is_conj() or value.is_neg():
        return "is a conjugated or negated view, whose memory holds other values than it shows"
    if value.requires_grad:
        return "requires grad, and is written to"
    if value.is_inference():
        return "was made in inference mode, and cannot be written to outside of it"
    return None


def _check_apart(out: Mapping[str, Tensor]) -> None:
    spans = sorted(
        (value.data_ptr(), value.data_ptr() + value.nbytes, site)
        for site, value in out.items()
        if value.nbytes
    )
    for (_, end, site), (start, _, other) in pairwise(spans):
        if start < end:
            raise ArgumentError(
                f"out[{site!r}] and out[{other!r}] share memory, so one result would overwrite the "
                "other. Give each site a tensor of its own."
            )
