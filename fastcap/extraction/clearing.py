"""Room for a run in a directory where another run's archive is: one that is to be replaced, or one
that never got as far as its first sample.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastcap.archive.files import Files, LocalFiles
from fastcap.archive.journal import Journal
from fastcap.archive.layout import JOURNAL, META, WRITER_NAME
from fastcap.archive.recovery import Scan, WriterState, scan
from fastcap.errors import ArchiveConfigError, ArchiveError, ArgumentError

Found = TypeVar("Found")


def replacing(root: Path, look: Callable[[], Found], is_asked: bool, is_alone: bool) -> Found:
    """What is found in a directory, once another run's archive there has made room.

    Args:
        root: The directory.
        look: Finds it, and raises `ArchiveConfigError` for another run's.
        is_asked: Whether that is removed whatever it holds; else only if it holds nothing.
        is_alone: Whether no other process of this run may have begun there meanwhile.

    Raises:
        ArchiveConfigError: Another run's archive stays.
        ArchiveError: It cannot be removed.
        ArgumentError: One of several processes is asked to remove it.
    """
    if is_asked and not is_alone:
        raise ArgumentError(
            "overwrite=True is for one process: of several, each could remove what another has "
            f"begun. Remove {root} before they start."
        )
    try:
        return look()
    except ArchiveConfigError:
        files = LocalFiles()
        if not is_alone or not (is_asked or is_empty_start(root, files)):
            raise
        clear(root, files)
    return look()


def is_empty_start(root: Path, files: Files) -> bool:
    """Whether an archive holds nothing, and nobody writes to it: its run failed before its first
    commit.
    """
    there = scan(root, files)
    return not any(
        _may_write(writer) or writer.groups or writer.damages or writer.unlisted or writer.orphans
        for writer in there.writers
    )


def clear(root: Path, files: Files) -> None:
    """Remove an archive and nothing else. `meta.json` goes last: until then a run that was killed
    here is told what the directory holds.

    Raises:
        ArchiveError: Somebody writes to it or may, or a file there is not fastcap's.
    """
    there = scan(root, files)
    _check_nobody_writes(there)
    try:
        strangers = sorted(_strangers(there, files))
        if strangers:
            raise ArchiveError(
                f"{root} is not removed: it holds {', '.join(strangers[:3])}, which fastcap did "
                "not write. Move that elsewhere, or choose another directory."
            )
        for writer in there.writers:
            names = [entry.name for entry in files.entries(writer.directory)]
            for name in sorted(names, key=lambda name: name == JOURNAL):  # which says who wrote
                files.remove(writer.directory / name)
            writer.directory.rmdir()
        files.sync_dir(root)
        files.remove(root / META)
        files.sync_dir(root)
    except OSError as error:
        raise ArchiveError(
            f"Cannot remove the archive in {root}: {error.strerror or error} "
            f"({error.filename or root}). Mend that and run the same again, which removes what is "
            "left of it, or choose another directory."
        ) from error


def _may_write(writer: WriterState) -> bool:
    """Whether somebody writes there, as far as can be told: a process makes its journal first."""
    if writer.is_live is None:
        return bool(writer.journal != Journal() or writer.leftovers or writer.orphans)
    return writer.is_live


def _check_nobody_writes(there: Scan) -> None:
    for writer in there.writers:
        if _may_write(writer):
            who = "A process writes" if writer.is_live else "A process on another machine may write"
            raise ArchiveError(
                f"{there.root} is not removed: {who} to {writer.directory.name}. End it first; if "
                f"there is none, remove {there.root} yourself, or choose another directory."
            )


def _strangers(there: Scan, files: Files) -> set[str]:
    found = {
        entry.name
        for entry in files.entries(there.root)
        if entry.name != META and not WRITER_NAME.fullmatch(entry.name)
    }
    for writer in there.writers:
        shards = (file.name for group in writer.journal.groups for file in group.files)
        kept = (each.path.name for each in (*writer.leftovers, *writer.orphans))
        ours = {JOURNAL, *shards, *kept}
        entries = files.entries(writer.directory)
        found |= {f"{writer.directory.name}/{e.name}" for e in entries if e.name not in ours}
    return found
