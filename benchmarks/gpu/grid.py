"""Models, selections and destinations: measured in turns, and compared with the oracle."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.cells import Cell, Group, fitted
from benchmarks.gpu.destinations import HOOKLESS, Outcome, Question, nowhere, prepare
from benchmarks.gpu.figures import UnavailableError
from benchmarks.gpu.floors import Floors, make_terms
from benchmarks.gpu.session import FAILED, MEASURED, Clock, describe_error, out_of_time
from benchmarks.gpu.subjects import Built
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case, make_case
from fastcap.bench.case import Values
from fastcap.bench.equality import same_bytes
from fastcap.bench.timing import give_back_memory, order_of_round
from fastcap.host_memory import available_bytes
from fastcap.reference import differences

MOST_ROUNDS = 5
N_COMPARING = 8
FIRST_RUN_ONLY = "only the first run: out of time"


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


@dataclass(frozen=True, slots=True)
class Turns:
    """One group while it is measured.

    Attributes:
        gpu: Where.
        question: What is asked.
        comparer: The right answers.
        floors: The machine.
        launch_secs: What the host takes to issue one pass.
        clock: The time for the whole grid.
        own_clock: The group's part of it.
    """

    gpu: Gpu
    question: Question
    comparer: Comparer
    floors: Floors
    launch_secs: float
    clock: Clock
    own_clock: Clock


def measure_group(
    gpu: Gpu, cells: Sequence[Cell], built: Built, floors: Floors, scratch: Path, clock: Clock
) -> None:
    """First one run of each destination, compared whole; then rounds, as many as time allows.

    What was found is in the cells, however this ends.
    """
    group = cells[0].group
    if clock.left_secs < group.likely_secs / 4:
        _say_why(cells, out_of_time(clock, group.likely_secs / 4))
        return
    own_clock = Clock(min(group.likely_secs, clock.left_secs), clock.now)
    built = built.first(_n_passes(gpu, group, floors))
    for cell in cells:
        cell.n_passes = built.subject.n_passes
    case = make_case(
        built.model,
        built.batches,
        built.sites,
        positions=group.picked.positions,
        device=gpu.device,
    )
    launch_secs = _launch_secs(gpu, built)
    expected = case.oracle()
    question = Question(case, built, group.pass_bytes, scratch, expected)
    nowhere(question, None)
    turns = Turns(gpu, question, Comparer(expected), floors, launch_secs, clock, own_clock)
    for cell in cells:
        _run_first(cell, turns)
    _run_rounds({cell.destination: cell for cell in cells if cell.first_secs is not None}, turns)


def _say_why(cells: Sequence[Cell], reason: str) -> None:
    for cell in cells:
        cell.reason = reason


def _n_passes(gpu: Gpu, group: Group, floors: Floors) -> int:
    n_wanted = fitted(group, None, floors)
    n_fitting = fitted(group, available_bytes(), floors)
    if n_fitting < n_wanted:
        gpu.give_back_pinned()  # what earlier groups pinned, and torch keeps
        n_fitting = fitted(group, available_bytes(), floors)
    return n_fitting


def _run_first(cell: Cell, turns: Turns) -> None:
    likely_secs = _likely_secs(cell, turns)
    if turns.own_clock.left_secs <= likely_secs:
        cell.reason = out_of_time(turns.own_clock, likely_secs)
        return
    destination = cell.group.destinations[cell.destination]
    check = turns.comparer.check
    try:
        secs = _timed_run(cell, turns)
        if cell.statistics:  # a loop, which kept the last batch only
            destination(turns.question, lambda values, first: check(cell, values, first))
        cell.first_secs = secs
        cell.reason = FIRST_RUN_ONLY
    except UnavailableError as error:
        cell.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest runs and the report says so
        cell.status, cell.reason = FAILED, describe_error(error)


def _likely_secs(cell: Cell, turns: Turns) -> float:
    """Of one run, as far as the floors tell."""
    forward_secs = cell.group.subject.likely_forward_secs
    terms = make_terms(
        turns.floors, turns.question.pass_bytes, 0, forward_secs, 0.0, cell.destination
    )
    return terms.bound_secs * cell.n_passes


def _timed_run(cell: Cell, turns: Turns) -> float:
    """Seconds of one run; what it delivered is compared, and given up, after the clock stopped."""
    gpu, question = turns.gpu, turns.question
    destination = cell.group.destinations.get(cell.destination, nowhere)
    prepare_secs = prepare(cell.destination, question, gpu)
    if cell.first_secs is None:
        cell.prepare_secs = prepare_secs
    give_back_memory()
    gpu.synchronise()
    started = time.perf_counter()
    outcome = destination(question, None)
    gpu.synchronise()
    elapsed = time.perf_counter() - started
    with _closing(outcome):
        for values, first in outcome.parts:
            if cell.destination != HOOKLESS:
                turns.comparer.check(cell, values, first)
    if not cell.statistics:
        cell.statistics = outcome.statistics
    if (cadence_secs := outcome.cadence_secs) is not None and cell.first_secs is not None:
        cell.cadence_secs.append(cadence_secs)
    return elapsed


@contextmanager
def _closing(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    finally:
        outcome.close()


def _run_rounds(alive: dict[str, Cell], turns: Turns) -> None:
    """One round if the whole time allows it, and more if the group's own does."""
    if not alive:
        return
    base = Cell(next(iter(alive.values())).group, HOOKLESS)
    round_secs = sum(cell.first_secs or 0.0 for cell in alive.values())
    for number in range(MOST_ROUNDS):
        clock = turns.own_clock if number else turns.clock
        if not alive or clock.left_secs < round_secs:
            return
        started = time.perf_counter()
        _run_round(number, {HOOKLESS: base, **alive}, turns)
        for name, cell in list(alive.items()):
            if cell.status == FAILED:
                del alive[name]
        round_secs = time.perf_counter() - started


