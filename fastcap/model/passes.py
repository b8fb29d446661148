"""Counts the passes over a root module, and says when one is over."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from fastcap.model.hooks import calls_on_stack, untraced


def watch_passes(
    model: nn.Module, begun: Callable[[], None], ended: Callable[[], None]
) -> list[RemovableHandle]:
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

    return [
        model.register_forward_pre_hook(untraced(before), prepend=True),
        model.register_forward_hook(untraced(after)),
    ]
