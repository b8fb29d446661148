"""What dead writers leave, and who may remove it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL, META
from fastcap.archive.reader import open_archive
from fastcap.archive.recovery import clean
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveError
from tests.support.archives import (
    all_files,
    append,
    check_values,
    make_meta,
    write,
    write_archive,
)
from tests.support.errors import message_of


class OtherMachine(LocalFiles):
    """The same directory, seen from elsewhere, or after a restart."""

    def machine(self) -> str:
        return "elsewhere"


class WithoutLocks(LocalFiles):
    """A file system on which locks tell nothing."""

    def is_locked(self, path: Path) -> bool | None:
        return None


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """An archive whose writer died with a group half written."""
    root = tmp_path / "acts"
    write_archive(root, [[[0, 1]], [[2]]])
    directory = next(root.glob("w-*"))
    for name in ("000002-000.safetensors.tmp", "000002-001.safetensors", "meta.json.tmp"):
        (directory / name).write_bytes(b"half")
    journal = directory / JOURNAL
    write(journal, journal.read_bytes() + b'00000000 {"group":2')
    return root


def test_what_a_dead_writer_left_unfinished_is_removed_and_nothing_else(crashed: Path) -> None:
    before = {path: path.read_bytes() for path in all_files(crashed)}
    assert [(left.path.name, left.n_bytes) for left in clean(crashed, LocalFiles())] == [
        ("000002-000.safetensors.tmp", 4),
        ("000002-001.safetensors", 4),
        ("meta.json.tmp", 4),
    ]
    after = {path: path.read_bytes() for path in all_files(crashed)}
    [aside] = crashed.glob("w-*/000002-001.safetensors.orphan")
    assert after.pop(aside) == b"half"
    assert after == {path: before[path] for path in after}
    assert len(before) - len(after) == 3
    check_values(open_archive(crashed), dict.fromkeys(range(3), 0))
    assert clean(crashed, LocalFiles()) == []


@pytest.mark.parametrize("files", [OtherMachine(), WithoutLocks()], ids=["machine", "locks"])
def test_nothing_is_removed_where_nobody_knows_who_lives(crashed: Path, files: LocalFiles) -> None:
    before = set(all_files(crashed))
    assert clean(crashed, files) == []
    assert set(all_files(crashed)) == before


def test_a_live_writer_is_left_alone(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = Writer(root, make_meta())
    append(writer, [0])
    before = set(all_files(root))
    assert clean(root, LocalFiles()) == []
    assert set(all_files(root)) == before
    writer.commit()
    writer.close()
    check_values(open_archive(root), {0: 0})


def test_directories_without_a_journal_or_a_line(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0]]])
    empty = root / "w-00001-0-00000000"
    torn = root / "w-00002-0-00000000"
    for directory in (empty, torn):
        directory.mkdir()
        (directory / (META + ".tmp")).write_bytes(b"")
    (torn / JOURNAL).write_bytes(b'12345678 {"form')
    states = {state.directory: state for state in open_archive(root).writers}
    assert (states[empty].is_live, states[torn].is_live) == (None, False)
    assert [left.path.parent for left in clean(root, LocalFiles())] == [torn]
    check_values(open_archive(root), {0: 0})


def test_a_file_that_cannot_be_removed_is_an_error(crashed: Path) -> None:
    class Sticky(LocalFiles):
        def remove(self, path: Path) -> None:
            raise PermissionError(13, "Permission denied", str(path))

    path = next(crashed.glob("w-*/000002-000*"))
    assert message_of(ArchiveError, lambda: clean(crashed, Sticky())) == (
        f"Cannot remove {path}, which a writer that has died left uncommitted: Permission denied."
    )


def test_files_that_another_process_removes_first_are_no_error(crashed: Path) -> None:
    class Racing(LocalFiles):
        def remove(self, path: Path) -> None:
            path.unlink()
            super().remove(path)

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            super().rename(source, target)

    assert clean(crashed, Racing()) == []
    assert [path.name for path in crashed.rglob("000002-*")] == ["000002-001.safetensors.orphan"]


def test_nothing_that_was_set_aside_is_replaced(crashed: Path) -> None:
    path = next(crashed.glob("w-*/000002-001.safetensors"))
    path.with_name(path.name + ".orphan").write_bytes(b"older")
    assert path not in [left.path for left in clean(crashed, LocalFiles())]
    assert path.with_name(path.name + ".orphan").read_bytes() == b"older"
    assert [problem.path for problem in open_archive(crashed).verify()] == [path]
