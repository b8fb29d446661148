"""What a hook costs the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import paragraphs, table
from benchmarks.hook_cost import EMPTY, HOOKLESS

CLONE = "hook with .detach().clone()"
STORE, DECODING = "store", "store, last position"
NAMES = {
    EMPTY: "empty Python hook",
    "hook with .detach().cpu()": "hook with `.detach().cpu()`",
    CLONE: "hook with `.detach().clone()`",
}


def block(result: Result) -> str:
    """Microseconds per site and per pass."""
    return paragraphs(_reading(result), table(HEADER, _rows(result)))


def brief(result: Result) -> str:
    """For the summary."""
    return _reading(result)


def _reading(result: Result) -> str:
    costs, n_sites = result.content["micros_per_site"], result.content["sites"]
    said = f"An empty Python hook costs {_micros(costs[EMPTY])} µs per site"
    if CLONE in costs:
        said += f", one that clones the value {_micros(costs[CLONE])} µs"
    if STORE in costs:
        said += f", a site of a store {_micros(costs[STORE])} µs"
    if DECODING in costs:
        per_pass = costs[DECODING]["over_hookless"] * n_sites
        said += (
            f", and a step of decoding with the last token of {n_sites} sites {per_pass:.0f} µs "
            f"({_micros(costs[DECODING])} µs per site)"
        )
    return f"{said}: medians of {result.content['rounds']} rounds, over the pass without hooks."


HEADER = (
    "way",
    "µs per site, over hookless",
    "quartiles",
    "over an empty hook",
    "tenth percentile, over hookless",
    "µs per pass",
)


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    n_sites = result.content["sites"]
    for way, cost in result.content["micros_per_site"].items():
        if way == HOOKLESS:
            continue
        low, high = cost["quartiles"]
        yield (
            NAMES.get(way, way),
            _micros(cost),
            f"{low:.2f} to {high:.2f}",
            "" if way == EMPTY else f"{cost['over_empty']:.2f}",
            f"{cost['least']:.2f}",
            f"{cost['over_hookless'] * n_sites:.0f}",
        )


def _micros(cost: Mapping[str, Any]) -> str:
    return f"{cost['over_hookless']:.2f}"
