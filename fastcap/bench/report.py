"""Overhead on a user's own model: what is measured, and how it is said in text and JSON."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastcap.bench.case import Case
from fastcap.bench.floors import (
    COPY_BYTES,
    Floors,
    Prediction,
    floor_secs,
    measure_floors,
    predict,
)
from fastcap.bench.hardware import Machine, describe_machine
from fastcap.bench.overhead import N_ROUNDS, Overhead, find_ways, measure
from fastcap.bench.recording import record_timeline
from fastcap.bench.timeline import Timeline
from fastcap.bench.timing import Ratio, synchroniser
from fastcap.bench.ways import BASELINE, FASTCAP, HOOK
from fastcap.formatting import counted, format_bytes, format_secs, markdown_table
from fastcap.host_memory import available_bytes
from fastcap.model.forward import is_compiled
from fastcap.records import Statistics

INTERVAL = "95 % interval: Student's t on the logarithms of the rounds' paired ratios"
RUN_SECS = 0.5  # of one timed run: several times what a clock or a scheduler adds
MOST_PASSES = 2048
N_SHOWN_PASSES = 3
SITES_FACTOR = 4  # between the numbers of sites that are measured
MOST_PROBLEMS = 3  # of a way that are told in text; JSON has all

OnPointRound = Callable[[int, int, Mapping[str, float]], None]
"""Told the number of sites, a round's index and its seconds by way."""


def unwatched(n_sites: int, index: int, secs: Mapping[str, float]) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `fastcap bench` has found.

    Attributes:
        model: What the model was called on the command line.
        settings: Sites, selection, device, sizes: what was asked.
        date: When, in UTC.
        versions: Of fastcap, torch and Python.
        machine: Where.
        load: The system's load average before the first measurement; `None` where unknown.
        n_threads: Threads that torch uses.
        points: Overhead with more and more of the sites; the last has all of them.
        floors: What the machine can do at best.
        timeline: What ran when, in a run of its own.
        statistics: What that run counted.
    """

    model: str
    settings: Mapping[str, Any]
    date: str
    versions: Mapping[str, str]
    machine: Machine
    load: float | None
    n_threads: int
    points: tuple[Overhead, ...]
    floors: Floors
    timeline: Timeline
    statistics: Statistics

    @property
    def whole(self) -> Overhead:
        """With all sites."""
        return self.points[-1]

    @property
    def is_equal(self) -> bool:
        """Whether no value ever differed from the oracle's."""
        return all(point.is_equal for point in self.points)

    @property
    def prediction(self) -> Prediction:
        """What the floors allow for a run of all sites."""
        return predict(self.whole.captured_bytes, self.floors, self.whole.median_secs(BASELINE))

    @property
    def floor_shares(self) -> dict[str, float]:
        """Each floor's time as a share of fastcap's: 1 means that nothing could be faster."""
        whole = self.whole
        floors = floor_secs(whole.captured_bytes, self.floors, whole.median_secs(BASELINE))
        return {name: secs / whole.median_secs(FASTCAP) for name, secs in floors.items()}


