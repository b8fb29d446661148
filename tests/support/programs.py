"""Random programs as data: what is captured, with which memory, and what then happens.

A program is drawn from a `random.Random`: a seed replays it, hypothesis can shrink it where it
draws the generator (`st.randoms(use_true_random=False)`), and `shrink` makes any failing one
smaller. It does not depend on the schedule it runs under.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from tests.support.scripted import DTYPES, LAYOUTS, LEAVES, N_LEAVES, WRAPPINGS, Action, Value

BUDGETS = (256, 512, 1024, 4096)
MODES = ("no_grad", "inference", "grad")
SIZES = (1, 2, 3, 5, 8, 13)
MOST_ELEMENTS = 4096  # many times the largest chunk, and no more than that
POSITIONS = (None, 0, -1, slice(0, 2), slice(None, None, 2), slice(5, None), (0, -1), ())
REDUCERS: dict[str, Callable[[Tensor], Tensor] | None] = {
    "none": None,
    "first": lambda acts: acts[:1],
    "zeros": torch.zeros_like,
}


@dataclass(frozen=True)
class Step:
    """One thing that is done to a model and its store.

    `pass` runs actions; `leaf` calls one leaf with a value; `compare` holds the store against the
    oracle, and perhaps keeps what it returned; `clear`; `disable`, and perhaps enable again;
    `collect` garbage; `drop` what was kept.
    """

    kind: str
    actions: tuple[Action, ...] = ()
    mode: str = "no_grad"
    sites: tuple[str, ...] = ()
    flag: bool = False


@dataclass(frozen=True)
class Program:
    """A store on a scripted model, and what happens to them."""

    sites: tuple[str, ...]
    steps: tuple[Step, ...]
    zero_copy: bool = False
    staging_bytes: int = 256
    pinned_bytes: int = 256
    seq_dim: int | None = None
    batch_dim: int = 0
    positions: Any = None
    reduce: str = "none"
    calls: str = "last"
    n_engines = 1

    def paths(self) -> set[str]:
        """What kinds of things happen in it."""
        found: set[str] = set()
        for action in self._actions():
            if action.kind == "reenter":
                found.add("re-entry")
            elif action.kind == "change":
                found.add("in-place")
            elif action.kind in ("raise", "interrupt"):
                found.add("raise")
            elif action.value is not None and action.value.is_view:
                found.add("view")
        return found

    def smaller(self) -> Iterator[Program]:
        """Steps, then actions, then sites left out in turn."""
        steps = self.steps
        for i, step in enumerate(steps):
            yield replace(self, steps=steps[:i] + steps[i + 1 :])
            for j in range(len(step.actions) if step.kind == "pass" else 0):
                shorter = replace(step, actions=step.actions[:j] + step.actions[j + 1 :])
                yield replace(self, steps=(*steps[:i], shorter, *steps[i + 1 :]))
        for i in range(len(self.sites) if len(self.sites) > 1 else 0):
            yield replace(self, sites=self.sites[:i] + self.sites[i + 1 :])

    def _actions(self) -> Iterator[Action]:
        pending = [action for step in self.steps for action in step.actions]
        while pending:
            action = pending.pop()
            yield action
            pending += action.inner


def draw_program(draw: random.Random, with_selection: bool | None = None) -> Program:
    """A program with any kind of value, or one with a selection and values it fits."""
    if with_selection is None:
        with_selection = draw.random() < 0.4
    is_small = draw.random() < 0.3
    staging_bytes = draw.choice((1024, 2048) if is_small else BUDGETS)
    pinned_bytes = draw.choice((*BUDGETS, BUDGETS[-1]))
    chunk_bytes = 0 if is_small else min(staging_bytes // 2, pinned_bytes)
    maker = _Maker(draw, (3,) if with_selection else (0, 1, 2, 3, 4), chunk_bytes)
    program = Program(
        sites=tuple(draw.sample(LEAVES, draw.choice((1, 2, 3, 4, 4)))),
        steps=tuple(maker.step() for _ in range(draw.randint(5, 16))),
        zero_copy=draw.random() < 0.75,
        staging_bytes=staging_bytes,
        pinned_bytes=pinned_bytes,
        calls=draw.choice(("last", "last", "all")),
    )
    if not with_selection:
        return program
    return replace(
        program,
        seq_dim=draw.choice((0, 1, 2, -1)),
        positions=draw.choice(POSITIONS),
        reduce=draw.choice(("none", "none", *REDUCERS)),
        batch_dim=draw.choice((0, 0, 1, 2, -1)),
    )


class _Maker:
    """Draws the parts of one program.

    Args:
        draw: Decides.
        ranks: Of the values.
        chunk_bytes: What a chunk holds; 0 for small values, of which it holds many.
    """

    def __init__(self, draw: random.Random, ranks: tuple[int, ...], chunk_bytes: int) -> None:
        self.draw = draw
        self.ranks = ranks
        self.chunk_bytes = chunk_bytes
        self.may_be_empty = len(ranks) > 1  # a selection needs something to select
        self.n_forks = draw.choice((0, 1, 1, 5))

    def step(self) -> Step:
        draw = self.draw
        kinds = ["pass"] * 6 + ["compare"] * 3
        kind = draw.choice([*kinds, "leaf", "clear", "disable", "collect", "drop"])
        if kind == "pass":
            return Step(kind, self.actions(), draw.choice(MODES))
        if kind == "leaf":
            action = Action("call", draw.randrange(N_LEAVES), self.value())
            return Step(kind, (action,), draw.choice(MODES))
        if kind == "compare":
            sites = () if draw.random() < 0.5 else tuple(draw.sample(LEAVES, len(LEAVES)))
            return Step(kind, sites=sites, flag=draw.random() < 0.5)
        return Step(kind, flag=draw.random() < 0.8)

    def actions(self, depth: int = 0, n_most: int = 12) -> tuple[Action, ...]:
        return tuple(self.action(depth) for _ in range(self.draw.randint(1, n_most)))

    def action(self, depth: int) -> Action:
        draw = self.draw
        rare = ["free", "get", "get", "stream", *["fork"] * self.n_forks, "reenter"]
        rare += ["collect"] if draw.random() < 0.3 else []
        kind = draw.choice(["call"] * 8 + ["change"] + rare)
        if draw.random() < 0.03:
            kind = draw.choice(("raise", "interrupt"))
        leaf = draw.randrange(N_LEAVES)
        if kind == "reenter" and depth < 2:
            return Action(kind, inner=self.actions(depth + 1, n_most=3))
        is_end = kind in ("raise", "interrupt")
        if kind in ("call", "reenter") or (is_end and draw.random() < 0.7):
            return Action("call", leaf, self.value())
        return Action(kind, leaf)

    def value(self) -> Value:
        draw = self.draw
        dtype = draw.choice(DTYPES)
        shape = self.shape(dtype)
        if shape and self.may_be_empty and draw.random() < 0.05:
            shape = (*shape[:-1], 0)
        return Value(
            shape,
            dtype,
            draw.choice(LAYOUTS),
            draw.choice(WRAPPINGS),
            draw.randrange(1 << 20),
        )

    def shape(self, dtype: torch.dtype) -> tuple[int, ...]:
        draw = self.draw
        sizes = SIZES if self.chunk_bytes else SIZES[:3]
        shape = tuple(draw.choice(sizes) for _ in range(draw.choice(self.ranks)))
        if shape and self.chunk_bytes and draw.random() < 0.6:
            # Most of a chunk: worth lending the slot.
            share = draw.uniform(0.5, 1.0)
            shape = (*[1] * (len(shape) - 1), int(self.chunk_bytes * share) // dtype.itemsize)
        if prod(shape) > MOST_ELEMENTS:
            shape = (*[1] * (len(shape) - 2), *shape[-2:])
        return shape


class Shrinkable(Protocol):
    """A program that knows smaller ones."""

    def smaller(self) -> Iterator[Self]:
        """Programs with one thing left out."""


ProgramT = TypeVar("ProgramT", bound=Shrinkable)


def shrink(program: ProgramT, fails: Callable[[ProgramT], bool]) -> ProgramT:
    """A smaller program that still fails, with nothing left that could be left out."""
    for candidate in program.smaller():
        if fails(candidate):
            return shrink(candidate, fails)
    return program
