"""Which kinds of results, blocks and pictures there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.figures import (
    acceptance,
    copies,
    drawings,
    hooks,
    peers,
    runs,
    scaling,
    suite,
    virtual,
)
from benchmarks.figures.results import FigureError, Kind, Result, credit, newest
from benchmarks.figures.text import paragraphs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Render = Callable[[Result], str]

OUT = "--out benchmarks/results"
ACCEPTANCE = Kind("one large result", "*-acceptance-*.json", "python -m benchmarks.run")
SUITE = Kind("the suite", "*-suite-*.json", "python -m benchmarks.suite", suite.is_whole)
PEERS = Kind("other libraries", "peers-*.json", "make bench-peers", peers.is_whole)
HOOKS = Kind("hooks", "hook-cost-*.json", f"python -m benchmarks.hook_cost --rounds 1500 {OUT}")
COPIES = Kind("copies", "host-copy-*.json", f"python -m benchmarks.host_copy {OUT}")
SCALING = Kind("scaling", "scaling-*.json", f"python -m benchmarks.scaling {OUT}")
ARCHIVE = Kind(
    "archives",
    "archive-*.json",
    f"python -m benchmarks.archive --rounds 11 --memory 1 4 20 {OUT}",
)
EARLY_STOP = Kind(
    "passes that end early",
    "early-stop-*.json",
    f"python -m benchmarks.early_stop --rounds 9 {OUT}",
)
VIRTUAL = Kind("the virtual clock", "virtual-*.json", f"python -m benchmarks.virtual {OUT}")
IMPORTS = Kind("importing", "imports-*.json", f"python -m benchmarks.imports {OUT}")

BRIEFS: Mapping[Kind, tuple[str, Render]] = {
    ACCEPTANCE: ("one-large-result", acceptance.brief),
    SUITE: ("the-suite", suite.brief),
    PEERS: ("other-libraries", peers.brief),
    HOOKS: ("hooks", hooks.brief),
    COPIES: ("copies", copies.brief),
    SCALING: ("scaling", scaling.brief),
    ARCHIVE: ("archives", runs.archive_brief),
    EARLY_STOP: ("passes-that-end-early", runs.early_stop_brief),
    IMPORTS: ("importing", runs.imports_brief),
}
"""By kind, the heading of its section and its line in the summary."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where result files are, and how a page gets there."""

    results: Path
    to_results: str


Block = Callable[[Place], str]


def of_kind(kind: Kind, render: Render) -> Block:
    """A block with the newest figures of a kind, and where they come from."""

    def write(place: Place) -> str:
        result = newest(place.results, kind)
        if result is None:
            return kind.not_measured
        return paragraphs(render(result), credit(result, place.to_results))

    return write


def summary(place: Place) -> str:
    """A line per kind."""
    lines = []
    for kind, (heading, brief) in BRIEFS.items():
        result = newest(place.results, kind)
        said = kind.not_measured if result is None else brief(result)
        if result is not None and result.is_busy:
            said += " Measured while other work ran."
        lines.append(f"* [{kind.title[0].upper()}{kind.title[1:]}](#{heading}). {said}")
    return "\n".join(lines)


def gaps(place: Place) -> str:
    """Which kinds have no result file."""
    missing = [kind for kind in BRIEFS if newest(place.results, kind) is None]
    if not missing:
        return "Every kind of figure on this page has been measured on a CPU."
    lines = "\n".join(f"* {kind.title}: `{kind.command}`" for kind in missing)
    return f"Kinds of figures on this page that have no result file yet:\n\n{lines}"


BLOCKS: Mapping[str, Block] = {
    "summary": summary,
    "acceptance": of_kind(ACCEPTANCE, acceptance.block),
    "acceptance, in short": of_kind(ACCEPTANCE, acceptance.readme_block),
    "suite": of_kind(SUITE, suite.block),
    "peers": of_kind(PEERS, peers.block),
    "peers, in short": of_kind(PEERS, peers.readme_block),
    "hooks": of_kind(HOOKS, hooks.block),
    "floors": of_kind(ACCEPTANCE, copies.floors_block),
    "copies": of_kind(COPIES, copies.block),
    "scaling": of_kind(SCALING, scaling.block),
    "archive": of_kind(ARCHIVE, runs.archive_block),
    "early stop": of_kind(EARLY_STOP, runs.early_stop_block),
    "virtual": of_kind(VIRTUAL, virtual.block),
    "imports": of_kind(IMPORTS, runs.imports_block),
    "gaps": gaps,
}

PICTURES: Mapping[str, tuple[Kind, Callable[[Result], Figure]]] = {
    suite.PICTURE: (SUITE, drawings.overhead),
    peers.PICTURE: (PEERS, drawings.beside_peers),
    scaling.PICTURE: (SCALING, drawings.growth),
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


def writer(place: Place) -> Callable[[str], str]:
    """What `pages.rewrite` asks for."""
    return partial(write_block, place)
