"""Models, selections and destinations: measured in turns, and compared with the oracle."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from benchmarks.gpu.cells import Cell, Group, archive_passes, fitted
from benchmarks.gpu.destinations import BASELINE, Question, nowhere, prepare
from benchmarks.gpu.figures import UnavailableError
from benchmarks.gpu.floors import ARCHIVE, Floors, make_terms
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


def compare(cell: Cell, expected: Values, found: Values) -> None:
    """Hold what was delivered against the oracle's values, byte by byte."""

    def problem(site: str) -> str | None:
        if site not in found:
            return f"{site}: missing"
        want, got = {site: expected[site]}, {site: found[site].cpu()}
        return None if same_bytes(want, got) else "; ".join(differences(want, got))

    with ThreadPoolExecutor(N_COMPARING) as threads:
        for each in threads.map(problem, expected):
            cell.n_compared += 1
            if each is not None and each not in cell.problems:
                cell.problems.append(each)


class PassStarts:
    """When each pass of a block begins, by the GPU's clock: what a run is between its ends."""

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


@dataclass(frozen=True, slots=True)
class Turns:
    """One group while it is measured.

    Attributes:
        gpu: Where.
        question: What is asked.
        short: The same with as many passes as there is time to write to a disk.
        floors: The machine, where it was measured.
        launch_secs: What the host takes to issue one pass.
        clock: The time for the whole grid.
        own_clock: The group's part of it.
    """

    gpu: Gpu
    question: Question
    short: Question
    floors: Floors | None
    launch_secs: float
    clock: Clock
    own_clock: Clock

    def question_to(self, cell: Cell) -> Question:
        return self.short if cell.destination == ARCHIVE else self.question


def measure_group(
    gpu: Gpu,
    cells: Sequence[Cell],
    built: Built,
    floors: Floors | None,
    scratch: Path,
    clock: Clock,
) -> None:
    """First one run of each destination, compared whole; then rounds, as many as time allows.

    What was found is in the cells, however this ends.
    """
    group = cells[0].group
    if clock.left_secs < group.likely_secs / 4:
        for cell in cells:
            cell.reason = out_of_time(clock, group.likely_secs / 4)
        return
    own_clock = Clock(min(group.likely_secs, clock.left_secs), clock.now)
    n_passes = _n_passes(gpu, group)
    built = built.first(n_passes)
    case = make_case(
        built.model,
        built.batches,
        built.sites,
        positions=group.picked.positions,
        device=gpu.device,
    )
    question = Question(case, scratch, case.oracle())
    short = question.first(archive_passes(group, n_passes, floors))
    turns = Turns(gpu, question, short, floors, _launch_secs(gpu, built), clock, own_clock)
    _drain(nowhere(question), case)
    for cell in cells:
        cell.n_passes = len(turns.question_to(cell).case.batches)
        _run_first(cell, turns)
    _run_rounds({cell.destination: cell for cell in cells if cell.first_secs is not None}, turns)


def _n_passes(gpu: Gpu, group: Group) -> int:
    n_fitting = fitted(group, available_bytes())
    if n_fitting < group.n_passes:
        gpu.give_back_pinned()  # what earlier groups pinned, and torch keeps
        n_fitting = fitted(group, available_bytes())
    return n_fitting


def _run_first(cell: Cell, turns: Turns) -> None:
    likely_secs = _likely_secs(cell, turns)
    if turns.own_clock.left_secs <= likely_secs:
        cell.reason = out_of_time(turns.own_clock, likely_secs)
        return
    question = turns.question_to(cell)
    try:
        run = _timed_run(cell, turns)
        cell.statistics = dict(question.counted)
        if run.is_loop:  # of which the last batch was compared
            check = partial(_compare_batch, cell, question)
            _drain(cell.group.destinations[cell.destination](question), question.case, check)
        cell.first_secs = run.secs * cell.n_passes
        cell.reason = FIRST_RUN_ONLY
    except UnavailableError as error:
        cell.reason = str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, the rest runs and the report says so
        cell.status, cell.reason = FAILED, describe_error(error)


