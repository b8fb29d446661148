"""Models, selections and destinations: measured in turns, and compared with the oracle."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastcap
from benchmarks.gpu.destinations import (
    ASYNC_HOOK,
    COMPARED,
    DESTINATIONS,
    HOOK,
    HOOKLESS,
    LOOP,
    SLOTS,
    Destination,
    Question,
    nowhere,
)
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.floors import Floors, Terms, make_terms
from benchmarks.gpu.session import FAILED, MEASURED, NOT_RUN, Clock, describe_error, out_of_time
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Built, Subject
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case, Ratio, make_case, paired_ratio
from fastcap.bench.case import Values
from fastcap.bench.equality import same_bytes
from fastcap.bench.timing import give_back_memory, order_of_round
from fastcap.host_memory import available_bytes
from fastcap.reference import differences

MOST_ROUNDS = 5
N_COMPARING = 8
HOST_SHARE = 5  # results, the oracle's values, slots and an archive's pages exist at once


@dataclass(frozen=True, slots=True)
class Picked:
    """A selection, by the name that reports give it."""

    name: str
    positions: int | slice | None

    def n_positions(self, n_tokens: int) -> int:
        if isinstance(self.positions, slice):
            return len(range(n_tokens)[self.positions])
        return n_tokens if self.positions is None else 1


ALL = Picked("all positions", None)
LAST = Picked("last", -1)
SLICE = Picked("slice 64", slice(0, 64))


@dataclass(frozen=True, slots=True)
class Group:
    """One question to one model, that every destination answers in turns.

    Attributes:
        subject: The model.
        picked: The selection.
        likely_secs: What it may take of the time.
        n_passes: Passes of one run: long enough that setting up is little of it, and no longer
            than its values fit in memory several times.
    """

    subject: Subject
    picked: Picked
    likely_secs: float
    n_passes: int

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.picked.name}"

    @property
    def pass_bytes(self) -> int:
        n_tokens = self.subject.n_tokens
        of_site = self.subject.site_bytes * self.picked.n_positions(n_tokens) // n_tokens
        return of_site * self.subject.shape.n_layers

    @property
    def destinations(self) -> dict[str, Destination]:
        if self.picked is not ALL:
            return dict(DESTINATIONS)
        if self.subject.kind == THIN.kind:
            return {**DESTINATIONS, LOOP: COMPARED[LOOP]}
        return {**DESTINATIONS, **COMPARED}


GRID = (
    Group(LLAMA, ALL, 130, 4),
    Group(LLAMA, LAST, 25, 8),
    Group(LLAMA, SLICE, 25, 8),
    Group(THIN, ALL, 30, 6),
    Group(GPT2, ALL, 30, 24),
    Group(GPT2, LAST, 15, 96),
    Group(GPT2, SLICE, 15, 96),
)


@dataclass(slots=True)
class Cell:
    """One destination's figures.

    Attributes:
        group: Model and selection.
        destination: Where values went.
        status: `measured`, `not run` or `failed`.
        reason: Why not, or why only so much.
        n_passes: Passes of one run.
        first_secs: The first run, which pins and allocates; `None` if there was none.
        secs: Every timed run after it.
        hookless_secs: The run without capture in the same round.
        terms: What the floors allow a pass.
        n_compared: Values compared with the oracle, over all runs.
        problems: What differed.
        statistics: What the engine counted in the first run, where the destination gives it.
        cadence_secs: Between two batches that a loop was given, by timed run, from the second on.
    """

    group: Group
    destination: str
    status: str = NOT_RUN
    reason: str = ""
    n_passes: int = 0
    first_secs: float | None = None
    secs: list[float] = field(default_factory=list)
    hookless_secs: list[float] = field(default_factory=list)
    terms: Terms | None = None
    n_compared: int = 0
    problems: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    cadence_secs: list[float] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        return self.status == MEASURED and bool(self.secs)

    @property
    def pass_secs(self) -> float:
        """The median run, by pass."""
        return statistics.median(self.secs) / self.n_passes

    @property
    def ratio(self) -> Ratio:
        """To the same passes without capture, paired by round."""
        return paired_ratio(self.secs, self.hookless_secs)

    @property
    def share(self) -> float:
        """How much of what the floors allow was reached."""
        assert self.terms is not None
        return self.terms.bound_secs / self.pass_secs

    @property
    def steady_share(self) -> float | None:
        """The same between batches, without a run's beginning and end; `None` without a loop."""
        assert self.terms is not None
        if not self.cadence_secs:
            return None
        return self.terms.bound_secs / statistics.median(self.cadence_secs)

    @property
    def is_equal(self) -> bool | None:
        """Whether everything equalled the oracle; `None` where nothing was compared."""
        return not self.problems if self.n_compared else None


