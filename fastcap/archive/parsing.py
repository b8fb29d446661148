"""JSON from files that anybody may have written: small, strict, and without surprises."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastcap.errors import ArchiveFormatError

T = TypeVar("T")


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        ArchiveFormatError: Anything but one object of UTF-8 JSON with distinct keys, finite numbers
            and moderate depth.
    """
    try:
        found = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveFormatError(f"{where} is not valid JSON: {error or 'too deep'}.") from None
    if not isinstance(found, dict):
        raise ArchiveFormatError(f"{where} is not a JSON object.")
    return found


def take(found: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key that must be there and of one type (`bool` is no `int`).

    Raises:
        ArchiveFormatError: It is not.
    """
    value = found.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ArchiveFormatError(
            f"{where}: {key!r} must be {kind.__name__}; it is {_short(value)}."
        )
    return value


def take_count(found: Mapping[str, Any], key: str, where: str) -> int:
    """The value of a key that must be an int of at least 0 that fits 63 bits."""
    value = take(found, key, int, where)
    if not 0 <= value < 1 << 63:
        raise ArchiveFormatError(f"{where}: {key!r} is {_short(value)}, which is out of range.")
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge int"
    return text if len(text) <= 40 else f"{text[:37]}..."
