"""Numbers, errors and tables as text."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator, Sequence

WIDTH = 80
GAP = "  "


def format_bytes(n_bytes: float) -> str:
    """Bytes for people, in powers of 1000: `format_bytes(2_150_000_000) == "2.15 GB"`."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if n_bytes < 999.5 or unit == "EB":  # 999.5 would be shown as 1000
            break
        n_bytes /= 1000
    return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 999.5 else f"{n_bytes:.3g} {unit}"


def counted(number: int, noun: str) -> str:
    """A number of things: `counted(2000, "pass") == "2,000 passes"`."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def format_secs(secs: float) -> str:
    """Seconds for people: `format_secs(0.0391) == "39.1 ms"`."""
    if secs < 0.9995e-3:  # which is shown as 1 ms
        return f"{secs * 1e6:.3g} µs"
    if secs < 0.9995:
        return f"{secs * 1e3:.3g} ms"
    if secs < 120:
        return f"{secs:.3g} s"
    minutes = round(secs / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 72 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    days = secs / 86_400
    return f"{days:.1f} days" if days < 100 else f"{days:,.0f} days"


def a_kind(kind: type) -> str:
    """A class by its name, with its article: `a_kind(int) == "an int"`."""
    name = kind.__name__
    return f"{'an' if name[:1] in 'AEIOUaeiou' else 'a'} {name}"


def in_one_line(error: Exception) -> str:
    """The class and the text of an error."""
    text = " ".join(str(error).split()).removesuffix(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up; the first row is its header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def columns(rows: Sequence[Sequence[str]], sides: str) -> Iterator[str]:
    """Columns two spaces apart; `<` puts a cell left, `>` right. A long last cell is wrapped."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(sides))]
    indent = " " * (sum(widths[:-1]) + len(GAP) * (len(widths) - 1))
    for row in rows:
        cells = [
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ]
        line = GAP.join(cells).rstrip()
        if len(line) <= WIDTH or sides[-1] == ">":
            yield line
        else:
            yield from textwrap.wrap(line, WIDTH, subsequent_indent=indent)


def html_text(text: str) -> str:
    """Lines of text as they are, for a notebook."""
    return f"<pre>{html.escape(text)}</pre>"


def html_table(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A table for a notebook; the first row is its header."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in body]
    rows_html = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div><p><b>{html.escape(title)}</b></p><table>{rows_html}</table></div>"
