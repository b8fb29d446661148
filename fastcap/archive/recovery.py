"""What is committed, and what a crash or damage has left; nothing here writes to a file.

Every process reads all journals and writes none but its own. What other writers left unfinished may
be removed only when they are known to be dead: their journal is not locked, and it was locked on
this machine, since it was started.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastcap.archive.files import Entry, Files
from fastcap.archive.journal import JOURNAL_LIMIT, GroupRecord, Journal, parse_journal
from fastcap.archive.layout import JOURNAL, META, ORPHAN, SHARD_NAME, UNFINISHED, WRITER_NAME
from fastcap.archive.meta import Meta, read_meta
from fastcap.errors import ArchiveError, ArchiveFormatError


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that no journal names."""

    path: Path
    n_bytes: int

    @property
    def is_whole(self) -> bool:
        """Whether it has the name of a shard that was complete when it got that name.

        Its writer was killed before it committed, or had committed and its journal is damaged. So
        it is evidence, and never removed.
        """
        return bool(SHARD_NAME.fullmatch(self.path.name))


@dataclass(frozen=True, slots=True)
class Damage:
    """A committed group that cannot be read: its samples count as missing."""

    directory: Path
    group: GroupRecord
    reason: str


@dataclass(slots=True)
class WriterState:
    """One writer's directory.

    Attributes:
        directory: Where.
        journal: What it says.
        is_live: Whether its process still runs; `None` where that cannot be told.
        groups: What is committed and there.
        damages: What is committed and not there as it should be.
        leftovers: What is not committed.
        orphans: Whole shards that were set aside.
    """

    directory: Path
    journal: Journal
    is_live: bool | None
    groups: list[GroupRecord] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    leftovers: list[Leftover] = field(default_factory=list)
    orphans: list[Leftover] = field(default_factory=list)

    @property
    def unlisted(self) -> list[Leftover]:
        """Whole shards that no valid line of the journal names."""
        return [leftover for leftover in self.leftovers if leftover.is_whole]

    @property
    def orphan_paths(self) -> set[Path]:
        return {orphan.path for orphan in self.orphans}


@dataclass(frozen=True, slots=True)
class Scan:
    """An archive as its journals and directories show it, by writer in order of name."""

    root: Path
    meta: Meta
    writers: list[WriterState]


def scan(root: Path, files: Files, is_settled: bool = False) -> Scan:
    """Read the meta, every journal, and the sizes of all files.

    Args:
        root: The archive's directory.
        files: The file system.
        is_settled: Whether to believe only lines that are on disk. A writer that died may have
            written a line that it did not sync, or could not.

    Raises:
        ArchiveError: There is no archive, or it cannot be read.
        ArchiveFormatError: Something there was not written by this version of fastcap.
    """
    meta = read_meta(root, files)
    try:
        writers = [
            _scan_entry(root, entry, meta, files, is_settled)
            for entry in files.entries(root)
            if WRITER_NAME.fullmatch(entry.name)
        ]
    except ArchiveError:
        raise
    except MemoryError:
        raise ArchiveError(f"The journals of {root} take more memory than there is.") from None
    except OSError as error:
        path = error.filename or root
        raise ArchiveError(f"Cannot read {path}: {error.strerror or error}.") from error
    return Scan(root, meta, writers)


def _scan_entry(
    root: Path, entry: Entry, meta: Meta, files: Files, is_settled: bool
) -> WriterState:
    if not entry.is_dir:
        raise ArchiveFormatError(
            f"{root / entry.name} has the name of a writer's directory, but is not one. Links are "
            "not followed: move the directory itself here."
        )
    return _scan_writer(root / entry.name, meta, files, is_settled)


def _scan_writer(directory: Path, meta: Meta, files: Files, is_settled: bool) -> WriterState:
    entries = files.entries(directory)
    names = {entry.name for entry in entries if entry.is_file}
    path = directory / JOURNAL
    if JOURNAL not in names and any(entry.name == JOURNAL for entry in entries):
        raise ArchiveFormatError(f"{path} is not a regular file, and links are not followed.")
    journal, is_live = Journal(), None
    if JOURNAL in names:
        is_locked = files.is_locked(path)  # before it is read: what a dead writer wrote is all
        journal = _read_journal(path, meta, files, is_settled)
        is_live = _is_live(is_locked, journal, files)
    state = WriterState(directory, journal, is_live)
    for group in journal.groups:
        check_streams(group, meta, directory)
        reason = _damage(directory, group, files)
        if reason is None:
            state.groups.append(group)
        else:
            state.damages.append(Damage(directory, group, reason))
    named = {file.name for group in journal.groups for file in group.files}
    for name in sorted(names - named):
        is_orphan = bool(SHARD_NAME.fullmatch(name.removesuffix(ORPHAN))) and name.endswith(ORPHAN)
        if is_orphan or _is_ours(name):
            path = directory / name
            kept = state.orphans if is_orphan else state.leftovers
            try:
                kept.append(Leftover(path, files.size(path)))
            except FileNotFoundError:
                continue  # its writer lives, and has just renamed it
    return state


