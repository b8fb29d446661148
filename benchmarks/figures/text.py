"""Figures as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastcap.bench import Ratio
from fastcap.formatting import format_bytes, markdown_table

KiB, MiB = 1 << 10, 1 << 20


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells may not hold a bar."""
    return markdown_table([header, *rows])


def paragraphs(*parts: str) -> str:
    """Those that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)


def folded(summary: str, content: str) -> str:
    """What a reader opens who wants to see all of it."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def verdict(ratio: Ratio) -> str:
    """What an interval says about a ratio of times: `less`, `more`, or `same` if it includes 1."""
    return "less" if ratio.high < 1 else "more" if ratio.low > 1 else "same"


def comparison(ratio: Ratio, one: str, other: str) -> str:
    """The same in a sentence, without its full stop."""
    said = verdict(ratio)
    if said == "same":
        return f"no difference between {one} and {other} is shown: the interval includes 1"
    return f"{one} takes {said} time than {other}"


def signed(n_bytes: int) -> str:
    return format_bytes(n_bytes) if n_bytes >= 0 else f"-{format_bytes(-n_bytes)}"


def power_of_two(n_bytes: int) -> str:
    """`16 KiB`, `64 MiB`."""
    return f"{n_bytes // MiB} MiB" if n_bytes >= MiB else f"{n_bytes // KiB} KiB"
