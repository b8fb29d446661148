"""The arithmetic of the timing: orders, ratios and their intervals."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from fastcap.bench import timing
from fastcap.bench.timing import (
    log_interval,
    measure_rounds,
    order_of_round,
    paired_ratio,
    run_one_after_another,
    t_quantile,
)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full collection between runs takes long in a process that has run a whole test suite."""
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)


@pytest.mark.parametrize("names", ["AB", "ABC", "ABCDE"])
def test_every_name_starts_and_ends_as_many_rounds_as_any_other(names: str) -> None:
    orders = [order_of_round(names, index) for index in range(2 * len(names))]
    assert all(sorted(order) == list(names) for order in orders)
    assert Counter(order[0] for order in orders) == dict.fromkeys(names, 2)
    assert Counter(order[-1] for order in orders) == dict.fromkeys(names, 2)


def test_no_way_follows_one_other_more_often_than_the_rest() -> None:
    orders = [order_of_round("ABC", index) for index in range(6)]
    followed = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert followed == dict.fromkeys(itertools.permutations("ABC", 2), 2)


def test_ratios_pair_runs_of_one_round() -> None:
    ratio = paired_ratio([2.0, 6.0, 5.0], [1.0, 2.0, 5.0])
    assert ratio.rounds == (2.0, 3.0, 1.0)
    assert ratio.mean == pytest.approx(6 ** (1 / 3))  # of 2, 3 and 1


def test_a_ratio_the_other_way_round_is_its_inverse() -> None:
    secs, base = [2.0, 6.0, 5.0], [1.0, 2.0, 4.0]
    one, other = paired_ratio(secs, base), paired_ratio(base, secs)
    assert other.mean == pytest.approx(1 / one.mean)
    assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low))
    assert one.low < one.mean < one.high


@pytest.mark.parametrize("n_rounds", [2, 3, 7, 25])
@pytest.mark.parametrize("secs", [0.1, 1 / 3, 1.1, 2.7])
def test_the_mean_lies_within_its_interval_also_of_equal_rounds(secs: float, n_rounds: int) -> None:
    """Bars are drawn from the one to the other, and may not be negative by a rounding."""
    ratio = paired_ratio([secs] * n_rounds, [1.0] * n_rounds)
    assert ratio.low <= ratio.mean <= ratio.high


def test_rounds_of_unequal_number_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        paired_ratio([1.0], [1.0, 2.0])


def test_the_interval_is_that_of_student_on_logarithms() -> None:
    # Logarithms 0 and 2 log 2: mean log 2, standard error log 2, one degree of freedom.
    low, high = log_interval([1.0, 4.0])
    assert low == pytest.approx(2.0 ** (1 - 12.706))
    assert high == pytest.approx(2.0 ** (1 + 12.706))


def test_the_interval_of_seven_known_ratios() -> None:
    # By hand: logarithms -0.03 ... 0.03 in steps of 0.01, standard deviation 0.0216025.
    ratios = [math.exp(step / 100) for step in range(-3, 4)]
    half = 2.447 * 0.0216025 / math.sqrt(7)
    assert log_interval(ratios) == pytest.approx((math.exp(-half), math.exp(half)), rel=1e-5)


def test_swapping_two_ways_inverts_the_interval() -> None:
    one, other = [1.0, 1.2, 1.1], [1.3, 1.1, 1.0]
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert (there.low, there.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_equal_ratios_have_an_interval_of_no_width() -> None:
    assert log_interval([1.5, 1.5, 1.5]) == pytest.approx((1.5, 1.5))


def test_one_round_has_no_interval() -> None:
    assert log_interval([1.5]) == (0.0, math.inf)


def test_quantiles_fall_with_the_degrees_of_freedom_and_stay_wide_beyond_the_table() -> None:
    quantiles = [t_quantile(n) for n in range(1, 40)]
    assert quantiles == sorted(quantiles, reverse=True)
    assert t_quantile(6) == 2.447
    assert t_quantile(1000) == t_quantile(30) > 1.96


def timed() -> timing.Round[str]:
    return lambda order: {name: (1.0, name) for name in order}


def test_rounds_go_forwards_and_backwards() -> None:
    orders: list[str] = []

    def run_round(order: Sequence[str]) -> Mapping[str, tuple[float, str]]:
        orders.append("".join(order))
        return {name: (float(len(orders)), name) for name in order}

    secs = measure_rounds("AB", run_round, 3, check=lambda name, value: None)
    assert orders == ["AB", "BA", "BA"]
    assert secs == {"A": [1.0, 2.0, 3.0], "B": [1.0, 2.0, 3.0]}


def test_every_run_is_checked() -> None:
    checked: list[str] = []
    measure_rounds("AB", timed(), 2, check=lambda name, value: checked.append(name + value))
    assert checked == ["AA", "BB"] * 2


def test_whole_runs_wait_for_the_device_on_both_sides() -> None:
    events: list[str] = []
    run_one_after_another(
        {"A": lambda: events.append("run")}, "A", synchronise=lambda: events.append("wait")
    )
    assert events == ["wait", "run", "wait"]


def test_a_round_is_reported_with_its_seconds() -> None:
    seen: list[tuple[int, list[str]]] = []
    measure_rounds(
        "AB",
        timed(),
        2,
        check=lambda name, value: None,
        on_round=lambda index, secs: seen.append((index, list(secs))),
    )
    assert seen == [(0, ["A", "B"]), (1, ["B", "A"])]


def test_past_its_limit_a_run_stops_after_two_rounds() -> None:
    secs = measure_rounds("A", timed(), 9, check=lambda name, value: None, limit_secs=0.0)
    assert len(secs["A"]) == 2
