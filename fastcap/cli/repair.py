"""`fastcap repair`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastcap.cli.command import command
from fastcap.cli.inspect import show_ranges


@command
def repair(
    archive: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of an archive.")],
) -> None:
    """Bring back samples whose journal was damaged, from the files that hold them.

    Whole files that no journal names are named again, or set aside where their samples are there
    already. Nothing is removed. No run may be writing to the archive.
    """
    from fastcap.archive.repair import repair as repair_archive

    done = repair_archive(archive)
    for each in done:
        what = "Adopted" if each.why_not is None else "Set aside"
        names = ", ".join(str(path.relative_to(archive.absolute())) for path in each.paths)
        samples = f", samples {show_ranges(each.samples)}" if each.samples else ""
        why_not = "" if each.why_not is None else f": {each.why_not}"
        typer.echo(f"{what} {names}{samples}{why_not}")
    if not done:
        typer.echo(
            f"{archive}: nothing to repair. Journals name every whole file, or it is set aside."
        )
