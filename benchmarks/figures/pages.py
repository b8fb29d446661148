"""Blocks in documents: what stands between two markers is written by a function."""

from __future__ import annotations

import re
from collections.abc import Callable

from benchmarks.figures.results import FigureError

BEGIN = re.compile(r"^<!-- figures: (.*?) -->$", re.MULTILINE)
END = "<!-- end -->"

Write = Callable[[str], str]
"""A block's text, by its name."""


def rewrite(page: str, write: Write) -> str:
    """The page with every block written anew; what is outside of blocks stays as it is.

    Raises:
        FigureError: A block has no end before the next one begins.
    """
    done, rest = "", page
    while (begin := BEGIN.search(rest)) is not None:
        end = rest.find(f"\n{END}", begin.end())
        following = BEGIN.search(rest, begin.end())
        if end < 0 or (following is not None and following.start() < end):
            raise FigureError(f"Block {begin[1]!r} has no {END!r} on a line of its own after it.")
        done += f"{rest[: begin.end()]}\n\n{write(begin[1])}\n\n{END}"
        rest = rest[end + 1 + len(END) :]
    return done + rest
