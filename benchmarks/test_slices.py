"""Ways alternate batch by batch, each is timed alone, and values are those of whole runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import slices
from benchmarks.slices import Stepper, play_round
from benchmarks.ways import FASTCAP, HOOKLESS, INCUMBENT, WAYS, Steps
from benchmarks.workloads import WORKLOADS, Case, build_case
from fastcap.bench.equality import same_bytes

TINY = WORKLOADS["tiny"]  # three batches
NAMES = (HOOKLESS, INCUMBENT, FASTCAP)


def cases() -> dict[str, Case]:
    return {name: build_case(TINY) for name in NAMES}


def test_alternating_ways_give_what_they_give_alone() -> None:
    outcome = play_round(cases(), NAMES)
    assert set(outcome) == set(NAMES)
    for name in NAMES:
        assert same_bytes(WAYS[name](build_case(TINY)), outcome[name][1])


def test_ways_alternate_in_the_order_given(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def logged(name: str) -> Steps:
        for number in range(3):
            log.append(f"{name}{number}")
            yield
        return {}

    steps = {name: lambda case, name=name: logged(name) for name in (HOOKLESS, INCUMBENT)}
    monkeypatch.setattr(slices, "STEPPED", steps)
    play_round(cases(), (INCUMBENT, FASTCAP, HOOKLESS))
    assert log == [f"{name}{number}" for number in range(3) for name in (INCUMBENT, HOOKLESS)]


def test_the_time_of_the_others_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow(case: Case) -> Steps:
        nonlocal now
        for _ in range(3):
            now += 1.0
            yield
        return {}

    monkeypatch.setattr(slices, "STEPPED", {HOOKLESS: slow, INCUMBENT: slow})
    monkeypatch.setattr(slices, "time", SimpleNamespace(perf_counter=lambda: now))
    outcome = play_round(cases(), NAMES)
    assert {name: secs for name, (secs, _) in outcome.items()} == {
        FASTCAP: 0.0,
        HOOKLESS: 3.0,
        INCUMBENT: 3.0,
    }


def test_a_way_that_is_over_takes_no_more_steps() -> None:
    def once() -> Steps:
        yield
        return {}

    stepper = Stepper(once())
    for _ in range(4):
        stepper.step()
    assert stepper.values == {}
