"""One group of the grid, measured: its ways take turns, and every value is compared.

A run is timed twice: as a whole, until everything is delivered, and in its steady state, from the
start of its second pass to that of its last, by the GPU's clock. A run of few passes is longer by
the copy of its last one, however well the others are hidden.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from benchmarks.gpu.command import Clock, Program
from benchmarks.gpu.grid import (
    FORWARD,
    HIDDEN,
    LOOP,
    PINNED,
    SHARES,
    SLOTS,
    Group,
    bound_of,
    fitted,
    make_terms,
    named_ways,
)
from benchmarks.gpu.report import (
    FAILED,
    MEASURED,
    NONE,
    Entry,
    Figure,
    Range,
    UnavailableError,
    of_ratio,
)
from benchmarks.gpu.subjects import Built, Subject, build
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case, paired_ratio
from fastcap.bench.case import Values
from fastcap.bench.equality import Judge, gathered, same_bytes
from fastcap.bench.timing import give_back_memory, measure_rounds, run_one_after_another
from fastcap.bench.ways import BASELINE, Way, baseline
from fastcap.formatting import format_bytes
from fastcap.planning.machine import Machine

MOST_ROUNDS = 5
N_COMPARING = 8
SCRIBBLE = 0xAB


Goal = tuple[str, Range | None]
"""What was promised, in words and as a range; of most, nothing."""


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
    def pass_secs(self) -> list[float]:
        """From the second start to the last, after synchronising; none for fewer than three."""
        if len(self._events) < 3:
            return []
        elapsed_ms = float(self._events[1].elapsed_time(self._events[-1]))
        return [elapsed_ms / 1e3 / (len(self._events) - 2)]


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
        self.floors = floors_of(program)
        self.clock = Clock(min(group.likely_secs, program.clock.left_secs))
        n_passes = fitted(self.gpu, group, self.floors)
        self.case = built.case(self.gpu, n_passes, group.picked.positions)
        self.judge = Judge(self.case.oracle(), N_COMPARING)
        self.rows: dict[str, Tensor] = {}
        self.counted: dict[str, Any] = {}
        self.ways = named_ways(group, self.rows, self.counted, program.scratch)
        self.entries = entries_of(program, group)
        self.launch_secs = launch_secs(self.gpu, self.case)
        self.secs: dict[str, list[float]] = {name: [] for name in (BASELINE, *self.ways)}
        self.steady: dict[str, list[float]] = {name: [] for name in self.secs}
        self._latest: dict[str, tuple[PassStarts, bool]] = {}

    def has_failed(self, name: str) -> bool:
        return name != BASELINE and self.entries[name].status == FAILED

    def run(self, name: str) -> Values:
        """One run, within its time; the others go on where it fails."""
        if self.has_failed(name):
            return {}
        values: Values = {}
        is_tail = False
        guard = nullcontext() if name == BASELINE else self.entries[name].guarded()
        with PassStarts(self.gpu, self.case.model) as starts, guard:
            values, is_tail = drain(self.ways.get(name, baseline), self.case, drops=name != LOOP)
        self._latest[name] = starts, is_tail
        return values

    def check(self, name: str, values: Values) -> Values:
        """After a run's time: compare what it delivered, and note its steady state."""
        if not self.has_failed(name):
            starts, is_tail = self._latest[name]
            self.steady[name] += starts.pass_secs
            if name != BASELINE:
                self.judge.check(name, values, is_tail=is_tail)
        for row in self.rows.values() if name == PINNED else ():
            row.reshape(-1).view(torch.uint8).fill_(SCRIBBLE)  # no run is right by an earlier one
        return {}

    def run_first(self, name: str) -> None:
        """One run by itself, compared whole: what pins and allocates."""
        entry = self.entries[name]
        if entry.skipped_for(self.clock.lacks(self.likely_secs(name))):
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
            outcome = self.ways[name](self.case)
            values = gathered(outcome) if isinstance(outcome, Iterator) else outcome
            self.gpu.synchronise()
            entry.raw["first_secs"] = time.perf_counter() - started
            entry.raw["statistics"] = dict(self.counted)
            self.judge.check(name, values)

    def likely_secs(self, name: str) -> float:
        """Of one run, as far as the floors tell."""
        secs = self.group.subject.likely_forward_secs
        if self.floors is not None:
            secs = max(make_terms(self.floors, self.group.pass_bytes, 0, secs, 0.0, name).values())
        return secs * len(self.case.batches)

    def run_rounds(self) -> None:
        """One round if the whole time allows it, and more if the group's own does."""
        alive = [name for name, entry in self.entries.items() if "first_secs" in entry.raw]
        alive = [name for name in alive if not self.has_failed(name)]
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
            self.secs[name].append(took / len(self.case.batches))
        for name in secs:
            if name != BASELINE and not self.has_failed(name):
                self.entries[name].figures = list(self.figures(name))
                self.entries[name].status, self.entries[name].reason = MEASURED, ""

    def figures(self, name: str) -> Iterator[Figure]:
        """Times, beside the baseline and the floors, as far as there are rounds."""
        entry, secs, base = self.entries[name], self.secs[name], self.secs[BASELINE]
        steady, steady_base = self.steady[name], self.steady[BASELINE]
        is_steady = len(steady) == len(steady_base) > 0
        terms = self._terms(name)
        bound = bound_of(terms) if terms else ""
        entry.problems = self.judge.problems.get(name, [])
        entry.raw |= {
            "passes": len(self.case.batches),
            "pass_bytes": self.group.pass_bytes,
            "pass_secs": secs,
            "baseline_pass_secs": base,
            "steady_pass_secs": steady,
            "baseline_steady_pass_secs": steady_base,
            "floor_secs": terms,
        }
        none: Goal = ("", None)
        hidden = share = none
        if not isinstance(self.group.ways, Mapping):  # nothing is promised of others
            hidden = HIDDEN if bound == FORWARD else none
            share = SHARES.get((name, bound), none)
        yield Figure("pass", 1e3 * statistics.median(secs), "ms")
        # A run's beginning and end are left out of the goal: what a pass adds is held against it.
        goal, promised = none if is_steady else hidden
        yield of_ratio("baseline = 1", paired_ratio(secs, base), promised, goal)
        if is_steady:
            goal, promised = hidden
            ratio = paired_ratio(steady, steady_base)
            yield of_ratio("steady, baseline = 1", ratio, promised, goal)
        if terms:
            of_steady = is_steady and name == SLOTS  # whose loop never runs ahead
            goal, promised = none if of_steady else share
            reached = terms[bound] / statistics.median(secs)
            yield Figure(f"of what {bound} allows", reached, "", promised, goal=goal)
            if of_steady:
                goal, promised = share
                reached = terms[bound] / statistics.median(steady)
                yield Figure(f"steady, of what {bound} allows", reached, "", promised, goal=goal)
        yield Figure("wrong values", self.judge.n_mismatches.get(name, 0), "", NONE)

    def _terms(self, name: str) -> dict[str, float]:
        """Empty where the floors are not known."""
        if self.floors is None:
            return {}
        forward_secs, n_sites = statistics.median(self.secs[BASELINE]), len(self.case.sites)
        launch_secs, pass_bytes = self.launch_secs, self.group.pass_bytes
        return make_terms(self.floors, pass_bytes, n_sites, forward_secs, launch_secs, name)


def floors_of(program: Program) -> Machine | None:
    """What the program has measured of the machine."""
    found = program.facts.get("floors")
    return None if found is None else Machine(**found)


def entries_of(program: Program, group: Group) -> dict[str, Entry]:
    """An entry for every way of a group, by the way's name."""
    return {name: program.ask(f"{group.name}: {name}") for name in group.ways}


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
            entry.skipped_for(why)
        if not why:
            turns = Turns(program, group, built)
            drain(baseline, turns.case, drops=True)
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
    gpu.empty_cache()
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
    gpu.empty_cache()


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
            entry.skipped_for(reason)
    close_subject(program.gpu)
