"""Short names and digests of tensors, arrays, classes and bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

JSON = Any
"""None, bools, numbers, strings, and lists and string-keyed dicts of these."""


def hash_of(config: JSON) -> str:
    """The sha256 of a description, in hex.

    Examples:
        >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
        True
    """
    text = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def short_hash(content: Any) -> str:
    """The first 16 hex digits of the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def name_of(thing: Any) -> str:
    """The qualified name of a class or function, without the values that defined it."""
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", "")
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{name}"


def kind_of(tensor: Tensor) -> str:
    """Dtype and shape: `float32 4x8`; the shape of a scalar is `()`."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {_shape(tensor.shape)}"


def describe_tensor(tensor: Tensor) -> str:
    """Dtype, shape and a hash of all bytes, where there are plain bytes."""
    try:
        hashes = [short_hash(bytes_of(part).numpy().data) for part in plain_parts(tensor)]
    except (RuntimeError, NotImplementedError):  # nested, and what cannot be copied to the host
        hashes = []
    return " ".join([kind_of(tensor), *hashes])


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that one consists of: itself, or those inside a subclass.

    Quantised weights are subclasses that hold packed numbers and scales. Of a tensor that is
    spread over processes there is none: each process has other parts of it.
    """
    kind = type(tensor)
    if kind.__torch_dispatch__ is Tensor.__torch_dispatch__:  # it has bytes of its own
        is_plain = tensor.layout == torch.strided and not tensor.is_nested
        if is_plain and not tensor.is_quantized and tensor.device.type != "meta":
            yield torch.Tensor._make_subclass(Tensor, tensor)
    elif is_traceable_wrapper_subclass(tensor) and not hasattr(tensor, "device_mesh"):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_parts(getattr(tensor, name))


def describe_array(array: np.ndarray[Any, Any]) -> str:
    """The same of an array without Python objects."""
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return f"{array.dtype.name} {_shape(array.shape)} {short_hash(flat.data)}"


def bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes on the host, as uint8."""
    plain = tensor.detach().resolve_conj().resolve_neg().cpu()
    return plain.contiguous().reshape(-1).view(torch.uint8)


def _shape(shape: Any) -> str:
    return "x".join(map(str, shape)) or "()"
