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


def attach(sites: Iterable[BoundSite], receiver: Receiver, handles: list[RemovableHandle]) -> None:
    """Register one hook per site, before the forward pass for inputs.

    Args:
        sites: Where.
        receiver: Who is told.
        handles: Where each handle is kept at once: what is in it can be detached at any moment.

    Raises:
        UnsupportedModuleError: A module is TorchScript.
    """
    for index, bound in enumerate(sites):
        if isinstance(bound.module, torch.jit.ScriptModule):
            raise UnsupportedModuleError(
                f"Cannot capture site {bound.site.name!r}: the module is TorchScript, which "
                "runs no Python hooks. Load the model as Python, or capture a Python module "
                "around it."
            )
        _register(index, bound, receiver, handles)


def detach(handles: list[RemovableHandle]) -> None:
    """Remove hooks and empty the list, as often as asked."""
    removed = set(handles)
    for handle in removed:
        handle.remove()
    handles[:] = [handle for handle in handles if handle not in removed]


def put_on(
    handles: list[RemovableHandle],
    register: Callable[..., RemovableHandle],
    hook: Hook,
    **options: bool,
) -> None:
    """Register a hook and keep its handle; after an interrupt, neither.

    Args:
        handles: Where the handle is kept.
        register: A method of the module such as `register_forward_hook`.
        hook: What is registered.
        options: Of that method.
    """
    try:
        handles.append(register(hook, **options))
    except BaseException:
        _take_off(register.__self__, hook)  # type: ignore[attr-defined]
        raise


def _take_off(module: nn.Module, hook: Hook) -> None:
    """Remove a hook whose handle may be nowhere."""
    after = module._forward_hooks_with_kwargs, module._forward_hooks_always_called
    before = (module._forward_pre_hooks_with_kwargs,)
    for hooks, marks in ((module._forward_hooks, after), (module._forward_pre_hooks, before)):
        for key in [key for key, found in hooks.items() if found is hook]:
            del hooks[key]
            for mark in marks:
                mark.pop(key, None)


def _register(
    index: int, bound: BoundSite, receiver: Receiver, handles: list[RemovableHandle]
) -> None:
    module, site = bound.module, bound.site
    if site.side == "output":
        put_on(handles, module.register_forward_hook, untraced(_make_hook(index, module, receiver)))
        return
    asks_by_name = bool(site.steps) and site.steps[0][0] != "index"
    names = positional_names(module) if asks_by_name else ()
    hook = untraced(_make_input_hook(index, module, receiver, names))
    put_on(handles, module.register_forward_pre_hook, hook, with_kwargs=True)


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
