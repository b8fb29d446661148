"""Whether what a way delivered is what the oracle says, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

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
        n_threads: Threads that compare sites; gigabytes take seconds with one.

    Attributes:
        problems: What differed, by way; empty lists where nothing did.
        n_mismatches: Sites' values that differed, counted over all runs, by way.
    """

    def __init__(self, expected: Values, n_threads: int = 1) -> None:
        self.expected = expected
        self.problems: dict[str, list[str]] = {}
        self.n_mismatches: dict[str, int] = {}
        self._n_threads = n_threads

    def check(self, way: str, values: Values, *, is_tail: bool = False) -> None:
        """Note what differs.

        Args:
            way: Whose values they are.
            values: One tensor per site, on any device.
            is_tail: Whether they are those of the last batch only.
        """
        expected = self.expected
        if is_tail:
            sizes = {site: len(value) for site, value in values.items()}
            expected = {s: want[len(want) - sizes.get(s, 0) :] for s, want in expected.items()}
        is_first = way not in self.problems
        found = self.problems.setdefault(way, [])
        wrong = wrong_sites(expected, values, self._n_threads, in_full=is_first)
        self.n_mismatches[way] = self.n_mismatches.get(way, 0) + len(wrong)
        problems = [problem for of_site in wrong.values() for problem in of_site]
        if list(expected) != list(values):
            problems = [f"sites {list(values)}, expected {list(expected)}"]
        found += [problem for problem in problems if problem not in found]


def wrong_sites(
    expected: Values, found: Values, n_threads: int = 1, *, in_full: bool = True
) -> dict[str, list[str]]:
    """Sites whose values differ, are missing or were not asked for, and how.

    Args:
        expected: The oracle's values.
        found: A way's, on any device.
        n_threads: Threads that compare sites.
        in_full: Whether layout is compared beside shapes, dtypes and bytes.
    """

    def problems(site: str) -> list[str]:
        if site not in found or site not in expected:
            return [f"{site}: {'unexpected' if site in found else 'missing'}"]
        want, got = {site: expected[site]}, {site: found[site].cpu()}
        is_same = not in_full and same_bytes(want, got)
        return [] if is_same else reference.differences(want, got)

    names = list(dict.fromkeys((*expected, *found)))
    with ThreadPoolExecutor(n_threads) as threads:
        wrong = zip(names, threads.map(problems, names), strict=True)
        return {site: how for site, how in wrong if how}


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a way's values are from the oracle's.

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


def difference_of(expected: Values, found: Values) -> Difference:
    """Compare float32 values by bits, and say how far apart they are."""
    n_values = sum(value.numel() for value in expected.values())
    n_different, largest = 0, 0.0
    for site in dict.fromkeys((*expected, *found)):
        want, got = expected.get(site), found.get(site)
        if want is None or got is None or (got.shape, got.dtype) != (want.shape, want.dtype):
            wrong = wrong_sites(expected, found)
            problem = "; ".join(how for of_site in wrong.values() for how in of_site)
            return Difference(n_values, n_values, float("inf"), problem)
        bits = [value.contiguous().view(torch.int32) for value in (want, got)]
        n_different += int(torch.count_nonzero(bits[0] != bits[1]))
        largest = max(largest, float((want - got).abs().max()))
    return Difference(n_values, n_different, largest)


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
