"""fastcap beside other libraries: time, memory, values, and which bars are met."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import interval, listed, paragraphs, table
from benchmarks.peers.judge import Verdict
from benchmarks.peers.questions import GPT2
from benchmarks.peers.report import TIME_BAR, Comparison, secs_of, ways_of
from benchmarks.peers.ways import FASTCAP, HOOKLESS, PEERS
from fastcap.bench.floors import Floors
from fastcap.formatting import format_bytes

PICTURE = "peers.svg"
NAMES = {"nnsight": "nnsight", "transformer-lens": "TransformerLens", "sae-lens": "SAELens"}


def is_whole(result: Result) -> bool:
    """Of every peer, and not on the model that tests use."""
    asked = {way for each in questions(result) for way in each.ways}
    return bool(result.content["model"] == asdict(GPT2)) and asked >= set(PEERS)


class Answered:
    """One question's figures."""

    def __init__(self, fields: Mapping[str, Any], floors: Floors) -> None:
        self.fields, self._floors = fields, floors
        self.name, self.what = str(fields["name"]), str(fields["what"])
        self.peers = list(fields["fastcap_to_peer"])
        self._comparisons: list[Comparison] = fields["comparisons"]
        self.ways = ways_of(self._comparisons)

    def to_peer(self, peer: str) -> Mapping[str, float]:
        """The time of fastcap, the peer's = 1."""
        ratio: Mapping[str, float] = self.fields["fastcap_to_peer"][peer]
        return ratio

    def added(self, way: str) -> dict[str, int]:
        """Peak memory added, in bytes, by how batches are collected; empty if not measured."""
        if way == HOOKLESS:
            return {}
        return dict(self.fields["peak_added_bytes"].get(way, {}))

    def meets_time_bar(self, peer: str) -> bool:
        return self.to_peer(peer)["high"] <= TIME_BAR

    def meets_memory_bar(self, peer: str) -> bool | None:
        """Less than the peer however it collects; `None` where memory was not measured."""
        own, theirs = self.added(FASTCAP), self.added(peer)
        if not own or not theirs:
            return None
        return own["rows"] < min(theirs.values())

    def floor_secs(self) -> float | None:
        """The passes and one copy of the result, where the result is whole and in memory."""
        if self.fields["to_disk"] or self.fields["stop"]:
            return None
        gigabytes: float = self.fields["result_bytes"] / 1e9
        return self.median(HOOKLESS) + gigabytes / self._floors.into_result_gb_per_sec

    def median(self, way: str) -> float:
        return statistics.median(secs_of(self._comparisons, way))


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
        parts += [
            _heading(each),
            table(HEADER, _rows(each)),
            "\n".join(f"* {remark}" for remark in _remarks(each)),
        ]
    return paragraphs(*parts)


def readme_block(result: Result) -> str:
    """A ratio per peer, and whether the bars are met."""
    peers = [peer for peer in NAMES if any(peer in each.peers for each in questions(result))]
    header = ("fastcap beside", *(f"{NAMES[peer]}{_version(result, peer)}" for peer in peers))
    rows = []
    for each in questions(result):
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
    return interval(each.to_peer(peer)) if peer in each.peers else _absence(each, peer)


def _memory_cell(each: Answered, peer: str) -> str:
    theirs = each.added(peer)
    if not theirs:
        return _absence(each, peer)
    return f"{_signed(each.added(FASTCAP)['rows'])} / {_signed(min(theirs.values()))}"


def _absence(each: Answered, peer: str) -> str:
    return "does not do this" if peer in each.fields["not_measured"] else "not measured"


def _model(result: Result) -> str:
    model = result.content["model"]
    versions = [f"{title}{_version(result, name)}" for name, title in NAMES.items()]
    n_rounds = len(result.content["questions"][0]["comparisons"][0][HOOKLESS])
    return (
        f"A GPT-2 with random weights, {model['n_layers']} layers of width {model['width']}, "
        f"float32, on the CPU. {listed(versions)}, with transformers"
        f"{_version(result, 'transformers')}; {n_rounds} rounds beside each."
    )


def values(result: Result) -> str:
    """Whose values are the oracle's, bit for bit."""
    by_way: dict[str, list[bool]] = {}
    for each in questions(result):
        for way, found in each.fields["values"].items():
            by_way.setdefault(way, []).append(Verdict(**found).is_equal)
    said = [
        f"{NAMES.get(way, way)} in {sum(equal)} of {len(equal)}" for way, equal in by_way.items()
    ]
    return f"Questions in which every value equals the oracle's, bit for bit: {', '.join(said)}."


def bars(result: Result) -> str:
    """Which bars are met, and every one that is missed, in words."""
    times = [(each, peer) for each in questions(result) for peer in each.peers]
    memory = [(each, peer) for each, peer in times if each.meets_memory_bar(peer) is not None]
    n_times = sum(each.meets_time_bar(peer) for each, peer in times)
    n_memory = sum(bool(each.meets_memory_bar(peer)) for each, peer in memory)
    missed = list(result.content["headline"]["broken_bars"])
    counts = (
        f"The time bar, that the upper end of the interval of fastcap's time over the peer's be "
        f"at most {TIME_BAR}, is met in {n_times} of {len(times)} comparisons; the memory bar, "
        f"that fastcap add less to the peak than the peer however batches are collected, in "
        f"{n_memory} of {len(memory)}."
    )
    if not missed:
        return f"{counts} Every bar is met."
    return f"{counts} Missed:\n\n" + "\n".join(f"* {problem}" for problem in missed)


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
    "time, hookless = 1",
    "fastcap's time, way = 1",
    f"at most {TIME_BAR}",
    "peak memory added",
    "fastcap adds less",
    "values beside the oracle's",
)


def _rows(each: Answered) -> Iterator[tuple[str, ...]]:
    floor = each.floor_secs()
    if floor is not None:
        share = floor / each.median(HOOKLESS)
        yield ("floor: passes and one copy", f"{floor:.3f}", f"{share:.3f}", *[""] * 5)
    for way in each.ways:
        yield (
            NAMES.get(way, way),
            f"{each.median(way):.3f}",
            "1" if way == HOOKLESS else interval(each.fields["ratios_to_hookless"][way]),
            interval(each.to_peer(way)) if way in each.peers else "",
            _met(each.meets_time_bar(way)) if way in each.peers else "",
            _peak(each, way),
            _met(each.meets_memory_bar(way)) if way in each.peers else "",
            _values(each, way),
        )


def _met(is_met: bool | None) -> str:
    return "" if is_met is None else "met" if is_met else "**missed**"


def _peak(each: Answered, way: str) -> str:
    added = each.added(way)
    if way == FASTCAP or len(added) == 1:
        return _signed(added["rows"]) if added else ""
    return ", ".join(f"{collector} {_signed(n_bytes)}" for collector, n_bytes in added.items())


def _values(each: Answered, way: str) -> str:
    found = each.fields["values"].get(way)
    return "" if found is None else str(Verdict(**found))


def _remarks(each: Answered) -> Iterator[str]:
    for way, why in each.fields["not_measured"].items():
        yield f"{NAMES.get(way, way)} is not in this table: {why}"
    for way, found in each.fields["values"].items():
        if not Verdict(**found).is_equal:
            beside = Verdict(**each.fields["values_to_eager"][way])
            yield (
                f"{NAMES.get(way, way)}, beside the oracle on a model with eager attention: "
                f"{beside}."
            )


def _signed(n_bytes: int) -> str:
    return format_bytes(n_bytes) if n_bytes >= 0 else f"-{format_bytes(-n_bytes)}"
