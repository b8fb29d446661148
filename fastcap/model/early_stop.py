"""Ending a forward pass once every wanted site has fired: what comes after would be thrown away.

How often sites fire is learned from a whole pass. A later pass is ended after its last expected
firing if its sites have fired in the same order so far; one that goes another way runs whole. Who
knows that every site fires once says so, and then the first pass ends early too.

Never by default: nothing that can be looked at says that a site will not fire once more, or that
the rest of the pass leaves no state behind for the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NoReturn, TypeAlias

from torch import nn

from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.model.forward import is_compiled

ONCE: Literal["once"] = "once"
StopAfter: TypeAlias = bool | Literal["once"]


class PassStoppedError(Exception):
    """Ends a forward pass whose sites have all fired.

    An ordinary exception, so that hooks with `always_call=True` and `finally` blocks run.
    """


class CallsSeen:
    """The sites of one pass, as they fire.

    Args:
        expected: Their indices in the order that is expected; `None` where nothing is.
        once: The names of sites that fire once each, in any order; empty where nobody says so.

    Attributes:
        seen: Their indices, in order.
        is_stopped: Whether the pass was ended here. What sites produce afterwards, in a model that
            caught the exception, is of no pass.
    """

    __slots__ = ("_expected", "_once", "is_stopped", "seen")

    def __init__(self, expected: tuple[int, ...] | None = None, once: Sequence[str] = ()) -> None:
        self._expected = expected
        self._once = once
        self.seen: list[int] = []
        self.is_stopped = False

    def note(self, index: int) -> None:
        """A site has fired, and its value is captured.

        Raises:
            PassStoppedError: It was the last one expected.
            ArgumentError: It was to fire once, and has fired again.
        """
        if self._once and index in self.seen:
            raise ArgumentError(
                f"stop_after_last_site='once': site {self._once[index]!r} has fired twice in a "
                "pass. Pass stop_after_last_site=True, which learns from a first pass how often "
                "sites fire, or leave it out."
            )
        self.seen.append(index)
        if self._once and len(self.seen) == len(self._once):
            self._stop()
        expected = self._expected
        if expected is None:
            return
        if expected[len(self.seen) - 1] != index:
            self._expected = None
        elif len(self.seen) == len(expected):
            self._stop()

    def _stop(self) -> NoReturn:
        self.is_stopped = True
        raise PassStoppedError("every wanted site has fired")


class EarlyStop:
    """Ends the passes of one run early, if asked to.

    Args:
        model: What is called.
        sites: The names of all sites; all of them have to fire.
        asked: Whether to; `"once"` where each of them fires once in every pass.

    Raises:
        ArgumentTypeError: `asked` is something else.
        ArgumentError: It was asked for, and the model does not allow it.
    """

    def __init__(self, model: nn.Module, sites: Sequence[str], asked: StopAfter) -> None:
        if not isinstance(asked, bool) and asked != ONCE:
            raise ArgumentTypeError(
                f"stop_after_last_site must be True, False or 'once'; got {asked!r}."
            )
        obstacle = _obstacle(model) if asked else ""
        if obstacle:
            raise ArgumentError(
                f"stop_after_last_site={asked!r}: {obstacle} Leave stop_after_last_site out."
            )
        self._may_stop = bool(asked)
        self._sites = sites
        self._once = sites if asked == ONCE else ()
        self._learned: tuple[int, ...] | None = None

    def begin(self) -> CallsSeen | None:
        """A pass is about to run; `None` when nobody has to be told what fires in it."""
        return CallsSeen(self._learned, self._once) if self._may_stop else None

    def learn(self, calls_seen: CallsSeen) -> bool:
        """The pass ran to its end. Returns whether it should not have: the stop was swallowed."""
        if calls_seen.is_stopped:
            self._may_stop = False
            return True
        is_complete = len(set(calls_seen.seen)) == len(self._sites)
        self._learned = tuple(calls_seen.seen) if is_complete else None
        return False


def _obstacle(model: nn.Module) -> str:
    """Why a pass over this model must run to its end; empty when it need not."""
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
            return f"{where} is sharded by FSDP, which has to finish what it gathered."
        if hasattr(module, "_hf_hook"):
            return f"{where} has hooks of accelerate, which move weights after each call."
    if is_compiled(model):
        return "the model is compiled, and compiled graphs cannot be left half-way."
    return ""
