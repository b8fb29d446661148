"""Files of an archive that are other files, links, pipes, sockets or directories."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL, META
from fastcap.archive.reader import open_archive
from fastcap.archive.recovery import clean
from fastcap.errors import ArchiveError, ArchiveFormatError
from tests.support.archives import (
    STREAMS,
    Tampered,
    make_meta,
    write,
    write_archive,
)
from tests.support.crafted import GROUPS, limited_memory, why_not
from tests.support.errors import message_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_archive(tmp_path / "acts", GROUPS)
    return tmp_path / "acts"


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with limited_memory():
        yield


def test_shards_swapped_between_groups_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0, 1]], [[2, 3]]], meta=make_meta(STREAMS[:2]))
    first, second = sorted(root.glob("w-*/*.safetensors"))
    contents = first.read_bytes(), second.read_bytes()
    write(first, contents[1])
    write(second, contents[0])

    archive = open_archive(root)
    assert [problem.path for problem in archive.verify()] == [first, second]
    assert message_of(ArchiveFormatError, lambda: archive["layers.0"][0]) == (
        f"{first}: its header is not the one that was written."
    )


def test_shards_swapped_between_writers_are_reported(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    meta = make_meta(STREAMS[:2])
    write_archive(root, [[[0, 1]]], meta=meta, rank=0)
    write_archive(root, [[[2, 3]]], meta=meta, rank=1)
    write_archive(root, [[[0, 1]]], meta=meta, rank=2, salt=1)
    shards = sorted(root.glob("w-*/*.safetensors"))
    contents = [shard.read_bytes() for shard in shards]

    write(shards[0], contents[1])
    archive = open_archive(root)
    assert message_of(ArchiveFormatError, lambda: archive["layers.0"][0]) == (
        f"{shards[0]} holds other samples than its journal says."
    )
    write(shards[0], contents[2])  # the same samples, with other values
    [problem] = open_archive(root).verify()
    assert problem.path == shards[0]
    assert problem.what == "its bytes are not those that were written: the checksum differs"


def put_link(path: Path, target: Path) -> None:
    path.symlink_to(target)


def put_pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def put_directory(path: Path, target: Path) -> None:
    path.mkdir()


def put_socket(path: Path, target: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


ODD = [put_link, put_pipe, put_directory, put_socket]


@pytest.mark.parametrize("put", ODD)
def test_a_meta_that_is_no_regular_file(
    root: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    (root / META).rename(tmp_path / "elsewhere")
    put(root / META, tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match=r"Cannot read .*meta\.json: ") as caught:
        open_archive(root)
    what = str(caught.value).rpartition(": ")[2]
    assert what in (
        "it is a link, which is not followed.",
        "not a regular file.",
        "No such device or address.",
    )


@pytest.mark.parametrize("put", ODD)
def test_a_journal_that_is_no_regular_file(
    root: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    path = Tampered.open(root).directory / JOURNAL
    path.rename(tmp_path / "elsewhere")
    put(path, tmp_path / "elsewhere")
    assert why_not(root) == "journal.jsonl is not a regular file, and links are not followed."
    with pytest.raises(ArchiveFormatError):
        clean(root, LocalFiles())


@pytest.mark.parametrize("put", ODD)
def test_a_shard_that_is_no_regular_file(
    root: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    path = Tampered.open(root).shard
    path.rename(tmp_path / "elsewhere")
    put(path, tmp_path / "elsewhere")
    archive = open_archive(root)
    assert archive.ids == [(3, 5)]
    assert [damage.reason for damage in archive.damages] == [f"{path}: not a regular file"]
    assert [problem.what for problem in archive.verify()] == [f"{path}: not a regular file"]


@pytest.mark.parametrize("put", ODD)
def test_a_shard_that_became_something_else_after_opening(
    root: Path, tmp_path: Path, put: Callable[[Path, Path], None]
) -> None:
    archive = open_archive(root)
    path = Tampered.open(root).shard
    path.rename(tmp_path / "elsewhere")
    put(path, tmp_path / "elsewhere")
    with pytest.raises(ArchiveError, match=f"Cannot read {path}: "):
        archive["layers.0"][0]
    assert len(archive.verify()) == 1


def test_a_shard_that_is_gone_after_opening(root: Path) -> None:
    archive = open_archive(root)
    path = Tampered.open(root).shard
    path.unlink()
    assert message_of(ArchiveError, lambda: archive["layers.0"][0]) == (
        f"Cannot read {path}: No such file or directory."
    )
    assert len(archive.verify()) == 1


@pytest.mark.parametrize("put", [put_link, put_pipe, put_socket, None])
def test_a_writers_directory_that_is_none(
    root: Path, tmp_path: Path, put: Callable[[Path, Path], None] | None
) -> None:
    path = Tampered.open(root).directory
    shutil.move(path, tmp_path / "elsewhere")
    if put is None:
        path.write_text("a file")
    else:
        put(path, tmp_path / "elsewhere")
    assert why_not(root) == (
        "WRITER has the name of a writer's directory, but is not one. Links are not followed: move "
        "the directory itself here."
    )


def test_names_that_are_no_writers_are_left_alone(root: Path, tmp_path: Path) -> None:
    for name in ("w-0-0-00000000", "w-00000-0-0000000G", "x-00000-0-00000000", "notes.txt"):
        (root / name).symlink_to(tmp_path)
    (root / "w-\u0660\u0660\u0660\u0660\u0660-0-00000000").mkdir()
    assert open_archive(root).verify() == []
    assert len(open_archive(root)) == 5


def test_an_archive_may_itself_be_reached_by_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    archive = open_archive(tmp_path / "link")
    assert archive.verify() == []
    assert torch.equal(archive["layers.1"][2], open_archive(root)["layers.1"][2])


def test_what_no_journal_names_is_removed_by_name_only(root: Path) -> None:
    directory = Tampered.open(root).directory
    for name in ("000009-000.safetensors.tmp", "000009-001.safetensors", "notes.txt", ".tmp"):
        (directory / name).write_bytes(b"left")
    (directory / "000008-000.safetensors.tmp").mkdir()
    (directory / "000007-000.safetensors.tmp").symlink_to(root / META)
    removed = clean(root, LocalFiles())
    assert [leftover.path.name for leftover in removed] == [
        "000009-000.safetensors.tmp",
        "000009-001.safetensors",
    ]
    assert (directory / "notes.txt").exists()
    assert (root / META).exists()
