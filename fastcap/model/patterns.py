"""Patterns of module paths: `layers.*.mlp`, `layers.{0..31}`, `**.mlp` and `re:` expressions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastcap.errors import ArgumentError
from fastcap.spec import REGEX

LONGEST_RANGE = 10_000

_TOKEN = re.compile(
    r"(?P<everything>^\*\*$)"
    r"|(?P<descend>(?:^|(?<=\.))\*\*\.)"  # **.mlp
    r"|(?P<below>\.\*\*$)"  # layers.**
    r"|(?P<segment>(?:^|(?<=\.))\*(?=\.|$))"
    r"|(?P<stars>\*+)"
    r"|\{(?P<items>[^{}]*)\}"
    r"|(?P<brace>[{}])"
    r"|(?P<text>(?:(?!\.\*\*$)[^*{}])+)",
    re.DOTALL,
)
_EXPRESSIONS = {
    "everything": ".*",
    "descend": r"(?:[^.]+\.)*",
    "below": r"(?:\.[^.]+)*",
    "segment": "[^.]+",
    "stars": "[^.]*",
}
_RANGE = re.compile(r"(0|[1-9]\d{0,17})\.\.(0|[1-9]\d{0,17})")


class _Braces(NamedTuple):
    """`{0,15,31}` or `{0..31}`.

    Attributes:
        items: What may stand there.
        asked: The items that were written out: each of a list, both ends of a range.
    """

    items: tuple[str, ...]
    asked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that has been read.

    Attributes:
        text: What the user wrote.
        pieces: Regular expressions in a row, with the braces between them.
        is_regex: Whether the user wrote a regular expression, which may match anywhere in a path.
    """

    text: str
    pieces: tuple[str | _Braces, ...]
    is_regex: bool = False

    def expression(self) -> re.Pattern[str]:
        """What `search` finds in the paths that match."""
        body = "".join(_to_regex(piece) for piece in self.pieces)
        return re.compile(body if self.is_regex else rf"(?s:\A{body}\Z)")

    def items_asked(self) -> Iterator[tuple[str, Pattern]]:
        """Each item written in braces, and the pattern with that item alone in its place."""
        for place, piece in enumerate(self.pieces):
            for item in piece.asked if isinstance(piece, _Braces) else ():
                alone = (*self.pieces[:place], re.escape(item), *self.pieces[place + 1 :])
                yield item, Pattern(self.text, alone)


def is_pattern(text: str) -> bool:
    """Whether a name that no module has is a pattern."""
    return text.startswith(REGEX) or any(mark in text for mark in "*{}")


def read_pattern(text: str) -> Pattern:
    r"""Read a pattern of paths.

    `*` is one segment or a part of one, `**` any number of whole segments, `{a,b}` a list,
    `{0..31}` a range with both ends. `re:` begins a regular expression, found anywhere in a path.

    Examples:
        >>> expression = read_pattern("layers.{0..2}.*").expression()
        >>> [bool(expression.search(path)) for path in ("layers.2.mlp", "layers.3.mlp", "layers.2")]
        [True, False, False]

    Raises:
        ArgumentError: The pattern cannot be read.
    """
    if text.startswith(REGEX):
        return _read_regex(text)
    pieces: list[str | _Braces] = []
    for token in _TOKEN.finditer(re.sub(r"\*\*(?:\.\*\*)+", "**", text)):
        kind = str(token.lastgroup)
        if kind == "brace":
            raise ArgumentError(
                f"Pattern {text!r}: every '{{' needs its '}}', and braces hold no braces. Write a "
                "list as 'layers.{0,15,31}' and a range as 'layers.{0..31}'."
            )
        if kind == "stars" and len(token["stars"]) > 1:
            raise ArgumentError(
                f"Pattern {text!r}: '**' stands for whole segments, between dots, as in '**.mlp'. "
                "For a part of one segment write '*'."
            )
        if kind == "items":
            pieces.append(_read_braces(text, token["items"]))
        else:
            pieces.append(_EXPRESSIONS.get(kind) or re.escape(token["text"]))
    return Pattern(text, tuple(pieces))


def _read_regex(text: str) -> Pattern:
    expression = text.removeprefix(REGEX)
    if not expression:
        raise ArgumentError(
            f"Pattern {text!r}: no regular expression follows 're:'. For every module, write '**'."
        )
    try:
        re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ArgumentError(
            f"Pattern {text!r} is not a valid regular expression: {error}. After 're:' comes what "
            "Python's "
            r"re.search takes, such as 're:^layers\.\d+$'."
        ) from error
    return Pattern(text, (expression,), is_regex=True)


def _read_braces(text: str, inside: str) -> _Braces:
    items: list[str] = []
    asked: list[str] = []
    for item in inside.split(","):
        if not item or "*" in item:
            found = "an item of the list is empty" if not item else f"{item!r} is not a plain name"
            raise ArgumentError(
                f"Pattern {text!r}: {found}. Braces hold names and ranges, separated by commas, "
                "such as '{0,15,31}' or '{0..31}'."
            )
        if ".." not in item:
            items.append(item)
            asked.append(item)
            continue
        numbers = _read_range(text, item)
        items += map(str, numbers)
        asked += dict.fromkeys([str(numbers[0]), str(numbers[-1])])
    return _Braces(tuple(items), tuple(asked))


def _read_range(text: str, item: str) -> range:
    match = _RANGE.fullmatch(item)
    if match is None:
        raise ArgumentError(
            f"Pattern {text!r}: {item!r} is not a valid range. A range is two whole numbers, first "
            "and last, such as '{0..31}'."
        )
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise ArgumentError(
            f"Pattern {text!r}: the range {item!r} runs backwards. Write '{{{last}..{first}}}'; "
            "sites are in model order in any case."
        )
    if last - first >= LONGEST_RANGE:
        raise ArgumentError(
            f"Pattern {text!r}: the range {item!r} has {last - first + 1:,} numbers, and "
            f"{LONGEST_RANGE:,} are the most. For every number, write '*'."
        )
    return range(first, last + 1)


def _to_regex(piece: str | _Braces) -> str:
    if isinstance(piece, str):
        return piece
    return f"(?:{'|'.join(map(re.escape, piece.items))})"
