"""`meta.json` with checksums that hold and contents that are impossible."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fastcap.archive.layout import META
from tests.support.archives import (
    rewrite_meta,
    with_crc,
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


Change = Callable[[dict[str, Any]], object]


def setting(key: str, value: Any) -> Change:
    return lambda found: found.__setitem__(key, value)


def in_stream(key: str, value: Any) -> Change:
    return lambda found: found["streams"][0].__setitem__(key, value)


def taken(name: str) -> str:
    return (
        f"META: {name!r} cannot be the name of a stream: shards use it. Rename the module or the "
        "label."
    )


def too_large(shape: list[int]) -> str:
    return f"META, stream 'layers.0': its shape {shape} is larger than any that is stored."


@numbered(
    ("change", "message"),
    [
        (
            setting("format", 2),
            (
                "META: an archive of format 2, and this fastcap reads format 1. Install a newer "
                "fastcap."
            ),
        ),
        (setting("format", "1"), "META: 'format' must be int; it is '1'."),
        (setting("format", True), "META: 'format' must be int; it is True."),
        (setting("format", None), "META: 'format' must be int; it is None."),
        (setting("archive", ["x"] * 9), "META: 'archive' must be str; it is a list."),
        (
            setting("archive", "\ud800"),
            "META: 'archive' is not valid Unicode (lone surrogate).",
        ),
        (setting("n_samples", -1), "META: 'n_samples' is -1, which is out of range."),
        (setting("n_samples", 2**63), f"META: 'n_samples' is {2**63}, which is out of range."),
        (setting("n_samples", 10**1000), "META: 'n_samples' is a huge int, which is out of range."),
        (setting("n_samples", 1.5), "META: 'n_samples' must be int; it is 1.5."),
        (setting("batch_size", 0), "META: 'batch_size' is 0."),
        (setting("streams", {}), "META: 'streams' must be list; it is an object."),
        (setting("streams", [1]), "META: a stream is described by an object."),
        (setting("config", []), "META: 'config' must be dict; it is a list."),
        (in_stream("name", 5), "META: 'name' must be str; it is 5."),
        (
            in_stream("name", "layers.1"),
            taken("layers.1"),
        ),
        (
            in_stream("name", "samples"),
            taken("samples"),
        ),
        (
            in_stream("name", "batch:input_ids:offsets"),
            taken("batch:input_ids:offsets"),
        ),
        (in_stream("dtype", "F4"), "META, stream 'layers.0': unknown dtype 'F4'."),
        (in_stream("shape", 3), "META, stream 'layers.0': 'shape' must be list; it is 3."),
        (in_stream("shape", [-1]), "META, stream 'layers.0': its shape is not a list of sizes."),
        (in_stream("shape", [1.0]), "META, stream 'layers.0': its shape is not a list of sizes."),
        (in_stream("shape", [True]), "META, stream 'layers.0': its shape is not a list of sizes."),
        (in_stream("shape", [2**48]), "META, stream 'layers.0': its shape is not a list of sizes."),
        (
            in_stream("shape", [1] * 33),
            "META, stream 'layers.0': its shape is not a list of sizes.",
        ),
        (
            in_stream("shape", [2**40, 2**40]),
            too_large([2**40, 2**40]),
        ),
        (
            in_stream("shape", [0, 2**40, 2**40]),
            too_large([0, 2**40, 2**40]),
        ),
        (in_stream("ragged", 1), "META, stream 'layers.0': 'ragged' must be bool; it is 1."),
        (
            in_stream("text", True),
            "META, stream 'layers.0': text is stored as ragged U8, one byte per row.",
        ),
    ],
)
def test_a_meta_that_says_something_impossible(root: Path, change: Change, message: str) -> None:
    rewrite_meta(root, change)
    assert why_not(root) == message


def test_a_meta_that_was_changed_by_hand(root: Path) -> None:
    content = (root / META).read_bytes()
    write(root / META, content.replace(b'"layers.0"', b'"layers.7"'))
    assert why_not(root) == (
        "META is not as it was written: its checksum differs. Restore it from a copy, or extract "
        "again to another directory."
    )


@numbered(
    ("content", "message"),
    [
        (b"", "META is not valid JSON: Expecting value: line 1 column 1 (char 0)."),
        (b"[1]", "META is not a JSON object."),
        (b"[" * 100_000, "META is not valid JSON: it is nested too deep."),
        (b'{"a":' * 100_000, "META is not valid JSON: it is nested too deep."),
        (b'{"format": 1, "format": 1}', "META is not valid JSON: a key appears twice."),
        (b'{"format": NaN}', "META is not valid JSON: NaN is not a number."),
        (b'{"format": -Infinity}', "META is not valid JSON: -Infinity is not a number."),
        (b'{"format": 1e999}', "META is not valid JSON: 1e999 is not a finite number."),
        (b'{"format": 1' + b"0" * 5000 + b"}", "META is not valid JSON: a number is too long."),
        (b'{"format": "\xff"}', "META is not valid JSON: byte 12 is not UTF-8."),
        (b'{"format": "\xed\xa0\x80"}', "META is not valid JSON: byte 12 is not UTF-8."),
        ('{"format": 1}'.encode("utf-16"), "META is not valid JSON: byte 0 is not UTF-8."),
    ],
)
def test_a_meta_that_is_no_proper_json(root: Path, content: bytes, message: str) -> None:
    write(root / META, content)
    assert why_not(root) == message


def test_a_configuration_that_is_nested_too_deep_to_be_shown(root: Path) -> None:
    found = json.loads((root / META).read_bytes())
    found["config"] = "DEEP"
    text = json.dumps(found).replace('"DEEP"', '{"a":' + "[" * 90 + "]" * 90 + "}")
    write(root / META, with_crc(text.encode()))
    assert why_not(root) == "META is nested deeper than 64 levels."


def test_a_meta_larger_than_any(root: Path) -> None:
    (root / META).chmod(0o644)
    os.truncate(root / META, (64 << 20) + 1)
    assert why_not(root) == "META is larger than any that fastcap writes."
