"""What an earlier run left in a directory that is to be filled: may it be continued, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL, META, WRITER_NAME
from fastcap.archive.meta import check_config, read_meta
from fastcap.archive.reader import Archive, reopen
from fastcap.archive.recovery import Leftover
from fastcap.errors import ArchiveError
from fastcap.fingerprint import hash_of
from fastcap.formatting import format_bytes
from fastcap.warn import warn


def open_earlier(
    root: Path, config: Mapping[str, Any], creator: Mapping[str, Any], rank: int
) -> Archive | None:
    """The archive that is there, to be continued; `None` where there is none yet.

    What dead writers left unfinished is removed. Whole shards that no journal names are set aside.

    Args:
        root: The directory.
        config: Of the run that wants to continue it.
        creator: Versions and machine of that run.
        rank: Which of its writers asks.

    Raises:
        ArchiveError: The directory holds something else, or cannot be read.
        ArchiveConfigError: The archive was made from something else.
    """
    files = LocalFiles()
    try:
        entries = files.entries(root)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ArchiveError(
            f"Cannot use {root} for an archive: {error.strerror or error}."
        ) from error
    names = [entry.name for entry in entries]
    if META not in names:
        others = [name for name in names if not WRITER_NAME.fullmatch(name)]
        if others:
            raise ArchiveError(
                f"{root} is not an archive, and it is not empty: it has {', '.join(others[:5])}. "
                "Choose a directory of its own."
            )
        return None
    meta = read_meta(root, files)
    check_config(config, hash_of(dict(config)), meta, root)
    _warn_of_creator(meta.creator, creator, root)
    aside: list[Leftover] = []
    archive = reopen(root, files, aside.append)
    _warn_of_aside(root, aside)
    _warn_of_others(archive, rank)
    return archive


def _warn_of_creator(there: Mapping[str, Any], now: Mapping[str, Any], root: Path) -> None:
    changed = [
        f"{key} {there.get(key)} then and {now.get(key)} now"
        for key in now
        if key != "fastcap" and there.get(key) != now.get(key)
    ]
    if changed:
        warn(
            f"{root} was begun with another set-up: {', '.join(changed)}. Values that are added "
            "may be rounded differently."
        )


def _warn_of_aside(root: Path, aside: Sequence[Leftover]) -> None:
    if aside:
        names = ", ".join(str(each.path.relative_to(root)) for each in aside[:5])
        more = f" and {len(aside) - 5} more" if len(aside) > 5 else ""
        warn(
            f"{root} has shards that are whole and that no valid line of their journal names: "
            f"{names}{more}. Either their process was killed just before it committed them, or the "
            "journal was damaged since. They are kept, with .orphan behind their names, and "
            "their samples run again where they are missing. To have them back instead, stop this "
            f"and run: fastcap repair {root}"
        )


def _warn_of_others(archive: Archive, rank: int) -> None:
    for writer in archive.writers:
        if writer.journal.is_damaged:
            warn(f"{writer.directory / JOURNAL}: {writer.journal.describe_damage()}.")
        info = writer.journal.info
        if writer.is_live and info is not None and info.rank == rank:
            warn(
                f"Process {info.pid} is writing to {archive.path} as rank {rank} too. Nothing is "
                "lost by that, but both do the same work."
            )
        if writer.is_live is None and writer.leftovers:
            n_bytes = sum(leftover.n_bytes for leftover in writer.leftovers)
            warn(
                f"{writer.directory} has {format_bytes(n_bytes)} that are not committed, and its "
                "writer ran on another machine or before a restart, so it cannot be told whether "
                "it is alive. If it is not, its files ending in .tmp can be removed."
                + (
                    f" To adopt what is whole: fastcap repair {archive.path}"
                    * bool(writer.unlisted)
                )
            )
