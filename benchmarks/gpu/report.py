"""What was measured: figures, beside what was predicted or promised of them, by question.

A report is a list of entries, each with its figures. A figure may have a range that was predicted
of it; where that was promised, it is a goal, and the report says whether it was met.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastcap.bench import Ratio

MEASURED, NOT_RUN, FAILED = "measured", "not run", "failed"
NOT_REACHED = "the run ended before it"


class UnavailableError(Exception):
    """Something cannot be measured here, for the reason in the text."""


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

    @classmethod
    def of_promise(cls, text: str) -> Range:
        """A promise as `str` wrote it: `at most 1.02`, `at least 0.9`."""
        *words, bound = text.split()
        return cls(high=float(bound)) if words == ["at", "most"] else cls(low=float(bound))


NONE = Range(0, 0)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        name: What was measured, beside the entry's title.
        value: How much.
        unit: Of what.
        predicted: Before anything was measured; `None` for a value that others are held against.
        interval: Of 95 %, where the value is a mean of rounds.
        goal: What was promised, where the prediction is a promise.
    """

    name: str
    value: float
    unit: str
    predicted: Range | None = None
    interval: tuple[float, float] | None = None
    goal: str = ""

    def __str__(self) -> str:
        text = f"{self.name}: {self.shown}"
        if self.predicted is None:
            return text
        word = "promised" if self.goal else "predicted"
        return f"{text} ({self.predicted} {word}{'' if self.is_as_predicted else ': NO'})"

    @property
    def shown(self) -> str:
        text = f"{self.value:.4g} {self.unit}".rstrip()
        return text if self.interval is None else text + " [{:.3f}, {:.3f}]".format(*self.interval)

    @property
    def is_as_predicted(self) -> bool | None:
        return None if self.predicted is None else self.value in self.predicted

    @property
    def verdict(self) -> str:
        """Whether a promise was kept: `met` or `MISSED`, or `not shown` where the interval has
        values on both sides.
        """
        assert self.predicted is not None
        ends = {end in self.predicted for end in self.interval or (self.value,)}
        return "not shown" if len(ends) > 1 else "met" if ends.pop() else "MISSED"

    def fields(self) -> dict[str, Any]:
        """For JSON, which has no infinity: one round gives no interval."""
        ends = [end if math.isfinite(end) else None for end in self.interval or ()]
        predicted = None if self.predicted is None else str(self.predicted)
        changes = {"interval": ends or None, "predicted": predicted}
        return {**asdict(self), **changes, "as_predicted": self.is_as_predicted}


def of_ratio(name: str, ratio: Ratio, predicted: Range | None = None, goal: str = "") -> Figure:
    """A paired ratio with its interval."""
    return Figure(name, ratio.mean, "x", predicted, (ratio.low, ratio.high), goal)


@dataclass(slots=True)
class Entry:
    """The figures that answer one question.

    Attributes:
        title: What is asked; no two entries of a report share it.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why not all of it.
        figures: What came out, as far as it came.
        secs: How long it took.
        problems: What differed from the oracle.
        raw: What the figures are made of, such as seconds by round.
    """

    title: str
    status: str = NOT_RUN
    reason: str = NOT_REACHED
    figures: list[Figure] = field(default_factory=list)
    secs: float = 0.0
    problems: list[str] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "figures": [figure.fields() for figure in self.figures]}

    @property
    def outcome(self) -> str:
        return f"{self.status}: {self.reason}" if self.reason else self.status

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """What is raised in the block becomes the reason; the rest goes on."""
        try:
            yield
        except UnavailableError as error:
            self.status, self.reason = NOT_RUN, str(error)
        except Exception as error:  # noqa: BLE001 - the rest runs, and the report says so
            self.status, self.reason = FAILED, describe_error(error)


def describe_error(error: BaseException) -> str:
    """What was raised, and where; the whole trace goes to standard error."""
    traceback.print_exception(error, file=sys.stderr)
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}{where}"
