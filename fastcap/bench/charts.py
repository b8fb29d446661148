"""The pictures of a report, drawn by matplotlib: readable without colour, a unit on every axis."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fastcap.bench.report import Report
from fastcap.bench.timeline import COPY, DELIVER, FORWARD, PACK, WAIT, Span, Timeline
from fastcap.bench.timing import Ratio
from fastcap.bench.ways import FASTCAP, HOOK
from fastcap.errors import MissingExtraError
from fastcap.formatting import counted, format_bytes, format_secs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.5  # inches; the page scales it
MARKS = {HOOK: ("o", "--", "white"), FASTCAP: ("s", "-", "black")}
"""A way's marker, line and fill."""
FILLS = {FORWARD: "0.85", PACK: "0.6", COPY: "0.4", DELIVER: "0.6", WAIT: "white"}
LARGE_RATIO = 5.0  # from here on ratios are easier to read on a logarithmic axis
LEAST_PERCENT = 0.01
LABEL_SHARE = 0.12  # of the width: what a label of an amount of bytes takes
BAR_LABEL_SHARE = 0.27  # of the width: what a percentage and a time take
LEAST_SHARE = 0.002  # of the width: what is shorter would not be seen


def check_matplotlib() -> None:
    """Raise before anything is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            "The pictures need matplotlib, which is not installed: "
            "pip install 'torch-fastcap[bench]'."
        )


def overhead_figure(report: Report) -> Figure:
    """Time over that of baseline, by bytes captured per pass."""
    figure, axes = _new_figure(3.6)
    points = sorted(report.points, key=lambda point: point.captured_bytes)
    xs = [max(point.captured_bytes / point.n_passes, 1) for point in points]
    for number, way in enumerate((HOOK, FASTCAP)):
        shifted = [x * 1.05 ** (2 * number - 1) for x in xs]  # side by side where they coincide
        _draw_way(axes, way, shifted, [point.ratios[way] for point in points])
    axes.axhline(1.0, color="0.5", linewidth=1, linestyle=":", label="no capture")
    _limit_ratios(axes, [ratio for point in points for ratio in point.ratios.values()])
    axes.set_xscale("log")
    axes.set_xlim(xs[0] / 1.6, xs[-1] * 1.6)
    axes.minorticks_off()
    labels = [
        f"{format_bytes(x)}\n{counted(len(point.sites), 'site')}"
        for x, point in zip(xs, points, strict=True)
    ]
    axes.set_xticks(xs, _without_crowding(xs, labels))
    axes.set_xlabel("captured per pass (bytes, logarithmic)")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, frameon=False)
    return figure


def _without_crowding(xs: Sequence[float], labels: Sequence[str]) -> list[str]:
    """Labels from the right, without those that would run into one before."""
    room = LABEL_SHARE * math.log(1.6**2 * xs[-1] / xs[0])
    shown, last = [], math.inf
    for x, label in zip(reversed(xs), reversed(labels), strict=True):
        is_clear = math.log(x) + room < last
        last = math.log(x) if is_clear else last
        shown.append(label if is_clear else "")
    return shown[::-1]


def _draw_way(axes: Any, way: str, xs: Sequence[float], ratios: Sequence[Ratio]) -> None:
    marker, line, fill = MARKS[way]
    below = [ratio.mean - ratio.low for ratio in ratios]
    above = [ratio.high - ratio.mean for ratio in ratios]
    axes.errorbar(
        xs,
        [ratio.mean for ratio in ratios],
        yerr=[below, above],
        marker=marker,
        linestyle=line,
        color="black",
        markerfacecolor=fill,
        capsize=4,
        label=way,
    )


def _limit_ratios(axes: Any, ratios: Sequence[Ratio]) -> None:
    """Show every mean; of an interval that is far wider than that, what fits."""
    means = [ratio.mean for ratio in ratios]
    low = min(1.0, *means, *(max(ratio.low, 0.8 * ratio.mean) for ratio in ratios))
    high = max(1.02, *means, *(min(ratio.high, 1.5 * ratio.mean) for ratio in ratios))
    if high > LARGE_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.set_ylabel("time of a run (baseline = 1, log.)")
        return
    margin = 0.08 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel("time of a run (baseline = 1)")


def floors_figure(report: Report) -> Figure:
    """How much of fastcap's time each floor would take by itself."""
    shares = dict(sorted(report.floor_shares.items(), key=lambda item: item[1]))
    figure, axes = _new_figure(0.9 + 0.42 * len(shares))
    percents = [100 * share for share in shares.values()]
    axes.barh(list(shares), percents, height=0.6, color="0.75", edgecolor="black")
    axes.axvline(100, color="black", linestyle=":", linewidth=1)
    right = max(100.0, *percents) * 1.16
    secs = report.whole.median_secs(FASTCAP)
    for row, (percent, share) in enumerate(zip(percents, shares.values(), strict=True)):
        shown = f"{percent:.3g} %" if percent >= LEAST_PERCENT else f"< {LEAST_PERCENT} %"
        text = f"{shown}  ({format_secs(share * secs)})"
        x, side = _label_place(percent, right)
        axes.text(x, row, text, va="center", ha=side)
    axes.set_xlim(0, right)
    axes.set_xlabel(f"share of fastcap's time for a run, {format_secs(secs)} (%)")
    return figure


def _label_place(percent: float, right: float) -> tuple[float, str]:
    """Where the label of a bar begins ("left") or ends ("right"): never across the line at 100."""
    gap, width = 0.01 * right, BAR_LABEL_SHARE * right
    start = percent + gap
    if start + width <= (100 if percent <= 100 else right):
        return start, "left"
    for end in (min(percent, 100.0) - gap, percent - gap):
        if end - width >= 0 and not end - width < 100 < end:
            return end, "right"
    return max(percent, 100.0) + gap, "left"


def timeline_figure(timeline: Timeline) -> Figure:
    """What ran when: a row for each kind of work on each stream."""
    rows: dict[tuple[str, str], list[Span]] = {}
    for stream in timeline.streams:
        for kind in FILLS:
            spans = [s for s in timeline.spans if (s.stream, s.kind) == (stream, kind)]
            if spans:
                rows[stream, kind] = spans
    figure, axes = _new_figure(1.0 + 0.42 * max(len(rows), 1))
    scale, unit = (1.0, "s") if timeline.end_secs >= 2 else (1e3, "ms")
    least = LEAST_SHARE * timeline.end_secs * scale
    for number, ((_, kind), spans) in enumerate(rows.items()):
        bars = [(s.start_secs * scale, max(s.secs * scale, least)) for s in spans]
        axes.broken_barh(
            bars, (number - 0.32, 0.64), facecolor=FILLS[kind], edgecolor="black", linewidth=0.4
        )
    axes.set_yticks(range(len(rows)), [f"{stream}: {kind}" for stream, kind in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, timeline.end_secs * scale * 1.01 or 1)
    axes.set_xlabel(f"time since the start ({unit}, of {timeline.clock})")
    return figure


def _new_figure(height: float) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def as_svg(figure: Figure, name: str) -> str:
    """An `<svg>` element for a page; `name` keeps its ids apart from those of other pictures."""
    import matplotlib as mpl

    written = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    rename: Callable[[re.Match[str]], str] = lambda found: f"{found[1]}{name}-{found[2]}"  # noqa: E731
    svg = re.sub(r'(\bid=")([^"]+)', rename, svg)
    svg = re.sub(r'(href="#)([^"]+)', rename, svg)
    return re.sub(r"(url\(#)([^)]+)", rename, svg)
