"""The suite on a GPU: models, selections and ways, in turns, beside the floors of the machine.

A run is timed twice: as a whole, until everything is delivered, and in its steady state, from the
start of its second pass to that of its last, by the GPU's clock. A run of few passes is longer by
the copy of its last one, however well the others are hidden.
"""

from __future__ import annotations

import gc
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

import fastcap
from benchmarks.gpu.command import (
    FAILED,
    MEASURED,
    NONE,
    Clock,
    Entry,
    Figure,
    Program,
    Range,
    UnavailableError,
    describe_error,
    of_ratio,
)
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Built, Subject, build
from benchmarks.gpu.toolbox import Gpu, MiB, Sizes
from fastcap.bench import Case, paired_ratio
from fastcap.bench.case import Values
from fastcap.bench.equality import Judge, gathered, same_bytes
from fastcap.bench.floors import write_rates
from fastcap.bench.timing import give_back_memory, measure_rounds, run_one_after_another
from fastcap.bench.ways import BASELINE, Way, archived_in, baseline, in_memory
from fastcap.devices.threaded import N_WORKERS
from fastcap.formatting import format_bytes
from fastcap.host_memory import available_bytes

MOST_ROUNDS = 5
N_COMPARING = 8
FEWEST_PASSES = 2
HOST_SHARE = 7  # results, the oracle's values, slots, pinned rows and an archive's pages
DISK_SHARE = 6  # an archive's first run is at most this part of a group's time
SCRIBBLE = 0xAB
SMALLEST_CHUNK, LARGEST_CHUNK = 8 * MiB, 64 * MiB
HOOK_SECS = 10e-6  # the goal for one site

SLOTS, LOOP, FRESH, PINNED, ARCHIVE = (
    *("slots", "slots, plain loop", "fresh memory", "pinned result", "archive"),
)
HOOK = "hook, .cpu()"
FORWARD, LINK, LAUNCH, HOST, DISK = "forward", "link", "launch and hooks", "fresh copy", "disk"

HIDDEN = "compute-bound: at most 1.02 of the time without capture", Range(high=1.02)
SHARES = {
    (SLOTS, LINK): ("link-bound, slots: 0.95 of the measured link", Range(low=0.95)),
    (PINNED, LINK): ("link-bound, pinned result: 0.95 of the measured link", Range(low=0.95)),
    (FRESH, HOST): ("fresh memory: 0.9 of the measured first touch and copy", Range(low=0.9)),
    (ARCHIVE, LINK): ("archive: 0.9 of the slower of link and plain write", Range(low=0.9)),
    (ARCHIVE, DISK): ("archive: 0.9 of the slower of link and plain write", Range(low=0.9)),
}
"""What was promised of the share of its bound that a way reaches, by way and bound."""

Ways = Mapping[str, Way]


# Floors


@dataclass(frozen=True, slots=True)
class Floors:
    """What this machine can do at best, in GB/s (1e9 bytes).

    Attributes:
        link: One large copy into pinned memory.
        fresh: Pinned memory to fresh memory, by one thread.
        fresh_by_workers: The same by as many threads as fastcap has workers.
        disk: A new file with one fsync at its end, in the scratch folder; `None` where none could
            be written.
    """

    link: float
    fresh: float
    fresh_by_workers: float
    disk: float | None


def measure_floors(gpu: Gpu, sizes: Sizes, scratch: Path) -> Floors:
    """Every rate, with copies of `sizes.copy_bytes`."""
    n_bytes = sizes.copy_bytes
    source, landed = gpu.random(n_bytes), gpu.pinned(n_bytes)
    link_secs = gpu.best_secs(lambda: landed.copy_(source, non_blocking=True), sizes.repeats)
    try:
        disk = max(write_rates(landed, scratch, 2))
    except OSError as error:  # a full disk: everything but archives can still be measured
        sys.stderr.write(f"Nothing can be written to {scratch}: {error}\n")
        disk = None
    return Floors(
        link=n_bytes / link_secs / 1e9,
        fresh=max(_fresh_rate(landed, 1) for _ in range(3)),
        fresh_by_workers=max(_fresh_rate(landed, N_WORKERS) for _ in range(3)),
        disk=disk,
    )


