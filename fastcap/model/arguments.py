"""What a module was called with, as sites of an input ask for it."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn

from fastcap.spec import Step


class Arguments(NamedTuple):
    """The arguments of one call.

    Attributes:
        args: Those given by position.
        kwargs: Those given by keyword.
        names: What `forward` calls the positional ones, where a site asks by name.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()

    def first(self) -> Any:
        """The first positional argument; without any, the first tensor among the keywords."""
        if self.args:
            return self.args[0]
        return next((value for value in self.kwargs.values() if isinstance(value, Tensor)), None)

    def get(self, step: Step) -> Any:
        """The argument at a position, or of a name, however it was given; `None` if it was not."""
        kind, which = step
        if kind == "index":
            return self.args[int(which)] if int(which) < len(self.args) else None
        if which in self.kwargs:
            return self.kwargs[str(which)]
        return dict(zip(self.names, self.args, strict=False)).get(str(which))


def positional_names(module: nn.Module) -> tuple[str, ...]:
    """The parameters of `forward` that can be given by position; none where Python cannot tell."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is not written in Python
        return ()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(each.name for each in parameters if each.kind in by_position)


def describe_call(module: nn.Module) -> str:
    """How a module is called, for messages: `Net.forward(ids, attention_mask=None)`."""
    name = f"{type(module).__name__}.forward"
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):  # a forward that is not written in Python
        return f"{name}(...)"
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    return name + str(inspect.Signature(plain)).replace(" = ", "=")
