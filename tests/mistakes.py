"""Write what comes of mistakes into docs/mistakes.md: `python -m tests.mistakes [--write]`.

Exit status: 0, or 1 where something comes of a case that must not.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import torch

from tests.support.mistakes import CASES, GROUPS
from tests.support.mistakes.case import faults, happens, row

PAGE = Path(__file__).parent.parent / "docs/mistakes.md"
BLOCK = re.compile(r"(<!-- mistakes -->\n).*?(<!-- end of mistakes -->)", re.DOTALL)
HEADER = ["| what you do | what happens | what it gives or says |", "|---|---|---|"]


def rows_on_page() -> dict[str, list[str]]:
    """The rows between the marks, by group."""
    found: dict[str, list[str]] = {}
    block = BLOCK.search(PAGE.read_text())
    lines = block[0].splitlines() if block else []
    for line in lines:
        if line.startswith("## "):
            found[line.removeprefix("## ")] = []
        elif line.startswith("| ") and line != HEADER[0]:
            list(found.values())[-1].append(line)
    return found


def table(rows: dict[str, list[str]]) -> str:
    """What stands between the marks."""
    parts = ["\n".join([f"## {group}", "", *HEADER, *lines]) for group, lines in rows.items()]
    return "\n" + "\n\n".join(parts) + "\n\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.mistakes", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables into the page")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {group: [] for group in GROUPS}
    n_wrong = 0
    for group, case in CASES:
        if not case.is_here:
            raise SystemExit(f"The page needs every row, and {case.needs} is missing here.")
        outcome = happens(case)
        rows[group].append(row(case, outcome))
        found = faults(case, outcome)
        n_wrong += bool(found)
        sys.stderr.write("".join(f"{group}: {case.mistake}: {each}\n" for each in found))
    text = table(rows)
    sys.stdout.write(text)
    if options.write:
        PAGE.write_text(BLOCK.sub(lambda found: found[1] + text + found[2], PAGE.read_text()))
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
