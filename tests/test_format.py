"""`docs/format.md` says what is on disk: its example, byte by byte, and its names and limits."""

from __future__ import annotations

import os
import re
import struct
import uuid
from pathlib import Path

import pytest
import torch

from fastcap.archive import journal, layout, meta, parsing
from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import StreamSpec
from fastcap.archive.meta import Meta
from fastcap.archive.reader import open_archive
from fastcap.archive.writer import Writer
from fastcap.fingerprint import hash_of

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
EXAMPLE = PAGE[PAGE.index("## A worked example") :]
UNIQUE = uuid.UUID("1f3c9a2b00004000800000000000abcd")
STREAMS = (
    StreamSpec("layers.0", "site", "F32", (2,)),
    StreamSpec("label:text", "label", "U8", (), is_ragged=True, is_text=True),
)
CONFIG = {"sites": ["layers.0"]}


class FilesOfExample(LocalFiles):
    """The real files, on a machine whose name is in the page."""

    def machine(self) -> str:
        return "example 9d1f2a6c-0f1e-4b57-8f0c-3a3b0c9f7e11"


def write_example(root: Path) -> Writer:
    """The archive of the page, where ids that are random otherwise are fixed by the caller."""
    described = Meta(
        "0123456789abcdef0123456789abcdef", STREAMS, 3, 2, CONFIG, hash_of(CONFIG), {"torch": "2"}
    )
    writer = Writer(root, described, files=FilesOfExample())
    for samples, texts in (([0, 1], ["hi", "é"]), ([2], [""])):
        encoded = [text.encode() for text in texts]
        rows = torch.tensor([[2.0 * i + 1, 2.0 * i + 2] for i in samples])
        text = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
        writer.append(
            samples,
            {"layers.0": rows, "label:text": text},
            {"label:text": [len(each) for each in encoded]},
        )
    writer.commit()
    writer.close()
    return writer


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uuid, "uuid4", lambda: UNIQUE)
    monkeypatch.setattr(os, "getpid", lambda: 4711)
    write_example(tmp_path / "acts")
    return tmp_path / "acts"


def blocks() -> list[str]:
    return re.findall(r"^```\w+\n(.*?)^```", EXAMPLE, re.DOTALL | re.MULTILINE)


def test_the_example_is_what_is_on_disk(root: Path) -> None:
    described, lines, header, data = blocks()
    shard = struct.pack("<Q", 4088) + header.rstrip("\n").encode().ljust(4088)
    expected = {
        "meta.json": described.encode(),
        "w-00000-0-1f3c9a2b/journal.jsonl": lines.encode(),
        "w-00000-0-1f3c9a2b/000000-002.safetensors": shard + bytes.fromhex(data),
    }
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    assert found == expected
    for name in expected:
        assert f"`{name}`" in EXAMPLE


def test_the_example_is_read_as_the_page_says(root: Path) -> None:
    archive = open_archive(root)
    assert archive["layers.0"][:].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert archive["label:text"][:] == ["hi", "é", ""]
    assert archive.verify() == []
    modes = [path.stat().st_mode & 0o777 for path in (root / "meta.json", *root.glob("w-*/*.saf*"))]
    assert modes == [0o444, 0o444]


def test_the_page_has_the_names_and_limits_of_the_code() -> None:
    assert f"`{layout.WRITER_NAME.pattern}`" in PAGE
    assert f"`{layout.SHARD_NAME.pattern}`" in PAGE
    for name in layout.DTYPES:
        assert f"`{name}`" in PAGE
    assert meta.META_LIMIT == journal.LINE_LIMIT == 64 << 20
    assert "at most 64 MiB for `meta.json` and for a line" in " ".join(PAGE.split())
    assert (journal.JOURNAL_LIMIT, layout.HEADER_LIMIT) == (4 << 30, 16 << 20)
    assert "4 GiB for a journal, 16 MiB for the header" in " ".join(PAGE.split())
    assert f"deeper than {parsing.DEPTH_LIMIT} levels" in PAGE
    assert f"it says what format {layout.FORMAT} is" in PAGE
    assert f"multiple of {layout.PAGE_BYTES} bytes" in PAGE
