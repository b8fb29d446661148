"""What is drawn: overhead by workload, fastcap and its peers, growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.figures.peers import NAMES, Answered, questions
from benchmarks.figures.pictures import Mark, limits, ratio_axis, rows_of
from benchmarks.figures.results import Result
from benchmarks.figures.suite import Measured, workloads
from benchmarks.peers.ways import FASTCAP as PEERS_FASTCAP
from benchmarks.peers.ways import HOOKLESS as PEERS_HOOKLESS
from benchmarks.scaling import picture
from fastcap.bench.timing import Ratio
from fastcap.bench.ways import FASTCAP, HOOK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WAYS = {
    HOOK: Mark("plain hook", "o", "white"),
    FASTCAP: Mark("fastcap, into memory", "s", "black"),
    "fastcap stream": Mark("fastcap stream", "^", "0.7"),
    "fastcap store": Mark("fastcap store", "D", "white"),
}
PEERS = {
    PEERS_FASTCAP: Mark("fastcap", "s", "black"),
    "nnsight": Mark(NAMES["nnsight"], "o", "white"),
    "transformer-lens": Mark(NAMES["transformer-lens"], "^", "white"),
    "sae-lens": Mark(NAMES["sae-lens"], "D", "white"),
}
FLOOR_LABEL = "floor of fastcap, into memory"
SPREAD = 0.6  # of a row, for the ways within it
BAR_HEIGHT = 0.66  # of a row
OWN_FILL = "0.25"
COLLECTOR_FILLS = {"rows": "0.7", "lists": "white"}


def overhead(result: Result) -> Figure:
    """Every workload's ways beside hookless, with the floor."""
    figure = _figure(9.5, 5.6)
    found = workloads(result)
    large = [each for each in found if each.is_large]
    small = [each for each in found if not each.is_large]
    groups = [group for group in (large, small) if group]
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        _overheads(panel, group)
    handles, labels = panels[0].get_legend_handles_labels()
    # matplotlib puts lines first: here the floor, which belongs behind the ways.
    handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    figure.legend(handles, labels, loc="outside upper center", ncols=5, frameon=False)
    return figure


def _overheads(axes: Axes, group: Sequence[Measured]) -> None:
    ways = [way for way in WAYS if any(way in each.secs for each in group)]
    shifts = dict(zip(ways, _shifts(len(ways)), strict=True))
    floors = []
    for row, each in enumerate(group):
        for way in ways:
            if way in each.secs:
                drawn = WAYS[way].draw(axes, row + shifts[way], each.to_hookless(way))
                drawn.set_label(WAYS[way].label if row == 0 else "_")
        floor = each.floor_to_hookless()
        if floor is not None:
            floors.append(floor)
            label = FLOOR_LABEL if row == 0 else "_"
            _draw_floor(axes, floor, row + shifts.get(FASTCAP, 0.0), label)
    shown = [each.to_hookless(way) for each in group for way in ways if way in each.secs]
    rows_of(axes, [each.name for each in group])
    ratio_axis(axes, *limits(shown, *floors))
    axes.set_xlabel("time, hookless = 1 (bars: 95 % interval)")


def _draw_floor(axes: Axes, floor: float, y: float, label: str) -> None:
    axes.plot([floor], [y], "|", color="black", markersize=13, markeredgewidth=2.2, label=label)


def _shifts(n_ways: int) -> list[float]:
    """Where ways stand within a row, from the top."""
    return [SPREAD * (index / max(n_ways - 1, 1) - 0.5) for index in range(n_ways)]


def beside_peers(result: Result) -> Figure:
    """A row of panels per question: time, and peak memory."""
    found = questions(result)
    ways = [[way for way in PEERS if way in each.ways] for each in found]
    heights = [1.5 + len(asked) for asked in ways]  # axis and title, and a row per way
    figure = _figure(9.5, 0.4 + 0.36 * sum(heights))
    panels = figure.subplots(len(found), 2, squeeze=False, height_ratios=heights)
    for (times, memory), each, asked in zip(panels, found, ways, strict=True):
        _times(times, each, asked)
        _memory(memory, each, asked)
    figure.legend(handles=_peers_legend(), loc="outside upper center", ncols=4, frameon=False)
    return figure


def _peers_legend() -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tick: Any = {"marker": "|", "markersize": 13, "markeredgewidth": 2.2, "linestyle": ""}
    fills = {"fastcap": OWN_FILL, "peer, rows": COLLECTOR_FILLS["rows"]}
    fills["peer, lists"] = COLLECTOR_FILLS["lists"]
    return [
        Line2D([], [], color="black", label="floor of fastcap", **tick),
        *(Patch(facecolor=fill, edgecolor="black", label=name) for name, fill in fills.items()),
    ]


def _times(axes: Axes, each: Answered, ways: Sequence[str]) -> None:
    ratios = [each.fields["ratios_to_hookless"][way] for way in ways]
    for row, (way, ratio) in enumerate(zip(ways, ratios, strict=True)):
        PEERS[way].draw(axes, row, ratio)
    floor = each.floor_secs()
    floors = [] if floor is None else [floor / each.median(PEERS_HOOKLESS)]
    for share in floors:
        _draw_floor(axes, share, ways.index(PEERS_FASTCAP), FLOOR_LABEL)
    rows_of(axes, [PEERS[way].label for way in ways])
    ratio_axis(axes, *limits(ratios, *floors))
    axes.set_title(f"{each.name}: {each.what}", fontsize=9, loc="left")
    axes.set_xlabel("time, hookless = 1 (bars: 95 % interval)", fontsize=8)


def _memory(axes: Axes, each: Answered, ways: Sequence[str]) -> None:
    if not each.added(PEERS_FASTCAP):
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
                color=OWN_FILL if way == PEERS_FASTCAP else COLLECTOR_FILLS[collector],
                edgecolor="black",
                linewidth=0.7,
            )
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.set_title("peak memory", fontsize=9, loc="left")
    axes.set_xlabel("added to that of hookless, MB", fontsize=8)


def growth(result: Result) -> Figure:
    """The picture of the scaling benchmark."""
    figures = {
        series: {
            int(size): {base: Ratio(**_rounds(fields)) for base, fields in ratios.items()}
            for size, ratios in points.items()
        }
        for series, points in result.content["ratios"].items()
    }
    note = (
        f"Bars: 95 % intervals of {result.content['rounds']} rounds. Otherwise 4 sites, "
        "128 samples, width 256."
    )
    return picture(figures, note)


def _rounds(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "rounds": tuple(fields["rounds"])}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")