def _likely_secs(cell: Cell, turns: Turns) -> float:
    """Of one run, as far as the floors tell."""
    forward_secs = cell.group.subject.likely_forward_secs
    if turns.floors is None:
        return forward_secs * cell.n_passes
    pass_bytes = turns.question.pass_bytes
    terms = make_terms(turns.floors, pass_bytes, 0, forward_secs, 0.0, cell.destination)
    return terms.bound_secs * cell.n_passes


def _rows(question: Question, first: int) -> dict[str, torch.Tensor]:
    """What the oracle has for the batch that begins with sample `first`."""
    size = question.case.sizes[0]
    return {site: value[first : first + size] for site, value in question.expected.items()}


def _compare_batch(cell: Cell, question: Question, first: int, values: Values) -> None:
    compare(cell, _rows(question, first), values)


def _drain(
    outcome: Values | Iterator[Values],
    case: Case,
    on_batch: Callable[[int, Values], None] = lambda first, values: None,
) -> tuple[Values, int | None]:
    """What a run delivered, or of a loop the last batch with its first sample.

    A batch is dropped before the next is asked for.
    """
    if isinstance(outcome, Mapping):
        return outcome, None
    values: Values = {}
    first = 0
    for first in range(0, sum(case.sizes), case.sizes[0]):
        values = {}
        values = next(outcome)
        on_batch(first, values)
    if next(outcome, None) is not None:
        raise RuntimeError("it gave more batches than were asked for")
    return values, first


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds by pass of a whole run, and of its steady state."""

    secs: float
    steady_secs: float | None
    is_loop: bool


def _timed_run(cell: Cell, turns: Turns) -> Run:
    """One run. What it delivered is compared, and given up, after the clock stopped."""
    gpu, question = turns.gpu, turns.question_to(cell)
    case, destination = question.case, cell.group.destinations.get(cell.destination, nowhere)
    prepare_secs = prepare(destination, question, gpu)
    if cell.first_secs is None:
        cell.prepare_secs = prepare_secs
    question.counted.clear()
    give_back_memory()
    gpu.synchronise()
    with PassStarts(gpu, case.model) as starts:
        started = time.perf_counter()
        values, first = _drain(destination(question), case)
        gpu.synchronise()
        elapsed = time.perf_counter() - started
    if cell.destination != BASELINE:
        compare(cell, question.expected if first is None else _rows(question, first), values)
    return Run(elapsed / len(case.batches), starts.pass_secs, first is not None)


def _run_rounds(alive: dict[str, Cell], turns: Turns) -> None:
    """One round if the whole time allows it, and more if the group's own does."""
    if not alive:
        return
    base = Cell(next(iter(alive.values())).group, BASELINE)
    round_secs = sum(cell.first_secs or 0.0 for cell in alive.values())
    for number in range(MOST_ROUNDS):
        clock = turns.own_clock if number else turns.clock
        if not alive or clock.left_secs < round_secs:
            return
        started = time.perf_counter()
        _run_round(number, {BASELINE: base, **alive}, turns)
        for name, cell in list(alive.items()):
            if cell.status == FAILED:
                del alive[name]
        round_secs = time.perf_counter() - started


def _run_round(number: int, cells: Mapping[str, Cell], turns: Turns) -> None:
    found: dict[str, Run] = {}
    for name in order_of_round(list(cells), number):
        cell = cells[name]
        try:
            found[name] = _timed_run(cell, turns)
        except Exception as error:  # noqa: BLE001 - as above
            cell.status, cell.reason = FAILED, describe_error(error)
    if BASELINE not in found:
        raise RuntimeError(f"the passes without capture failed: {cells[BASELINE].reason}")
    base = found[BASELINE]
    for name, run in found.items():
        cell = cells[name]
        cell.secs.append(run.secs)
        cell.baseline_secs.append(base.secs)
        if run.steady_secs is not None and base.steady_secs is not None:
            cell.steady_secs.append(run.steady_secs)
            cell.baseline_steady_secs.append(base.steady_secs)
        cell.status, cell.reason = MEASURED, ""
        if turns.floors is not None:
            _hold_against_floors(cell, turns, turns.floors)


def _hold_against_floors(cell: Cell, turns: Turns, floors: Floors) -> None:
    question = turns.question
    cell.terms = make_terms(
        floors,
        question.pass_bytes,
        len(question.case.sites),
        statistics.median(cell.baseline_secs),
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