def _run_round(number: int, cells: Mapping[str, Cell], turns: Turns) -> None:
    found: dict[str, float] = {}
    for name in order_of_round(list(cells), number):
        cell = cells[name]
        try:
            found[name] = _timed_run(cell, turns)
        except Exception as error:  # noqa: BLE001 - as above
            cell.status, cell.reason = FAILED, describe_error(error)
    if HOOKLESS not in found:
        raise RuntimeError(f"the passes without capture failed: {cells[HOOKLESS].reason}")
    for name, secs in found.items():
        cell = cells[name]
        cell.secs.append(secs)
        cell.hookless_secs.append(found[HOOKLESS])
        cell.status, cell.reason = MEASURED, ""
        _hold_against_floors(cell, turns)


def _hold_against_floors(cell: Cell, turns: Turns) -> None:
    forward_secs = statistics.median(cell.hookless_secs) / max(1, cell.n_passes)
    question = turns.question
    cell.terms = make_terms(
        turns.floors,
        question.pass_bytes,
        len(question.case.sites),
        forward_secs,
        turns.launch_secs,
        cell.destination,
    )


@torch.no_grad()
def _launch_secs(gpu: Gpu, built: Built) -> float:
    """What the host takes to issue one pass.

    Of one token: a stream takes about a thousand kernels, of which a Llama has more, and behind
    whole batches the host would wait for room in it.
    """
    ids = built.batches[0]["input_ids"][:1, :1].to(gpu.device)
    return gpu.median_host_secs(lambda: built.model(ids), 3, 1)


def repeats_itself(gpu: Gpu, built: Built) -> bool:
    """Whether a pass gives the same values twice: what makes a comparison of runs fair."""
    case: Case = make_case(built.model, built.batches[:1], built.sites, device=gpu.device)
    return same_bytes(case.oracle(), case.oracle())


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
