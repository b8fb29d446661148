"""Shards whose checksums hold, and which are not what the journal says."""

from __future__ import annotations

import json
import os
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastcap.archive.reader import open_archive
from fastcap.errors import ArchiveError, ArchiveFormatError
from tests.support.archives import (
    STREAMS,
    Tampered,
    join_shard,
    write_archive,
)
from tests.support.crafted import GROUPS, limited_memory, numbered, why_not_read
from tests.support.errors import message_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_archive(tmp_path / "acts", GROUPS)
    return tmp_path / "acts"


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    with limited_memory():
        yield


def entry(name: str, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[name].update(changes)


DESCRIBED = "SHARD: its header does not describe {} as the archive does."
LAYER = DESCRIBED.format("'layers.0' as BF16 of shape [3, 3],")


@numbered(
    ("change", "message"),
    [
        (entry("layers.0", dtype="F16"), LAYER),
        (entry("layers.0", dtype="F4"), LAYER),
        (entry("layers.0", dtype=None), LAYER),
        (entry("layers.0", shape=[3, 4]), LAYER),
        (entry("layers.0", shape=[2**60, 2**60]), LAYER),
        (entry("layers.0", shape=[-3, -3]), LAYER),
        (entry("layers.0", shape="33"), LAYER),
        (entry("layers.0", data_offsets=[0, 18]), LAYER),
        (entry("layers.0", data_offsets=[2**64, 2**64 + 18]), LAYER),
        (entry("layers.0", data_offsets=None), LAYER),
        (entry("layers.0", more=1), LAYER),
        (lambda header: header.pop("layers.0"), LAYER),
        (lambda header: header.update({"layers.0": 7}), LAYER),
        (
            lambda header: header.pop("samples"),
            DESCRIBED.format("'samples' as I64 of shape [3],"),
        ),
        (
            lambda header: header.update(more=header["samples"]),
            "SHARD: its header has tensors that the archive does not know.",
        ),
        (
            lambda header: header.update({"../../x": header["samples"]}),
            "SHARD: its header has tensors that the archive does not know.",
        ),
    ],
)
def test_a_header_that_describes_something_else(
    root: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    Tampered.open(root).change_header(change)
    assert why_not_read(root) == message


def test_numbers_that_are_equal_and_of_another_type_are_no_sizes(root: Path) -> None:
    Tampered.open(root).change_header(entry("layers.0", shape=[3.0, 3]))
    assert why_not_read(root).startswith("SHARD is not a valid safetensors file: ")


@numbered("length", [0, 1, 4087, 4096, 8184, (16 << 20) - 8, 16 << 20, 2**32 - 8, 2**63, 2**64 - 8])
def test_headers_of_another_declared_length(root: Path, length: int) -> None:
    tampered = Tampered.open(root)
    content = tampered.shard.read_bytes()
    tampered.replace_shard(struct.pack("<Q", length) + content[8:])
    assert why_not_read(root) == "SHARD does not begin as a shard does."


@numbered(
    ("header", "message"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)."),
        (
            b"{" * 5000,
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1).",
        ),
        (b"[" * 100_000, "it is nested too deep."),
        (b'{"samples": {}, "samples": {}}', "a key appears twice."),
        (b"\xff\xff", "byte 0 is not UTF-8."),
    ],
)
def test_headers_that_are_no_proper_json(root: Path, header: bytes, message: str) -> None:
    tampered = Tampered.open(root)
    tampered.replace_shard(join_shard(header, bytes(500)))
    assert why_not_read(root) == f"the header of SHARD is not valid JSON: {message}"


def test_bytes_behind_the_tensors(root: Path) -> None:
    tampered = Tampered.open(root)
    content = tampered.shard.read_bytes()
    tampered.replace_shard(content + bytes(8))
    assert why_not_read(root) == (
        f"SHARD has {len(content) + 8} bytes, and its tensors take {len(content)}."
    )


def test_a_sparse_shard_with_many_million_samples(root: Path) -> None:
    n_samples = 1 << 26
    tampered = Tampered.open(root)
    n_rows = {spec.name: 0 for spec in STREAMS if spec.is_ragged}
    sizes = {"batch:input_ids": 0, "layers.1": 16, "layers.0": 6, "label:text": 0}
    header: dict[str, Any] = {}
    begin = 0
    specs = {spec.name: spec for spec in STREAMS}
    for name, n_bytes in sizes.items():
        spec = specs[name]
        end = begin + n_bytes * n_samples
        shape = [0 if spec.is_ragged else n_samples, *spec.shape]
        header[name] = {"dtype": spec.dtype, "shape": shape, "data_offsets": [begin, end]}
        begin = end
    for name, n in [
        ("batch:input_ids:offsets", n_samples + 1),
        ("label:text:offsets", n_samples + 1),
        ("samples", n_samples),
    ]:
        end = begin + 8 * n
        header[name] = {"dtype": "I64", "shape": [n], "data_offsets": [begin, end]}
        begin = end
    tampered.replace_shard(join_shard(json.dumps(header).encode(), b""))
    os.truncate(tampered.shard, 4096 + begin)
    tampered.file["bytes"] = 4096 + begin
    tampered.group.update(samples=[[0, n_samples]], rows=n_rows)
    tampered.lines = tampered.lines[:2]
    tampered.save()
    archive = open_archive(root)
    assert len(archive) == n_samples
    with pytest.raises(ArchiveError, match=r"Cannot map .*Cannot allocate memory"):
        archive["layers.0"][5]  # mapping is not an allocation, but the limit of this test counts it
    resource.setrlimit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1:] * 2)
    assert message_of(ArchiveFormatError, lambda: archive["layers.0"][5]) == (
        f"{tampered.shard} holds other samples than its journal says."
    )


def test_other_samples_than_the_journal_says(root: Path) -> None:
    tampered = Tampered.open(root)
    tampered.change_data("samples", lambda data: data.__setitem__(0, 4))
    assert why_not_read(root) == "SHARD holds other samples than its journal says."


CUT = "SHARD: its offsets do not cut its rows into samples."


@numbered(
    "offsets",
    [
        [1, 1, 1, 1],
        [0, 5, 3, 3],
        [0, -1, 0, 3],
        [0, 2**62, 2**62, 3],
        [0, 0, 0, 2**63 - 1],
        [-(2**63), 0, 0, 3],
        [0, 2**63 - 1, -(2**63), 3],
    ],
)
def test_offsets_that_lead_elsewhere_are_refused_before_use(root: Path, offsets: list[int]) -> None:
    tampered = Tampered.open(root)
    packed = struct.pack("<4q", *offsets)
    tampered.change_data(
        "batch:input_ids:offsets", lambda data: data.__setitem__(slice(None), packed)
    )
    assert why_not_read(root, "batch:input_ids") == CUT
    assert why_not_read(root, "layers.0") == CUT


def test_text_that_is_not_utf8(root: Path) -> None:
    tampered = Tampered.open(root)
    tampered.change_data("label:text", lambda data: data.__setitem__(0, 0xFF))
    archive = open_archive(root)
    assert message_of(ArchiveFormatError, lambda: archive["label:text"][1]) == (
        f"A text of 'label:text' in {root} is not UTF-8."
    )
    assert archive["label:text"][0] == ""
