"""Values compared with those that are stored, as they arrive and without holding them."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcap.archive.shards import Segment

TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 5e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
    torch.float8_e4m3fn: 1e-1,
    torch.float8_e5m2: 2e-1,
}
"""How far values of another machine or torch may lie from those that are stored.

In each row (the last dimension), the root mean square of the differences is at most so many times
that of the stored values, or of a thousandth of all of the site's. Sums in another order differ by
rounding, relative to a row and not to its smallest values, and more with every layer: so this is
ten to twenty times what the dtype rounds by; of float32, what TF32 does, which accelerators may use
for it. Dtypes that are not listed, integers and bools, do not round: they have to be equal.
"""

SMALL_ROW = 1e-3
"""A row that is smaller than this, relative to its site, is compared with the site: its values are
what is left of larger ones."""

_BLOCK = 1 << 18
"""Elements that are compared at a time where bits differ."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs of one stream.

    Attributes:
        name: The stream.
        what: In words.
        is_rounding: Whether it is within the tolerance.
        tolerance: The one that applies to the stream.
    """

    name: str
    what: str
    is_rounding: bool = False
    tolerance: float = 0.0


def tolerance_of(dtypes: Iterable[torch.dtype]) -> float:
    """That of the coarsest of some dtypes; the first is what is stored."""
    stored, *others = dtypes
    if stored not in TOLERANCES:
        return 0.0
    return max(TOLERANCES.get(dtype, 0.0) for dtype in (stored, *others))


class Comparison:
    """A delivery's destination that compares what it is given with what is stored.

    Segments arrive in order, perhaps from a host worker, and are not kept.

    Attributes:
        shape: Of the values.
        crc32: Of the bytes that have arrived.
        n_different: Values whose bits differ so far.
        most: The largest absolute difference; not finite where only one of two values is.
    """

    def __init__(self, name: str, stored: Sequence[Tensor], shape: torch.Size) -> None:
        """Args:
        name: The stream.
        stored: One after another, the values of `shape`.
        shape: Of the values.
        """
        self.shape = shape
        self.crc32 = 0
        self.n_different = 0
        self.most = 0.0
        self._name = name
        self._stored = [each.reshape(-1) for each in stored]
        self._starts = list(itertools.accumulate(map(len, self._stored), initial=0))
        self._row = shape[-1] if len(shape) > 1 else shape.numel()
        self._squares: Tensor | None = None

    def numel(self) -> int:
        return self.shape.numel()

    @property
    def dtype(self) -> torch.dtype:
        return self._stored[0].dtype

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def segment(self, first: int, last: int) -> Segment:
        """The destination of some of its elements, counted in order."""
        return Segment(self, first, last - first)

    def copy_(self, values: Tensor) -> None:
        self.write(0, values)

    def write(self, first: int, values: Tensor) -> None:
        """Compare elements from `first` on with what is stored there."""
        with torch.inference_mode(False), torch.no_grad():
            flat = values.detach().reshape(-1)
            for start in range(0, len(flat), _BLOCK):
                block = flat[start : start + _BLOCK].to(self.dtype).contiguous()
                for at, stored in self._of_stored(first + start, len(block)):
                    self._compare(at, block[at - first - start :][: len(stored)], stored)

    def _of_stored(self, first: int, n_elements: int) -> Iterator[tuple[int, Tensor]]:
        """The stored values of some elements, and where each piece of them begins."""
        last = first + n_elements
        for start, piece in zip(self._starts, self._stored, strict=False):
            begin, end = max(first, start), min(last, start + len(piece))
            if begin < end:
                yield begin, piece[begin - start : end - start]

    def _compare(self, at: int, values: Tensor, stored: Tensor) -> None:
        new, old = _bytes(values), _bytes(stored)
        self.crc32 = zlib.crc32(new.numpy().data, self.crc32)
        if torch.equal(new, old):
            return
        size = self.dtype.itemsize
        differ = (new.view(-1, size) != old.view(-1, size)).any(dim=1)
        self.n_different += int(differ.sum())
        a, b = values.double(), stored.double()
        same = (a == b) | (a.isnan() & b.isnan())
        apart = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
        self.most = max(self.most, float(apart.max()))
        if self._squares is None:
            self._squares = torch.zeros(self.numel() // self._row, dtype=torch.float64)
        rows = torch.arange(at, at + len(values)) // self._row
        self._squares.index_add_(0, rows, apart.square())

    def difference(self, tolerance: float) -> Difference | None:
        """What was different of the values that have arrived; `None` for nothing."""
        if not self.n_different:
            return None
        apart = f"by up to {self.most:.3g}" if math.isfinite(self.most) else "some are not finite"
        what = f"{self.n_different:,} of {self.numel():,} values differ, {apart}"
        return Difference(self._name, what, self._is_rounding(tolerance), tolerance)

    def _is_rounding(self, tolerance: float) -> bool:
        if self.most == 0.0:
            return True  # zeros with another sign, NaNs with another payload
        if tolerance == 0.0 or self._squares is None:
            return False
        allowed = torch.cat(list(self._squares_of_rows()))
        if len(self.shape) == 1:
            allowed = allowed.sum(dim=0, keepdim=True)
        allowed = allowed.clamp_min(float(allowed.mean()) * SMALL_ROW**2)
        return bool((self._squares <= allowed * tolerance**2).all())

    def _squares_of_rows(self) -> Iterator[Tensor]:
        """Sums over the rows of what is stored; where all is one row, over parts of it."""
        for piece in self._stored:
            rows = piece.view(-1, self._row) if len(self.shape) > 1 else piece.view(1, -1)
            for block in torch.split(rows, max(1, _BLOCK // self._row)):
                finite = block.double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
                yield finite.square().sum(dim=1)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)
