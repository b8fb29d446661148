"""What ran on a GPU: promises kept and missed, every way, and what others cost."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.figures.results import Content, Result
from benchmarks.figures.text import folded, paragraphs, table
from benchmarks.gpu.report import Figure, Range

PASS, WHOLE, STEADY, WRONG = "pass", "baseline = 1", "steady, baseline = 1", "wrong values"
ALLOWS = " allows"
SLOTS = "llama, all positions: slots"


def goals(result: Result) -> str:
    """Every promise, then every way."""
    rows = sorted(_goals(result.content))
    header = ("goal", "model and selection", "reached", "verdict")
    return paragraphs(
        brief(result), table(header, rows), folded("Every way", _ways(result.content))
    )


def brief(result: Result) -> str:
    """How many promises were kept, and the passes of the large model."""
    verdicts = [verdict for *_, verdict in _goals(result.content)]
    said = ", ".join(
        f"{verdicts.count(word)} {name}"
        for word, name in (("met", "met"), ("**missed**", "missed"), ("not shown", "not shown"))
    )
    parts = [
        f"Of {len(verdicts)} goals {said}: an interval with values on both sides shows nothing"
    ]
    for title, figures in _figures(result.content):
        if title == SLOTS and STEADY in figures:
            parts.append(
                f"a Llama's passes with every position of every block captured take "
                f"{_ratio(figures[STEADY])} times as long as without"
            )
    return "; ".join(parts) + "."


def peers(result: Result) -> str:
    """Everybody's ways, whole runs."""
    return _ways(result.content)


def peers_brief(result: Result) -> str:
    figures = dict(_figures(result.content))
    named = ("hook, .cpu()", "hook, pinned, side stream", "fastcap stream, lent")
    ratios = [
        f"{name} {_ratio(figures[title][WHOLE])}"
        for name in named
        if WHOLE in figures.get(title := f"llama, all positions: {name}", {})
    ]
    return f"All positions of every block of a Llama, baseline = 1: {'; '.join(ratios)}."


def has_llama(result: Result) -> bool:
    """Whether it is of all peers, and not of one question asked again."""
    return any(title.startswith("llama") for title, _ in _figures(result.content))


def _figures(content: Content) -> Iterator[tuple[str, Mapping[str, Mapping[str, Any]]]]:
    for entry in content["entries"]:
        if entry["status"] == "measured":
            yield entry["title"], {figure["name"]: figure for figure in entry["figures"]}


def _ways(content: Content) -> str:
    """A row for each way. The program that knew no `--only` took some passes of the steady state
    for those of the other way: of its files whole runs are shown.
    """
    is_steady_right = "only" in content
    header = ["question", "ms per pass", "whole run, baseline = 1"]
    header += ["steady state, baseline = 1"] if is_steady_right else []
    rows = []
    for title, figures in _figures(content):
        if WHOLE in figures:
            row = [title, f"{figures[PASS]['value']:.1f}", _ratio(figures[WHOLE])]
            row += [_ratio(figures[STEADY])] if is_steady_right and STEADY in figures else []
            assert figures[WRONG]["value"] == 0, title
            rows.append(row)
    return paragraphs(
        table(header, rows), "Every value of every way equalled the oracle's, bit for bit."
    )


def _goals(content: Content) -> Iterator[tuple[str, ...]]:
    for title, figures in _figures(content):
        for name, figure in figures.items():
            if figure["goal"]:
                is_share = name.endswith(ALLOWS)
                reached = _ratio(figure) if figure["interval"] else f"{figure['value']:.3g}"
                reached = f"{reached} {'' if is_share else figure['unit'].strip('x')}".strip()
                yield figure["goal"], title, reached, _verdict(figure)


def _verdict(figure: Mapping[str, Any]) -> str:
    promised = Range.of_promise(figure["predicted"])
    interval = None if figure["interval"] is None else _ends(figure)
    verdict = Figure(figure["name"], figure["value"], "", promised, interval).verdict
    return "**missed**" if verdict == "MISSED" else verdict


def _ends(figure: Mapping[str, Any]) -> tuple[float, float]:
    low, high = (math.inf if end is None else end for end in figure["interval"])
    return low, high


def _ratio(figure: Mapping[str, Any]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(figure["value"], *_ends(figure))
