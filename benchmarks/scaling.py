"""How the cost of `extract_representations` on the CPU grows with sites, samples and width.

    python -m benchmarks.scaling [--rounds 7] [--out benchmarks/results]

Every point is a workload of its own, of which the three ways run batch by batch in turn
(`benchmarks.turns`): hookless, the documented hook, and fastcap. The figures are fastcap's time as
a multiple of the others', with the 95 % interval of the rounds, in JSON and as a picture (SVG).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks import programs
from benchmarks.models import ModelShape
from benchmarks.programs import Origin
from benchmarks.ways import FASTCAP, HOOKLESS, INCUMBENT, Values, Verifier, oracle, play_round
from benchmarks.workloads import Workload, blocks, build_case
from fastcap.bench.timing import Ratio, measure_rounds, paired_ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASES = (HOOKLESS, INCUMBENT)
SITES, SAMPLES, WIDTH = "sites", "samples", "width"


def workload(n_sites: int = 4, n_samples: int = 128, width: int = 256) -> Workload:
    """Eight blocks, 64 tokens, batches of 16; the outputs of the first blocks, in float32."""
    shape = ModelShape(8, width, n_heads=8, hidden=4 * width, vocab_size=512)
    name = f"{n_sites}-sites-{n_samples}-samples-{width}-wide"
    return Workload(name, shape, n_samples, 64, 16, blocks(8)[:n_sites])


SERIES: Mapping[str, Mapping[int, Workload]] = {
    SITES: {n: workload(n_sites=n) for n in (1, 2, 4, 8)},
    SAMPLES: {n: workload(n_samples=n) for n in (16, 32, 64, 128, 256)},
    WIDTH: {n: workload(width=n) for n in (64, 128, 256, 512)},
}

AXES = {
    SITES: "sites captured (of 8 blocks)",
    SAMPLES: "samples (batches of 16, 64 tokens)",
    WIDTH: "width (elements, float32)",
}

LABELS = {HOOKLESS: "hookless", INCUMBENT: "documented hook"}

Ratios = dict[str, Ratio]
"""By the way that fastcap is held against."""


def measure_point(point: Workload, n_rounds: int) -> Ratios:
    """Fastcap's time as a multiple of the others'.

    Raises:
        AssertionError: A way's values differ from the oracle's.
    """
    ways = (*BASES, FASTCAP)
    cases = {way: build_case(point) for way in ways}
    verifier = Verifier()
    verifier.check("oracle", oracle(build_case(point)))
    play_round(cases, ways)  # warms up

    def check(way: str, values: Values) -> None:
        verifier.check(way, values)
        assert not verifier.problems[way], verifier.problems[way]

    secs = measure_rounds(ways, partial(play_round, cases), n_rounds, check)
    return {base: paired_ratio(secs[FASTCAP], secs[base]) for base in BASES}


def measure(n_rounds: int) -> dict[str, dict[int, Ratios]]:
    """Every point of every series; those that two series share are measured once."""
    known: dict[Workload, Ratios] = {}
    found: dict[str, dict[int, Ratios]] = {}
    for series, points in SERIES.items():
        found[series] = {}
        for size, point in points.items():
            if point not in known:
                known[point] = measure_point(point, n_rounds)
                programs.say(f"{point.name}: {_line(known[point])}")
            found[series][size] = known[point]
    return found


def _line(ratios: Ratios) -> str:
    return ", ".join(f"{base} = 1: {ratio}" for base, ratio in ratios.items())


def picture(figures: Mapping[str, Mapping[int, Ratios]], title: str) -> Figure:
    """One panel per series; the ways differ in marker and line, not in colour."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, len(figures), sharey=True)
    for panel, (series, points) in zip(panels, figures.items(), strict=True):
        sizes = list(points)
        for shift, (base, style) in enumerate(zip(BASES, ("o-", "s--"), strict=True)):
            ratios = [points[size][base] for size in sizes]
            panel.errorbar(
                [size * (1 + 0.04 * shift) for size in sizes],  # so that bars do not hide bars
                [ratio.mean for ratio in ratios],
                yerr=_bars(ratios),
                fmt=style,
                color="black" if shift == 0 else "0.45",
                markerfacecolor="white" if shift else "black",
                capsize=3,
                label=f"{LABELS[base]} = 1",
            )
        panel.axhline(1, color="black", linewidth=0.6)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sizes, [str(size) for size in sizes])
        panel.set_xlabel(AXES[series])
    panels[0].set_ylabel("fastcap's time, as a multiple")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=9)
    return figure


def _bars(ratios: Sequence[Ratio]) -> list[list[float]]:
    below = [ratio.mean - ratio.low for ratio in ratios]
    above = [ratio.high - ratio.mean for ratio in ratios]
    return [below, above]


def main(arguments: list[str] | None = None) -> int:
    options = programs.parser_of("benchmarks.scaling", __doc__, rounds=7).parse_args(arguments)
    origin = programs.begin(options)
    if origin is None:
        return programs.CANNOT_START
    figures = measure(options.rounds)
    if options.out:
        write(options.out, origin, figures, options.rounds)
    return 0


def write(
    folder: Path, origin: Origin, figures: Mapping[str, Mapping[int, Ratios]], n_rounds: int
) -> None:
    """The figures and the picture, named after the day and the machine."""
    content = {
        "rounds": n_rounds,
        "ratios": {
            series: {
                size: {base: dataclasses.asdict(ratio) for base, ratio in ratios.items()}
                for size, ratios in points.items()
            }
            for series, points in figures.items()
        },
    }
    path = programs.write(folder, "scaling", origin, content)
    title = (
        f"extract_representations on {origin.machine.cpu}, {origin.machine.n_cores} cores, "
        f"torch {torch.__version__}, threads: {origin.n_threads}, {origin.day}\n"
        f"Bars: 95 % intervals of {n_rounds} rounds. Otherwise 4 sites, 128 samples, width 256."
    )
    picture(figures, title).savefig(path.with_suffix(".svg"))


if __name__ == "__main__":
    sys.exit(main())
