"""One case, measured in many ways: each takes turns with the baseline, and every value is compared.

A run is timed twice: as a whole, until everything is delivered, and in its steady state, from the
start of its second pass to that of its last, by the GPU's clock. A run of few passes is longer by
the copy of its last one, however well the others are hidden.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.command import Program
from benchmarks.gpu.grid import (
    FORWARD,
    HIDDEN,
    SHARES,
    SLOTS,
    Group,
    bound_of,
    fitted,
    make_terms,
    named_ways,
)
from benchmarks.gpu.report import NONE, Figure, Range, UnavailableError, of_ratio
from benchmarks.gpu.subjects import package_of, tiny
from benchmarks.gpu.toolbox import Gpu
from benchmarks.workloads import Workload
from fastcap.bench import Case, Overhead
from fastcap.bench.equality import Judge
from fastcap.bench.overhead import measure
from fastcap.bench.timing import paired_ratio
from fastcap.bench.ways import BASELINE, Way
from fastcap.planning.machine import Machine

MOST_ROUNDS = 9
N_COMPARING = 8  # threads that compare values with the oracle's

Goal = tuple[str, Range | None]
"""What was promised, in words and as a range; of most, nothing."""


class Steady:
    """Seconds of a pass in the steady state.

    Args:
        gpu: Whose clock.
        n_passes: Of one run.

    Attributes:
        secs: Of every round, by way.
        is_known: Whether every run called the model once for each pass.
    """

    def __init__(self, gpu: Gpu, n_passes: int) -> None:
        self.secs: dict[str, list[float]] = {}
        self.is_known = True
        self._gpu, self._n_passes = gpu, n_passes
        self._starts: list[Any] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Note when each pass of the block begins."""
        handle = model.register_forward_pre_hook(
            lambda *_: self._starts.append(self._gpu.timing_event())
        )
        try:
            yield
        finally:
            handle.remove()

    def on_round(self, index: int, secs: Mapping[str, float]) -> None:
        """Take a round's passes apart; those before the first round were no round's.

        `secs` has the ways in the order in which the round ran them.
        """
        order = list(secs)
        n_expected = self._n_passes * len(order)
        starts = self._starts[-n_expected:]
        n_found = len(starts) if index == 0 else len(self._starts)
        self.is_known &= n_found == n_expected
        for number, way in enumerate(order) if self.is_known else ():
            of_way = starts[number * self._n_passes :][: self._n_passes]
            elapsed_ms = float(of_way[1].elapsed_time(of_way[-1]))
            self.secs.setdefault(way, []).append(elapsed_ms / 1e3 / (self._n_passes - 2))
        self._starts.clear()


class Question:
    """A case, with what all of its ways are held against.

    Args:
        gpu: Where.
        case: What is captured; of three passes or more.
        floors: The machine, where shares of its rates are asked for.
    """

    def __init__(self, gpu: Gpu, case: Case, floors: Machine | None = None) -> None:
        self.gpu, self.case, self.floors = gpu, case, floors
        self.judge = Judge(case.oracle(), N_COMPARING)
        self.launch_secs = 0.0 if floors is None else launch_secs(gpu, case)

    def ask(
        self, program: Program, title: str, name: str, way: Way, limit_secs: float
    ) -> Iterator[Figure]:
        """The figures of one way, whose rounds are in the entry of this title."""
        steady = Steady(self.gpu, len(self.case.batches))
        self.gpu.synchronise()
        with steady.watching(self.case.model):
            found = measure(
                self.case, {name: way}, MOST_ROUNDS, limit_secs, steady.on_round, self.judge
            )
        entry = program.ask(title)
        entry.problems = list(found.problems[name])
        entry.raw = {"passes": found.n_passes, "captured_bytes": found.captured_bytes}
        entry.raw |= {"secs": found.secs, "steady_pass_secs": steady.secs}
        yield from self.figures(name, found, steady.secs if steady.is_known else {})

    def figures(
        self, name: str, found: Overhead, steady: Mapping[str, Sequence[float]]
    ) -> Iterator[Figure]:
        """Times beside the baseline's, and beside what bounds them.

        Copies behind the forward, and lent slots, which a loop gives back batch by batch, are
        judged by the steady state, without a run's beginning and end. Of the other ways the end is
        part of what was promised.
        """
        none: Goal = ("", None)
        terms = self._terms(name, found)
        bound = bound_of(terms) if terms else ""
        pass_secs = found.median_secs(name) / found.n_passes
        yield Figure("pass", 1e3 * pass_secs, "ms")
        yield of_ratio("baseline = 1", found.ratios[name])
        if steady:
            goal, promised = HIDDEN if bound == FORWARD else none
            ratio = paired_ratio(steady[name], steady[BASELINE])
            yield of_ratio("steady, baseline = 1", ratio, promised, goal)
        if terms:
            share = SHARES.get((name, bound), none)
            whole, of_steady = (none, share) if name == SLOTS else (share, none)
            yield _share_of(bound, terms, pass_secs, "", whole)
            if steady:
                steady_secs = statistics.median(steady[name])
                yield _share_of(bound, terms, steady_secs, "steady, ", of_steady)
        yield Figure("wrong values", found.n_mismatches[name], "", NONE)

    def _terms(self, name: str, found: Overhead) -> dict[str, float]:
        """What bounds a pass; nothing where the floors are not known."""
        if self.floors is None:
            return {}
        pass_bytes = found.captured_bytes / found.n_passes
        forward_secs = found.median_secs(BASELINE) / found.n_passes
        n_sites = len(found.sites)
        return make_terms(self.floors, pass_bytes, n_sites, forward_secs, self.launch_secs, name)


