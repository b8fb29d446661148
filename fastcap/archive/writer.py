"""The commit protocol: a group of samples becomes durable for all streams or for none.

Values are written to unfinished files. A commit then combines small streams, writes headers, syncs
and renames each file, syncs the directory, and appends one line to the journal, which it syncs.
That line is the commit: before it, the group does not exist; after it, nothing removes it.

A writer has no threads of its own. Parts may be written from any thread, and one group may be
committed while parts of the next are written; everything else belongs to one thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastcap.archive.files import Files, LocalFiles, WritableFile
from fastcap.archive.finishing import finish_files, name_files
from fastcap.archive.groups import Group
from fastcap.archive.guard import Guard
from fastcap.archive.journal import (
    GroupRecord,
    WriterInfo,
    check_line,
    group_line,
    total_line,
    writer_line,
)
from fastcap.archive.layout import JOURNAL, META, MOST_RANKS, UNFINISHED, WRITER_NAME, writer_name
from fastcap.archive.limits import GroupLimits
from fastcap.archive.meta import Meta, check_readable, check_same, read_meta
from fastcap.archive.shards import write_all
from fastcap.errors import ArchiveError, ArchiveFormatError, ArchiveWriteError

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL)
"""How a directory answers that this process cannot sync it, and so has not made it either."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A group that is on disk.

    Attributes:
        samples: Ids, as ranges `(start, stop)`, in the order of the rows.
        paths: Its files.
        n_bytes: Of all of them.
    """

    samples: tuple[tuple[int, int], ...]
    paths: tuple[Path, ...]
    n_bytes: int

    @property
    def n_samples(self) -> int:
        return sum(stop - start for start, stop in self.samples)


class Writer:
    """Adds samples to an archive, which it makes if there is none. Nobody else writes its files.

    Nothing is made on disk before the first value is written.

    Args:
        root: The archive's directory.
        meta: What the archive holds; one that is there already must agree, and is used instead.
        files: The file system.
        rank: Which of several writers this is; only a name.
        limits: How large groups are.
        clock: Seconds that only go forward.
        checksums: A thread for checksums; `None` computes them between writes.
        check: What was compared before the archive is continued, to be recorded.
    """

    def __init__(
        self,
        root: Path,
        meta: Meta,
        *,
        files: Files | None = None,
        rank: int = 0,
        limits: GroupLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
        checksums: Executor | None = None,
        check: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = root
        self.meta = meta
        self._creator = meta.creator
        self._check = check or {}
        self._files: Files = files or LocalFiles()
        self._rank = rank
        self._limits = limits or GroupLimits()
        self._clock = clock
        self._checksums = checksums
        self._guard = Guard(self._files)
        self._directory: Path | None = None
        self._journal: WritableFile | None = None
        self._journal_bytes = 0
        self._n_groups = 0
        self._group: Group | None = None
        self._uncommitted: list[Group] = []
        self._is_committing = False

    @property
    def directory(self) -> Path | None:
        """Where the writer's own files are; `None` before the first value."""
        return self._directory

    # Batches

    def append(
        self,
        samples: Sequence[int],
        values: Mapping[str, Tensor],
        lengths: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Write one batch that is in memory.

        Args:
            samples: Ids, in the order of the rows.
            values: `(samples, *shape)` of every stream, or all rows of the ragged ones.
            lengths: Rows of each sample, of every ragged stream.

        Raises:
            ArchiveWriteError: A file call failed.
        """
        group = self.group()
        parts = {name: group.part(name, value.shape) for name, value in values.items()}
        for name, value in values.items():
            parts[name].copy_(value)
        group.reserve(samples, parts)
        group.add(samples, parts, lengths or {})

    @property
    def written_bytes(self) -> int:
        """Bytes of values given to files so far."""
        return self._guard.written_bytes

    @property
    def write_secs(self) -> float:
        """Seconds that took, added up over threads."""
        return self._guard.write_secs

    @property
    def is_full(self) -> bool:
        """Whether the group should be committed now."""
        return self._group is not None and self._group.is_full(self._limits, self._clock())

    def group(self) -> Group:
        """The group that batches are added to now.

        Raises:
            ArchiveWriteError: A file call failed, now or before.
            ArchiveConfigError: The archive that is there is another run's.
        """
        self._guard.check()
        if self._group is None:
            directory = self._open()
            self._group = Group(
                self._n_groups,
                directory,
                self.meta,
                self._files,
                self._guard,
                self._checksums,
                self._clock(),
            )
            self._uncommitted.append(self._group)
            self._n_groups += 1
        return self._group

    # Commits

    def take_group(self) -> Group | None:
        """The group so far, to commit; what is added from now on is another's. `None` if empty."""
        group = self._group
        if group is None or group.is_empty:
            return None
        self._group = None
        return group

    def commit(self, group: Group | None = None) -> Commit | None:
        """Make a group durable: the one so far, or one that was taken. In order, one at a time.

        Returns:
            What is on disk now; `None` if there was nothing.

        Raises:
            ArchiveWriteError: A file call failed. The group is not committed, and the writer dead.
        """
        self._guard.check()
        group = group or self.take_group()
        if group is None or not group.samples.n_samples:
            return None
        assert group is self._uncommitted[0]
        samples = tuple(group.samples.pairs)
        with self._refusing(f"{group.samples.n_samples} samples from {samples[0][0]} on"):
            records = finish_files(group, self._limits, self._files, self._guard)
            record = GroupRecord(group.number, samples, group.rows(), records)
            line = group_line(record)
            check_line(line, record, self._journal_bytes)
        name_files(group, records, self._files, self._guard)
        self._is_committing = True
        self._append_line(line)
        self._is_committing = False
        del self._uncommitted[0]
        commit = Commit(
            samples,
            tuple(group.directory / record.name for record in records),
            sum(record.n_bytes for record in records),
        )
        self._guard.n_saved += commit.n_samples
        return commit

    def record_total(self, n_samples: int) -> None:
        """The data has ended, which did not say before how many samples it has."""
        self._guard.check()
        self._open()
        line = total_line(n_samples)
        with self._refusing(f"The number of samples, {n_samples},"):
            check_line(line, n_samples, self._journal_bytes)
        self._append_line(line)

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """What a reader would not take is not written: nothing of it is acknowledged.

        Raises:
            ArchiveWriteError: There is such a thing, and the writer is dead.
        """
        try:
            yield
        except ArchiveFormatError as error:
            message = (
                f"{what} cannot be committed, since no reader would take them: {error}. Everything "
                f"committed before is intact (samples of this run: {self._guard.n_saved}). Commit "
                "fewer samples at a time."
            )
            self._guard.fail(None, message)
            raise ArchiveWriteError(None, message) from error

    def _append_line(self, line: bytes) -> None:
        assert self._journal is not None
        assert self._directory is not None
        path = self._directory / JOURNAL
        write_all(self._journal, self._guard, path, self._journal_bytes, memoryview(line))
        self._journal_bytes += len(line)
        with self._guard("Syncing", path):
            self._journal.sync()

    # The directory

    def _open(self) -> Path:
        """Make the archive, and this writer's directory in it."""
        if self._directory is not None:
            return self._directory
        try:
            return self._make()
        except ArchiveError as error:
            self._guard.fail(error.errno, str(error))
            raise

    def _make(self) -> Path:
        check_readable(self.meta)
        self._make_root()
        directory, restart = self._make_directory()
        journal = directory / JOURNAL
        with self._guard("Making", journal):
            self._journal = self._files.create(journal)
            self._journal.lock()
        self._agree(directory)
        self._directory = directory
        info = WriterInfo(
            self.meta.archive,
            self._rank,
            restart,
            self._guard.pid,
            self._files.machine(),
            {} if self._creator == self.meta.creator else self._creator,
            self._check,
        )
        line = writer_line(info)
        check_line(line, info, 0)
        self._append_line(line)
        with self._guard("Syncing", directory):
            self._files.sync_dir(directory)
            self._files.sync_dir(self.root)
        return directory

    def _make_root(self) -> None:
        missing = []
        for path in (self.root, *self.root.parents):
            with self._guard("Looking at", path):
                if self._files.is_dir(path):
                    break
            missing.append(path)
        for path in reversed(missing):
            # Another writer may be first.
            allow = (FileExistsError,)
            with contextlib.suppress(*allow), self._guard("Making", path, allow=allow):
                self._files.make_dir(path)

    def _sync_parents(self) -> None:
        """Put the directories above the archive on disk, whoever made them.

        A process that died may have made them and not synced them. Where `meta.json` is, this has
        been done.
        """
        for path in self.root.parents:
            with self._guard("Syncing", path):
                try:
                    self._files.sync_dir(path)
                except OSError as error:
                    if error.errno not in _NOT_OURS:
                        raise

    def _make_directory(self) -> tuple[Path, int]:
        with self._guard("Listing", self.root):
            names = [entry.name for entry in self._files.entries(self.root)]
        mine = writer_name(self._rank, 0, "")[:-2]
        restart = sum(1 for n in names if WRITER_NAME.fullmatch(n) and n.startswith(mine))
        name = writer_name(self._rank, restart, uuid.uuid4().hex[:8])
        if not WRITER_NAME.fullmatch(name):
            raise ArchiveError(
                f"Rank {self._rank}, start {restart}, is none that an archive can name: ranks are "
                f"0 to {MOST_RANKS - 1}."
            )
        directory = self.root / name
        with self._guard("Making", directory):
            self._files.make_dir(directory)
        return directory, restart

    def _agree(self, directory: Path) -> None:
        """Publish the meta, or use the one that is there.

        Raises:
            ArchiveConfigError: That one is of another configuration.
        """
        unfinished = directory / (META + UNFINISHED)
        if not self._has_meta():
            with self._guard("Making", unfinished):
                file = self._files.create(unfinished)
            try:
                write_all(file, self._guard, unfinished, 0, memoryview(self.meta.encode()))
                with self._guard("Syncing", unfinished):
                    self._files.protect(unfinished)
                    file.sync()
            finally:
                with contextlib.suppress(OSError):  # what matters was said by `sync`
                    file.close()
            self._sync_parents()
            try:
                with self._guard("Publishing", unfinished, allow=(FileExistsError,)):
                    self._files.publish(unfinished, self.root / META)
            except FileExistsError:  # another writer was first
                with self._guard("Removing", unfinished):
                    self._files.remove(unfinished)
            with self._guard("Syncing", self.root):
                self._files.sync_dir(self.root)
        there = read_meta(self.root, self._files)
        check_same(self.meta, there, self.root)
        self.meta = there

    def _has_meta(self) -> bool:
        with self._guard("Listing", self.root):
            return any(entry.name == META for entry in self._files.entries(self.root))

    def close(self) -> None:
        """Remove what is not committed, and let go of the directory. May be called twice."""
        for number, group in enumerate(self._uncommitted):
            group.close()
            # A line that may have been written names these files: recovery decides (see there).
            if not (number == 0 and self._is_committing):
                self._remove_unfinished(group)
        self._uncommitted.clear()
        self._group = None
        if self._journal is not None:
            with contextlib.suppress(OSError):  # every line was synced when it was written
                self._journal.close()

    def _remove_unfinished(self, group: Group) -> None:
        # Only to give space back: what stays because this fails is removed by the next run.
        prefix = f"{group.number:06d}-"
        with contextlib.suppress(OSError):
            for entry in self._files.entries(group.directory):
                if entry.name.startswith(prefix):
                    self._files.remove(group.directory / entry.name)
