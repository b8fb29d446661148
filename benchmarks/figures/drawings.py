"""The pictures: overhead by workload, fastcap and its peers, growth.

Shape and fill tell ways apart, so that no colour is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.figures import peers, small
from benchmarks.figures.peers import Answered
from benchmarks.figures.results import Result
from benchmarks.figures.suite import Measured, workloads
from fastcap.bench import Ratio
from fastcap.bench.ways import BASELINE, FASTCAP, HOOK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETTINGS: dict[Any, Any] = {"svg.hashsalt": "fastcap", "svg.fonttype": "path", "font.size": 9}
BAND = "0.94"
SPREAD = 0.6  # of a row, for the ways within it
BAR_HEIGHT = 0.66  # of a row
OWN_FILL = "0.25"
COLLECTOR_FILLS = {"rows": "0.7", "lists": "white"}
TICK: dict[str, Any] = {
    "marker": "|", "markersize": 13, "markeredgewidth": 2.2, "color": "black", "linestyle": ""
}  # fmt: skip


class Mark(NamedTuple):
    """How one way is drawn."""

    label: str
    shape: str
    fill: str


def draw_ratios(
    axes: Axes, mark: Mark, ys: Sequence[float], ratios: Sequence[Ratio], vertical: bool = False
) -> None:
    """Means with their intervals, along one axis or the other."""
    means = [ratio.mean for ratio in ratios]
    bars = [
        [ratio.mean - ratio.low for ratio in ratios],
        [ratio.high - ratio.mean for ratio in ratios],
    ]
    style: dict[str, Any] = {"fmt": mark.shape, "markerfacecolor": mark.fill, "label": mark.label}
    style |= {"markersize": 5, "elinewidth": 0.9, "capsize": 2, "color": "black"}
    if vertical:
        axes.errorbar(ys, means, yerr=bars, **style)
    else:
        axes.errorbar(means, ys, xerr=bars, **style)


WAYS = {
    HOOK: Mark("synchronous hook", "o", "white"),
    FASTCAP: Mark("fastcap, into memory", "s", "black"),
    "fastcap stream": Mark("fastcap stream", "^", "0.7"),
    "fastcap store": Mark("fastcap store", "D", "white"),
}
PEERS = {
    FASTCAP: Mark("fastcap", "s", "black"),
    "nnsight": Mark(peers.NAMES["nnsight"], "o", "white"),
    "transformer-lens": Mark(peers.NAMES["transformer-lens"], "^", "white"),
    "sae-lens": Mark(peers.NAMES["sae-lens"], "D", "white"),
}

BASES = {
    BASELINE: Mark("baseline = 1", "o-", "black"),
    HOOK: Mark("synchronous hook = 1", "s--", "white"),
}


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


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def ratio_axis(axes: Axes, ratios: Sequence[Ratio], *others: float) -> None:
    """A logarithmic axis that shows all intervals, unless they are much wider than the figures."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    means = [1.0, *others, *(ratio.mean for ratio in ratios)]
    low = max(min([*means, *(ratio.low for ratio in ratios)]), min(means) / 1.5)
    high = min(max([*means, *(ratio.high for ratio in ratios)]), max(means) * 1.5)
    room = (high / low) ** 0.04
    axes.set_xscale("log")
    axes.set_xlim(low / room, high * room)
    is_wide = high > 4 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if is_wide else MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="0.4", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="0.85", linewidth=0.5)
    axes.set_axisbelow(True)


def rows_of(axes: Axes, names: Sequence[str]) -> None:
    """One band per name, from the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for row in range(0, len(names), 2):
        axes.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0, zorder=-1)


def overhead(result: Result) -> Figure:
    """Every workload's ways beside the baseline, with the floor."""
    from matplotlib.lines import Line2D

    figure = _figure(9.5, 5.6)
    found = workloads(result)
    groups = [[e for e in found if e.is_large == is_large] for is_large in (True, False)]
    groups = [group for group in groups if group]
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        _overheads(panel, group)
    handles, labels = panels[0].get_legend_handles_labels()
    floor = Line2D([], [], label="floor of fastcap, into memory", **TICK)
    handles, labels = [*handles, floor], [*labels, str(floor.get_label())]
    style: dict[str, Any] = {"frameon": False, "fontsize": 8}
    figure.legend(handles, labels, loc="outside upper center", ncols=5, **style)
    return figure


