"""The suite: every way in every workload, beside the baseline, the synchronous hook and floors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import comparison, folded, paragraphs, table, verdict
from benchmarks.workloads import ACCEPTANCE, GPT2_SIZED
from fastcap.bench import Overhead, Ratio
from fastcap.bench.floors import Floors, Prediction, predict, predict_archive
from fastcap.bench.ways import ARCHIVE, BASELINE, FASTCAP, HOOK
from fastcap.formatting import format_bytes

PICTURE = "overhead.svg"
NAMES = {
    HOOK: "synchronous hook (`.detach().cpu()`, then `cat`)",
    FASTCAP: "fastcap",
}


def is_whole(result: Result) -> bool:
    """Every workload, on the CPU."""
    return not result.content["only"] and str(result.content["device"]) == "cpu"


def has_acceptance(result: Result) -> bool:
    return ACCEPTANCE.name in result.content["workloads"]


class Measured:
    """One workload's figures.

    Attributes:
        name: The workload.
        fields: What the result file has of it.
        overhead: The part of it that `fastcap.bench` wrote.
    """

    def __init__(self, name: str, fields: Mapping[str, Any], floors: Floors) -> None:
        self.name, self.fields, self._floors = name, fields, floors
        self.overhead = Overhead(
            secs=fields["secs"],
            n_mismatches=fields["mismatches"],
            problems=fields["problems"],
            captured_bytes=fields["captured_bytes"],
            n_passes=fields["passes"],
            n_samples=fields["samples"],
            sites=fields["sites"],
        )

    @property
    def ways(self) -> list[str]:
        return list(self.overhead.secs)

    def ms_per_pass(self, way: str) -> str:
        return f"{1e3 * self.overhead.median_secs(way) / self.overhead.n_passes:.3f}"

    def to_baseline(self, way: str) -> Ratio:
        return self.overhead.ratio(way, BASELINE)

    def to_hook(self, way: str) -> Ratio:
        return self.overhead.ratio(way, HOOK)

    def floor(self, way: str = FASTCAP) -> Prediction:
        """What nothing but the floors would take into memory, or to an archive."""
        make = predict_archive if way == ARCHIVE else predict
        baseline_secs = self.overhead.median_secs(BASELINE)
        return make(self.overhead.captured_bytes, self._floors, baseline_secs)

    def floor_to_baseline(self) -> float:
        return self.floor().secs / self.overhead.median_secs(BASELINE)

    def to_floor(self, way: str = FASTCAP) -> str:
        """The way's time as a multiple of its floor's."""
        return f"{self.overhead.median_secs(way) / self.floor(way).secs:.3f}"

    @property
    def is_large(self) -> bool:
        return self.name.startswith(f"{GPT2_SIZED.name}-")

    @property
    def differing(self) -> list[str]:
        return [way for way, number in self.overhead.n_mismatches.items() if number]


def workloads(result: Result) -> list[Measured]:
    """The large model first, otherwise in the order of the file."""
    of_grid = [each for each in _all(result) if each.name != ACCEPTANCE.name]
    return sorted(of_grid, key=lambda each: not each.is_large)


def _all(result: Result) -> list[Measured]:
    floors, found = Floors(**result.content["floors"]), result.content["workloads"]
    return [Measured(name, fields, floors) for name, fields in found.items()]


def block(result: Result) -> str:
    """A picture, a row per workload, and a row per way for who opens it."""
    return paragraphs(
        f"![Time of each way by workload, baseline = 1](images/{PICTURE})",
        "Ways that are not in the picture, such as archives, and intervals that leave it are in "
        "the table of every way.",
        brief(result),
        table(HEADER, map(_row, workloads(result))),
        folded("Every way in every workload", every_way(workloads(result))),
    )


def brief(result: Result) -> str:
    """For the summary."""
    found = workloads(result)
    said = Counter(verdict(each.to_hook(FASTCAP)) for each in found)
    differing = [f"{way} in {each.name}" for each in found for way in each.differing]
    values = "every value of every way equalled the oracle's"
    if differing:
        values = f"values DIFFER from the oracle's: {', '.join(differing)}"
    ranges = []
    for name, is_large in (("on the model of GPT-2's size", True), ("on the small ones", False)):
        means = [each.to_baseline(FASTCAP).mean for each in found if each.is_large == is_large]
        if means:
            ranges.append(f"{min(means):.3f} to {max(means):.3f} {name}")
    return (
        f"In {len(found)} workloads, by the 95 % interval of {result.content['rounds']} rounds, "
        f"fastcap takes less time than the synchronous hook in {said['less']}, more in "
        f"{said['more']}, and in {said['same']} no difference is shown; {values}. The time of "
        f"fastcap, baseline = 1, is {' and '.join(ranges)}."
    )


HEADER = (
    "workload",
    "captured per pass",
    "baseline, ms per pass",
    "floor, baseline = 1",
    "synchronous hook, baseline = 1",
    "fastcap, baseline = 1",
    "fastcap, synchronous hook = 1",
    "fastcap, floor = 1",
)


def _row(each: Measured) -> tuple[str, ...]:
    return (
        each.name,
        format_bytes(each.overhead.captured_bytes / each.overhead.n_passes),
        each.ms_per_pass(BASELINE),
        f"{each.floor_to_baseline():.3f}",
        str(each.to_baseline(HOOK)),
        str(each.to_baseline(FASTCAP)),
        str(each.to_hook(FASTCAP)),
        each.to_floor(),
    )


WAYS_HEADER = (
    "workload",
    "way",
    "ms per pass",
    "baseline = 1",
    "synchronous hook = 1",
    "its floor = 1",
    "floor",
    "values that differ",
)


def every_way(found: Iterable[Measured]) -> str:
    """A row per way of each workload."""
    return table(WAYS_HEADER, [_way_row(each, way) for each in found for way in each.ways])


def _way_row(each: Measured, way: str) -> tuple[str, ...]:
    has_floor = way in (FASTCAP, ARCHIVE)
    return (
        each.name,
        way,
        each.ms_per_pass(way),
        "1" if way == BASELINE else str(each.to_baseline(way)),
        "" if way in (BASELINE, HOOK) else str(each.to_hook(way)),
        each.to_floor(way) if has_floor else "",
        each.floor(way).what if has_floor else "",
        "" if way == BASELINE else str(each.overhead.n_mismatches[way]),
    )


# One large result


ACCEPTANCE_HEADER = (
    "way",
    "median, s",
    "time, baseline = 1",
    "time, synchronous hook = 1",
    "peak memory added",
    "the same, result = 1",
)


def acceptance(result: Result) -> str:
    """Times, floor and memory, with what was run."""
    found = _acceptance(result)
    floor, base_secs = found.floor(), found.overhead.median_secs(BASELINE)
    floor_share = f"{found.floor_to_baseline():.3f}"
    rows: list[tuple[str, ...]] = [
        (BASELINE, f"{base_secs:.2f}", "1", "", "", ""),
        (f"floor: {floor.what}", f"{floor.secs:.2f}", floor_share, "", "", ""),
    ]
    for way, name in NAMES.items():
        median = f"{found.overhead.median_secs(way):.2f}"
        to_hook = "1" if way == HOOK else str(found.to_hook(way))
        added = found.fields["peak_added_bytes"].get(way)
        memory = ("not measured", "not measured")
        if added is not None:
            memory = (format_bytes(added), _in_results(found, way))
        rows.append((name, median, str(found.to_baseline(way)), to_hook, *memory))
    said = comparison(found.to_hook(FASTCAP), "fastcap", "the synchronous hook")
    values = "Every value equalled the oracle's."
    if found.differing:
        values = f"Values of {', '.join(found.differing)} DIFFER from the oracle's."
    return paragraphs(
        _setting(result, found),
        table(ACCEPTANCE_HEADER, rows),
        f"{said[0].upper()}{said[1:]}. fastcap takes {found.to_floor()} times the floor "
        f"({floor.what}). {values}",
    )


def _acceptance(result: Result) -> Measured:
    return next(each for each in _all(result) if each.name == ACCEPTANCE.name)


def _in_results(found: Measured, way: str) -> str:
    return f"{found.fields['peak_added_bytes'][way] / found.overhead.captured_bytes:.2f}"


def acceptance_brief(result: Result) -> str:
    """For the summary."""
    found = _acceptance(result)
    to_hook = found.to_hook(FASTCAP)
    times = (
        f"fastcap takes {found.to_baseline(FASTCAP)} times as long as the same passes without "
        f"capture, and {to_hook} times as long as the synchronous hook "
        f"({comparison(to_hook, 'fastcap', 'the synchronous hook')})."
    )
    if not found.fields["peak_added_bytes"]:
        return times
    return (
        f"{times} It adds {_in_results(found, FASTCAP)} results to the peak of memory, the hook "
        f"{_in_results(found, HOOK)}."
    )


def _setting(result: Result, found: Measured) -> str:
    fields = found.fields
    modules = ", ".join(f"`{site}`" for site in found.overhead.sites)
    return (
        f"A random-weight decoder of {fields['n_layers']} layers and width {fields['width']}, "
        f"{found.overhead.n_samples} samples of {fields['n_tokens']} tokens, "
        f"{fields['batch_size']} per pass; the outputs of {modules} in {fields['dtype']}: "
        f"{format_bytes(found.overhead.captured_bytes)}. {result.machine.n_cores} CPU cores, "
        f"{len(found.overhead.secs[BASELINE])} rounds in which the ways alternate batch by batch; "
        "ratios are the geometric mean of the rounds', with its 95 % interval:"
    )
