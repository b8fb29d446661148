"""What capturing costs: each way's time beside that of the same passes without capture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fastcap.bench.case import Case, Values, make_case
from fastcap.bench.equality import Judge, gathered, same_bytes
from fastcap.bench.timing import (
    FEWEST_ROUNDS,
    Ratio,
    measure_rounds,
    paired_ratio,
    run_one_after_another,
    synchroniser,
)
from fastcap.bench.ways import (
    BASELINE,
    FASTCAP,
    HOOK,
    WAYS,
    Way,
    baseline,
    check_sites_fire,
)
from fastcap.errors import ArgumentError
from fastcap.model.forward import Forward
from fastcap.model.sites import Sites
from fastcap.spec import Positions, Reduce, as_count

N_ROUNDS = 7

OnRound = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Overhead:
    """The result of `overhead`.

    Attributes:
        secs: Seconds of every timed run, by way; `baseline` is the base. A run passes all batches
            through the model.
        n_mismatches: Values that differed from the oracle, over all sites and runs, by way.
        problems: What differed, in words, by way.
        captured_bytes: Bytes of one run's values.
        n_passes: Passes of one run.
        n_samples: Samples of one run.
        sites: The sites.
    """

    secs: Mapping[str, tuple[float, ...]]
    n_mismatches: Mapping[str, int]
    problems: Mapping[str, tuple[str, ...]]
    captured_bytes: int
    n_passes: int
    n_samples: int
    sites: tuple[str, ...]

    @property
    def ratios(self) -> dict[str, Ratio]:
        """Each way's time as a multiple of baseline, with its 95 % interval."""
        return {way: self.ratio(way, BASELINE) for way in self.secs if way != BASELINE}

    def ratio(self, way: str, base: str) -> Ratio:
        """One way's time as a multiple of another's, paired round by round."""
        return paired_ratio(self.secs[way], self.secs[base])

    def median_secs(self, way: str) -> float:
        """The median run of a way."""
        return statistics.median(self.secs[way])

    @property
    def is_equal(self) -> bool:
        """Whether no way's values ever differed from the oracle's."""
        return not any(self.n_mismatches.values())


def overhead(
    model: nn.Module,
    batches: Iterable[Any],
    ways: Mapping[str, Way] | Iterable[str] | None = None,
    *,
    sites: Sites,
    rounds: int = N_ROUNDS,
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
    model_inputs: Iterable[str] | None = None,
    forward: Forward | None = None,
    device: torch.device | str | int | None = None,
    limit_secs: float | None = None,
    on_round: OnRound | None = None,
) -> Overhead:
    """Measure the overhead of capture functions on a model, and check their values.

    Every round runs the passes once without capture and once with each method, in alternating
    order; ratios are taken within rounds (`fastcap.bench.paired_ratio`). Before the timed rounds
    each method runs once, and its values are compared with the oracle's, as are those of each
    round. The model must be deterministic.

    Ways make their passes with `case.passes()`, in which parts that `torch.compile` wraps run as
    plain Python, since compiled graphs skip hooks; those without capture run as they are compiled.

    Args:
        model: Any module.
        batches: What one run passes through it; kept in a list. Enough of them that a run takes
            some tenths of a second.
        ways: Functions of a `fastcap.bench.Case` by name, or names out of `fastcap.bench.WAYS`;
            by default the plain `.detach().cpu()` hook and fastcap.
        sites: Where to capture, as in `fastcap.stream`.
        rounds: Timed rounds, at least two.
        positions: As in `fastcap.stream`; so are the next seven.
        reduce: A callable on the selected tensor.
        dtype: The dtype to deliver.
        seq_dim: The dimension that `positions` count along.
        batch_dim: The dimension that counts samples.
        model_inputs: Keys of the batch passed to the model by name.
        forward: `forward(model, batch)` replaces the call.
        device: Where batches are moved.
        limit_secs: When to start no further round, once there are two.
        on_round: Told every round's index and its seconds by way.

    Raises:
        ArgumentError: No batches or sites, an unknown way, one that returns no tensors by site or
            leaves hooks behind, too few rounds, a selection that
            synchronous hooks cannot take, a site that gives no tensor, or a model that gives other
            values for the same batch.
        BatchError: A batch does not say how many samples it has.
        SiteNotFoundError: A site does not name a module of the model.

    Examples:
        >>> import torch
        >>> from fastcap.bench import overhead
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU())
        >>> measured = overhead(model, [torch.ones(4, 8)] * 3, sites=["0"], rounds=2)
        >>> sorted(measured.ratios), measured.captured_bytes, measured.is_equal
        (['fastcap', 'hook'], 384, True)
    """
    case = make_case(
        model,
        batches,
        sites,
        positions=positions,
        reduce=reduce,
        dtype=dtype,
        seq_dim=seq_dim,
        batch_dim=batch_dim,
        model_inputs=model_inputs,
        forward=forward,
        device=device,
    )
    return measure(case, find_ways(ways), rounds, limit_secs, on_round)