def _overheads(axes: Axes, group: Sequence[Measured]) -> None:
    ways = [way for way in WAYS if any(way in each.ways for each in group)]
    shown, floors = [], [each.floor_to_baseline() for each in group]
    for index, way in enumerate(ways):
        offset = SPREAD * (index / max(len(ways) - 1, 1) - 0.5)
        rows = [row for row, each in enumerate(group) if way in each.ways]
        ratios = [group[row].to_baseline(way) for row in rows]
        draw_ratios(axes, WAYS[way], [row + offset for row in rows], ratios)
        shown += ratios
        if way == FASTCAP:
            axes.plot(floors, [row + offset for row in range(len(group))], **TICK)
    rows_of(axes, [each.name for each in group])
    ratio_axis(axes, shown, *floors)
    axes.set_xlabel("time, baseline = 1 (bars: 95 % interval)")


def beside_peers(result: Result) -> Figure:
    """A row of panels per question: time, and peak memory."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    found = peers.questions(result)
    ways = [[way for way in PEERS if way in each.ways] for each in found]
    heights = [1.5 + len(asked) for asked in ways]  # axis and title, and a row per way
    figure = _figure(9.5, 0.4 + 0.36 * sum(heights))
    panels = figure.subplots(len(found), 2, squeeze=False, height_ratios=heights)
    for (times, memory), each, asked in zip(panels, found, ways, strict=True):
        _times(times, each, asked)
        _memory(memory, each, asked)
    fills = {"fastcap": OWN_FILL, **{f"peer, {way}": of for way, of in COLLECTOR_FILLS.items()}}
    handles: list[Any] = [
        Line2D([], [], label="floor of fastcap", **TICK),
        *(Patch(facecolor=fill, edgecolor="black", label=name) for name, fill in fills.items()),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _times(axes: Axes, each: Answered, ways: Sequence[str]) -> None:
    ratios = [each.ratio(way, BASELINE) for way in ways]
    for row, (way, ratio) in enumerate(zip(ways, ratios, strict=True)):
        draw_ratios(axes, PEERS[way], [row], [ratio])
    floor = each.floor_secs()
    floors = [] if floor is None else [floor / each.median(BASELINE)]
    axes.plot(floors, [ways.index(FASTCAP)] * len(floors), **TICK)
    rows_of(axes, [PEERS[way].label for way in ways])
    ratio_axis(axes, ratios, *floors)
    axes.set_title(f"{each.name}: {each.what}", fontsize=9, loc="left")
    axes.set_xlabel("time, baseline = 1 (bars: 95 % interval)", fontsize=8)


def _memory(axes: Axes, each: Answered, ways: Sequence[str]) -> None:
    if not each.added(FASTCAP):
        axes.set_axis_off()
        axes.text(0.0, 0.5, "memory not measured", transform=axes.transAxes, va="center")
        return
    rows_of(axes, ["" for _ in ways])  # the panel beside it has the names
    for row, way in enumerate(ways):
        added = each.added(way)
        height = BAR_HEIGHT / len(added)
        for index, (collector, n_bytes) in enumerate(added.items()):
            axes.barh(
                row + (index + 0.5) * height - BAR_HEIGHT / 2,
                n_bytes / 1e6,
                height,
                color=OWN_FILL if way == FASTCAP else COLLECTOR_FILLS[collector],
                edgecolor="black",
                linewidth=0.7,
            )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_title("peak memory", fontsize=9, loc="left")
    axes.set_xlabel("added to that of the baseline, MB", fontsize=8)


def growth(result: Result) -> Figure:
    """A panel per series of the scaling benchmark."""
    figure = _figure(10, 3.6)
    series = result.content["ratios"]
    panels = figure.subplots(1, len(series), sharey=True)
    for panel, (name, points) in zip(panels, series.items(), strict=True):
        sizes = [int(size) for size in points]
        for shift, (base, mark) in enumerate(BASES.items()):
            xs = [size * (1 + 0.04 * shift) for size in sizes]  # so that bars do not hide bars
            ratios = [Ratio(**of_base[base]) for of_base in points.values()]
            draw_ratios(panel, mark, xs, ratios, vertical=True)
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel(small.AXES[name])
    panels[0].set_ylabel("fastcap's time, as a multiple")
    panels[0].legend(frameon=False)
    figure.suptitle(
        f"Bars: 95 % intervals of {result.content['rounds']} rounds. Otherwise 4 sites, 128 "
        "samples, width 256.",
        fontsize=9,
    )
    return figure
