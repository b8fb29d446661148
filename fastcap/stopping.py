"""Ending a forward pass once every wanted site has fired: what comes after would be thrown away.

How often sites fire is learned from whole passes. A later pass is ended after its last expected
firing if its sites have fired in the same order so far; one that goes another way runs whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

from fastcap.errors import ArgumentError, ArgumentTypeError
from fastcap.forward import is_compiled
from fastcap.warn import warn

N_LEARNED = 2  # whole passes that must agree before passes are ended without being told to


class PassStoppedError(Exception):
    """Ends a forward pass whose sites have all fired.

    An ordinary exception, so that hooks with `always_call=True` and `finally` blocks run.
    """


class Firings:
    """The sites of one pass, as they fire.

    Attributes:
        seen: Their indices, in order.
        is_stopped: Whether the pass was ended here.
    """

    __slots__ = ("_expected", "is_stopped", "seen")

    def __init__(self, expected: tuple[int, ...] | None = None) -> None:
        self._expected = expected
        self.seen: list[int] = []
        self.is_stopped = False

    def note(self, index: int) -> None:
        """A site has fired, and its value is captured.

        Raises:
            PassStoppedError: It was the last one expected.
        """
        self.seen.append(index)
        expected = self._expected
        if expected is None or len(self.seen) > len(expected):
            return
        if expected[len(self.seen) - 1] != index:
            self._expected = None
        elif len(self.seen) == len(expected):
            self.is_stopped = True
            raise PassStoppedError("every wanted site has fired")


class EarlyStop:
    """Ends the passes of one run early.

    Args:
        model: What is called.
        n_sites: How many sites there are; all of them have to fire.
        asked: `True` and `False` decide; `None` stops where nothing can be missed: the pass is
            fastcap's own call, no site fires twice, and nobody else has hooks on the model.
        is_own_call: Whether fastcap calls the model, and not the user's `forward`.

    Raises:
        ArgumentTypeError: `asked` is no bool.
        ArgumentError: It was asked for, and the model does not allow it.
    """

    def __init__(
        self, model: nn.Module, n_sites: int, asked: bool | None, is_own_call: bool
    ) -> None:
        if asked is not None and not isinstance(asked, bool):
            raise ArgumentTypeError(
                f"stop_after_last_site must be True, False or None; got {asked!r}."
            )
        obstacle = _obstacle(model)
        if asked and obstacle:
            raise ArgumentError(
                f"stop_after_last_site=True: {obstacle} Leave stop_after_last_site out."
            )
        self._may_stop = is_own_call and not obstacle if asked is None else asked
        self._is_asked = bool(asked)
        self._modules = list(model.modules())
        self._n_sites = n_sites
        self._learned: tuple[int, ...] | None = None
        self._n_agreed = 0

    def begin(self, handles: Iterable[RemovableHandle]) -> Firings | None:
        """A pass is about to run; `handles` are fastcap's own hooks."""
        if not self._may_stop:
            return None
        if self._n_agreed < (1 if self._is_asked else N_LEARNED):
            return Firings()
        if not self._is_asked and self._has_other_hooks({handle.id for handle in handles}):
            return Firings()
        return Firings(self._learned)

    @contextlib.contextmanager
    def around(self, firings: Firings | None) -> Iterator[None]:
        """The forward pass, in the block."""
        try:
            yield
        except Exception as error:
            if firings is None or not firings.is_stopped or not _is_due_to_stop(error):
                raise
            return
        if firings is None:
            return
        if firings.is_stopped:
            self._give_up()
        else:
            self._learn(tuple(firings.seen))

    def _learn(self, seen: tuple[int, ...]) -> None:
        self._n_agreed = self._n_agreed + 1 if seen == self._learned else 1
        self._learned = seen
        n_different = len(set(seen))
        is_complete = n_different == self._n_sites
        if not is_complete or (not self._is_asked and len(seen) != n_different):
            self._n_agreed = 0

    def _give_up(self) -> None:
        self._may_stop = False
        if self._is_asked:
            warn(
                "stop_after_last_site=True: the model caught the exception that ends a pass, and "
                "ran on. Values are unaffected; passes run whole from here on."
            )

    def _has_other_hooks(self, own: set[int]) -> bool:
        if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
            return True
        return any(
            (module._forward_hooks or module._forward_pre_hooks)
            and not (module._forward_hooks.keys() | module._forward_pre_hooks.keys()) <= own
            for module in self._modules
        )


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


def _is_due_to_stop(error: BaseException) -> bool:
    """Whether this is the stop, or what a model made of it."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, PassStoppedError):
        found = found.__cause__ or found.__context__
    return found is not None
