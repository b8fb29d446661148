"""The suite: every workload in every way, beside hookless, the plain hook and the floors."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import folded, interval, paragraphs, table, verdict
from benchmarks.grid import GPT2_SIZED
from fastcap.bench.floors import Floors, Prediction, predict, predict_archive
from fastcap.bench.report import brief as ratio_fields
from fastcap.bench.timing import paired_ratio
from fastcap.bench.ways import ARCHIVE, FASTCAP, HOOK, HOOKLESS
from fastcap.formatting import format_bytes

PICTURE = "overhead.svg"


def is_whole(result: Result) -> bool:
    """Not of some workloads only, which the name would say, and not on an accelerator."""
    name = f"{result.content['date'][:10]}-suite-{result.machine.tag}.json"
    return result.path.name == name and str(result.content["device"]) == "cpu"


def block(result: Result) -> str:
    """A picture, a row per workload, and a row per way for who opens it."""
    return paragraphs(
        f"![Time of each way by workload, hookless = 1](images/{PICTURE})",
        "Ways that are not in the picture, such as archives, and intervals that leave it are in "
        "the table of every way.",
        _reading(result),
        table(HEADER, map(_row, workloads(result))),
        folded("Every way in every workload", table(WAYS_HEADER, _way_rows(result))),
    )


def brief(result: Result) -> str:
    """For the summary."""
    return _reading(result)


class Measured:
    """One workload's figures."""

    def __init__(self, name: str, fields: Mapping[str, Any], floors: Floors) -> None:
        self.name, self.fields, self._floors = name, fields, floors
        self.secs: Mapping[str, list[float]] = fields["secs"]

    def ms_per_pass(self, way: str) -> float:
        return 1e3 * statistics.median(self.secs[way]) / int(self.fields["passes"])

    def to_hookless(self, way: str) -> Mapping[str, float]:
        ratios: Mapping[str, Mapping[str, float]] = self.fields["ratios_to_hookless"]
        return ratios[way]

    def to_hook(self, way: str) -> dict[str, float]:
        return ratio_fields(paired_ratio(self.secs[way], self.secs[HOOK]))

    def floor(self, way: str = FASTCAP) -> Prediction | None:
        """What nothing but the floors would take; `None` for ways that have none of their own."""
        make = {FASTCAP: predict, ARCHIVE: predict_archive}.get(way)
        if make is None:
            return None
        return make(self.fields["captured_bytes"], self._floors, self._hookless_secs)

    def floor_to_hookless(self, way: str = FASTCAP) -> float | None:
        floor = self.floor(way)
        return None if floor is None else floor.secs / self._hookless_secs

    def to_floor(self, way: str) -> str:
        """The way's time as a multiple of its floor's."""
        floor = self.floor(way)
        return "" if floor is None else f"{statistics.median(self.secs[way]) / floor.secs:.3f}"

    @property
    def is_large(self) -> bool:
        return self.name.startswith(f"{GPT2_SIZED.name}-")

    @property
    def bytes_per_pass(self) -> str:
        return format_bytes(self.fields["captured_bytes"] / self.fields["passes"])

    @property
    def _hookless_secs(self) -> float:
        return statistics.median(self.secs[HOOKLESS])


def workloads(result: Result) -> list[Measured]:
    """The large model first, otherwise in the order of the file."""
    floors = Floors(**result.content["floors"])
    found = [Measured(name, fields, floors) for name, fields in result.content["workloads"].items()]
    return sorted(found, key=lambda each: not each.is_large)


def _reading(result: Result) -> str:
    found = workloads(result)
    said = Counter(verdict(each.to_hook(FASTCAP)) for each in found)
    differing = [
        f"{way} in {each.name}"
        for each in found
        for way, number in each.fields["mismatches"].items()
        if number
    ]
    values = "every value of every way equalled the oracle's"
    if differing:
        values = f"values DIFFER from the oracle's: {', '.join(differing)}"
    return (
        f"In {len(found)} workloads, by the 95 % interval of {result.content['rounds']} rounds, "
        f"fastcap takes less time than the plain hook in {said['less']}, more in {said['more']}, "
        f"and in {said['same']} no difference is shown; {values}. {_ranges(found)}"
    )


def _ranges(found: Sequence[Measured]) -> str:
    """How far the workloads lie apart."""
    said = []
    for name, is_large in (("on the model of GPT-2's size", True), ("on the small ones", False)):
        means = [e.to_hookless(FASTCAP)["mean"] for e in found if e.is_large == is_large]
        if means:
            said.append(f"{min(means):.3f} to {max(means):.3f} {name}")
    return f"The time of fastcap, hookless = 1, is {' and '.join(said)}."


HEADER = (
    "workload",
    "captured per pass",
    "hookless, ms per pass",
    "floor, hookless = 1",
    "plain hook, hookless = 1",
    "fastcap, hookless = 1",
    "fastcap, plain hook = 1",
    "fastcap, floor = 1",
)


def _row(each: Measured) -> tuple[str, ...]:
    return (
        each.name,
        each.bytes_per_pass,
        f"{each.ms_per_pass(HOOKLESS):.3f}",
        f"{each.floor_to_hookless():.3f}",
        interval(each.to_hookless(HOOK)),
        interval(each.to_hookless(FASTCAP)),
        interval(each.to_hook(FASTCAP)),
        each.to_floor(FASTCAP),
    )


WAYS_HEADER = (
    "workload",
    "way",
    "ms per pass",
    "hookless = 1",
    "plain hook = 1",
    "its floor = 1",
    "floor",
    "values that differ",
)


def _way_rows(result: Result) -> Iterator[tuple[str, ...]]:
    for each in workloads(result):
        for way in each.secs:
            floor = each.floor(way)
            yield (
                each.name,
                way,
                f"{each.ms_per_pass(way):.3f}",
                "1" if way == HOOKLESS else interval(each.to_hookless(way)),
                "" if way in (HOOKLESS, HOOK) else interval(each.to_hook(way)),
                each.to_floor(way),
                "" if floor is None else floor.what,
                "" if way == HOOKLESS else str(each.fields["mismatches"][way]),
            )
