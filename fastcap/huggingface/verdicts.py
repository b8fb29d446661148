"""What is known by value of the modules that site aliases name in the blocks of transformers.

`aliases.json` is made by `python -m tests.zoo --write`, which runs every class with random weights
and compares: the part's value against what the block adds to its input. Here it is only looked up.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from fastcap.warn import warn

VERIFIED, REFUSED, UNVERIFIED = "verified", "refused", "unverified"

TABLE = Path(__file__).with_name("aliases.json")

_said: set[tuple[str, str]] = set()
"""Classes and aliases that were reported as not verified: once each in a process."""


class Place(NamedTuple):
    """Where an alias leads in one block: the module's path, and inside the block, `""` for it."""

    kind: str
    path: str
    block: nn.Module
    inside: str


def refusal(place: Place) -> str | None:
    """Why the module is known to be the wrong one, or `None`."""
    verdict, reason = verdict_on(place)
    return reason if verdict == REFUSED else None


def say_unverified(places: Iterable[Place]) -> None:
    """Warn, once for each class and alias, of modules that were found by name alone."""
    found = []
    for place in places:
        verdict, reason = verdict_on(place)
        said = (class_key(type(place.block)), place.kind)
        if verdict == UNVERIFIED and said not in _said:
            _said.add(said)
            found.append(
                f"{place.kind!r} of {type(place.block).__name__} as {place.path!r} ({reason})"
            )
    if found:
        warn(
            f"Found by name, not verified by value: {', '.join(found)}. A block of this class may "
            "use another module for it. Compare the values with what the block adds to its input, "
            "or name the modules instead of the alias."
        )


def verdict_on(place: Place) -> tuple[str, str]:
    """`verified`, `refused` or `unverified`, and what there is to say of it."""
    forward = inspect.unwrap(type(place.block).forward)
    for base in type(place.block).__mro__:
        # A subclass with the same forward is the same block: FSDP makes such classes, and
        # transformers wraps the forward of each.
        if inspect.unwrap(getattr(base, "forward", object)) is forward:
            known = _table()["blocks"].get(class_key(base), {}).get(place.kind, {})
            if place.inside in known:
                verdict, reason = known[place.inside]
                return verdict, reason
    return UNVERIFIED, "the class or the name is not in the table"


def class_key(kind: type) -> str:
    """How the table names a class of block."""
    return f"{kind.__module__}.{kind.__qualname__}"


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    return table