def fitted(group: Group, host_bytes: int | None) -> int:
    """A group's passes; fewer where the host's memory could not hold what exists at once."""
    if host_bytes is None:
        return group.n_passes
    return max(2, min(group.n_passes, host_bytes // (HOST_SHARE * group.pass_bytes)))


class Comparer:
    """Holds what is delivered against the oracle's values, byte by byte."""

    def __init__(self, expected: Values) -> None:
        self.expected = expected

    def check(self, cell: Cell, values: Values, first: int) -> None:
        """Note what differs in the samples from `first` on."""
        with ThreadPoolExecutor(N_COMPARING) as threads:
            found = threads.map(lambda site: self._compare(site, values, first), self.expected)
            for problem in found:
                cell.n_compared += 1
                if problem is not None and problem not in cell.problems:
                    cell.problems.append(problem)

    def _compare(self, site: str, values: Values, first: int) -> str | None:
        if site not in values:
            return f"{site}: missing"
        value = values[site].cpu()
        want = {site: self.expected[site][first : first + len(value)]}
        if len(value) and same_bytes(want, {site: value}):
            return None
        return "; ".join(differences(want, {site: value})) or f"{site}: no samples"


def measure_group(
    gpu: Gpu, group: Group, built: Built, floors: Floors, scratch: Path, clock: Clock
) -> list[Cell]:
    """First one run of each destination, compared whole; then rounds, as many as time allows."""
    built = built.first(fitted(group, available_bytes()))
    cells = [Cell(group, name, n_passes=built.subject.n_passes) for name in group.destinations]
    deadline_secs = min(group.likely_secs, clock.left_secs)
    if clock.left_secs < group.likely_secs / 4:
        for cell in cells:
            cell.reason = out_of_time(clock, group.likely_secs / 4)
        return cells
    own_clock = Clock(deadline_secs, clock.now)
    case = make_case(
        built.model,
        built.batches,
        built.sites,
        positions=group.picked.positions,
        device=gpu.device,
    )
    question = Question(case, built, group.pass_bytes, scratch)
    comparer = Comparer(case.oracle())
    nowhere(question, None)
    alive = {}
    for cell in cells:
        _run_first(gpu, cell, question, comparer, own_clock)
        if cell.first_secs is not None:
            alive[cell.destination] = cell
    _run_rounds(gpu, alive, question, comparer, (clock, own_clock))
    _hold_against_floors(gpu, cells, question, floors)
    return cells


def _run_first(gpu: Gpu, cell: Cell, question: Question, comparer: Comparer, clock: Clock) -> None:
    if clock.left_secs <= 0:
        cell.reason = out_of_time(clock, 1)
        return
    destination = cell.group.destinations[cell.destination]
    try:
        secs = _timed_run(gpu, cell, destination, question, comparer)
        if cell.statistics:  # a loop, which kept the last batch only
            destination(question, lambda values, first: comparer.check(cell, values, first))
        cell.first_secs = secs
        cell.reason = "only the first run: out of time"
    except UnavailableError as error:
        cell.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest runs and the report says so
        cell.status, cell.reason = FAILED, describe_error(error)


def _timed_run(
    gpu: Gpu, cell: Cell, destination: Destination, question: Question, comparer: Comparer
) -> float:
    """Seconds of one run; what it delivered is compared, and given up, after the clock stopped."""
    give_back_memory()
    gpu.synchronise()
    started = time.perf_counter()
    outcome = destination(question, None)
    gpu.synchronise()
    elapsed = time.perf_counter() - started
    if not cell.statistics:
        cell.statistics = outcome.statistics
    for values, first in outcome.parts:
        if cell.destination != HOOKLESS:
            comparer.check(cell, values, first)
    outcome.close()
    if (cadence_secs := outcome.cadence_secs) is not None and cell.first_secs is not None:
        cell.cadence_secs.append(cadence_secs)
    return elapsed


def _run_rounds(
    gpu: Gpu,
    alive: dict[str, Cell],
    question: Question,
    comparer: Comparer,
    clocks: tuple[Clock, Clock],
) -> None:
    """One round if the whole time allows it, and more if the group's own does."""
    base = Cell(next(iter(alive.values())).group, HOOKLESS) if alive else None
    round_secs = sum(cell.first_secs or 0.0 for cell in alive.values())
    for number in range(MOST_ROUNDS):
        if base is None or not alive or clocks[min(number, 1)].left_secs < round_secs:
            return
        started = time.perf_counter()
        _run_round(gpu, number, {HOOKLESS: base, **alive}, question, comparer)
        for name, cell in list(alive.items()):
            if cell.status == FAILED:
                del alive[name]
        round_secs = time.perf_counter() - started


def _run_round(
    gpu: Gpu, number: int, cells: Mapping[str, Cell], question: Question, comparer: Comparer
) -> None:
    found: dict[str, float] = {}
    for name in order_of_round(list(cells), number):
        cell = cells[name]
        destination = nowhere if name == HOOKLESS else cell.group.destinations[name]
        try:
            found[name] = _timed_run(gpu, cell, destination, question, comparer)
        except Exception as error:  # noqa: BLE001 - as above
            cell.status, cell.reason = FAILED, describe_error(error)
    if HOOKLESS not in found:
        raise RuntimeError(f"the passes without capture failed: {cells[HOOKLESS].reason}")
    for name, secs in found.items():
        cell = cells[name]
        cell.secs.append(secs)
        cell.hookless_secs.append(found[HOOKLESS])
        cell.status, cell.reason = MEASURED, ""


def _hold_against_floors(
    gpu: Gpu, cells: Sequence[Cell], question: Question, floors: Floors
) -> None:
    launch_secs = _launch_secs(gpu, question)
    for cell in cells:
        if not cell.is_measured:
            continue
        forward_secs = statistics.median(cell.hookless_secs) / cell.n_passes
        n_sites = len(question.case.sites)
        cell.terms = make_terms(
            floors, question.pass_bytes, n_sites, forward_secs, launch_secs, cell.destination
        )


@torch.no_grad()
def _launch_secs(gpu: Gpu, question: Question) -> float:
    """What the host takes to issue one pass, while the GPU has nothing else to do."""
    ids = question.built.batches[0]["input_ids"].to(gpu.device)
    return gpu.median_host_secs(lambda: question.built.model(ids), 3, 1)


def repeats_itself(gpu: Gpu, built: Built) -> bool:
    """Whether a pass gives the same values twice: what makes a comparison of runs fair."""
    case: Case = make_case(built.model, built.batches[:1], built.sites, device=gpu.device)
    return same_bytes(case.oracle(), case.oracle())


# Figures that the list of micro-benchmarks asks of the grid


def overhead_figures(cells: Sequence[Cell], subject: Subject) -> Iterator[Figure]:
    """B15 for the large model, B16 for the small one.

    Raises:
        UnavailableError: The cells were not measured.
    """
    found = {
        cell.destination: cell
        for cell in cells
        if cell.group.subject.kind == subject.kind and cell.group.picked is ALL and cell.is_measured
    }
    if SLOTS not in found:
        raise UnavailableError(f"{subject.name}, {ALL.name}, {SLOTS} was not measured")
    of_slots = found[SLOTS]
    bare_ms = 1e3 * statistics.median(of_slots.hookless_secs) / of_slots.n_passes
    if subject.kind == LLAMA.kind:
        yield Figure("without capture", bare_ms, "ms", Range(250, 330))
        predicted = {HOOK: Range(270, 700), ASYNC_HOOK: Range(40, 80), SLOTS: Range(2, 6)}
        for name, expected in predicted.items():
            if name in found:
                yield Figure(f"{name} adds", 1e3 * found[name].pass_secs - bare_ms, "ms", expected)
        return
    assert of_slots.terms is not None
    yield Figure("without capture", bare_ms, "ms")
    yield Figure("slots, of that", of_slots.ratio.median, "x", Range(1.05, 1.15))
    link_ms = 1e3 * of_slots.terms.secs["link"]
    yield Figure("link, of that", link_ms / bare_ms, "x", Range(0.85, 0.95))


@torch.no_grad()
def decode(gpu: Gpu, built: Built, n_steps: int = 50, n_rounds: int = 5) -> Iterator[Figure]:
    """B17: passes of one token, with a hook on every block."""
    ids = built.batches[0]["input_ids"][:, :1].to(gpu.device)
    model: nn.Module = built.model

    def step_secs(run: Callable[[], object]) -> float:
        gpu.synchronise()
        started = time.perf_counter()
        for _ in range(n_steps):
            run()
        gpu.synchronise()
        return (time.perf_counter() - started) / n_steps

    added, bare = [], []
    for _ in range(n_rounds):
        bare.append(step_secs(lambda: model(ids)))
        with fastcap.ActivationStore(model, built.sites) as store:
            model(ids)
            model(ids)
            added.append(step_secs(lambda: model(ids)) - bare[-1])
            assert len(store.activations) == len(built.sites)
    yield Figure("without capture", 1e3 * statistics.median(bare), "ms per step")
    yield Figure("fastcap adds", 1e3 * statistics.median(added), "ms per step", Range(0.3, 0.4))


def by_subject(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """Groups of one model together, in order, so that each is made once."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.subject.name, []).append(group)
    return found


def begin_subject() -> None:
    """Before a model's groups: what exists now is left out of the collections between runs."""
    gc.collect()
    gc.freeze()


def end_subject(gpu: Gpu) -> None:
    """After them: give back the model's memory."""
    gc.unfreeze()
    gc.collect()
    gpu.synchronise()
    gpu.cuda.empty_cache()
