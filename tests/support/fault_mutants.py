"""The protocol with one step left out or moved: judges that see none of these prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from fastcap.archive.groups import Group
from fastcap.archive.journal import FileRecord
from fastcap.archive.layout import UNFINISHED
from fastcap.archive.writer import Writer
from tests.support.fault_points import Depth, play_program
from tests.support.fault_programs import PROGRAMS
from tests.support.mutation import Change

COMMIT = "fastcap.archive.writer:Writer.commit"
APPEND_LINE = "fastcap.archive.writer:Writer._append_line"
MAKE = "fastcap.archive.writer:Writer._make"
AGREE = "fastcap.archive.writer:Writer._agree"
FINISH = "fastcap.archive.finishing:_Shard.finish"
NAME_FILES = "fastcap.archive.finishing:name_files"
SCAN_WRITER = "fastcap.archive.recovery:_scan_writer"
HERE = '__import__("tests.support.fault_mutants", fromlist=["x"])'


@dataclass(frozen=True)
class Mutant:
    """One way to break the protocol.

    Attributes:
        drops: What is left out, in words.
        changes: How.
        shown_by: The program that is played first.
        closer: How that program is played, where few points show it.
    """

    drops: str
    changes: tuple[Change, ...]
    shown_by: str = ""
    closer: Depth | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.applied())
            yield


def _mutant(
    drops: str,
    *edits: tuple[str, str, str],
    shown_by: str = "",
    closer: Depth | None = None,
) -> Mutant:
    return Mutant(drops, tuple(Change(*edit) for edit in edits), shown_by, closer)


def retry(sync: Callable[[], None]) -> None:
    """What must not be done."""
    try:
        sync()
    except OSError:
        sync()


def settle_late(writer: Writer, group: Group, records: Sequence[FileRecord]) -> None:
    """Sync a group's files after the line that names them."""
    for record in records:
        path = group.directory / record.name
        with writer._guard("Syncing", path):
            writer._files.settle(path)


def rename_late(writer: Writer, group: Group, records: Sequence[FileRecord]) -> None:
    """Rename a group's files after the line that names them."""
    for record in records:
        path = group.directory / record.name
        with writer._guard("Renaming", path):
            writer._files.rename(path.with_name(path.name + UNFINISHED), path)
    with writer._guard("Syncing", group.directory):
        writer._files.sync_dir(group.directory)


LOOK = "is_locked = files.is_locked(path)  # before it is read: what a dead writer wrote is all"
READ = "journal = _read_journal(path, meta, files, is_settled)"
FORGET = "del self._uncommitted[0]"

