"""A report as one HTML file that needs nothing else: no script, no style sheet, no font."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from fastcap.bench import charts
from fastcap.bench.files import write_text
from fastcap.bench.report import TABLE_HEADER, Report, card_rows, remarks, table_rows
from fastcap.bench.ways import FASTCAP
from fastcap.formatting import counted, format_bytes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #111; background: #fff;
       max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
figure { margin: 0; } figcaption { color: #333; }
svg { width: 100%; min-width: 40rem; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 0.2rem 1rem 0.2rem 0; border-bottom: 1px solid #bbb;
         white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.1rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; } .wide { overflow-x: auto; }
"""


def render(report: Report) -> str:
    """The page."""
    return "\n".join(_parts(report)) + "\n"


def _parts(report: Report) -> Iterator[str]:
    title = f"What capturing costs: {report.model}"
    yield "<!DOCTYPE html>"
    yield '<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
    yield f"<h1>{escape(title)}</h1>"
    yield f"<p>{escape(_answer(report))}</p>"
    facts = "".join(f"<dt>{escape(n)}</dt><dd>{escape(t)}</dd>" for n, t in card_rows(report))
    yield f"<dl><dt>date</dt><dd>{escape(report.date)}</dd>{facts}</dl>"
    yield "<h2>Overhead by bytes captured</h2>"
    yield _picture(
        charts.as_svg(charts.overhead_figure(report), "overhead"),
        "Geometric mean of the rounds' ratios; bars are 95 % intervals. Where a bar runs out of "
        "the picture, the table has its end.",
    )
    yield _table([TABLE_HEADER, *table_rows(report)])
    yield from (f"<p>{escape(remark)}</p>" for remark in remarks(report))
    yield "<h2>How close to the floors</h2>"
    yield _picture(
        charts.as_svg(charts.floors_figure(report), "floors"),
        "What each floor would take by itself for the same passes and bytes, all sites captured. "
        "A run whose longest floor takes 100 % could not be faster"
        + (
            "; on the CPU the forward and the copy add up."
            if report.floors.link_gb_per_sec is None
            else "."
        )
        + _of_disk(report),
    )
    yield "<h2>What runs when</h2>"
    yield _picture(
        charts.as_svg(charts.timeline_figure(report.timeline), "timeline"),
        "Passes of a run of its own, every site captured; recording them slows them a little. "
        f"{_copies(report)}",
    )
    yield "</body></html>"


def _of_disk(report: Report) -> str:
    if report.floors.disk_gb_per_sec is None:
        return ""
    return (
        " This run wrote nothing to disk: an archive of these values would take that long at least."
    )


def _answer(report: Report) -> str:
    whole = report.whole
    mismatches = sum(sum(point.n_mismatches.values()) for point in report.points)
    equal = "Every value" if not mismatches else f"All but {mismatches} values"
    ratio = whole.ratios[FASTCAP]
    return (
        f"With {counted(len(whole.sites), 'site')} captured, a run takes {ratio} times as long as "
        f"without capture. {equal} equalled the oracle's."
    )


def _copies(report: Report) -> str:
    made = report.statistics
    return (
        f"It made {made.copies} copies of {format_bytes(made.copied_bytes)} in all for "
        f"{made.captures} captures, a first pass that is not shown included."
    )


def _picture(svg: str, caption: str) -> str:
    return (
        f'<figure><div class="wide">{svg}</div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    inner = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{inner}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def write(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        SaveError: It cannot be written.
    """
    write_text(path, render(report))