def _fresh_rate(landed: Tensor, n_threads: int) -> float:
    """GB/s of some threads copying parts into memory that is new."""
    source: Any = landed.numpy()
    with ThreadPoolExecutor(n_threads) as threads:
        list(threads.map(time.sleep, [0.0] * n_threads))  # they exist before the clock starts
        started = time.perf_counter()
        target = np.empty(source.nbytes, np.uint8)
        parts = (np.array_split(each, n_threads) for each in (target, source))
        list(threads.map(np.copyto, *parts))
        return float(source.nbytes / (time.perf_counter() - started) / 1e9)


def make_terms(
    floors: Floors,
    pass_bytes: float,
    n_sites: int,
    forward_secs: float,
    launch_secs: float,
    way: str,
) -> dict[str, float]:
    """The cost model's terms for one pass, in seconds. With capture it takes at least the largest.

    Args:
        floors: The machine.
        pass_bytes: Captured in one pass.
        n_sites: Hooks.
        forward_secs: A pass without capture.
        launch_secs: What the host takes to issue one.
        way: Where values go.
    """
    gigabytes = pass_bytes / 1e9
    secs = {
        FORWARD: forward_secs,
        LINK: gigabytes / floors.link,
        LAUNCH: launch_secs + n_sites * HOOK_SECS,
    }
    if way == FRESH:
        secs[HOST] = gigabytes / floors.fresh_by_workers
    if way == ARCHIVE and floors.disk is not None:
        secs[DISK] = gigabytes / floors.disk
    return secs


def bound_of(terms: Mapping[str, float]) -> str:
    return max(terms, key=lambda name: terms[name])


# What is asked


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection, by the name that reports give it."""

    name: str
    positions: int | slice | None


ALL, LAST = Picked("all positions", None), Picked("last", -1)
SLICE = Picked("slice 64", slice(0, 64))


@dataclass(frozen=True, slots=True)
class Group:
    """One question to one model, that every way answers in turns.

    Attributes:
        subject: The model.
        picked: The selection.
        likely_secs: What it may take of the time.
        n_passes: Passes of one run: long enough that setting up is little of it, and no longer
            than its values fit in memory several times.
        ways: The names of the grid's ways, or ways by name.
        mark: What tells it from another group of the same model and selection.
    """

    subject: Subject
    picked: Picked
    likely_secs: float
    n_passes: int
    ways: tuple[str, ...] | Ways = (SLOTS, FRESH, PINNED, ARCHIVE)
    mark: str = ""

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}{self.mark}"

    @property
    def pass_bytes(self) -> int:
        n_tokens, positions = self.subject.n_tokens, self.picked.positions
        n_taken = 1 if isinstance(positions, int) else n_tokens
        if isinstance(positions, slice):
            n_taken = len(range(n_tokens)[positions])
        return self.subject.site_bytes * n_taken // n_tokens * self.subject.shape.n_layers


WITH_LOOP = (SLOTS, FRESH, PINNED, ARCHIVE, LOOP)
GRID = (
    Group(LLAMA, ALL, 110, 4, WITH_LOOP),
    Group(LLAMA, LAST, 25, 8),
    Group(LLAMA, SLICE, 20, 8, (SLOTS, FRESH, PINNED)),
    Group(THIN, ALL, 60, 6, WITH_LOOP),
    Group(GPT2, ALL, 30, 24, WITH_LOOP),
    Group(GPT2, LAST, 15, 96),
)


# The grid's ways


def slot_budget(pass_bytes: int, n_sites: int) -> dict[str, int]:
    """Slots for the pass that is held and the one that is under way, and chunks that records fill.

    A slot is lent only for a record that fills half of it or more.
    """
    record_bytes = max(1, pass_bytes // n_sites)
    chunk_bytes = min(max(1 << (record_bytes - 1).bit_length(), SMALLEST_CHUNK), LARGEST_CHUNK)
    if record_bytes > chunk_bytes:
        n_per_pass = n_sites * -(-record_bytes // chunk_bytes)
    else:
        n_per_pass = -(-n_sites // (chunk_bytes // record_bytes))
    return {"staging_bytes": 4 * chunk_bytes, "pinned_bytes": (2 * n_per_pass + 6) * chunk_bytes}


def lent(budget: Mapping[str, int], counted: dict[str, Any], case: Case) -> Iterator[Values]:
    """`stream(zero_copy=True)`, with a budget or fastcap's own; counts what the engine counts."""
    options: dict[str, Any] = {**case.calling, **case.options, **budget}
    with fastcap.stream(
        case.model, case.batches, case.sites, device=case.device, zero_copy=True, **options
    ) as run:
        while (records := next(run, None)) is not None:
            yield dict(records)
            del records
        counted.update(asdict(run.statistics()))


