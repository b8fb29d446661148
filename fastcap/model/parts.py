"""From a module's output or input to the tensor that a site stands for, or what to say without one.

`take_part` finds the tensor, and `as_capturable` makes it one block of memory or refuses it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastcap.errors import UnsupportedTensorError
from fastcap.formatting import a_kind
from fastcap.model.arguments import Arguments
from fastcap.spec import Site, Step


def take_part(value: Any, site: Site) -> Tensor | None:
    """The tensor a site stands for, or `None` when there is none.

    Without a part: the output if it is a tensor, else the first element of a tuple if that is one.
    Of a call's `Arguments`: the first, and behind steps the one that the first step names.
    """
    if type(value) is Tensor and not site.steps:
        return value
    steps = site.steps
    if isinstance(value, Arguments):
        value = value.get(steps[0]) if steps else value.first()
        steps = steps[1:]
    elif not steps:
        value = value[0] if isinstance(value, tuple) and value else value
    for step in steps:
        value = _step_into(value, step)
    return value if isinstance(value, Tensor) else None


def _step_into(value: Any, step: Step) -> Any:
    kind, which = step
    if isinstance(value, Tensor) and kind != "attribute":
        return None  # a tensor is the value itself: an index would take a sample out of a batch
    if kind == "index" and isinstance(value, Mapping) and which not in value:
        which = str(which)  # a mapping may have the key "0"
    try:
        return getattr(value, str(which)) if kind == "attribute" else value[which]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def describe_miss(value: Any, site: Site) -> str:
    """Why nothing was captured at a site, and the parts that could be asked for instead."""
    parts = [f"{site.module}{part}" for part, _ in tensor_parts(value)][:4]
    asked = site.part[1:] or "output"
    if isinstance(value, Arguments):
        default = "its first argument is not a tensor"
        happened = f"its forward was called with {_describe_call(value)}"
    else:
        default = "not a tensor"
        happened = f"its forward returned {_type_name(value)}"
    if site.steps:
        default = f"which has no tensor at {asked!r}"
    found = f"{happened}, {default}"
    if _are_weights_left_out(value, site):
        return (
            f"Nothing is captured at site {site.name!r}: {found}. Where these are attention "
            "weights, a fused attention (sdpa, flash) never has them: load the model with "
            "attn_implementation='eager', or call nn.MultiheadAttention with need_weights=True."
        )
    advice = f"Ask for a part: {', '.join(map(repr, parts))}." if parts else "Capture a submodule."
    return f"Nothing is captured at site {site.name!r}: {found}. {advice}"


def _are_weights_left_out(value: Any, site: Site) -> bool:
    """Whether what was asked for is the `None` that an attention gives in place of its weights."""
    is_pair = isinstance(value, tuple) and len(value) > 1 and value[1] is None
    named_so = "att" in site.module.rpartition(".")[2].lower()
    return is_pair and named_so and site.steps == (("index", 1),)


def tensor_parts(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in an output, or in the `Arguments` of a call, behind the part that names it."""
    if not isinstance(value, Arguments):
        yield from _tensor_parts(value, ":output")
        return
    for index, argument in enumerate(value.args):
        yield from _tensor_parts(argument, f":input[{index}]")
    for name, argument in value.kwargs.items():
        yield from _tensor_parts(argument, f":input.{name}")


def _tensor_parts(value: Any, path: str, depth: int = 2) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif depth and isinstance(value, Mapping):
        for key, item in value.items():
            is_attribute = isinstance(key, str) and getattr(value, key, None) is item
            step = f".{key}" if is_attribute else f"[{key}]"
            yield from _tensor_parts(item, path + step, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _tensor_parts(item, f"{path}[{index}]", depth - 1)
    elif depth and dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            yield from _tensor_parts(item, f"{path}.{field.name}", depth - 1)


def _describe_call(call: Arguments) -> str:
    shown = [type(argument).__name__ for argument in call.args]
    shown += [f"{name}={type(argument).__name__}" for name, argument in call.kwargs.items()]
    return f"({', '.join(shown)})"


def _type_name(value: Any) -> str:
    if isinstance(value, list | tuple):
        if not value:
            return f"an empty {type(value).__name__}"
        inner = ", ".join(type(item).__name__ for item in value[:4])
        return f"a {type(value).__name__} of {len(value)} ({inner})"
    return "None" if value is None else a_kind(type(value))


def is_fake(value: Tensor) -> bool:
    """Whether this is a FakeTensor: shape and dtype without data."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(value, module.FakeTensor)


def as_capturable(value: Tensor, site: Site) -> Tensor:
    """The value as one strided block of memory: nested ones padded with zeros, others as they are.

    Padded to the longest sample of the pass. `nn.TransformerEncoder` nests what its layers pass to
    each other when it is given a padding mask and may take its fast path.

    Raises:
        UnsupportedTensorError: Sparse, quantised, meta, functorch-wrapped, or of a subclass that
            wraps other tensors, as `DTensor` does.
    """
    kind = None
    if value.is_nested:
        padded: Tensor = torch.nested.to_padded_tensor(value.detach(), 0)
        return padded
    if value.layout is not torch.strided:
        kind = f"a sparse tensor ({value.layout}); capture a module that returns a dense one"
    elif value.is_quantized:
        kind = "a quantised tensor; capture a module after dequantisation"
    elif value.is_meta:
        kind = "a meta tensor, which has no data; load the model's weights onto a device first"
    elif torch._C._functorch.is_functorch_wrapped_tensor(value):
        kind = "inside a functorch transform (vmap, grad); call the model outside of it"
    elif type(value) is not Tensor and is_traceable_wrapper_subclass(value):
        name = type(value).__name__
        kind = f"a {name}, which wraps other tensors; capture where the model has a plain one"
    if kind is not None:
        raise UnsupportedTensorError(f"Cannot capture site {site.name!r}: its value is {kind}.")
    return value