def find_ways(ways: Mapping[str, Way] | Iterable[str] | None) -> dict[str, Way]:
    """Functions by name.

    Raises:
        ArgumentError: A name that is not in `WAYS`, or `baseline`, which is always measured, or
            what is not a function.
    """
    if ways is None:
        ways = (HOOK, FASTCAP)
    if isinstance(ways, str):
        ways = (ways,)
    names = list(ways)
    if BASELINE in names:
        raise ArgumentError(f"ways names {BASELINE!r}, which is always measured. Leave it out.")
    if isinstance(ways, Mapping):
        for name, way in ways.items():
            if not callable(way):
                raise ArgumentError(f"Way {name!r} is {way!r}, and not a function of a case.")
        return dict(ways)
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        known = ", ".join(map(repr, WAYS))
        raise ArgumentError(
            f"No way is named {unknown[0]!r}. There are {known}; functions of your own are given "
            "by name, such as {'mine': capture}."
        )
    return {name: WAYS[name] for name in names}


def measure(
    case: Case,
    ways: Mapping[str, Way],
    rounds: int = N_ROUNDS,
    limit_secs: float | None = None,
    on_round: OnRound | None = None,
    judge: Judge | None = None,
) -> Overhead:
    """As `overhead`, of a case that is made already; a `judge` knows the oracle's values already,
    and has seen none of these ways.
    """
    rounds = as_count("rounds", rounds, at_least=FEWEST_ROUNDS)
    n_samples = sum(case.sizes)
    check_sites_fire(case)
    judge = judge or Judge(case.oracle())
    for name, way in ways.items():
        _run_first(case, name, way, judge)
    is_tail = dict.fromkeys(ways, False)

    def run(name: str) -> Values:
        values, is_tail[name] = _drain(ways[name](case))
        return values

    def check(name: str, values: Values) -> Values:
        if name != BASELINE:
            judge.check(name, values, is_tail=is_tail[name])
        return {}

    runs: dict[str, Callable[[], Values]] = {BASELINE: partial(baseline, case)}
    runs.update({name: partial(run, name) for name in ways})
    play = partial(run_one_after_another, runs, synchronise=synchroniser(case.device), judge=check)
    names = list(runs)
    runs[BASELINE]()  # what only a first run costs; the ways had theirs
    secs = measure_rounds(
        names, play, rounds, lambda name, value: None, on_round or _silent, limit_secs
    )
    return Overhead(
        secs={name: tuple(of_way) for name, of_way in secs.items()},
        n_mismatches={name: judge.n_mismatches[name] for name in ways},
        problems={name: tuple(judge.problems[name]) for name in ways},
        captured_bytes=sum(value.nbytes for value in judge.expected.values()),
        n_passes=len(case.batches),
        n_samples=n_samples,
        sites=tuple(case.sites),
    )


def _silent(index: int, secs: Mapping[str, float]) -> None:
    """Nobody watches."""


def _run_first(case: Case, name: str, way: Way, judge: Judge) -> None:
    """Check a way's whole result, and what it leaves behind."""
    n_hooks = _count_hooks(case.model)
    outcome = way(case)
    if not isinstance(outcome, Mapping | Iterator):
        raise ArgumentError(
            f"Way {name!r} returned {type(outcome).__name__}. A way returns a mapping of one "
            "tensor per site, or is a generator of one such mapping per batch."
        )
    judge.check(name, outcome if isinstance(outcome, Mapping) else gathered(outcome))
    del outcome
    left = _count_hooks(case.model) - n_hooks
    if left > 0:
        raise ArgumentError(
            f"Way {name!r} left {left} hooks on the model, which would slow down every way after "
            "it. Keep what register_forward_hook returns, and call its remove() in the end."
        )
    if judge.n_mismatches[name]:
        _check_model_repeats(case, judge.expected)


def _count_hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def _check_model_repeats(case: Case, expected: Values) -> None:
    again = case.oracle()
    other = [
        site for site in expected if not same_bytes({site: expected[site]}, {site: again[site]})
    ]
    if other:
        raise ArgumentError(
            f"At site {other[0]!r} the model gives other values when it is given the same batches "
            "again, so that no way can be compared with the oracle. It draws random numbers in "
            "evaluation mode, keeps something from pass to pass, changes the batch, or uses "
            "kernels that do not repeat (torch.use_deterministic_algorithms). Change that, if need "
            "be in forward=lambda model, batch: ..., or leave such sites out."
        )


def _drain(outcome: Values | Iterator[Values]) -> tuple[Values, bool]:
    """A way's values, and whether they are only the last batch's, as a loop is left with."""
    if isinstance(outcome, Mapping):
        return outcome, False
    last: Values = {}
    for values in outcome:
        last = values
    return last, True