MUTANTS = (
    _mutant("sync of a file", (FINISH, "self._file.sync()", "pass")),
    _mutant(
        "sync of a file before the line, not after it",
        (FINISH, "self._file.sync()", "pass"),
        (COMMIT, FORGET, f"{HERE}.settle_late(self, group, records); {FORGET}"),
    ),
    _mutant(
        "sync of a file before its rename, not after it",
        (FINISH, "self._file.sync()", "pass"),
        (
            NAME_FILES,
            "files.rename(unfinished, path)",
            "files.rename(unfinished, path); files.settle(path)",
        ),
        shown_by="a group is committed while the next is written",
    ),
    _mutant(
        "giving up when the sync of a file fails",
        (FINISH, "self._file.sync()", f"{HERE}.retry(self._file.sync)"),
    ),
    _mutant(
        "sync of the writer's directory after the renames",
        (NAME_FILES, "files.sync_dir(group.directory)", "pass"),
    ),
    _mutant(
        "renames before the line, not after it",
        (NAME_FILES, "files.rename(unfinished, path)", "pass"),
        (COMMIT, FORGET, f"{HERE}.rename_late(self, group, records); {FORGET}"),
    ),
    _mutant("sync of the journal", (APPEND_LINE, "self._journal.sync()", "pass")),
    _mutant(
        "giving up when the sync of the journal fails",
        (APPEND_LINE, "self._journal.sync()", f"{HERE}.retry(self._journal.sync)"),
    ),
    _mutant(
        "the header",
        (
            FINISH,
            "write_all(self._file, self._guard, self.unfinished, 0, memoryview(first))",
            "pass",
        ),
    ),
    _mutant(
        "cutting what a failed pass has written",
        (FINISH, "self._file.truncate(self.n_bytes)", "pass"),
        shown_by="passes that fail",
    ),
    _mutant(
        "taking write permission away", (FINISH, "self._files.protect(self.unfinished)", "pass")
    ),
    _mutant(
        "checksums of lines",
        (
            "fastcap.archive.journal:_checked",
            'digits + b" " == b"%08x " % zlib.crc32(text) and line[8:9] == b" "',
            "True",
        ),
        shown_by="batches of one",
        closer=Depth(power_seeds=30, error_seeds=0, deaths=0, second_share=0),
    ),
    _mutant(
        "the rest of a short write",
        ("fastcap.archive.shards:write_all", "while len(data) > 0:", "if len(data) > 0:"),
    ),
    _mutant(
        "the death of a writer that has failed",
        ("fastcap.archive.guard:Guard.check", "self._failure is not None", "False"),
    ),
    _mutant(
        "the death of a writer that could not be made",
        (
            "fastcap.archive.writer:Writer._open",
            "self._guard.fail(error.errno, str(error))",
            "pass",
        ),
    ),
    _mutant(
        "keeping the files of a line that may be on disk",
        (
            "fastcap.archive.writer:Writer.close",
            "if not (number == 0 and self._is_committing):",
            "if True:",
        ),
    ),
    _mutant(
        "removing what is not committed when a writer closes",
        ("fastcap.archive.writer:Writer.close", "self._remove_unfinished(group)", "pass"),
    ),
    _mutant("sync of the archive's directory", (MAKE, "self._files.sync_dir(self.root)", "pass")),
    _mutant(
        "sync of the new writer's directory",
        (MAKE, "self._files.sync_dir(directory)", "pass"),
        shown_by="only the total is new",
    ),
    _mutant(
        "sync of the directories above",
        ("fastcap.archive.writer:Writer._sync_parents", "self._files.sync_dir(path)", "pass"),
    ),
    _mutant(
        "sync of the directories above, but for the one that was made",
        (
            "fastcap.archive.writer:Writer._sync_parents",
            "for path in self.root.parents:",
            "for path in [self.root.parent]:",
        ),
    ),
    _mutant("sync of the meta before it is published", (AGREE, "file.sync()", "pass")),
    _mutant(
        "publishing the meta only where there is none",
        (
            AGREE,
            "self._files.publish(unfinished, self.root / META)",
            "self._files.rename(unfinished, self.root / META)",
        ),
    ),
    _mutant(
        "using the meta that is there",
        (AGREE, "self.meta = there", "pass"),
    ),
    _mutant(
        "the lock of a live writer",
        ("fastcap.archive.writer:Writer._make", "self._journal.lock()", "pass"),
    ),
    _mutant(
        "looking at locks",
        (SCAN_WRITER, "is_locked = files.is_locked(path)", "is_locked = False"),
    ),
    _mutant(
        "looking at the lock before the journal is read, not after it",
        (
            SCAN_WRITER,
            LOOK + "\n        " + READ,
            f"{READ}; {LOOK}",
        ),
        shown_by="one stream, one file, one commit",
        closer=Depth(power_seeds=0, error_seeds=0, deaths=24, second_share=0),
    ),
    _mutant(
        "keeping what a journal names",
        (SCAN_WRITER, "sorted(names - named)", "sorted(names)"),
    ),
    _mutant(
        "removing what no journal names",
        ("fastcap.archive.recovery:_clear", "files.remove(leftover.path)", "pass"),
    ),
    _mutant(
        "setting aside whole shards that no journal names",
        (
            "fastcap.archive.recovery:_clear",
            "files.rename(leftover.path, orphan_path(leftover.path))",
            "pass",
        ),
    ),
    _mutant(
        "syncing the lines of others before they are believed",
        (
            "fastcap.archive.reader:reopen",
            "is_settled=True",
            "is_settled=False",
        ),
        shown_by="large and small streams",
    ),
    _mutant(
        "reading no further than what was synced",
        (
            "fastcap.archive.recovery:_read_journal",
            "n_bytes = files.size(path)",
            "n_bytes = JOURNAL_LIMIT",
        ),
        shown_by="one stream, one file, one commit",
        closer=Depth(power_seeds=0, error_seeds=0, deaths=24, second_share=0),
    ),
    _mutant(
        "the first of two commits",
        ("fastcap.archive.index:SampleIndex.__init__", "_first_of_each(found)", "self._runs"),
    ),
    _mutant(
        "the size of committed files",
        ("fastcap.archive.recovery:_damage", "if n_bytes != file.n_bytes:", "if False:"),
    ),
)


@dataclass(frozen=True)
class Kill:
    """What was seen of one mutant: where first, what, and after how many points."""

    where: str
    problem: str
    n_points: int

    @property
    def is_dead(self) -> bool:
        return bool(self.problem)


def hunt(mutant: Mutant, depth: Depth) -> Kill:
    """Play programs on a mutant until a judge refuses something."""
    n_points = 0
    programs = sorted(PROGRAMS, key=lambda program: program.name != mutant.shown_by)
    with mutant.applied():
        for program in programs:
            closer = mutant.closer if program.name == mutant.shown_by else None
            try:
                tally = play_program(program, closer or depth, stop_at_first=True)
            except Exception as error:  # noqa: BLE001 - any way to fail is a finding
                return Kill(str(program), f"{type(error).__name__}: {error}", n_points)
            n_points += tally.points.total()
            for where, problem in tally.failures:
                return Kill(where, problem, n_points)
    return Kill("", "", n_points)