def _read_journal(path: Path, meta: Meta, files: Files, is_settled: bool) -> Journal:
    n_bytes = files.size(path)  # its writer may live, and go on
    if n_bytes > JOURNAL_LIMIT:
        raise ArchiveFormatError(f"{path} is larger than any that fastcap writes.")
    if is_settled:
        files.settle(path)
    journal = parse_journal(_first(files.blocks(path), n_bytes), str(path))
    if journal.info is not None and journal.info.archive != meta.archive:
        raise ArchiveFormatError(
            f"{path} belongs to another archive than {path.parent.parent / META}. Move "
            f"{path.parent} out of it."
        )
    return journal


def _first(blocks: Iterable[memoryview], n_bytes: int) -> Iterator[memoryview]:
    """No more than so many bytes."""
    for block in blocks:
        yield block[:n_bytes]
        n_bytes -= len(block)
        if n_bytes <= 0:
            return


def _is_live(is_locked: bool | None, journal: Journal, files: Files) -> bool | None:
    if is_locked is False and journal.info is not None:
        return False if journal.info.machine == files.machine() else None
    return is_locked


def check_streams(group: GroupRecord, meta: Meta, directory: Path) -> None:
    """Whether a group holds every stream once.

    Raises:
        ArchiveFormatError: It does not.
    """
    held = sorted(stream for file in group.files for stream in file.streams)
    ragged = sorted(spec.name for spec in meta.streams if spec.is_ragged)
    if held != sorted(spec.name for spec in meta.streams) or sorted(group.rows) != ragged:
        raise ArchiveFormatError(
            f"{directory / JOURNAL}: group {group.number} does not hold the streams of {META}."
        )


def _damage(directory: Path, group: GroupRecord, files: Files) -> str | None:
    for file in group.files:
        try:
            n_bytes = files.size(directory / file.name)
        except OSError as error:
            return f"{directory / file.name}: {error.strerror or error}"
        if n_bytes != file.n_bytes:
            return f"{directory / file.name} has {n_bytes} bytes instead of {file.n_bytes}"
    return None


def _is_ours(name: str) -> bool:
    whole = name.removesuffix(UNFINISHED)
    return bool(SHARD_NAME.fullmatch(whole)) or (whole != name and whole in (META, JOURNAL))


def clean(root: Path, files: Files) -> list[Leftover]:
    """Remove what dead writers left unfinished, and set aside the whole shards that no line names.

    Nothing committed is touched, and nobody else's files.

    Returns:
        What was removed or set aside.

    Raises:
        ArchiveError: There is no archive, or it cannot be read or written.
    """
    done = []
    for writer in scan(root, files).writers:
        if writer.is_live is not False or writer.journal.is_damaged:
            continue  # a damaged journal does not tell which of its files were committed
        for leftover in writer.leftovers:
            if leftover.is_whole and orphan_path(leftover.path) in writer.orphan_paths:
                continue  # somebody has put it there again, and verify goes on telling
            try:
                _clear(leftover, files)
            except FileNotFoundError:
                continue  # another process that resumes was first
            except OSError as error:
                raise ArchiveError(
                    f"Cannot {'rename' if leftover.is_whole else 'remove'} {leftover.path}, which "
                    f"a writer that has died left uncommitted: {error.strerror or error}."
                ) from error
            done.append(leftover)
    return done


def _clear(leftover: Leftover, files: Files) -> None:
    if leftover.is_whole:
        files.rename(leftover.path, orphan_path(leftover.path))
        files.sync_dir(leftover.path.parent)
    else:
        files.remove(leftover.path)


def orphan_path(path: Path) -> Path:
    """What a shard that is set aside is called: nobody reads it, and nothing removes it."""
    return path.with_name(path.name + ORPHAN)
