"""Journals whose checksums hold, and whose lines say something impossible."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastcap.archive import recovery
from fastcap.archive.layout import JOURNAL, META
from fastcap.archive.meta import new_meta
from fastcap.archive.reader import open_archive
from fastcap.errors import ArchiveError, MissingSampleError
from tests.support.archives import (
    STREAMS,
    Tampered,
    journal_line,
    write,
    write_archive,
)
from tests.support.crafted import GROUPS, limited_memory, numbered, why_not


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_archive(tmp_path / "acts", GROUPS)
    return tmp_path / "acts"


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with limited_memory():
        yield


ESCAPES = [
    "../000000-004.safetensors",
    "/etc/passwd",
    "../../outside.safetensors",
    "000000-004.safetensors/../../x",
    "..",
    "",
    "000000-004.safetensors\n",
    "000000-004.safetensors\0",
    "\u0660\u0660\u0660\u0660\u0660\u0660-\u0660\u0660\u0664.safetensors",
    "C:000000-004.safetensors",
    "000000-004.SAFETENSORS",
    "journal.jsonl",
]


@numbered("name", ESCAPES)
def test_names_of_files_never_lead_out_of_their_directory(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = os.open

    def spy(path: Any, *args: Any, **options: Any) -> int:
        opened.append(os.fspath(path))
        return real(path, *args, **options)

    tampered = Tampered.open(root)
    tampered.file["name"] = name
    tampered.save()
    monkeypatch.setattr(os, "open", spy)
    assert why_not(root).endswith(f"{name!r} is not a valid shard name.")
    assert set(opened) <= {str(root / META), str(tampered.directory / JOURNAL)}


def in_group(key: str, value: Any) -> Callable[[Tampered], object]:
    return lambda tampered: tampered.group.__setitem__(key, value)


def in_file(key: str, value: Any) -> Callable[[Tampered], object]:
    return lambda tampered: tampered.file.__setitem__(key, value)


def in_info(key: str, value: Any) -> Callable[[Tampered], object]:
    return lambda tampered: tampered.lines[0].__setitem__(key, value)


def nested(depth: int) -> Any:
    found: Any = {}
    for _ in range(depth):
        found = {"": found}
    return found


OTHER_STREAMS = "journal.jsonl: group 0 does not hold the streams of meta.json."
RANGES = "LINE: samples must be ranges [start, stop]."


@numbered(
    ("change", "message"),
    [
        (
            in_info("format", 9),
            "LINE: written in format 9, and this fastcap reads format 1. Install a newer fastcap.",
        ),
        (
            in_info("archive", "another"),
            "journal.jsonl belongs to another archive than META. Move WRITER out of it.",
        ),
        (in_info("rank", -1), "LINE: 'rank' is -1, which is out of range."),
        (in_info("machine", None), "LINE: 'machine' must be str; it is None."),
        (in_info("check", nested(65)), "LINE: 'check' is nested deeper than 64 levels."),
        (in_info("creator", nested(65)), "LINE: 'creator' is nested deeper than 64 levels."),
        (in_group("group", 1), "LINE: group 1 where group 0 was expected."),
        (in_group("group", 2**64), f"LINE: 'group' is {2**64}, which is out of range."),
        (in_group("samples", [[0, 0]]), RANGES),
        (in_group("samples", [[3, 1]]), RANGES),
        (in_group("samples", [[-1, 1]]), RANGES),
        (in_group("samples", [[0, 2**62]]), RANGES),
        (in_group("samples", [[0.0, 3.0]]), RANGES),
        (in_group("samples", [[False, True]]), RANGES),
        (in_group("samples", [[0, 1, 2]]), RANGES),
        (in_group("samples", [0, 3]), RANGES),
        (in_group("samples", [{"0": 3}]), RANGES),
        (
            in_group("samples", [[0, 2**60]]),
            f"LINE: {2**60} samples do not fit in its files.",
        ),
        (in_group("rows", {}), OTHER_STREAMS),
        (
            in_group("rows", {"batch:input_ids": -1}),
            "LINE: 'batch:input_ids' is -1, which is out of range.",
        ),
        (in_group("rows", {"batch:input_ids": 1, "label:text": 1, "layers.0": 3}), OTHER_STREAMS),
        (in_group("files", []), OTHER_STREAMS),
        (in_group("files", [1]), "LINE: a file is described by an object."),
        (in_file("streams", ["layers.0"]), OTHER_STREAMS),
        (in_file("streams", ["layers.0"] * 4), OTHER_STREAMS),
        (in_file("streams", [[]]), "LINE: streams of 000000-004.safetensors must be names."),
        (in_file("header_crc32", "0x12_456"), "LINE: header_crc32 must be 8 hexadecimal digits."),
        (in_file("data_crc32", "+1234567"), "LINE: data_crc32 must be 8 hexadecimal digits."),
        (in_file("data_crc32", "123"), "LINE: data_crc32 must be 8 hexadecimal digits."),
        (in_file("bytes", -5), "LINE: 'bytes' is -5, which is out of range."),
        (
            lambda tampered: tampered.group["files"].append(tampered.file),
            "LINE: a file is named twice.",
        ),
    ],
)
def test_a_line_that_says_something_impossible(
    root: Path, change: Callable[[Tampered], object], message: str
) -> None:
    tampered = Tampered.open(root)
    change(tampered)
    tampered.save()
    first = len(journal_line(tampered.lines[0]))
    where = [f"journal.jsonl, byte {place}" for place in (0, first)]
    assert why_not(root) in [message.replace("LINE", each) for each in where]


@numbered(
    ("line", "message"),
    [
        (b"[]", "is not a JSON object."),
        (b"[" * 100_000, "is not valid JSON: it is nested too deep."),
        (b'{"total": NaN}', "is not valid JSON: NaN is not a number."),
        (b'{"total": -1}', ": 'total' is -1, which is out of range."),
        (b'{"total": 1, "total": 2}', "is not valid JSON: a key appears twice."),
        (b"\xff", "is not valid JSON: byte 0 is not UTF-8."),
        (b'{"total": ' + b"9" * 100_000 + b"}", "is not valid JSON: a number is too long."),
        (b'{"samples": []}', ": 'files' must be list; it is None."),
        (b'{"a": [' + b"[]," * (1 << 20) + b"[]]}", " may hold 2097155 values, and readers take"),
    ],
)
def test_a_line_that_no_writer_writes(root: Path, line: bytes, message: str) -> None:
    path = Tampered.open(root).directory / JOURNAL
    write(path, path.read_bytes() + journal_line(line))
    assert message in why_not(root)


def test_a_journal_is_read_in_pieces_however_long_it_says_it_is(root: Path) -> None:
    path = Tampered.open(root).directory / JOURNAL
    path.chmod(0o644)
    os.truncate(path, 1 << 30)  # twice what may be allocated here, and a few kilobytes on disk
    archive = open_archive(root)
    assert (len(archive), archive.writers[0].journal.is_torn) == (5, True)
    os.truncate(path, (4 << 30) + 1)
    assert why_not(root) == "journal.jsonl is larger than any that fastcap writes."


def test_memory_that_ends_is_an_error_of_fastcap(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*args: object) -> object:
        raise MemoryError

    monkeypatch.setattr(recovery, "parse_journal", no_memory)
    with pytest.raises(ArchiveError) as caught:
        open_archive(root)
    assert str(caught.value) == f"The journals of {root} take more memory than there is."


def test_a_journal_of_another_archive_is_refused(root: Path, tmp_path: Path) -> None:
    other = new_meta(STREAMS, None, 2, {"sites": "others"}, {})
    write_archive(tmp_path / "other", GROUPS, meta=other)
    [moved] = (tmp_path / "other").glob("w-*")
    moved.rename(root / moved.name)
    assert why_not(root) == (
        "journal.jsonl belongs to another archive than META. Move WRITER out of it."
    )


def test_a_total_of_any_size_is_only_a_number(root: Path) -> None:
    path = Tampered.open(root).directory / JOURNAL
    write(path, path.read_bytes() + journal_line({"total": 2**62}))
    archive = open_archive(root)
    assert (archive.n_samples, archive.is_complete, len(archive)) == (2**62, False, 5)
    for key in (-1, slice(-3, None), slice(None), slice(0, None, 2**61)):
        with pytest.raises(MissingSampleError):
            archive["layers.0"][key]
