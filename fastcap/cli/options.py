"""Options that several commands have: their declarations, and from words to values."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from fastcap.errors import ArgumentError
from fastcap.formatting import in_one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fastcap.spec import Positions

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="package.module:attribute (a module, or a function that returns one), or a local "
        "folder that transformers can load.",
    ),
]
SiteNames: TypeAlias = Annotated[
    list[str], typer.Option(help="Names or patterns: several, in quotes.")
]
PositionsText: TypeAlias = Annotated[
    str | None,
    typer.Option(help="An int, a slice a:b, a list a,b,c, last, unpadded, or a batch key."),
]
ReduceText: TypeAlias = Annotated[str | None, typer.Option(help="mean: over each sample's tokens.")]
BatchDim: TypeAlias = Annotated[
    int, typer.Option(help="The dimension of a site's value that counts samples.")
]
ModelInputs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Key of the batch passed to the model by name; repeatable."),
]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="Where to run; where the model is unless given.")
]


def parse_positions(text: str | None) -> Positions:
    """`-1`, `0:64`, `::2`, `0,5,-1`; any other word is for the library to judge.

    Examples:
        >>> parse_positions("-1"), parse_positions(":64"), parse_positions("0,5")
        (-1, slice(None, 64, None), [0, 5])
    """
    if text is None:
        return None
    number = r"\s*-?\d+\s*"
    if re.fullmatch(number, text):
        return int(text)
    if re.fullmatch(rf"{number}(,{number})+", text):
        return [int(each) for each in text.split(",")]
    if ":" not in text:
        return text
    parts = text.split(":")
    if len(parts) > 3 or not all(re.fullmatch(rf"({number})?", part) for part in parts):
        raise ArgumentError(
            f"--positions {text!r} cannot be read. Give an int (-1), a slice (0:64), a list "
            "(0,5,-1), last, unpadded, or the key of the batch that holds positions."
        )
    return slice(*(int(part) if part.strip() else None for part in parts))


def parse_dtype(text: str | None) -> torch.dtype | None:
    """`bfloat16` or `torch.bfloat16`."""
    if text is None:
        return None
    import torch

    found = getattr(torch, text.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ArgumentError(
            f"--dtype {text!r} is not a torch dtype. Give one such as float32, float16 or bfloat16."
        )
    return found


def move(model: nn.Module, device: str) -> nn.Module:
    """The model on a device."""
    import torch

    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"--device {device!r}: the model cannot be moved there: {in_one_line(error)}."
        ) from error
