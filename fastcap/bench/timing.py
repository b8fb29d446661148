"""Interleaved rounds, and what the ratios between two ways are.

Shared machines drift by more than what is measured here, so no way is timed by itself: every round
runs every way once, in an order in which none always follows the same other, and ways are compared
within a round.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fastcap.devices.accelerator import synchronise as synchronise_device

T = TypeVar("T")

FEWEST_ROUNDS = 2  # an interval needs a spread

# 97.5 % quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of two methods' times.

    Attributes:
        mean: The geometric mean of the rounds' ratios.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        rounds: The ratio within each round.
    """

    mean: float
    low: float
    high: float
    rounds: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(secs: Sequence[float], base_secs: Sequence[float]) -> Ratio:
    """Compare two methods round by round: geometric mean of the rounds' ratios, with an interval.

    Ratios are averaged as logarithms, so that a way that is held against another, and the other
    against it, come out as `r` and `1 / r`. With seven rounds a bootstrap covers less than it
    claims, so the interval is Student's t on the same logarithms; see `log_interval`. One round
    gives no interval.

    Examples:
        >>> print(paired_ratio([2.2, 2.0, 2.1], [2.0, 2.0, 2.0]))
        1.049 [0.932, 1.181]
    """
    rounds = [one / base for one, base in zip(secs, base_secs, strict=True)]
    low, high = log_interval(rounds)
    return Ratio(statistics.geometric_mean(rounds), low, high, tuple(rounds))


def log_interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the typical (geometric mean) ratio; infinite for fewer than two.

    With `d` the logarithms of the `n` rounds' ratios: `exp(mean(d) ± t(n - 1) · sd(d) / √n)`,
    where `t` is the 97.5 % quantile of Student's distribution and `sd` divides by `n - 1`. This is
    the paired t interval (NIST/SEMATECH e-Handbook of Statistical Methods, sections 1.3.5.2 and
    7.3.1.1) on logarithms, which turn ratios into differences. It assumes that rounds are
    independent and that the logarithms have no heavy tails.
    """
    if len(ratios) < 2:
        return 0.0, math.inf
    logs = [math.log(ratio) for ratio in ratios]
    centre = statistics.fmean(logs)
    half = t_quantile(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(centre - half), math.exp(centre + half)


def t_quantile(n_degrees: int) -> float:
    """The 97.5 % quantile of Student's t, a little too wide beyond the table."""
    return T_QUANTILES[min(n_degrees, len(T_QUANTILES)) - 1]


def order_of_round(names: Sequence[str], index: int) -> list[str]:
    """In which order a round runs every name.

    Rounds come in pairs, forwards then backwards, and each pair starts one name further on. A mere
    rotation would run every way after the same other in all rounds, and a way that is given the
    memory that one before it has just returned is faster for it.

    Examples:
        >>> ["".join(order_of_round("abc", index)) for index in range(6)]
        ['abc', 'cba', 'bca', 'acb', 'cab', 'bac']
    """
    start = index // 2 % len(names)
    order = [*names[start:], *names[:start]]
    return order[::-1] if index % 2 else order


Round = Callable[[Sequence[str]], Mapping[str, tuple[float, T]]]
"""Runs every named way once, in this order; seconds and value by way."""


def measure_rounds(
    names: Sequence[str],
    run_round: Round[T],
    n_rounds: int,
    check: Callable[[str, T], None],
    on_round: Callable[[int, Mapping[str, float]], None] = lambda index, secs: None,
    limit_secs: float | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run, by name.

    Args:
        names: What to time, in the order of the first round.
        run_round: How.
        n_rounds: Timed rounds.
        check: Told every run's name and value, outside the timing.
        on_round: Told every timed round's index and its seconds, in the order of that round.
        limit_secs: When to start no further round, once the fewest are done.
    """
    deadline = math.inf if limit_secs is None else time.perf_counter() + limit_secs
    secs: dict[str, list[float]] = {name: [] for name in names}
    for index in range(n_rounds):
        if index >= FEWEST_ROUNDS and time.perf_counter() > deadline:
            break
        give_back_memory()
        of_round = run_round(order_of_round(names, index))
        for name in names:
            elapsed, value = of_round[name]
            secs[name].append(elapsed)
            check(name, value)
        on_round(index, {name: elapsed for name, (elapsed, _) in of_round.items()})
        del of_round, value  # so that the next round's values are not beside them
    return secs


def run_one_after_another(
    runs: Mapping[str, Callable[[], T]],
    order: Sequence[str],
    synchronise: Callable[[], None] = lambda: None,
    judge: Callable[[str, T], T] = lambda name, value: value,
) -> dict[str, tuple[float, T]]:
    """A round of whole runs.

    Args:
        runs: What to run, by name.
        order: In which order.
        synchronise: Called right before and after each run, within its time.
        judge: Told each run's name and value outside its time; what it returns is kept in the
            value's place. A judge that returns nothing large lets one result exist at a time.
    """
    outcome = {}
    for name in order:
        give_back_memory()
        synchronise()
        started = time.perf_counter()
        value = runs[name]()
        synchronise()
        elapsed = time.perf_counter() - started
        outcome[name] = (elapsed, judge(name, value))
        del value
    return outcome


def give_back_memory() -> None:
    """Collect garbage, and have the C library return free memory to the system.

    Otherwise a way would pay for the garbage of the one before it, or get the memory that one
    freed, already touched, which a process that runs one way only would not.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc; other C libraries return memory by themselves
        trim(0)


def synchroniser(device: torch.device | str) -> Callable[[], None]:
    """What waits for everything queued on a device."""
    place = torch.device(device)
    return lambda: synchronise_device(place)
