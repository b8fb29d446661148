"""Selections as they are written on a command line."""

from __future__ import annotations

import re

import torch

from fastcap.errors import ArgumentError
from fastcap.spec import Positions


def read_positions(text: str) -> Positions:
    """`-1`, `0,5,-1`, `:64`, `0:64:2`, `last`, `unpadded`, or a key of the batch.

    Example:
        >>> [read_positions(text) for text in ("-1", "0,5", ":64", "last")]
        [-1, [0, 5], slice(None, 64, None), 'last']

    Raises:
        ArgumentError: It is none of these.
    """
    number = r"-?\d+"
    if re.fullmatch(number, text):
        return int(text)
    if re.fullmatch(rf"({number},)+({number})?", text):
        return [int(part) for part in text.split(",") if part]
    if re.fullmatch(rf"({number})?:({number})?(:({number})?)?", text):
        return slice(*(int(part) if part else None for part in text.split(":")))
    if re.fullmatch(r"[^\W\d]\w*", text):
        return text
    raise ArgumentError(
        f"--positions {text!r} cannot be read. Give an int (-1), a list (0,5,-1), a slice (:64), "
        "'last', 'unpadded' or a key of the batch."
    )


def read_dtype(text: str) -> torch.dtype:
    """`bfloat16` or `torch.bfloat16`.

    Raises:
        ArgumentError: torch has no such dtype.
    """
    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ArgumentError(
            f"--dtype {text!r} is no dtype of torch. Give one such as bfloat16, float16 or float32."
        )
    return found
