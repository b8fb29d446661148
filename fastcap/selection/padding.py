"""Which positions of each sample a pass selects: small tensors, built once and put where used."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fastcap.devices.base import AnyDevice
from fastcap.errors import SelectionError

MOST_COPIES = 16  # guessed: streams that use one small tensor at a time


class Uploaded:
    """A small host tensor and its copies, one for each device and stream that uses it.

    Streams do not share a copy: nothing orders one stream's upload before another's use, nor its
    use before the memory is used again, in the order of the stream that uploaded it.
    """

    def __init__(self, host: Tensor) -> None:
        self.host = host
        self._copies: dict[Any, Tensor] = {}

    def on(self, device: AnyDevice) -> Tensor:
        stream = device.current_stream()
        key = (device.torch_device, stream)
        copy = self._copies.get(key)
        if copy is None and not device.lasts(stream):
            with torch.inference_mode(False):
                return device.upload(self.host)  # not kept: another stream may have this name later
        if copy is None:
            if len(self._copies) >= MOST_COPIES:
                self._copies.clear()
            with torch.inference_mode(False):
                copy = self._copies[key] = device.upload(self.host)
        return copy


class Padding:
    """One mask, checked, and the index tensors that follow from it, each built once.

    Args:
        mask: `(batch, sequence)` of zeros and ones, ints or bools.

    Raises:
        SelectionError: It is nothing of the kind, or a sample has no real token.
    """

    def __init__(self, mask: Any) -> None:
        self.n_reads = 0
        with torch.inference_mode(False), torch.no_grad():
            self._mask = self._read(mask)
            counts = self._mask.sum(dim=1)  # (batch, sequence) → (batch,)
        self.lengths: tuple[int, ...] = tuple(counts.tolist())
        if 0 in self.lengths:
            raise SelectionError(
                f"Sample {self.lengths.index(0)} of the attention mask has no real token (its row "
                "is all zeros), so nothing of it can be selected. Leave such samples out."
            )

    @property
    def shape(self) -> tuple[int, int]:
        n_samples, n_tokens = self._mask.shape
        return n_samples, n_tokens

    def _read(self, mask: Any) -> Tensor:
        found = _describe(mask)
        if found is not None:
            raise SelectionError(
                f"The attention mask is {found}; which tokens are real is read from a "
                "(batch, sequence) tensor of zeros and ones. Give one with mask=."
            )
        if not mask.is_cpu:
            self.n_reads = 1
            mask = mask.to("cpu")
        real: Tensor = mask.to(torch.bool)
        if not torch.equal(real.to(mask.dtype), mask):
            raise SelectionError(
                "The attention mask has values other than 0 and 1. Which tokens are real is read "
                "from a (batch, sequence) tensor of zeros and ones. Give one with mask=."
            )
        return real.detach().clone()

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        """Sample and position of every real token, row by row."""
        samples, positions = self._mask.nonzero(as_tuple=True)  # (n_real_tokens,) each
        return samples, positions

    @cached_property
    def real(self) -> tuple[Uploaded, Uploaded]:
        """Sample and position of every real token, row by row: `(n_real_tokens,)` each."""
        samples, positions = self._real
        return Uploaded(samples), Uploaded(positions)

    @cached_property
    def last(self) -> tuple[Uploaded, Uploaded]:
        """Sample and position of each sample's last real token: `(batch,)` each."""
        samples, positions = self._real
        ends = self.counts.host.cumsum(0) - 1  # (batch,): each sample's last row in _real
        return Uploaded(samples[ends]), Uploaded(positions[ends])

    @cached_property
    def padded(self) -> Uploaded:
        """`(batch, sequence)`: whether a token is padding."""
        return Uploaded(~self._mask)

    @cached_property
    def counts(self) -> Uploaded:
        """`(batch,)`: real tokens of each sample."""
        return Uploaded(torch.tensor(self.lengths, dtype=torch.int64, device="cpu"))


def _describe(mask: Any) -> str | None:
    """What is wrong with the type of a mask, in words; `None` if nothing is."""
    if not isinstance(mask, Tensor):
        return f"a {type(mask).__name__}"
    shape = tuple(mask.shape)
    if mask.ndim != 2:
        return f"a {mask.ndim}-dimensional tensor of shape {shape}"
    if mask.is_complex():
        return f"a {mask.dtype} tensor of shape {shape}"
    return None


class SamplePositions:
    """Positions that somebody gave for each sample.

    Args:
        positions: `(batch,)` ints, one position per sample, whose dimension goes; or
            `(batch, n_positions)`. Negative ones count from the end.
    """

    def __init__(self, positions: Tensor) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self._positions = positions.detach().to("cpu", torch.int64, copy=True)
        flat = self._positions.flatten().tolist()
        self.extremes: set[int] = {min(flat), max(flat)} if flat else set()
        self._resolved: dict[int, tuple[Uploaded, Uploaded]] = {}

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> SamplePositions:
        """From one list per sample, all of one length."""
        with torch.inference_mode(False):
            return cls(torch.tensor(lists, dtype=torch.int64, device="cpu"))

    @property
    def n_samples(self) -> int:
        return len(self._positions)

    @property
    def drops_dimension(self) -> bool:
        return self._positions.ndim == 1

    def resolved(self, length: int) -> tuple[Uploaded, Uploaded]:
        """Sample and position, counted from the start of a sequence of this length."""
        found = self._resolved.get(length)
        if found is None:
            if len(self._resolved) >= MOST_COPIES:
                self._resolved.clear()
            with torch.inference_mode(False), torch.no_grad():
                positions = self._positions
                samples = torch.arange(len(positions), device="cpu")  # (batch,)
                if not self.drops_dimension:
                    samples = samples[:, None]  # (batch, 1), beside (batch, n_positions)
                positions = torch.where(positions < 0, positions + length, positions)
            found = self._resolved[length] = (Uploaded(samples), Uploaded(positions))
        return found
