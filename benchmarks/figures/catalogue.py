"""Which kinds of results, blocks and pictures there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import drawings, gpu, peers, small, suite
from benchmarks.figures.results import FigureError, Kind, Render, Result, credit, newest
from benchmarks.figures.text import bullets, paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURE = "python -m benchmarks"
OUT = "--out benchmarks/results"
ACCEPTANCE = Kind(
    "one large result",
    "suite",
    f"{MEASURE}.suite --only acceptance",
    suite.acceptance,
    suite.acceptance_brief,
    suite.has_acceptance,
)
SUITE = Kind("the suite", "suite", f"{MEASURE}.suite", suite.block, suite.brief, suite.is_whole)
PEERS = Kind(
    "other libraries", "peers", "make bench-peers", peers.block, peers.brief, peers.is_whole
)
HOOKS = Kind(
    "hooks",
    "hook-cost",
    f"{MEASURE}.hook_cost --rounds 1500 {OUT}",
    small.hooks,
    small.hooks_brief,
)
COPIES = Kind("copies", "host-copy", f"{MEASURE}.host_copy {OUT}", small.copies, small.copies_brief)
SCALING = Kind("scaling", "scaling", f"{MEASURE}.scaling {OUT}", small.scaling, small.scaling_brief)
ARCHIVE = Kind(
    "archives",
    "archive",
    f"{MEASURE}.archive --rounds 11 --memory 1 4 20 {OUT}",
    small.archive,
    small.archive_brief,
)
EARLY_STOP = Kind(
    "passes that end early",
    "early-stop",
    f"{MEASURE}.early_stop --rounds 9 {OUT}",
    small.early_stop,
    small.early_stop_brief,
)
IMPORTS = Kind("importing", "imports", f"{MEASURE}.imports {OUT}", small.imports, small.imports)
VIRTUAL = Kind("the virtual clock", "virtual", f"{MEASURE}.virtual {OUT}", small.virtual)
GPU = Kind(
    "on a GPU", "gpu-bench", "make gpu-bench", gpu.goals, gpu.brief, lambda r: "only" in r.content
)
GPU_FIRST = Kind(
    "the first run on a GPU",
    "gpu-bench",
    GPU.command,
    gpu.peers,
    accepts=lambda r: not GPU.accepts(r),
)
GPU_PEERS = Kind(
    "others on a GPU", "gpu-peers", "make gpu-peers", gpu.peers, gpu.peers_brief, gpu.has_llama
)
GPU_MORE = Kind(
    "more on a GPU",
    "gpu-peers",
    GPU_PEERS.command,
    gpu.peers,
    accepts=lambda r: not gpu.has_llama(r),
)

KINDS = (
    *(ACCEPTANCE, SUITE, PEERS, HOOKS, COPIES, SCALING, ARCHIVE, EARLY_STOP, IMPORTS, VIRTUAL),
    *(GPU, GPU_FIRST, GPU_PEERS, GPU_MORE),
)
IN_SUMMARY = tuple(kind for kind in KINDS if kind.brief is not None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where result files are, and how a page gets there."""

    results: Path
    to_results: str


Block = Callable[[Place], str]


def with_credit(kind: Kind, render: Render, place: Place) -> str:
    """The newest figures of a kind, and where they come from."""
    result = newest(place.results, kind)
    if result is None:
        return kind.not_measured
    return paragraphs(render(result), credit(result, place.to_results))


def summary(place: Place) -> str:
    """A line per kind."""
    lines = []
    for kind in IN_SUMMARY:
        result = newest(place.results, kind)
        said = kind.not_measured
        if result is not None and kind.brief is not None:
            said = kind.brief(result)
            said += " Measured while other work ran." if result.is_busy else ""
        lines.append(f"[{kind.title[0].upper()}{kind.title[1:]}](#{kind.heading}). {said}")
    return bullets(lines)


BLOCKS: Mapping[str, Block] = {
    "summary": summary,
    **{kind.title: partial(with_credit, kind, kind.block) for kind in KINDS},
    "floors": partial(with_credit, ACCEPTANCE, small.floors),
    "other libraries, in short": partial(with_credit, PEERS, peers.in_short),
}

PICTURES: Mapping[str, tuple[Kind, Callable[[Result], Figure]]] = {
    suite.PICTURE: (SUITE, drawings.overhead),
    peers.PICTURE: (PEERS, drawings.beside_peers),
    small.SCALING_PICTURE: (SCALING, drawings.growth),
}
"""By file name."""


def write_block(place: Place, name: str) -> str:
    """A block's text.

    Raises:
        FigureError: There is no such block.
    """
    if name not in BLOCKS:
        raise FigureError(f"There is no block {name!r}; there are {', '.join(BLOCKS)}.")
    return BLOCKS[name](place)


def shown(name: str, result: Result) -> str:
    """What a program prints of what it has just measured, a `hook-cost` or a `cuda-hook-cost`."""
    longest = max((kind.name for kind in KINDS if name.endswith(kind.name)), key=len)
    of_name = [kind for kind in KINDS if kind.name == longest]
    return next((kind for kind in of_name if kind.accepts(result)), of_name[0]).block(result)
