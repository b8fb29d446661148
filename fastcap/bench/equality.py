"""Whether what a way delivered is what the oracle says, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastcap import reference
from fastcap.bench.case import Values


class Judge:
    """Holds every run of every way against the oracle's values.

    A way's first run is compared in full by `fastcap.reference.differences`; later ones byte by
    byte, which takes a tenth of the time, and in full again where that fails.

    Args:
        expected: The oracle's values.

    Attributes:
        problems: What differed, by way; empty lists where nothing did.
        n_mismatches: Sites' values that differed, counted over all runs, by way.
    """

    def __init__(self, expected: Values) -> None:
        self.expected = expected
        self.problems: dict[str, list[str]] = {}
        self.n_mismatches: dict[str, int] = {}

    def check(self, way: str, values: Values, *, is_tail: bool = False) -> None:
        """Note what differs.

        Args:
            way: Whose values they are.
            values: One tensor per site, on any device.
            is_tail: Whether they are those of the last batch only.
        """
        values = {site: value.cpu() for site, value in values.items()}
        expected = self.expected
        if is_tail:
            sizes = {site: len(value) for site, value in values.items()}
            expected = {s: want[len(want) - sizes.get(s, 0) :] for s, want in expected.items()}
        is_first = way not in self.problems
        found = self.problems.setdefault(way, [])
        self.n_mismatches.setdefault(way, 0)
        if not is_first and same_bytes(expected, values):
            return
        problems = reference.differences(expected, values)
        found += [problem for problem in problems if problem not in found]
        self.n_mismatches[way] += _count_mismatches(expected, values)


def _count_mismatches(expected: Values, found: Values) -> int:
    names = [*expected, *(name for name in found if name not in expected)]
    return sum(
        name not in expected
        or name not in found
        or bool(reference.differences({name: expected[name]}, {name: found[name]}))
        for name in names
    )


def gathered(batches: Iterator[Values]) -> dict[str, Tensor]:
    """What a loop over batches is given, copied batch by batch and put together."""
    parts: dict[str, list[Tensor]] = {}
    for values in batches:
        for site, value in values.items():
            parts.setdefault(site, []).append(value.clone())
    return {site: torch.cat(values) for site, values in parts.items()}


def same_bytes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> bool:
    """Whether two results have the same names, shapes, dtypes and bytes.

    Examples:
        >>> import torch
        >>> zero = {"a": torch.tensor([0.0])}
        >>> same_bytes(zero, {"a": torch.tensor([0.0])}), same_bytes(zero, {"a": -zero["a"]})
        (True, False)
    """
    return list(expected) == list(found) and all(
        (want.shape, want.dtype) == (found[name].shape, found[name].dtype)
        and (want.numel() == 0 or _equal_bytes(want, found[name]))
        for name, want in expected.items()
    )


def _equal_bytes(want: Tensor, found: Tensor) -> bool:
    raw = [value.contiguous().reshape(-1).view(torch.uint8) for value in (want, found)]
    if all(each.numel() % 8 == 0 and each.storage_offset() % 8 == 0 for each in raw):
        raw = [each.view(torch.int64) for each in raw]  # as integers, NaNs and signed zeros count
    return torch.equal(*raw)
