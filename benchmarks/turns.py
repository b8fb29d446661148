"""Runs that take turns before every forward pass, in one thread.

Speed on shared machines drifts within minutes by more than what is measured, and a round of whole
runs compares minutes. Which process is fast is decided when it starts, so that runs in processes of
their own compare processes. Here every run is a coroutine of its own in one thread: it is left
wherever its model is called, and goes on when the others have had their turns.

Not for accelerators: at every change of run the device would have to be waited for, and nothing
would overlap.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from fastcap.bench import Case, Overhead
from fastcap.bench.equality import Judge
from fastcap.bench.overhead import OnRound
from fastcap.bench.timing import measure_rounds
from fastcap.bench.ways import BASELINE, Way
from fastcap.model.forward import uncompiled

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Player(Generic[T]):
    """A run, and the model that it calls for each of its passes.

    Every player has a model of its own: one's hooks would fire in another's passes.
    """

    model: nn.Module
    run: Callable[[], T]


def take_turns(
    players: Mapping[str, Player[T]], order: Sequence[str]
) -> dict[str, tuple[float, T]]:
    """Run every player once; seconds and value by name.

    A turn lasts until the player's model is called, or until its run is over; a player's seconds
    are those of its own turns. Autograd and compiling are off for all of them, because both modes
    belong to the thread: what one run switched on or off would hold for the others.

    Raises:
        Exception: What a run raised. The others are ended where they wait.
    """
    from greenlet import greenlet  # here, so that what a GPU machine runs does not need it

    secs = dict.fromkeys(order, 0.0)
    values: dict[str, T] = {}
    turns = {name: greenlet(_play) for name in order}
    with torch.no_grad(), uncompiled():
        try:
            while len(values) < len(order):
                for name in order:
                    if name in values:
                        continue
                    started = time.perf_counter()
                    value = turns[name].switch(players[name])
                    secs[name] += time.perf_counter() - started
                    if turns[name].dead:
                        values[name] = value
        finally:
            for turn in turns.values():
                if not turn.dead:
                    turn.throw()  # leaves its `with` blocks, where another run has failed
    return {name: (secs[name], values[name]) for name in order}


def _play(player: Player[T]) -> T:
    from greenlet import getcurrent

    others = getcurrent().parent

    def let_others_go_on(*_: object) -> None:
        others.switch()

    handle = player.model.register_forward_pre_hook(let_others_go_on)
    try:
        return player.run()
    finally:
        handle.remove()


def measure_in_turns(
    build: Callable[[], Case],
    ways: Mapping[str, Way],
    n_rounds: int,
    on_round: OnRound = lambda index, secs: None,
) -> Overhead:
    """`fastcap.bench.overhead` of ways that take turns, each on a case of its own.

    Args:
        build: Makes the same case each time.
        ways: The baseline among them; each returns tensors by site.
        n_rounds: Timed rounds.
        on_round: Told every round's index and its seconds by way.
    """
    cases = {way: build() for way in ways}
    of_any = cases[BASELINE]
    judge = Judge(build().oracle())

    def play(order: Sequence[str], n_batches: int | None = None) -> dict[str, tuple[float, Any]]:
        players = {}
        for way in order:
            case = replace(cases[way], batches=cases[way].batches[:n_batches])
            players[way] = Player(case.model, partial(ways[way], case))
        return take_turns(players, order)

    def check(way: str, values: Any) -> None:
        if way != BASELINE:
            judge.check(way, values)

    play(list(ways), n_batches=2)  # warms up
    secs = measure_rounds(list(ways), play, n_rounds, check, on_round)
    return Overhead(
        secs={way: tuple(of_way) for way, of_way in secs.items()},
        n_mismatches=judge.n_mismatches,
        problems={way: tuple(found) for way, found in judge.problems.items()},
        captured_bytes=sum(value.nbytes for value in judge.expected.values()),
        n_passes=len(of_any.batches),
        n_samples=sum(of_any.sizes),
        sites=tuple(of_any.sites),
    )
