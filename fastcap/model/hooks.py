"""Forward hooks that leave no trace: registered, removed, and seeing only the module they are for.

A hook is a closure over weak references (R12): it keeps neither the store nor the model alive, and
a deep copy of the model carries the same closures, which see that the module is not theirs.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from fastcap.errors import UnsupportedModuleError
from fastcap.model.arguments import Arguments, positional_names
from fastcap.model.sites import BoundSite

Hook = Callable[..., None]


class Receiver(Protocol):
    """Who is told what a hooked module returned, or was called with."""

    def receive(self, index: int, value: Any) -> None:
        """The module of the `index`-th site has returned `value`, or is called with it.

        For a site of an input, `value` is the `Arguments` of the call.
        """


def attach(sites: Iterable[BoundSite], receiver: Receiver) -> list[RemovableHandle]:
    """Register one hook per site, before the forward pass for inputs; on an error, none stays.

    Raises:
        UnsupportedModuleError: A module is TorchScript.
    """
    handles: list[RemovableHandle] = []
    try:
        for index, bound in enumerate(sites):
            if isinstance(bound.module, torch.jit.ScriptModule):
                raise UnsupportedModuleError(
                    f"Cannot capture site {bound.site.name!r}: the module is TorchScript, which "
                    "runs no Python hooks. Load the model as Python, or capture a Python module "
                    "around it."
                )
            handles.append(_register(index, bound, receiver))
    except BaseException:
        detach(handles)
        raise
    return handles


def detach(handles: list[RemovableHandle]) -> None:
    """Remove hooks and empty the list, as often as asked."""
    while handles:
        handles.pop().remove()


def _register(index: int, bound: BoundSite, receiver: Receiver) -> RemovableHandle:
    module, site = bound.module, bound.site
    if site.side == "output":
        return module.register_forward_hook(untraced(_make_hook(index, module, receiver)))
    asks_by_name = bool(site.steps) and site.steps[0][0] != "index"
    names = positional_names(module) if asks_by_name else ()
    hook = untraced(_make_input_hook(index, module, receiver, names))
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _make_hook(index: int, module: nn.Module, receiver: Receiver) -> Hook:
    module_ref, receiver_ref = weakref.ref(module), weakref.ref(receiver)

    def receive(called: nn.Module, args: Any, output: Any) -> None:
        receiver = receiver_ref()
        if receiver is not None and called is module_ref():
            receiver.receive(index, output)

    return receive


def _make_input_hook(
    index: int, module: nn.Module, receiver: Receiver, names: tuple[str, ...]
) -> Hook:
    module_ref, receiver_ref = weakref.ref(module), weakref.ref(receiver)

    def receive(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        receiver = receiver_ref()
        if receiver is not None and called is module_ref():
            receiver.receive(index, Arguments(args, kwargs, names))

    return receive


def untraced(hook: Hook) -> Hook:
    """Keep a hook out of `torch.compile`: a compiled graph breaks here and runs it as it is (R14).

    `torch.compiler.disable` needs the compiler, whose import takes seconds; so it is used once
    somebody else has imported that. Where this comes after the hook was registered, a tracer sees
    the frame below, and no more.
    """
    if "torch._dynamo" in sys.modules:
        disabled: Hook = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
        return disabled

    def fastcap_hook(*args: Any) -> None:
        if "torch._dynamo" not in sys.modules:
            hook(*args)
        elif _run_untraced is None:
            _make_run_untraced()(hook, *args)
        else:
            _run_untraced(hook, *args)

    fastcap_hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    return fastcap_hook


_run_untraced: Callable[..., None] | None = None


def _make_run_untraced() -> Callable[..., None]:
    global _run_untraced
    run: Callable[..., None] = torch.compiler.disable(_run)  # type: ignore[no-untyped-call]
    _run_untraced = run
    return run


def _run(hook: Hook, *args: Any) -> None:
    hook(*args)


modes_are_on: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes the user has that would see what fastcap does (R10)."""


def modes_off() -> AbstractContextManager[Any]:
    """Hide what fastcap does from the user's dispatch modes (R10)."""
    return _disable_current_modes() if modes_are_on() else nullcontext()


def calls_on_stack(module: nn.Module) -> int:
    """How many calls of this module the running thread is within, one's hooks included.

    The stack is asked and nothing counted: the hook after a call does not run when a
    KeyboardInterrupt ends it (R8).
    """
    call = nn.Module._call_impl.__code__
    frame: FrameType | None = sys._getframe(1)
    n_calls = 0
    while frame is not None:
        if frame.f_code is call and frame.f_locals["self"] is module:
            n_calls += 1
        frame = frame.f_back
    return n_calls
