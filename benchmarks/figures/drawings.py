"""What is drawn: overhead by workload, fastcap and its peers, growth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.figures.peers import NAMES, Answered, questions
from benchmarks.figures.pictures import Mark, limits, ratio_axis, rows_of
from benchmarks.figures.results import Result
from benchmarks.figures.suite import Measured, workloads
from benchmarks.grid import GPT2_SIZED
from benchmarks.peers.ways import FASTCAP as PEERS_FASTCAP
from benchmarks.peers.ways import HOOKLESS as PEERS_HOOKLESS
from benchmarks.scaling import picture
from fastcap.bench.timing import Ratio
from fastcap.bench.ways import ARCHIVE, FASTCAP, HOOK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WAYS = {
    HOOK: Mark("plain hook", "o", "white"),
    FASTCAP: Mark("fastcap, into memory", "s", "black"),
    "fastcap stream": Mark("fastcap stream", "^", "0.7"),
    ARCHIVE: Mark("fastcap archive", "D", "white"),
}
PEERS = {
    PEERS_FASTCAP: Mark("fastcap", "s", "black"),
    "nnsight": Mark(NAMES["nnsight"], "o", "white"),
    "transformer-lens": Mark(NAMES["transformer-lens"], "^", "white"),
    "sae-lens": Mark(NAMES["sae-lens"], "D", "white"),
}
FLOOR_LABEL = "floor of fastcap, into memory"
SPREAD = 0.6  # of a row, for the ways within it


def overhead(result: Result) -> Figure:
    """Every workload's ways beside hookless, with the floor."""
    figure = _figure(9.5, 5.6)
    found = workloads(result)
    large = [each for each in found if each.name.startswith(f"{GPT2_SIZED.name}-")]
    small = [each for each in found if each not in large]
    groups = [group for group in (large, small) if group]
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for panel, group in zip(panels, groups, strict=True):
        _overheads(panel, group)
    handles, labels = panels[0].get_legend_handles_labels()
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
    figure = _figure(9.5, 0.6 + 1.55 * len(found))
    panels = figure.subplots(len(found), 2, squeeze=False)
    for (times, memory), each in zip(panels, found, strict=True):
        ways = [way for way in PEERS if way in each.fields["secs"]]
        _times(times, each, ways)
        _memory(memory, each, ways)
    panels[-1][0].set_xlabel("time, hookless = 1 (bars: 95 % interval)")
    panels[-1][1].set_xlabel("peak memory added, MB")
    return figure


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


def _memory(axes: Axes, each: Answered, ways: Sequence[str]) -> None:
    rows_of(axes, [PEERS[way].label for way in ways])
    axes.set_title("the same, memory", fontsize=9, loc="left")
    if not each.added(PEERS_FASTCAP):
        axes.set_title("memory not measured", fontsize=9, loc="left")
        axes.set_xticks([])
        return
    for row, way in enumerate(ways):
        for n_collector, n_bytes in enumerate(each.added(way).values()):
            fill = "0.25" if way == PEERS_FASTCAP else "0.65" if n_collector == 0 else "white"
            height = 0.62 / len(each.added(way))
            y = row + (n_collector + 0.5) * height - 0.31
            axes.barh(y, n_bytes / 1e6, height, color=fill, edgecolor="black", linewidth=0.7)
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.margins(x=0.08)


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