def archived(scratch: Path, pass_bytes: int, case: Case) -> Values | Iterator[Values]:
    """`fastcap.extract` into a new directory, which goes with its values."""
    needs_room(scratch, pass_bytes * len(case.batches))
    return archived_in(scratch)(case)


def needs_room(folder: Path, n_bytes: int) -> None:
    """Raises:
    UnavailableError: An archive of `n_bytes` cannot be written there, or not read.
    """
    if find_spec("safetensors") is None:
        raise UnavailableError("safetensors is not installed, and archives are read with it")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 1.2 * n_bytes:
        raise UnavailableError(
            f"{folder} has {format_bytes(free_bytes)} free, and the archive takes "
            f"{format_bytes(n_bytes)}"
        )


def into_rows(rows: dict[str, Tensor], case: Case) -> Values:
    """`extract_representations(out=)`, into rows that every run is given again."""
    in_memory(case, out=rows)
    return rows


# Measuring


class PassStarts:
    """When each pass of a block begins, by the GPU's clock."""

    def __init__(self, gpu: Gpu, model: nn.Module) -> None:
        self._gpu, self._model = gpu, model
        self._events: list[Any] = []

    def __enter__(self) -> Self:
        note = self._events.append
        self._handle = self._model.register_forward_pre_hook(
            lambda *_: note(self._gpu.timing_event())
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @property
    def pass_secs(self) -> float | None:
        """From the second start to the last; `None` for fewer than three, after synchronising."""
        if len(self._events) < 3:
            return None
        elapsed_ms = float(self._events[1].elapsed_time(self._events[-1]))
        return elapsed_ms / 1e3 / (len(self._events) - 2)


def drain(way: Way, case: Case, drops: bool) -> tuple[Values, bool]:
    """A way's values, and whether they are only the last batch's, as a loop is left with.

    Args:
        way: What is run.
        case: On what.
        drops: Whether a batch is dropped before the next is asked for, as `for` does not.
    """
    outcome = way(case)
    if isinstance(outcome, Mapping):
        return outcome, False
    values: Values = {}
    for _ in case.batches:
        if drops:
            values = {}
        values = next(outcome)
    if next(outcome, None) is not None:
        raise RuntimeError("it gave more batches than were asked for")
    return values, True


class Turns:
    """One group while it is measured: entries by way, and the runs that fill them."""

    def __init__(self, program: Program, group: Group, built: Built) -> None:
        self.program, self.group, self.gpu = program, group, program.gpu
        floors = program.facts.get("floors_gb_per_sec")
        self.floors = None if floors is None else Floors(**floors)
        secs = min(group.likely_secs, program.clock.left_secs)
        self.clock = Clock(secs, program.clock.now)
        case = built.case(self.gpu, fitted(self.gpu, group), group.picked.positions)
        self.judge = Judge(case.oracle(), N_COMPARING)
        self.rows: dict[str, Tensor] = {}
        self.counted: dict[str, Any] = {}
        self.ways = self._ways()
        n_short = archive_passes(group, len(case.batches), self.floors)
        short = replace(case, batches=case.batches[:n_short])
        self.cases = {name: short if name == ARCHIVE else case for name in (BASELINE, *self.ways)}
        n_rows = sum(short.sizes)
        self.short_judge = Judge(
            {s: v[:n_rows] for s, v in self.judge.expected.items()}, N_COMPARING
        )
        self.entries = entries_of(program, group)
        self.launch_secs = launch_secs(self.gpu, case)
        self.secs: dict[str, list[float]] = {name: [] for name in self.cases}
        self.steady: dict[str, list[float]] = {name: [] for name in self.cases}
        self._starts: dict[str, PassStarts] = {}
        self._is_tail: dict[str, bool] = {}

    def _ways(self) -> dict[str, Way]:
        """The group's; pinned rows are made when a way first asks for them."""
        group = self.group
        if isinstance(group.ways, Mapping):
            return dict(group.ways)
        budget = slot_budget(group.pass_bytes, group.subject.shape.n_layers)
        found: dict[str, Way] = {
            SLOTS: partial(lent, budget, self.counted),
            LOOP: partial(lent, {}, self.counted),
            FRESH: in_memory,
            PINNED: partial(into_rows, self.rows),
            ARCHIVE: partial(archived, self.program.scratch, group.pass_bytes),
        }
        return {name: found[name] for name in group.ways}

    def run(self, name: str) -> Values:
        """One run, within its time."""
        entry, case = self.entries.get(name), self.cases[name]
        if entry is not None and entry.status == FAILED:
            return {}
        way = self.ways.get(name, baseline)
        with PassStarts(self.gpu, case.model) as starts:
            if entry is None:
                values, is_tail = drain(way, case, drops=True)
            else:
                values, is_tail = {}, False
                try:
                    values, is_tail = drain(way, case, drops=name != LOOP)
                except Exception as error:  # noqa: BLE001 - the other ways can still run
                    entry.status, entry.reason = FAILED, describe_error(error)
        self._starts[name], self._is_tail[name] = starts, is_tail
        return values

    def check(self, name: str, values: Values) -> Values:
        """After a run's time: compare what it delivered, and note its steady state."""
        entry = self.entries.get(name)
        if entry is None or entry.status != FAILED:
            self.steady[name] += [
                secs for secs in [self._starts[name].pass_secs] if secs is not None
            ]
        if entry is not None and entry.status != FAILED:
            self.judge_of(name).check(name, values, is_tail=self._is_tail[name])
        for row in self.rows.values() if name == PINNED else ():
            row.reshape(-1).view(torch.uint8).fill_(SCRIBBLE)  # no run is right by an earlier one
        return {}

    def judge_of(self, name: str) -> Judge:
        return self.short_judge if name == ARCHIVE else self.judge

    def run_first(self, name: str) -> None:
        """One run by itself, compared whole: what pins and allocates."""
        entry = self.entries[name]
        likely_secs = self.likely_secs(name)
        if entry.reason_if(self.clock.lacks(likely_secs)):
            return
        entry.reason = "only the first run: out of time"
        with entry.guarded():
            if name == PINNED:
                started = time.perf_counter()
                for site, value in self.judge.expected.items():
                    self.rows[site] = self.gpu.pinned(value.nbytes, value.dtype).view(value.shape)
                entry.raw["pinning_secs"] = time.perf_counter() - started
            give_back_memory()
            self.gpu.synchronise()
            started = time.perf_counter()
            values, is_tail = drain(self.ways[name], self.cases[name], drops=name != LOOP)
            self.gpu.synchronise()
            entry.raw["first_secs"] = time.perf_counter() - started
            if is_tail:
                outcome = self.ways[name](self.cases[name])
                values = gathered(outcome) if isinstance(outcome, Iterator) else outcome
            self.judge_of(name).check(name, values)
            entry.raw["statistics"] = dict(self.counted)

    def likely_secs(self, name: str) -> float:
        """Of one run, as far as the floors tell."""
        forward_secs = self.group.subject.likely_forward_secs
        if self.floors is not None:
            of_pass = make_terms(self.floors, self.group.pass_bytes, 0, forward_secs, 0.0, name)
            forward_secs = max(of_pass.values())
        return forward_secs * len(self.cases[name].batches)

    def run_rounds(self) -> None:
        """One round if the whole time allows it, and more if the group's own does."""
        alive = [n for n, e in self.entries.items() if "first_secs" in e.raw and e.status != FAILED]
        round_secs = sum(self.entries[name].raw["first_secs"] for name in alive)
        if not alive or self.program.clock.left_secs < round_secs:
            return
        n_rounds = MOST_ROUNDS if self.clock.left_secs > 2 * round_secs else 1
        runs = {name: partial(self.run, name) for name in (BASELINE, *alive)}
        play = partial(
            run_one_after_another, runs, synchronise=self.gpu.synchronise, judge=self.check
        )
        left_secs = self.clock.left_secs - round_secs
        measure_rounds(list(runs), play, n_rounds, lambda *_: None, self.on_round, left_secs)

    def on_round(self, index: int, secs: Mapping[str, float]) -> None:
        for name, took in secs.items():
            self.secs[name].append(took / len(self.cases[name].batches))
        for name in secs:
            if name != BASELINE and self.entries[name].status != FAILED:
                self.entries[name].figures = list(self.figures(name))
                self.entries[name].status, self.entries[name].reason = MEASURED, ""

    def figures(self, name: str) -> Iterator[Figure]:
        """Times, beside the baseline and the floors, as far as there are rounds."""
        entry, judge = self.entries[name], self.judge_of(name)
        secs, base = self.secs[name], self.secs[BASELINE]
        steady, steady_base = self.steady[name], self.steady[BASELINE]
        median = statistics.median(secs)
        is_steady = len(steady) == len(steady_base) > 0
        entry.problems = judge.problems.get(name, [])
        entry.raw |= {
            "passes": len(self.cases[name].batches),
            "pass_bytes": self.group.pass_bytes,
            "pass_secs": secs,
            "baseline_pass_secs": base,
            "steady_pass_secs": steady,
            "baseline_steady_pass_secs": steady_base,
        }
        yield Figure("pass", 1e3 * median, "ms")
        terms: dict[str, float] = {}
        if self.floors is not None:
            forward_secs, n_sites = statistics.median(base), len(self.cases[name].sites)
            terms = make_terms(
                self.floors, self.group.pass_bytes, n_sites, forward_secs, self.launch_secs, name
            )
            entry.raw["floor_secs"] = terms
        bound = bound_of(terms) if terms else ""
        is_ours = not isinstance(self.group.ways, Mapping)
        goal, promised = HIDDEN if bound == FORWARD and is_ours else ("", None)
        # A run's beginning and end are left out of the goal: what a pass adds is held against it.
        ratio = paired_ratio(secs, base)
        yield of_ratio("baseline = 1", ratio, *((None, "") if is_steady else (promised, goal)))
        if is_steady:
            ratio = paired_ratio(steady, steady_base)
            yield of_ratio("steady, baseline = 1", ratio, promised, goal)
        if terms:
            goal, promised = SHARES.get((name, bound), ("", None)) if is_ours else ("", None)
            of_steady = is_steady and name == SLOTS  # whose loop never runs ahead
            whole = (None, "") if of_steady else (promised, goal)
            share = terms[bound] / median
            yield Figure(f"of what {bound} allows", share, "", whole[0], goal=whole[1])
            if of_steady:
                share = terms[bound] / statistics.median(steady)
                yield Figure(f"steady, of what {bound} allows", share, "", promised, goal=goal)
        yield Figure("wrong values", judge.n_mismatches.get(name, 0), "", NONE)


def entries_of(program: Program, group: Group) -> dict[str, Entry]:
    """An entry for every way of a group, by the way's name."""
    return {name: program.ask("", f"{group.name}: {name}") for name in group.ways}


def fitted(gpu: Gpu, group: Group) -> int:
    """A group's passes; fewer where memory could not hold what exists at once."""

    def n_fitting() -> int:
        host_bytes = available_bytes()
        most = (
            group.n_passes if host_bytes is None else host_bytes // HOST_SHARE // group.pass_bytes
        )
        return max(FEWEST_PASSES, min(group.n_passes, most))

    if n_fitting() < group.n_passes:
        gpu.give_back_pinned()  # what earlier groups pinned, and torch keeps
    return n_fitting()


def archive_passes(group: Group, n_passes: int, floors: Floors | None) -> int:
    """An archive's passes; fewer where writing them would take most of the group's time."""
    if floors is None or floors.disk is None:
        return n_passes
    written_bytes = 1e9 * floors.disk * group.likely_secs / DISK_SHARE
    return max(FEWEST_PASSES, min(n_passes, int(written_bytes / group.pass_bytes)))


@torch.no_grad()
def launch_secs(gpu: Gpu, case: Case) -> float:
    """What the host takes to issue one pass.

    Of one token: a stream takes about a thousand kernels, of which a Llama has more, and behind
    whole batches the host would wait for room in it.
    """
    ids = case.batches[0]["input_ids"][:1, :1].to(gpu.device)
    return gpu.median_host_secs(lambda: case.model(ids), 3, 1)


def measure_group(program: Program, group: Group, built: Built) -> None:
    """First one run of each way, compared whole; then rounds, as many as time allows.

    What was found is in the entries, however this ends.
    """
    program.say(group.name)
    entries = entries_of(program, group)
    try:
        why = program.clock.lacks(group.likely_secs / 4)
        for entry in entries.values():
            entry.reason_if(why)
        if not why:
            turns = Turns(program, group, built)
            drain(baseline, turns.cases[BASELINE], drops=True)
            for name in entries:
                turns.run_first(name)
            turns.run_rounds()
    except Exception as error:  # noqa: BLE001 - the other groups can still run
        program.fail(group.name, error)
    finally:
        program.write()
    for title, entry in entries.items():
        program.say(f"  {title}")
        program.tell(entry)


def open_subject(program: Program, subject: Subject) -> Built:
    """Make a model.

    Raises:
        UnavailableError: The GPU has too little memory for it.
    """
    gpu = program.gpu
    program.say(f"model {subject.name}")
    gpu.cuda.empty_cache()
    if gpu.free_bytes() < subject.needs_bytes:
        needed, free = format_bytes(subject.needs_bytes), format_bytes(gpu.free_bytes())
        raise UnavailableError(f"{subject.name} needs {needed} of the GPU, and {free} are free")
    built = build(subject, gpu)
    gc.collect()
    gc.freeze()  # what exists now is left out of the collections between runs
    program.facts.setdefault("models", {})[subject.name] = built.origin
    case = built.case(gpu, 1)
    if not same_bytes(case.oracle(), case.oracle()):
        program.notes.append(
            f"{subject.name} gave other values for the same batch the second time, so its "
            "comparisons with the oracle say nothing about capturing."
        )
    return built


def close_subject(gpu: Gpu) -> None:
    """Give back the model's memory."""
    gc.unfreeze()
    gc.collect()
    gpu.synchronise()
    gpu.cuda.empty_cache()


def measure_subject(program: Program, groups: list[Group]) -> None:
    """All groups of one model."""
    reason = ""
    try:
        built = open_subject(program, groups[0].subject)
        for group in groups:
            measure_group(program, group, built)
    except UnavailableError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the other models can still run
        reason = program.fail(groups[0].subject.name, error)
    for group in groups:
        for entry in entries_of(program, group).values():
            entry.reason_if(reason)
    close_subject(program.gpu)
