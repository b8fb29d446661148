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
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import nn

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
    are those of its own turns. Autograd is off for all of them, because its mode belongs to the
    thread: what one run switched on or off would hold for the others.

    Args:
        players: The runs, by name.
        order: In which order they have their turns.

    Raises:
        Exception: What a run raised. The others are ended where they wait.
    """
    from greenlet import greenlet  # here, so that what a GPU machine runs does not need it

    secs = dict.fromkeys(order, 0.0)
    values: dict[str, T] = {}
    turns = {name: greenlet(_play) for name in order}
    with torch.no_grad():
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
