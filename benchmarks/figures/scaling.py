"""How the cost grows with sites, samples and width."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.figures.results import Result
from benchmarks.figures.text import folded, interval, paragraphs, table
from benchmarks.scaling import AXES
from benchmarks.ways import HOOKLESS, INCUMBENT

PICTURE = "scaling.svg"


def block(result: Result) -> str:
    """A picture, and its points as a table."""
    header = ("varied", "", "fastcap's time, hookless = 1", "fastcap's time, documented hook = 1")
    return paragraphs(
        f"![fastcap's time by sites, samples and width](images/{PICTURE})",
        _reading(result),
        folded("The points as a table", table(header, _rows(result))),
    )


def brief(result: Result) -> str:
    """For the summary."""
    return _reading(result)


def _reading(result: Result) -> str:
    points = {
        (series, size): ratios
        for series, sizes in result.content["ratios"].items()
        for size, ratios in sizes.items()
    }
    said = []
    for base, name in ((HOOKLESS, "the same passes without capture"), (INCUMBENT, "the hook")):
        means = [ratios[base]["mean"] for ratios in points.values()]
        said.append(f"{min(means):.3f} to {max(means):.3f} times as long as {name}")
    return (
        f"Over sites, samples and width, fastcap takes {said[0]}, and {said[1]}: means of "
        f"{result.content['rounds']} rounds at each point."
    )


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    for series, points in result.content["ratios"].items():
        for size, ratios in points.items():
            yield (AXES[series], size, interval(ratios[HOOKLESS]), interval(ratios[INCUMBENT]))
