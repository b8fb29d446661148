"""`meta.json`: written once, read as it was, and compared with what is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import META, StreamSpec
from fastcap.archive.meta import Meta, check_config, check_same, new_meta, parse_meta, read_meta
from fastcap.errors import ArchiveConfigError, ArchiveError
from tests.support.archives import STREAMS, make_meta
from tests.support.errors import message_of


@pytest.mark.parametrize(
    "meta",
    [
        make_meta(),
        make_meta((), 0),
        make_meta(STREAMS[:1], 2**60, 2**40),
        new_meta(STREAMS, 3, 1, {"a": {"b": [1, 2.5, None, "π😀"]}, '"crc32": "0': 1}, {}),
        new_meta(STREAMS, 3, 1, {"crc32": "00000000", "format": 9}, {"crc32": "00000000"}),
    ],
    ids=["plain", "empty", "large", "odd", "names of its own"],
)
def test_a_meta_is_read_as_it_was_written(meta: Meta) -> None:
    assert parse_meta(meta.encode(), "here") == meta


def test_writers_that_begin_at_once_agree_on_the_id_and_other_runs_have_another() -> None:
    ids = [
        new_meta(STREAMS, 3, 1, {"a": a}, {"host": host}).archive
        for a, host in ((1, "x"), (1, "y"), (2, "x"))
    ]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("name", ["samples", "__metadata__", "layers.0", "layers.0:offsets"])
def test_names_that_shards_use_are_refused(name: str) -> None:
    streams = (STREAMS[0], StreamSpec(name, "site", "F32", ()))
    assert message_of(ArchiveError, lambda: make_meta(streams)) == (
        f"{name!r} cannot be the name of a stream: shards use it. Rename the module or the label."
    )


def test_a_description_too_long_to_be_read_again_is_not_written() -> None:
    meta = new_meta(STREAMS, 3, 1, {"dataset": "x" * (64 << 20)}, {})
    message = message_of(ArchiveError, meta.encode)
    assert message.startswith("The description of this run takes 6710")
    assert message.endswith(
        "bytes, and meta.json holds at most 67108864. Give the dataset a short fingerprint() of "
        "its own, or ask for fewer sites."
    )


def test_no_archive(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        assert message_of(ArchiveError, lambda p=path: read_meta(p, LocalFiles())) == (  # type: ignore[misc]
            f"{path} is not an archive: it has no meta.json."
        )


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert message_of(ArchiveError, lambda: read_meta(tmp_path / "file", LocalFiles())) == (
        f"Cannot read {tmp_path / 'file' / META}: Not a directory."
    )


def test_another_configuration_is_refused_with_what_differs() -> None:
    there = new_meta(STREAMS, 3, 2, {"sites": ["a"], "batch_size": 2}, {})
    asked = new_meta(STREAMS, 3, 2, {"sites": ["b"], "batch_size": 2}, {})
    assert message_of(
        ArchiveConfigError,
        lambda: check_config(asked.config, asked.config_hash, there, Path("/acts")),
    ) == (
        "/acts holds another run, whose samples must not be mixed with these:\n"
        "  sites: asked ['b'], the archive has ['a']\n"
        "Ask for the same as then, choose another directory, or replace it with overwrite=True."
    )


def test_other_streams_of_the_same_configuration_are_refused() -> None:
    there = make_meta(STREAMS[:1])
    check_same(make_meta(STREAMS[:1]), there, Path("/acts"))
    for streams in (STREAMS[:2], (replace(STREAMS[0], dtype="F32"),)):
        with pytest.raises(ArchiveConfigError, match=r"/acts was made by the same configuration"):
            check_same(make_meta(streams), there, Path("/acts"))
