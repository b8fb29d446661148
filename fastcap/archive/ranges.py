"""Ids in their order, as ranges: memory goes by range, and not by id."""

from __future__ import annotations

from collections.abc import Sequence


class Ranges:
    """Ids that arrive batch by batch.

    Attributes:
        pairs: `(start, stop)`, in the order of the ids.
        n_samples: How many ids that are.

    Examples:
        >>> ranges = Ranges()
        >>> for batch in (range(4, 6), [6, 0, 1]):
        ...     ranges.extend(batch)
        >>> ranges.pairs, ranges.n_samples
        ([(4, 7), (0, 2)], 5)
    """

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []
        self.n_samples = 0

    def extend(self, samples: Sequence[int]) -> None:
        self.n_samples += len(samples)
        if isinstance(samples, range) and samples.step == 1 and samples:
            self._add(samples.start, samples.stop)
            return
        for sample in samples:
            self._add(sample, sample + 1)

    def _add(self, start: int, stop: int) -> None:
        if self.pairs and self.pairs[-1][1] == start:
            start = self.pairs.pop()[0]
        self.pairs.append((start, stop))


def as_ranges(samples: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Ids as ranges, in their order.

    Examples:
        >>> as_ranges([4, 5, 6, 0, 1])
        ((4, 7), (0, 2))
    """
    ranges = Ranges()
    ranges.extend(samples)
    return tuple(ranges.pairs)
