"""The part of a module's output that a site stands for, and what to say when there is none."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fastcap.errors import UnsupportedTensorError
from fastcap.spec import Site, Step


def take_part(output: Any, site: Site) -> Tensor | None:
    """The tensor a site stands for, or `None` when the module returned none there.

    Without a part: the output if it is a tensor, else the first element of a tuple if that is one.
    """
    if type(output) is Tensor and not site.steps:
        return output
    if not site.steps:
        value = output[0] if isinstance(output, tuple) and output else output
    else:
        value = output
        for step in site.steps:
            value = _step_into(value, step)
    return value if isinstance(value, Tensor) else None


def _step_into(value: Any, step: Step) -> Any:
    kind, which = step
    if kind == "index" and isinstance(value, Mapping) and which not in value:
        which = str(which)  # a mapping may have the key "0"
    try:
        return getattr(value, str(which)) if kind == "attribute" else value[which]
    except (AttributeError, IndexError, KeyError, TypeError):
        return None


def describe_miss(output: Any, site: Site) -> str:
    """Why nothing was captured at a site, and the parts that could be asked for instead."""
    parts = list(_tensor_parts(output, f"{site.module}:output"))[:4]
    asked = site.name[len(site.module) + 1 :] or "output"
    if site.steps:
        found = f"its forward returned {_type_name(output)}, which has no tensor at {asked!r}"
    else:
        found = f"its forward returned {_type_name(output)}, not a tensor"
    advice = f"Ask for a part: {', '.join(map(repr, parts))}." if parts else "Capture a submodule."
    return f"Nothing is captured at site {site.name!r}: {found}. {advice}"


def _tensor_parts(output: Any, path: str, depth: int = 2) -> Iterator[str]:
    if isinstance(output, Tensor):
        yield path
    elif depth and isinstance(output, Mapping):
        for key, value in output.items():
            is_attribute = isinstance(key, str) and getattr(output, key, None) is value
            step = f".{key}" if is_attribute else f"[{key}]"
            yield from _tensor_parts(value, path + step, depth - 1)
    elif depth and isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from _tensor_parts(value, f"{path}[{index}]", depth - 1)
    elif depth and dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            value = getattr(output, field.name)
            yield from _tensor_parts(value, f"{path}.{field.name}", depth - 1)


def _type_name(value: Any) -> str:
    if isinstance(value, list | tuple):
        if not value:
            return f"an empty {type(value).__name__}"
        inner = ", ".join(type(item).__name__ for item in value[:4])
        return f"a {type(value).__name__} of {len(value)} ({inner})"
    return "None" if value is None else f"a {type(value).__name__}"


def is_fake(value: Tensor) -> bool:
    """Whether this is a FakeTensor: shape and dtype without data."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(value, module.FakeTensor)


def check_capturable(value: Tensor, site: Site) -> None:
    """Refuse tensors whose elements are not one strided block of memory.

    Raises:
        UnsupportedTensorError: Nested, sparse, quantised, meta or functorch-wrapped.
    """
    kind = None
    if value.is_nested:
        kind = "a nested tensor; pad it (torch.nested.to_padded_tensor) or capture before nesting"
    elif value.layout is not torch.strided:
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
