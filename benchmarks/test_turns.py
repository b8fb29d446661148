"""Runs take turns before every forward pass, each is timed alone, and values are those of whole
runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.turns import Player, take_turns
from benchmarks.workloads import TINY, workloads_of
from fastcap.bench.equality import same_bytes
from fastcap.bench.ways import BASELINE, FASTCAP, HOOK, WAYS
from tests.support.requires import needs_greenlet

pytestmark = needs_greenlet

NAMES = (BASELINE, HOOK, FASTCAP)


def player(n_passes: int, on_pass: Callable[[], None], value: object = None) -> Player[object]:
    """A run that says when a pass is over."""
    model = nn.Identity()

    def run() -> object:
        for _ in range(n_passes):
            model(torch.zeros(1))
            on_pass()
        return value

    return Player(model, run)


def test_runs_in_turns_give_what_they_give_alone() -> None:
    workload = next(workloads_of(TINY, "cpu"))  # three batches
    cases = {name: workload.build() for name in NAMES}
    players = {name: Player(case.model, partial(WAYS[name], case)) for name, case in cases.items()}
    outcome = take_turns(players, NAMES)
    assert list(outcome) == list(NAMES)
    for name in NAMES:
        alone = WAYS[name](workload.build())
        found = outcome[name][1]
        assert isinstance(alone, Mapping)
        assert isinstance(found, Mapping)
        assert same_bytes(alone, found)


def test_turns_are_in_the_order_given_until_a_run_is_over() -> None:
    log: list[str] = []
    players = {
        "a": player(2, lambda: log.append("a")),
        "b": player(3, lambda: log.append("b")),
        "none": player(0, lambda: log.append("none"), value=7),
    }
    outcome = take_turns(players, ("b", "none", "a"))
    assert log == ["b", "a", "b", "a", "b"]
    assert outcome["none"][1] == 7


def test_only_its_own_turns_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def advance(secs: float) -> Callable[[], None]:
        def on_pass() -> None:
            clock[0] += secs

        return on_pass

    players = {"slow": player(3, advance(2.0)), "fast": player(3, advance(1.0))}
    outcome = take_turns(players, ("slow", "fast"))
    assert {name: secs for name, (secs, _) in outcome.items()} == {"slow": 6.0, "fast": 3.0}


def test_no_hook_is_left_behind() -> None:
    players = {"a": player(1, lambda: None)}
    take_turns(players, ("a",))
    players["a"].model(torch.zeros(1))  # would leave a run that is over


def test_a_run_that_fails_ends_the_others() -> None:
    ended: list[str] = []

    def fail() -> None:
        raise ValueError("no")

    def wait() -> object:
        try:
            return other(torch.zeros(1))
        finally:
            ended.append("other")

    other = nn.Identity()
    players = {"other": Player(other, wait), "fails": player(1, fail)}
    with pytest.raises(ValueError, match="no"):
        take_turns(players, ("other", "fails"))
    assert ended == ["other"]
    other(torch.zeros(1))  # its hook is gone


def test_what_a_run_switches_holds_for_no_other() -> None:
    """`no_grad` is of a thread: the first to leave would switch autograd on for the others."""
    modes: list[bool] = []

    @torch.no_grad()
    def run_a() -> None:
        a(torch.zeros(1))

    @torch.no_grad()
    def run_b() -> None:
        b(torch.zeros(1))
        b(torch.zeros(1))
        modes.append(torch.is_grad_enabled())

    a, b = nn.Identity(), nn.Identity()
    take_turns({"a": Player(a, run_a), "b": Player(b, run_b)}, ("a", "b"))
    assert modes == [False]
    assert torch.is_grad_enabled()
