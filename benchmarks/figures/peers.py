"""fastcap beside other libraries: time, memory, values, and which bars are met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import bullets, paragraphs, signed, table
from benchmarks.peers.questions import GPT2
from benchmarks.peers.ways import BASELINE, FASTCAP, NNSIGHT, PEERS, SAE_LENS, TRANSFORMER_LENS
from fastcap.bench.equality import Difference
from fastcap.bench.floors import Floors
from fastcap.bench.timing import Ratio, paired_ratio
from fastcap.formatting import format_bytes

PICTURE = "peers.svg"
NAMES = {NNSIGHT: "nnsight", TRANSFORMER_LENS: "TransformerLens", SAE_LENS: "SAELens"}
TIME_BAR = 1.03
"""The most that the upper end of the interval of fastcap's time over a peer's may be."""


def is_whole(result: Result) -> bool:
    """Of every peer, and not on the model that tests use."""
    asked = {way for each in questions(result) for way in each.ways}
    return bool(result.content["model"] == asdict(GPT2)) and asked >= set(PEERS)


class Answered:
    """One question's figures."""

    def __init__(self, fields: Mapping[str, Any], floors: Floors) -> None:
        self.fields, self._floors = fields, floors
        self.name, self.what = str(fields["name"]), str(fields["what"])
        self._comparisons: list[dict[str, list[float]]] = fields["comparisons"]
        self.ways = list(dict.fromkeys(way for each in self._comparisons for way in each))
        self.peers = [way for way in self.ways if way in PEERS]
        self.values = {way: Difference(**found) for way, found in fields["values"].items()}

    def secs(self, way: str, beside: str) -> list[float]:
        """Of the rounds of every process that ran both."""
        both = [each for each in self._comparisons if way in each and beside in each]
        return [secs for each in both for secs in each[way]]

    def ratio(self, way: str, base: str) -> Ratio:
        return paired_ratio(self.secs(way, base), self.secs(base, way))

    def to_peer(self, peer: str) -> Ratio:
        """The time of fastcap, the peer's = 1."""
        return self.ratio(FASTCAP, peer)

    def added(self, way: str) -> dict[str, int]:
        """What capturing adds to the peak of the same run without, in bytes, by how batches are
        collected; empty if not measured.
        """
        peaks = self.fields["peaks"]
        return {
            collector: _growth(peak) - _growth(peaks[BASELINE]["rows"])
            for collector, peak in peaks.get(way, {}).items()
            if way != BASELINE
        }

    def meets_time_bar(self, peer: str) -> bool:
        return self.to_peer(peer).high <= TIME_BAR

    def meets_memory_bar(self, peer: str) -> bool | None:
        """Less than the peer however it collects; `None` where memory was not measured."""
        own, theirs = self.added(FASTCAP), self.added(peer)
        return own["rows"] < min(theirs.values()) if own and theirs else None

    def floor_secs(self) -> float | None:
        """The passes and one copy of the result, where the result is whole and in memory."""
        if self.fields["to_disk"] or self.fields["stop"]:
            return None
        gigabytes: float = self.fields["result_bytes"] / 1e9
        return self.median(BASELINE) + gigabytes / self._floors.into_result_gb_per_sec

    def median(self, way: str) -> float:
        """Over the rounds of every process that ran this way."""
        return statistics.median(self.secs(way, way))

    def missed(self) -> Iterator[str]:
        """Bars that are missed, in words."""
        if not self.values[FASTCAP].is_equal:
            yield f"{self.name}: fastcap's values are not the oracle's: {self.values[FASTCAP]}"
        for peer in self.peers:
            if not self.meets_time_bar(peer):
                ratio = self.to_peer(peer)
                yield f"{self.name}: fastcap takes {ratio} times as long as {NAMES[peer]}"
            if self.meets_memory_bar(peer) is False:
                own, theirs = (_peak(self, way) for way in (FASTCAP, peer))
                yield f"{self.name}: fastcap adds {own} to the peak, {NAMES[peer]} {theirs}"


def _growth(peak: Mapping[str, int]) -> int:
    return peak["host_bytes"] - peak["before_bytes"]


def questions(result: Result) -> list[Answered]:
    """In the order of the file."""
    floors = Floors(**result.content["floors"])
    return [Answered(fields, floors) for fields in result.content["questions"]]


def block(result: Result) -> str:
    """A picture, the bars, and a table per question."""
    parts = [
        f"![Time and peak memory of fastcap and its peers](images/{PICTURE})",
        _model(result),
        values(result),
        bars(result),
    ]
    for each in questions(result):
        parts += [_heading(each), table(HEADER, _rows(each)), bullets(_remarks(each))]
    return paragraphs(*parts)


def in_short(result: Result) -> str:
    """A ratio per peer, and whether the bars are met."""
    found = questions(result)
    peers = [peer for peer in NAMES if any(peer in each.peers for each in found)]
    header = ("fastcap beside", *(f"{NAMES[peer]}{_version(result, peer)}" for peer in peers))
    rows = []
    for each in found:
        rows.append((f"{each.what}: time, peer = 1", *(_time_cell(each, peer) for peer in peers)))
        if each.added(FASTCAP):
            cells = (_memory_cell(each, peer) for peer in peers)
            rows.append((f"{each.what}: peak memory added, fastcap / peer", *cells))
    return paragraphs(table(header, rows), values(result), bars(result))


