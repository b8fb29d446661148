"""From what is written on a command line to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fastcap.cli.locate import FORM, load_dataset
from fastcap.datasets.lines import SUFFIXES, LineFile
from fastcap.datasets.tokens import TokenFile
from fastcap.errors import ArgumentError


def open_dataset(
    name: str,
    *,
    text_key: str = "text",
    columns: Sequence[str] = (),
    context_length: int | None = None,
    token_dtype: str | None = None,
    vocabulary_size: int | None = None,
) -> Any:
    """A file by its suffix (`.txt`, `.jsonl`: texts; `.npy`, `.bin`: token ids), or a dataset by
    its import path.

    Args:
        name: A path, or `package.module:attribute`: a dataset with a length, or a function without
            arguments that returns one.
        text_key: For texts; see `LineFile`.
        columns: For `.jsonl`; see `LineFile`.
        context_length: For token ids; see `TokenFile`.
        token_dtype: For raw token ids; see `TokenFile`.
        vocabulary_size: For token ids; see `TokenFile`.

    Raises:
        ArgumentError: There is no such file or attribute, it cannot be used as a dataset, or an
            option does not fit it.
    """
    path = Path(name)
    if not path.is_file():
        if ":" not in name:
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ArgumentError(
                f"--data {name!r} {what}. Give a file (.npy, .bin, .jsonl, .txt), or an import "
                f"path of the form {FORM}."
            )
        _refuse(name, "a dataset", context_length=context_length, token_dtype=token_dtype)
        return load_dataset(name)
    if path.suffix.lower() in SUFFIXES:
        _refuse(name, "texts", context_length=context_length, token_dtype=token_dtype)
        return LineFile(path, text_key=text_key, columns=columns)
    _refuse(name, "token ids", columns=list(columns) or None)
    return TokenFile(
        path, context_length=context_length, dtype=token_dtype, vocabulary_size=vocabulary_size
    )


def _refuse(name: str, what: str, **options: Any) -> None:
    for option, value in options.items():
        if value is not None:
            flag = f"--{option.replace('_', '-')}"
            raise ArgumentError(f"{flag} is not for {what}, and --data {name!r} is. Leave it out.")


def vocabulary_size(model: nn.Module) -> int | None:
    """Token ids that a model has, where it says so as models of transformers do."""
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return getattr(embedding, "num_embeddings", None)
