"""Write the figures of the documents from the newest result files.

    python -m benchmarks.figures [--check]

Exit status: 0; 1 when something is stale and `--check` was given; 2 when a result file or a
document is not as it should be.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.checkout import PROJECT, RESULTS
from benchmarks.figures import drawings
from benchmarks.figures.catalogue import PICTURES, Place, write_block
from benchmarks.figures.results import FigureError, newest

STALE, CANNOT_WRITE = 1, 2
PAGES: Mapping[str, str] = {"README.md": f"{RESULTS}/", "docs/performance.md": f"../{RESULTS}/"}
"""The documents, and the way from each to the results."""
IMAGES = "docs/images"
BEGIN = re.compile(r"^<!-- figures: (.*?) -->$", re.MULTILINE)
END = "<!-- end -->"


def main(arguments: list[str] | None = None, root: Path = PROJECT) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.figures", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--check", action="store_true", help="change nothing, say what is stale")
    options = parser.parse_args(arguments)
    try:
        stale = [*stale_pages(root), *stale_pictures(root)]
        if options.check:
            sys.stdout.writelines(
                f"{name} is stale: python -m benchmarks.figures\n" for name in stale
            )
            return STALE if stale else 0
        write(root)
    except FigureError as error:
        sys.stderr.write(f"{error}\n")
        return CANNOT_WRITE
    sys.stdout.writelines(f"{name} written\n" for name in stale)
    return 0


def stale_pages(root: Path) -> Iterator[str]:
    """Documents that say something else than the result files."""
    for name in PAGES:
        if (root / name).read_text() != rewritten(root, name):
            yield name


def stale_pictures(root: Path) -> Iterator[str]:
    """Pictures of other figures than the newest, and those that are missing."""
    for name, (kind, _) in PICTURES.items():
        if not drawings.is_current(root / IMAGES / name, newest(root / RESULTS, kind)):
            yield f"{IMAGES}/{name}"


def rewritten(root: Path, name: str) -> str:
    """A document with its blocks as they should be."""
    place = Place(root / RESULTS, PAGES[name])
    return rewrite((root / name).read_text(), partial(write_block, place))


def rewrite(page: str, write: Callable[[str], str]) -> str:
    """The page with every block written anew, by its name; the rest stays as it is.

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


def write(root: Path) -> None:
    """Write documents and pictures. A picture without figures is removed."""
    for name in PAGES:
        (root / name).write_text(rewritten(root, name))
    for name, (kind, draw) in PICTURES.items():
        path, result = root / IMAGES / name, newest(root / RESULTS, kind)
        if result is None:
            path.unlink(missing_ok=True)
        else:
            drawings.save(draw(result), result, path)


if __name__ == "__main__":
    sys.exit(main())