def brief(result: Result) -> str:
    """For the summary."""
    return f"{bars(result).partition(' Missed:')[0]} {values(result)}"


def _version(result: Result, name: str) -> str:
    found = result.content["versions"].get(name)
    return f" {found}" if found else ""


def _time_cell(each: Answered, peer: str) -> str:
    return str(each.to_peer(peer)) if peer in each.peers else _absence(each, peer)


def _memory_cell(each: Answered, peer: str) -> str:
    theirs = each.added(peer)
    if not theirs:
        return _absence(each, peer)
    return f"{signed(each.added(FASTCAP)['rows'])} / {signed(min(theirs.values()))}"


def _absence(each: Answered, peer: str) -> str:
    return "not supported" if peer in each.fields["not_measured"] else "not measured"


def _model(result: Result) -> str:
    model = result.content["model"]
    *first, last = [f"{title}{_version(result, name)}" for name, title in NAMES.items()]
    n_rounds = len(result.content["questions"][0]["comparisons"][0][BASELINE])
    return (
        f"A GPT-2 with random weights, {model['n_layers']} layers of width {model['width']}, "
        f"float32, on the CPU. {', '.join(first)} and {last}, with transformers"
        f"{_version(result, 'transformers')}; {n_rounds} rounds beside each."
    )


def values(result: Result) -> str:
    """Whose values are the oracle's, bit for bit."""
    by_way: dict[str, list[bool]] = {}
    for each in questions(result):
        for way, found in each.values.items():
            by_way.setdefault(way, []).append(found.is_equal)
    said = [
        f"{NAMES.get(way, way)} in {sum(equal)} of {len(equal)}" for way, equal in by_way.items()
    ]
    return f"Questions in which every value equals the oracle's, bit for bit: {', '.join(said)}."


def bars(result: Result) -> str:
    """Which bars are met, and every one that is missed, in words."""
    found = questions(result)
    times = [each.meets_time_bar(peer) for each in found for peer in each.peers]
    memory = [each.meets_memory_bar(peer) for each in found for peer in each.peers]
    memory = [is_met for is_met in memory if is_met is not None]
    missed = [problem for each in found for problem in each.missed()]
    counts = (
        "The time bar, that the upper end of the interval of fastcap's time over the library's is "
        f"at most {TIME_BAR}, is met in {sum(times)} of {len(times)} comparisons; the memory bar, "
        "that fastcap has lower peak memory than the library however batches are collected, in "
        f"{sum(map(bool, memory))} of {len(memory)}."
    )
    if not missed:
        return f"{counts} Every bar is met."
    return f"{counts} Missed:\n\n{bullets(missed)}"


def _heading(each: Answered) -> str:
    fields = each.fields
    size = f"{fields['n_samples']} samples of {fields['n_tokens']} tokens"
    text = (
        f"**{each.name}: {each.what}.** {size}, {fields['batch_size']} per pass, a result of "
        f"{format_bytes(fields['result_bytes'])}."
    )
    if fields["n_memory_samples"] is None:
        return f"{text} Memory is not measured here."
    n_bytes = format_bytes(fields["memory_result_bytes"])
    return f"{text} Memory is that of {fields['n_memory_samples']} samples, {n_bytes}."


HEADER = (
    "way",
    "median, s",
    "time, baseline = 1",
    "fastcap's time, way = 1",
    f"at most {TIME_BAR}",
    "peak memory added",
    "fastcap adds less",
    "values beside the oracle's",
)


def _rows(each: Answered) -> Iterator[tuple[str, ...]]:
    floor = each.floor_secs()
    if floor is not None:
        share = floor / each.median(BASELINE)
        yield ("floor: passes and one copy", f"{floor:.3f}", f"{share:.3f}", *[""] * 5)
    for way in each.ways:
        is_peer = way in each.peers
        yield (
            NAMES.get(way, way),
            f"{each.median(way):.3f}",
            "1" if way == BASELINE else str(each.ratio(way, BASELINE)),
            str(each.to_peer(way)) if is_peer else "",
            _met(each.meets_time_bar(way)) if is_peer else "",
            _peak(each, way),
            _met(each.meets_memory_bar(way)) if is_peer else "",
            str(each.values.get(way, "")),
        )


def _met(is_met: bool | None) -> str:
    return "" if is_met is None else "met" if is_met else "**missed**"


def _peak(each: Answered, way: str) -> str:
    added = each.added(way)
    if way == FASTCAP or len(added) == 1:
        return signed(added["rows"]) if added else ""
    return ", ".join(f"{collector} {signed(n_bytes)}" for collector, n_bytes in added.items())


def _remarks(each: Answered) -> Iterator[str]:
    for way, why in each.fields["not_measured"].items():
        yield f"{NAMES.get(way, way)} is not in this table: {why}"
    for way, found in each.values.items():
        if not found.is_equal:
            beside = Difference(**each.fields["values_to_eager"][way])
            name = NAMES.get(way, way)
            yield f"{name}, beside the oracle on a model with eager attention: {beside}."