def make_report(
    model: str,
    case: Case,
    *,
    rounds: int = N_ROUNDS,
    passes: int | None = None,
    folder: Path | None = None,
    floor_bytes: int = COPY_BYTES,
    on_round: OnPointRound = unwatched,
) -> Report:
    """Measure overhead, floors and a timeline.

    Args:
        model: What to call it.
        case: What to capture; its batches are repeated to make a run of `passes`.
        rounds: Timed rounds.
        passes: Passes of one run; by default as many as take half a second without capture.
        folder: Where the disk's floor is measured; `None` to leave that out.
        floor_bytes: Of each copy that measures a floor.
        on_round: Told how many sites are captured, every round's index and its seconds by way.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    floors = measure_floors(case.device, floor_bytes, rest_secs=None, folder=folder)
    if passes is None:
        passes = choose_passes(case)
    run = replace(case, batches=repeated(case.batches, passes))
    ways = find_ways((HOOK, FASTCAP))
    points = [
        measure(
            replace(run, bound=[run.bound[i] for i in spread(n, len(run.bound))]),
            ways,
            rounds,
            on_round=partial(on_round, n),
        )
        for n in counts_up_to(len(run.bound))
    ]
    shown = replace(case, batches=repeated(case.batches, N_SHOWN_PASSES))
    timeline, statistics = record_timeline(shown)
    return Report(
        model=model,
        settings=settings_of(case, passes, rounds),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        versions=versions(),
        machine=describe_machine(case.device),
        load=load,
        n_threads=torch.get_num_threads(),
        points=tuple(points),
        floors=floors,
        timeline=timeline,
        statistics=statistics,
    )


def versions() -> dict[str, str]:
    """Of what is measured."""
    from fastcap import __version__

    return {
        "fastcap": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def settings_of(case: Case, passes: int, rounds: int) -> dict[str, Any]:
    """What was asked, in words and numbers that JSON can hold."""
    return {
        "sites": case.sites,
        "selection": {
            name: str(given)
            for name, given in case.options.items()
            if given is not None and (name, given) != ("batch_dim", 0)
        },
        "device": str(case.device),
        "compiled": is_compiled(case.model),
        "passes_per_run": passes,
        "samples_per_run": sum(replace(case, batches=repeated(case.batches, passes)).sizes),
        "rounds": rounds,
    }


def repeated(batches: Sequence[Any], n_passes: int) -> list[Any]:
    """The batches over and over, `n_passes` in all."""
    return [batches[i % len(batches)] for i in range(n_passes)]


def choose_passes(case: Case) -> int:
    """As many passes as take half a second, as long as their values take an eighth of the memory
    that is left.
    """
    one = replace(case, batches=case.batches[:1])
    n_bytes = sum(value.nbytes for value in one.oracle().values())
    wait = synchroniser(case.device)
    for _ in one.passes(is_compiled=True):  # a first pass may compile the model
        wait()
    started = time.perf_counter()
    for _ in one.passes(is_compiled=True):
        wait()
    elapsed = time.perf_counter() - started
    available = available_bytes()
    room = MOST_PASSES if available is None else available // 8 // max(n_bytes, 1)
    return max(2, min(math.ceil(RUN_SECS / elapsed), room, MOST_PASSES))


def counts_up_to(n_sites: int) -> list[int]:
    """1, 4, 16, … and all: the numbers of sites that are measured.

    Examples:
        >>> counts_up_to(1), counts_up_to(6), counts_up_to(32)
        ([1], [1, 6], [1, 4, 16, 32])
    """
    counts = []
    count = 1
    while 2 * count <= n_sites:
        counts.append(count)
        count *= SITES_FACTOR
    return [*counts, n_sites]


def spread(n_wanted: int, n_sites: int) -> list[int]:
    """Indices of some sites, evenly spaced.

    Examples:
        >>> spread(3, 9)
        [1, 4, 7]
    """
    return [(2 * i + 1) * n_sites // (2 * n_wanted) for i in range(n_wanted)]


# Text


def card(report: Report) -> str:
    """What was measured, where, and what that machine can do at best."""
    return "\n".join(f"{name:<9}{text}" for name, text in card_rows(report))


def card_rows(report: Report) -> Iterator[tuple[str, str]]:
    """The same as names and texts."""
    whole, machine, settings = report.whole, report.machine, report.settings
    selection = ", ".join(f"{name}={given}" for name, given in settings["selection"].items())
    per_pass = format_bytes(whole.captured_bytes / whole.n_passes)
    n_samples = counted(settings["samples_per_run"], "sample")
    run = f"{n_samples} in {counted(settings['passes_per_run'], 'pass')}"
    yield "model", f"{report.model}, on {settings['device']}"
    n_sites = counted(len(whole.sites), "site")
    yield "capture", f"{n_sites}, {selection or 'whole values'}: {per_pass} per pass"
    yield "run", f"{run}, {settings['rounds']} rounds"
    memory = f"{format_bytes(machine.memory_bytes)}, huge pages: {machine.huge_pages}"
    yield "machine", f"{machine.cpu}, {machine.n_cores} cores, {memory}"
    if machine.gpu is not None:
        yield "gpu", f"{machine.gpu}, {format_bytes(machine.gpu_memory_bytes or 0)}"
    threads = f"threads: {report.n_threads}"
    load = "" if report.load is None else f", load before the start: {report.load:.2f}"
    named = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield "software", f"{named}, {threads}{load}"
    yield "floors", floor_text(report.floors)


def floor_text(floors: Floors) -> str:
    """The rates in one line."""
    rates = {
        "copy into warm memory": floors.warm_gb_per_sec,
        "into fresh memory from NumPy": floors.fresh_numpy_gb_per_sec,
        "from torch": floors.fresh_torch_gb_per_sec,
        "into cold memory": floors.cold_gb_per_sec,
        "link": floors.link_gb_per_sec,
        "disk": floors.disk_gb_per_sec,
    }
    return ", ".join(f"{name} {rate:.2f} GB/s" for name, rate in rates.items() if rate is not None)


TABLE_HEADER = ("sites", "per pass", "way", "ms per pass", "x baseline", "x hook", "mismatches")


def table_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """One row per way and number of sites, without the header."""
    for point in report.points:
        for way in point.secs:
            yield (
                str(len(point.sites)),
                format_bytes(point.captured_bytes / point.n_passes),
                way,
                f"{1e3 * point.median_secs(way) / point.n_passes:.3f}",
                "1" if way == BASELINE else str(point.ratio(way, BASELINE)),
                str(point.ratio(way, HOOK)) if way == FASTCAP else "",
                "" if way == BASELINE else str(point.n_mismatches[way]),
            )


def remarks(report: Report) -> list[str]:
    """What the table leaves open."""
    share = report.whole.median_secs(FASTCAP) / report.prediction.secs
    ways = (
        "baseline: the same passes with nothing captured; hook: .detach().cpu() in a forward hook, "
        "lists and cat; fastcap: extract_representations."
    )
    interval = (
        f"{INTERVAL}, {len(report.whole.secs[BASELINE])} rounds. Mismatches: values that differed "
        "from the oracle's, over all runs."
    )
    predicted = (
        f"For all sites the floors predict {format_secs(report.prediction.secs)} a run "
        f"({report.prediction.what}); fastcap takes {share:.3f} times that."
    )
    notes = [ways, interval, predicted]
    if report.settings["compiled"]:
        notes.append(
            "The model is compiled, in whole or in part. Compiled graphs skip hooks, so all that "
            "capture ran as plain Python, and what that costs is in their ratios; baseline ran as "
            "it is compiled."
        )
    hidden = report.timeline.hidden_share()
    if hidden is not None and report.settings["device"] != "cpu":
        notes.append(f"{hidden:.0%} of the copies' time passed while the model computed.")
    return notes + list(_differences(report))


def _differences(report: Report) -> Iterator[str]:
    for point in report.points:
        for way, problems in point.problems.items():
            if problems:
                more = len(problems) - MOST_PROBLEMS
                rest = f"; and {more} more, which --json has" if more > 0 else ""
                of = counted(len(point.sites), "site")
                told = "; ".join(problems[:MOST_PROBLEMS])
                yield f"{way} DIFFERS with {of} captured: {told}{rest}"


def as_text(report: Report) -> str:
    """Card, table and remarks."""
    table = markdown_table([TABLE_HEADER, *table_rows(report)])
    return "\n\n".join([card(report), table, "\n".join(remarks(report))])


# JSON


def as_json(report: Report) -> str:
    """`document`, in one line."""
    return json.dumps(document(report))


def document(report: Report) -> dict[str, Any]:
    """Everything but the timeline, raw times included."""
    return {
        "format": 1,
        "model": report.model,
        "settings": dict(report.settings),
        "date": report.date,
        "versions": dict(report.versions),
        "machine": asdict(report.machine),
        "load": report.load,
        "threads": report.n_threads,
        "floors": asdict(report.floors),
        "prediction": asdict(report.prediction),
        "floor_shares": report.floor_shares,
        "interval": INTERVAL,
        "points": [point_fields(point) for point in report.points],
        "statistics": asdict(report.statistics),
        "hidden_share": report.timeline.hidden_share(),
        "equal": report.is_equal,
    }


def point_fields(point: Overhead) -> dict[str, Any]:
    """One measurement, for JSON."""
    return {
        "sites": list(point.sites),
        "captured_bytes": point.captured_bytes,
        "passes": point.n_passes,
        "samples": point.n_samples,
        "secs": {way: list(secs) for way, secs in point.secs.items()},
        "ratios_to_baseline": {way: brief(ratio) for way, ratio in point.ratios.items()},
        "mismatches": dict(point.n_mismatches),
        "problems": {way: list(found) for way, found in point.problems.items()},
    }


def brief(ratio: Ratio) -> dict[str, float]:
    """The mean and the ends of the interval."""
    return {"mean": ratio.mean, "low": ratio.low, "high": ratio.high}
