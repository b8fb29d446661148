"""The suite: every way in every workload, beside the baseline, the synchronous hook and floors."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import comparison, folded, interval, paragraphs, table, verdict
from benchmarks.workloads import ACCEPTANCE, GPT2_SIZED
from fastcap.bench.floors import Floors, Prediction, predict, predict_archive
from fastcap.bench.report import brief as ratio_fields
from fastcap.bench.timing import paired_ratio
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
    """One workload's figures."""

    def __init__(self, name: str, fields: Mapping[str, Any], floors: Floors) -> None:
        self.name, self.fields, self._floors = name, fields, floors
        self.secs: Mapping[str, list[float]] = fields["secs"]

    def median(self, way: str) -> float:
        return statistics.median(self.secs[way])

    def ms_per_pass(self, way: str) -> float:
        return 1e3 * self.median(way) / int(self.fields["passes"])

    def to_baseline(self, way: str) -> Mapping[str, float]:
        ratios: Mapping[str, Mapping[str, float]] = self.fields["ratios_to_baseline"]
        return ratios[way]

    def to_hook(self, way: str) -> dict[str, float]:
        return ratio_fields(paired_ratio(self.secs[way], self.secs[HOOK]))

    def floor(self, way: str = FASTCAP) -> Prediction | None:
        """What nothing but the floors would take; `None` for ways that have none of their own."""
        make = {FASTCAP: predict, ARCHIVE: predict_archive}.get(way)
        if make is None:
            return None
        return make(self.fields["captured_bytes"], self._floors, self.median(BASELINE))

    def floor_to_baseline(self, way: str = FASTCAP) -> float | None:
        floor = self.floor(way)
        return None if floor is None else floor.secs / self.median(BASELINE)

    def to_floor(self, way: str) -> str:
        """The way's time as a multiple of its floor's."""
        floor = self.floor(way)
        return "" if floor is None else f"{self.median(way) / floor.secs:.3f}"

    @property
    def is_large(self) -> bool:
        return self.name.startswith(f"{GPT2_SIZED.name}-")

    @property
    def differing(self) -> list[str]:
        return [way for way, number in self.fields["mismatches"].items() if number]


def workloads(result: Result) -> list[Measured]:
    """The large model first, otherwise in the order of the file."""
    floors = Floors(**result.content["floors"])
    found = [Measured(name, fields, floors) for name, fields in result.content["workloads"].items()]
    of_grid = [each for each in found if each.name != ACCEPTANCE.name]
    return sorted(of_grid, key=lambda each: not each.is_large)


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
        means = [e.to_baseline(FASTCAP)["mean"] for e in found if e.is_large == is_large]
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
        format_bytes(each.fields["captured_bytes"] / each.fields["passes"]),
        f"{each.ms_per_pass(BASELINE):.3f}",
        f"{each.floor_to_baseline():.3f}",
        interval(each.to_baseline(HOOK)),
        interval(each.to_baseline(FASTCAP)),
        interval(each.to_hook(FASTCAP)),
        each.to_floor(FASTCAP),
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
    return table(WAYS_HEADER, _way_rows(found))


def _way_rows(found: Iterable[Measured]) -> Iterator[tuple[str, ...]]:
    for each in found:
        for way in each.secs:
            floor = each.floor(way)
            yield (
                each.name,
                way,
                f"{each.ms_per_pass(way):.3f}",
                "1" if way == BASELINE else interval(each.to_baseline(way)),
                "" if way in (BASELINE, HOOK) else interval(each.to_hook(way)),
                each.to_floor(way),
                "" if floor is None else floor.what,
                "" if way == BASELINE else str(each.fields["mismatches"][way]),
            )


# One large result


def _acceptance(result: Result) -> Measured:
    fields, floors = result.content["workloads"][ACCEPTANCE.name], result.content["floors"]
    return Measured(ACCEPTANCE.name, fields, Floors(**floors))


