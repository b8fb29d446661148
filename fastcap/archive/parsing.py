"""JSON from files that anybody may have written: small, strict, and without surprises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from fastcap.errors import ArchiveFormatError

T = TypeVar("T")

DEPTH_LIMIT = 64
"""How deep free-form JSON may be nested."""


VALUE_LIMIT = 1 << 21
"""How many values a text may hold. Each takes up to a hundred times its length in memory."""

_MARKS = (b",", b"[", b"{")


def parse_object(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object that `text` is.

    Raises:
        ArchiveFormatError: Anything but one object of UTF-8 JSON with distinct keys, finite
            numbers, moderate depth, and not too many values.
    """
    n_values = sum(text.count(mark) for mark in _MARKS)  # no fewer, as strings have marks too
    if n_values > VALUE_LIMIT:
        raise ArchiveFormatError(
            f"{where} may hold {n_values} values, and readers take at most {VALUE_LIMIT}."
        )
    try:
        found = json.loads(
            text.decode(),  # given bytes, json would also take UTF-16
            object_pairs_hook=_distinct,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except MemoryError:
        raise ArchiveFormatError(f"{where} takes more memory to read than there is.") from None
    except RecursionError:
        raise ArchiveFormatError(f"{where} is not valid JSON: it is nested too deep.") from None
    except ValueError as error:
        raise ArchiveFormatError(f"{where} is not valid JSON: {_reason(error)}.") from None
    if not isinstance(found, dict):
        raise ArchiveFormatError(f"{where} is not a JSON object.")
    return found


def take(found: Mapping[str, Any], key: str, kind: type[T], where: str) -> T:
    """The value of a key that must be there and of one type (`bool` is not an `int`).

    Raises:
        ArchiveFormatError: It is not.
    """
    value = found.get(key)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ArchiveFormatError(
            f"{where}: {key!r} must be {kind.__name__}; it is {_short(value)}."
        )
    if isinstance(value, str) and not _is_text(value):
        raise ArchiveFormatError(f"{where}: {key!r} is not valid Unicode (lone surrogate).")
    return value


def take_count(found: Mapping[str, Any], key: str, where: str) -> int:
    """The value of a key that must be an int of at least 0 that fits 63 bits."""
    value = take(found, key, int, where)
    if not 0 <= value < 1 << 63:
        raise ArchiveFormatError(f"{where}: {key!r} is {_short(value)}, which is out of range.")
    return value


def check_depth(value: Any, where: str, depth: int = 0) -> None:
    """Refuse JSON that is nested so deep that comparing or printing it could fail.

    Raises:
        ArchiveFormatError: It is.
    """
    if depth > DEPTH_LIMIT:
        raise ArchiveFormatError(f"{where} is nested deeper than {DEPTH_LIMIT} levels.")
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            check_depth(inner, where, depth + 1)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice")
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return "a number is too long" if "integer string" in str(error) else str(error)


def _is_text(value: str) -> bool:
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge int"
    return text if len(text) <= 40 else f"{text[:37]}..."
