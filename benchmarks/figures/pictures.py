"""Pictures as files: the style of all, and the stamp by which a stale one is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: dict[Any, Any] = {"svg.hashsalt": "fastcap", "svg.fonttype": "path", "font.size": 9}
TICKS = (
    *(1, 2, 5, 10, 20, 50, 100, 0.5, 0.2, 0.1),
    *(1.5, 1.2, 1.1, 0.9, 0.8, 1.05, 0.95, 3, 0.7),
    *(1.3, 1.02, 0.98, 1.4, 4, 7, 1.03, 0.97, 1.01, 0.99, 1.08, 1.15, 0.6),
)
"""Of a ratio, those that a reader would rather see first."""
TICK_ROOM = 0.12
"""The least distance of two ticks, as a share of the axis."""
BAND = "0.94"


@dataclass(frozen=True, slots=True)
class Mark:
    """How one way is drawn: shape and fill tell ways apart, so that no colour is needed."""

    label: str
    shape: str
    fill: str

    def draw(self, axes: Axes, y: float, ratio: Mapping[str, float]) -> Any:
        """A mean with its interval."""
        mean = ratio["mean"]
        bars = [[mean - ratio["low"]], [ratio["high"] - mean]]
        return axes.errorbar(
            mean,
            y,
            xerr=bars,
            fmt=self.shape,
            color="black",
            markerfacecolor=self.fill,
            markersize=5,
            elinewidth=0.9,
            capsize=2,
        )


def save(figure: Figure, result: Result, path: Path) -> None:
    """Write an SVG that names its figures."""
    import matplotlib as mpl

    with mpl.rc_context(SETTINGS):
        metadata = {"Source": result.stamp, "Date": None, "Creator": None}
        figure.savefig(path, format=path.suffix[1:], metadata=metadata)


def is_current(path: Path, result: Result | None) -> bool:
    """Whether a picture shows these figures; without figures, whether there is none."""
    if result is None or not path.exists():
        return result is None and not path.exists()
    return result.stamp in path.read_text()


def ratio_axis(axes: Axes, lowest: float, highest: float) -> None:
    """A logarithmic axis with the ticks that a reader expects of ratios around 1."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(lowest, highest)
    axes.xaxis.set_minor_locator(NullLocator())
    shown = choose_ticks(lowest, highest)
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.set_xticklabels([f"{tick:g}" for tick in shown])
    axes.axvline(1, color="0.4", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="0.85", linewidth=0.5)
    axes.set_axisbelow(True)


def choose_ticks(lowest: float, highest: float) -> list[float]:
    """Ticks of a logarithmic axis that leave room for each other's labels."""
    width = math.log(highest / lowest)
    chosen: list[float] = []
    for tick in TICKS:
        distances = [abs(math.log(tick / other)) / width for other in chosen]
        if lowest <= tick <= highest and min(distances, default=1.0) >= TICK_ROOM:
            chosen.append(tick)
    return sorted(chosen)


def limits(ratios: Sequence[Mapping[str, float]], *others: float) -> tuple[float, float]:
    """Ends of an axis that shows all intervals, unless they are much wider than the figures."""
    means = [1.0, *others, *(ratio["mean"] for ratio in ratios)]
    low = max(min([*means, *(ratio["low"] for ratio in ratios)]), min(means) / 1.5)
    high = min(max([*means, *(ratio["high"] for ratio in ratios)]), max(means) * 1.5)
    room = (high / low) ** 0.04
    return low / room, high * room


def rows_of(axes: Axes, names: Sequence[str]) -> None:
    """One band per name, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=-1)