def acceptance(result: Result) -> str:
    """Times, floor and memory, with what was run."""
    header = (
        "way",
        "median, s",
        "time, baseline = 1",
        "time, synchronous hook = 1",
        "peak memory added",
        "the same, result = 1",
    )
    found = _acceptance(result)
    floor, base = found.floor(), found.median(BASELINE)
    assert floor is not None
    rows: list[tuple[str, ...]] = [
        (BASELINE, f"{base:.2f}", "1", "", "", ""),
        (f"floor: {floor.what}", f"{floor.secs:.2f}", f"{floor.secs / base:.3f}", "", "", ""),
    ]
    for way, (to_baseline, to_hook, n_bytes, share) in _columns(found).items():
        median = f"{found.median(way):.2f}"
        rows.append((NAMES[way], median, to_baseline, to_hook, n_bytes, share))
    return paragraphs(_setting(result, found), table(header, rows), _reading(found))


def acceptance_in_short(result: Result) -> str:
    """The same in three columns."""
    header = (
        "",
        "time, baseline = 1",
        "time, synchronous hook = 1",
        "peak memory added, result = 1",
    )
    found = _acceptance(result)
    rows: list[tuple[str, ...]] = [
        (NAMES[way], to_baseline, to_hook, share)
        for way, (to_baseline, to_hook, _, share) in _columns(found).items()
    ]
    rows.append(("either, on a GPU", *["not yet measured"] * 3))
    return paragraphs(_setting(result, found), table(header, rows), _reading(found))


def acceptance_brief(result: Result) -> str:
    """For the summary."""
    found = _acceptance(result)
    to_hook = found.to_hook(FASTCAP)
    times = (
        f"fastcap takes {interval(found.to_baseline(FASTCAP))} times as long as the same passes "
        f"without capture, and {interval(to_hook)} times as long as the synchronous hook "
        f"({comparison(to_hook, 'fastcap', 'the synchronous hook')})."
    )
    shares = _peak_shares(found)
    if not shares:
        return times
    return (
        f"{times} It adds {shares[FASTCAP]:.2f} results to the peak of memory, the hook "
        f"{shares[HOOK]:.2f}."
    )


def _peak_shares(found: Measured) -> dict[str, float]:
    """What capturing adds to the peak, in results; empty where it was not measured."""
    n_bytes = found.fields["captured_bytes"]
    return {way: added / n_bytes for way, added in found.fields["peak_added_bytes"].items()}


def _columns(found: Measured) -> dict[str, tuple[str, str, str, str]]:
    """By way: time to the baseline's, time to the hook's, peak memory, and that by the result's."""
    shares = _peak_shares(found)
    return {
        way: (
            interval(found.to_baseline(way)),
            "1" if way == HOOK else interval(found.to_hook(way)),
            format_bytes(found.fields["peak_added_bytes"][way]) if shares else "not measured",
            f"{shares[way]:.2f}" if shares else "not measured",
        )
        for way in NAMES
    }


def _setting(result: Result, found: Measured) -> str:
    fields = found.fields
    modules = ", ".join(f"`{site}`" for site in fields["sites"])
    return (
        f"A random-weight decoder of {fields['n_layers']} layers and width {fields['width']}, "
        f"{fields['samples']} samples of {fields['n_tokens']} tokens, {fields['batch_size']} per "
        f"pass; the outputs of {modules} in {fields['dtype']}: "
        f"{format_bytes(fields['captured_bytes'])}. {result.machine.n_cores} CPU cores, "
        f"{len(found.secs[BASELINE])} rounds in which the ways alternate batch by batch; ratios "
        "are the geometric mean of the rounds', with its 95 % interval:"
    )


def _reading(found: Measured) -> str:
    floor = found.floor()
    assert floor is not None
    said = comparison(found.to_hook(FASTCAP), "fastcap", "the synchronous hook")
    values = "Every value equalled the oracle's."
    if found.differing:
        values = f"Values of {', '.join(found.differing)} DIFFER from the oracle's."
    return (
        f"{said[0].upper()}{said[1:]}. fastcap takes {found.to_floor(FASTCAP)} times the floor "
        f"({floor.what}). {values}"
    )
