"""Python values as JSON that is the same in every process.

No `hash()`, no `id()`, no `repr` that may hold an address. What cannot be described is named by
its class.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastcap.fingerprint.digests import (
    describe_array,
    describe_tensor,
    hash_of,
    name_of,
    short_hash,
)
from fastcap.fingerprint.functions import describe_function
from fastcap.fingerprint.models import describe_model

MOST_LEVELS = 6
"""How deep a value is looked into: enough for settings, and an end for what holds itself."""


def describe(value: Any, levels: int = MOST_LEVELS) -> Any:
    """A value as JSON.

    Plain values are themselves (bytes, and floats that are not finite, as text); tensors and
    arrays are dtype, shape and a hash of all their bytes; modules are a hash of `describe_model`;
    functions are name, source, defaults, closure and the globals they read; objects with a
    `fingerprint()` are what that gives; other objects are their class and, where they are callables
    or dataclasses, their attributes.

    Examples:
        >>> describe({"dtype": torch.float16, "positions": slice(0, 64), "last": (1, 2)})
        {'dtype': 'float16', 'positions': 'slice(0, 64, None)', 'last': [1, 2]}
    """
    if levels < 0:
        return name_of(type(value))
    if not isinstance(value, type) and callable(getattr(value, "fingerprint", None)):
        given = describe(value.fingerprint(), levels - 1)
        return {"class": name_of(type(value)), "fingerprint": given}
    return _describe(value, levels)


@functools.singledispatch
def _describe(value: Any, levels: int) -> Any:
    """What is none of the classes below."""
    if callable(getattr(value, "tobytes", None)):  # images of PIL, arrays of other libraries
        return f"{name_of(type(value))} {short_hash(value.tobytes())}"
    if callable(value) and hasattr(value, "__qualname__"):
        return name_of(value)  # a function that is not written in Python
    fields = getattr(value, "__dataclass_fields__", None)
    if fields is None and not callable(value):
        return name_of(type(value))
    names = getattr(value, "__dict__", {}) if fields is None else fields
    attributes = {name: getattr(value, name, None) for name in names}
    return {"class": name_of(type(value)), "attributes": describe(attributes, levels - 1)}


@_describe.register
def _(value: None, levels: int) -> None:
    return value


@_describe.register
def _(value: bool, levels: int) -> bool:
    return value


@_describe.register
def _(value: int, levels: int) -> int:
    return int(value)


@_describe.register
def _(value: str, levels: int) -> str:
    return str.__str__(value)


@_describe.register
def _(value: float, levels: int) -> float | str:
    return float(value) if np.isfinite(value) else repr(float(value))


@_describe.register(torch.dtype)
@_describe.register(torch.device)
@_describe.register(slice)
@_describe.register(range)
@_describe.register(complex)
def _(value: Any, levels: int) -> str:
    return str(value).removeprefix("torch.")


@_describe.register(bytes)
@_describe.register(bytearray)
def _(value: bytes, levels: int) -> str:
    return f"{len(value)} bytes {short_hash(value)}"


@_describe.register
def _(value: type, levels: int) -> str:
    return name_of(value)


@_describe.register
def _(value: Tensor, levels: int) -> str:
    return describe_tensor(value)


@_describe.register
def _(value: np.generic, levels: int) -> Any:
    return describe(value.item(), levels)


@_describe.register
def _(value: np.ndarray, levels: int) -> Any:
    return describe(value.tolist(), levels) if value.dtype.hasobject else describe_array(value)


@_describe.register(list)
@_describe.register(tuple)
def _(value: list[Any], levels: int) -> list[Any]:
    return [describe(item, levels - 1) for item in value]


@_describe.register(set)
@_describe.register(frozenset)
def _(value: set[Any], levels: int) -> list[Any]:
    return sorted((describe(item, levels - 1) for item in value), key=repr)


@_describe.register
def _(value: Mapping, levels: int) -> dict[str, Any]:  # type: ignore[type-arg]
    return {str(describe(key, 1)): describe(item, levels - 1) for key, item in value.items()}


@_describe.register
def _(value: nn.Module, levels: int) -> dict[str, str]:
    return {"class": name_of(type(value)), "model": hash_of(describe_model(value))}


@_describe.register(functools.partial)
def _(value: functools.partial[Any], levels: int) -> dict[str, Any]:
    return {
        "partial": describe(value.func, levels - 1),
        "args": describe(value.args, levels - 1),
        "keywords": describe(value.keywords, levels - 1),
    }


@_describe.register
def _(value: types.MethodType, levels: int) -> dict[str, Any]:
    owner = describe(value.__self__, levels - 1)
    return {"method": describe(value.__func__, levels - 1), "of": owner}


@_describe.register
def _(value: types.FunctionType, levels: int) -> Any:
    return describe_function(value, levels, describe)
