"""Observes the calls of a root module: what they are called with, and when a pass is over.

All hooks here hold weak references only (R12), and a copy of the model, which takes hooks along, is
not observed.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from torch import nn
from torch.utils.hooks import RemovableHandle

from fastcap.model.hooks import calls_on_stack, put_on, untraced

ReadingT = TypeVar("ReadingT")


class RootCalls(ABC, Generic[ReadingT]):
    """What the running calls of a root module were called with, thread by thread.

    A subclass says what is read of a call. Readings are kept outermost call first. The hook after a
    call does not run when a KeyboardInterrupt ends it (R8), so a reading may be left over: the next
    call drops it, and the stack is asked before one is relied on.
    """

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._model_ref: weakref.ref[nn.Module] | None = None

    @abstractmethod
    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReadingT:
        """A call of the model is about to run: what to keep of its arguments."""

    def before(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Put a hook on the root module that reads each call, and its handle into the list."""
        self._model_ref = weakref.ref(model)
        self_ref = weakref.ref(self)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls = self_ref()
            if calls is not None and calls._is_root(module):
                reading = calls.read_call(args, kwargs)
                readings = calls._readings()
                del readings[calls_on_stack(module) - 1 :]
                readings.append(reading)

        put_on(handles, model.register_forward_pre_hook, untraced(before), with_kwargs=True)

    def after(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Put a hook on the root module that forgets it, and its handle into the list."""
        self_ref = weakref.ref(self)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            calls = self_ref()
            if calls is not None and calls._is_root(module):
                del calls._readings()[calls_on_stack(module) - 1 :]

        put_on(handles, model.register_forward_hook, untraced(after), always_call=True)

    def n_running(self) -> int:
        """Calls of the root module that this thread is within."""
        model = self._model_ref() if self._model_ref is not None else None
        return 0 if model is None else calls_on_stack(model)

    def _is_root(self, module: nn.Module) -> bool:
        return self._model_ref is not None and module is self._model_ref()

    def _readings(self) -> list[ReadingT]:
        if not hasattr(self._of_thread, "readings"):
            self._of_thread.readings = []
        readings: list[ReadingT] = self._of_thread.readings
        return readings


def watch_passes(
    model: nn.Module,
    begun: Callable[[], None],
    ended: Callable[[], None],
    handles: list[RemovableHandle],
) -> None:
    """Hooks on the root module: `begun` before each pass, `ended` after each that did not raise.

    A call of the root within a call of the root is part of the same pass. `begun` comes before all
    other hooks (a site may be the root's input), `ended` after those that are on the model already.
    """
    model_ref = weakref.ref(model)

    def is_outermost(module: nn.Module) -> bool:
        return module is model_ref() and calls_on_stack(module) == 1

    def before(module: nn.Module, args: Any) -> None:
        if is_outermost(module):
            begun()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if is_outermost(module):
            ended()

    put_on(handles, model.register_forward_pre_hook, untraced(before), prepend=True)
    put_on(handles, model.register_forward_hook, untraced(after))
