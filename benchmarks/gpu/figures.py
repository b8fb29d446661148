"""A measured value beside what was predicted of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from fastcap.bench import Ratio


@dataclass(frozen=True, slots=True)
class Range:
    """A prediction: between two numbers, either of which may be open."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.low:g}"
        if math.isinf(self.low):
            return f"at most {self.high:g}"
        if math.isinf(self.high):
            return f"at least {self.low:g}"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        name: What was measured, beside the benchmark's title.
        value: How much.
        unit: Of what.
        predicted: Before anything was measured; `None` for a value that others are held against.
        interval: Of 95 %, where the value is a mean of rounds.
    """

    name: str
    value: float
    unit: str
    predicted: Range | None = None
    interval: tuple[float, float] | None = None

    def __str__(self) -> str:
        text = f"{self.name}: {self.value:.4g} {self.unit}"
        if self.interval is not None:
            text += " [{:.3f}, {:.3f}]".format(*self.interval)
        if self.predicted is not None:
            text += f" ({self.predicted} predicted{'' if self.is_as_predicted else ': NO'})"
        return text

    @property
    def is_as_predicted(self) -> bool | None:
        return None if self.predicted is None else self.value in self.predicted

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "interval": None if self.interval is None else list(map(finite, self.interval)),
            "predicted": None if self.predicted is None else str(self.predicted),
            "as_predicted": self.is_as_predicted,
        }


def of_ratio(name: str, ratio: Ratio, predicted: Range | None = None) -> Figure:
    """A paired ratio with its interval."""
    return Figure(name, ratio.mean, "x", predicted, (ratio.low, ratio.high))


def finite(value: float) -> float | None:
    """What JSON can hold: one round gives no interval."""
    return value if math.isfinite(value) else None


class UnavailableError(Exception):
    """Something cannot be measured here, for the reason in the text."""
