"""Damaged archives give a fastcap error, a missing sample, a reported problem, or the truth."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import JOURNAL, META
from fastcap.archive.reader import Archive, open_archive
from fastcap.archive.recovery import clean
from fastcap.errors import ArchiveError, FastcapError, MissingSampleError
from tests.support.archives import STREAMS, all_files, same, write, write_archive

SAMPLES = range(5)
GROUPS = [[[0, 1], [2]], [[3, 4]]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_archive(tmp_path / "acts", GROUPS)
    return tmp_path / "acts"


def judge(root: Path) -> str:
    """What a reader makes of an archive that was changed behind its back.

    Raises:
        AssertionError: A wrong value that `verify` does not report, or samples that nobody wrote.
        Exception: Anything that is not an error of fastcap.
    """
    try:
        archive = open_archive(root)
    except ArchiveError:
        return "refused"
    problems = archive.verify()
    assert all(problem.what for problem in problems)
    repr(archive)
    is_right = read_all(archive)
    if not is_right:
        assert problems, "wrong values, and verify reports nothing"
        return "reported"
    return "missing" if len(archive) < len(SAMPLES) else "right"


def read_all(archive: Archive) -> bool:
    """Whether every value that can be read is right."""
    assert archive.streams == [spec.name for spec in STREAMS]
    assert all(0 <= start < stop <= len(SAMPLES) for start, stop in archive.ids)
    is_right = True
    for spec in STREAMS:
        for sample in SAMPLES:
            try:
                found = archive[spec.name][sample]
            except MissingSampleError:
                continue
            except FastcapError:
                is_right = False
                continue
            is_right &= same(found, spec, sample)
    return is_right


def kinds(root: Path) -> dict[str, Path]:
    shard, *_ = sorted(root.glob("w-*/*.safetensors"))
    return {"meta": root / META, "journal": shard.parent / JOURNAL, "shard": shard}


def header_length(content: bytes) -> int:
    return len(content[: content.index(b"  ")])


def every_length(kind: str, content: bytes) -> Iterator[int]:
    """Every length of what says something, and some of the padding of a header."""
    if kind == "shard":
        yield from (*range(header_length(content)), *range(1024, 4096, 256))
        yield from range(4096, len(content))
    else:
        yield from range(len(content))


@pytest.mark.parametrize("kind", ["meta", "journal", "shard"])
def test_files_cut_at_any_length_are_noticed(root: Path, kind: str) -> None:
    path = kinds(root)[kind]
    content = path.read_bytes()
    found = set()
    for n_bytes in every_length(kind, content):
        write(path, content[:n_bytes])
        found.add(judge(root))

    assert found == {"refused" if kind == "meta" else "missing"}


@pytest.mark.parametrize("kind", ["meta", "journal", "shard"])
def test_files_with_bytes_behind_their_end_are_noticed(root: Path, kind: str) -> None:
    path = kinds(root)[kind]
    content = path.read_bytes()
    for tail in (b"\0", b" ", b"\n", b"{}", b"00000000 {}\n", bytes(5000)):
        write(path, content + tail)
        assert (
            judge(root)
            in {
                "meta": ("refused",),
                "journal": ("right",),  # as after a crash: what follows is not committed
                "shard": ("missing",),
            }[kind]
        )


@pytest.mark.parametrize("kind", ["meta", "journal", "shard"])
def test_flipped_bits_are_noticed(root: Path, kind: str) -> None:
    path = kinds(root)[kind]
    content = path.read_bytes()
    draw = random.Random(1)
    found = set()
    for place in every_length(kind, content):
        changed = bytearray(content)
        changed[place] ^= 1 << draw.randrange(8)
        write(path, bytes(changed))
        found.add(judge(root))

    assert found == {{"meta": "refused", "journal": "missing", "shard": "reported"}[kind]}


def test_a_damaged_line_before_valid_ones_is_reported_and_its_files_are_kept(root: Path) -> None:
    paths = kinds(root)
    content = bytearray(paths["journal"].read_bytes())
    first = content.index(b"\n") + 1
    content[first + 20] ^= 1
    write(paths["journal"], bytes(content))
    before = set(all_files(root))

    problem, *unlisted = open_archive(root).verify()
    assert {each.path for each in unlisted} == set(paths["shard"].parent.glob("*.safetensors"))
    assert problem.path == paths["journal"]
    assert problem.what == (
        f"its line at byte {first} is not as it was written, and valid lines follow: groups from "
        "there on are not read, and their files are kept"
    )
    assert clean(root, LocalFiles()) == []
    assert set(all_files(root)) == before


def test_stretches_of_other_bytes_are_noticed(root: Path) -> None:
    draw = random.Random(2)
    files = {path: path.read_bytes() for path in all_files(root)}
    for _ in range(300):
        path = draw.choice(list(files))
        content = bytearray(files[path])
        start = draw.randrange(len(content))
        stretch = draw.choice([bytes(512), b"\xff" * 64, draw.randbytes(100), b" " * 30, b"\n"])
        content[start : start + len(stretch)] = stretch
        write(path, bytes(content))
        outcome = judge(root)
        assert outcome != "right" or bytes(content) == files[path] or path.name == JOURNAL
        write(path, files[path])
