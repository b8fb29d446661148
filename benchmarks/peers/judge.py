"""How a way's values compare with the oracle's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Verdict:
    """What differs.

    Attributes:
        n_values: Values that the oracle has.
        n_different: Those whose bits differ.
        largest: The largest absolute difference.
        problem: Why values could not be compared: names, shapes or dtypes; `None` when they were.
    """

    n_values: int
    n_different: int
    largest: float
    problem: str | None = None

    @property
    def is_equal(self) -> bool:
        return self.problem is None and self.n_different == 0

    def __str__(self) -> str:
        if self.problem is not None:
            return self.problem
        if self.n_different == 0:
            return "all equal"
        share = 100 * self.n_different / self.n_values
        return f"{share:.1f} % differ, by {self.largest:.1e} at most"


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Verdict:
    """Compare float32 values by bits, and say how far apart they are."""
    n_values = sum(value.numel() for value in expected.values())
    problem = _why_incomparable(expected, found)
    if problem is not None:
        return Verdict(n_values, n_values, float("inf"), problem)
    n_different, largest = 0, 0.0
    for site, want in expected.items():
        got = found[site].contiguous()
        n_different += int(torch.count_nonzero(want.view(torch.int32) != got.view(torch.int32)))
        largest = max(largest, float((want - got).abs().max()))
    return Verdict(n_values, n_different, largest)


def _why_incomparable(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    if set(expected) != set(found):
        return f"sites {sorted(found)}, expected {sorted(expected)}"
    for site, want in expected.items():
        got = found[site]
        if (got.shape, got.dtype) != (want.shape, want.dtype):
            return (
                f"{site}: {tuple(got.shape)} {got.dtype}, expected {tuple(want.shape)} {want.dtype}"
            )
    return None