def _share_of(bound: str, terms: Mapping[str, float], secs: float, when: str, goal: Goal) -> Figure:
    """Which part of what bounds a pass is reached."""
    what, promised = goal
    return Figure(f"{when}of what {bound} allows", terms[bound] / secs, "", promised, goal=what)


@torch.no_grad()
def launch_secs(gpu: Gpu, case: Case) -> float:
    """What the host takes to issue one pass.

    Of one token: a stream takes about a thousand kernels, of which a Llama has more, and behind
    whole batches the host would wait for room in it.
    """
    ids = case.batches[0]["input_ids"][:1, :1].to(gpu.device)
    return gpu.median_host_secs(lambda: case.model(ids), 3, 1)


def measure_ways(
    program: Program,
    group: str,
    make: Callable[[], Question],
    ways: Mapping[str, Way],
    likely_secs: float,
) -> None:
    """An entry for every way; the question is made when the first of them is asked."""
    question = cache(make)

    def ask(title: str, name: str, way: Way) -> Iterator[Figure]:
        return question().ask(program, title, name, way, likely_secs)

    for name, way in ways.items():
        title = f"{group}: {name}"
        program.measure(title, partial(ask, title, name, way), likely_secs / 2)


def measure_groups(program: Program, groups: Sequence[Group]) -> None:
    """The groups of one model, which is made for the first of them."""
    with opened(program, groups[0].subject) as model:
        for group in groups:
            make = partial(_question, program, group, model)
            ways = named_ways(group, program.scratch)
            measure_ways(program, group.name, make, ways, group.likely_secs)


def _question(program: Program, group: Group, model: Callable[[], nn.Module]) -> Question:
    found = program.facts.get("floors")
    floors = None if found is None else Machine(**found)
    case = group.workload(fitted(program.gpu, group, floors)).build(model())
    return Question(program.gpu, case, floors)


@contextmanager
def opened(program: Program, subject: Workload) -> Iterator[Callable[[], nn.Module]]:
    """What makes a model when it is first asked for; its memory is given back after the block."""
    model = cache(partial(_make, program, subject))
    try:
        yield model
    finally:
        model.cache_clear()
        gc.unfreeze()
        gc.collect()
        program.gpu.empty_cache()


def _make(program: Program, subject: Workload) -> nn.Module:
    program.say(f"model {subject.name}")
    try:
        model = subject.make(subject.shape, subject.dtype, subject.device)
    except torch.OutOfMemoryError as error:
        raise UnavailableError(f"the GPU has too little memory for {subject.name}") from error
    gc.collect()
    gc.freeze()  # what exists now is left out of the collections between runs
    made = f"{package_of(model)}.{type(model).__name__}"
    program.facts.setdefault("models", {})[subject.name] = made
    return model


def subject_of(program: Program, subject: Workload) -> Workload:
    """The model itself, or for a dry run one that is small."""
    return tiny(subject) if program.is_dry else replace(subject, device=str(program.gpu.device))
