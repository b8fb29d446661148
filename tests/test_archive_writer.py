"""Writing: groups and their limits, files that streams share, and how a writer ends."""

from __future__ import annotations

import errno
import os
import tracemalloc
from pathlib import Path

import pytest
import torch

from fastcap.archive import finishing
from fastcap.archive.files import LocalFiles, WritableFile
from fastcap.archive.layout import META, StreamSpec
from fastcap.archive.limits import GroupLimits
from fastcap.archive.reader import open_archive
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveConfigError, ArchiveError, ArchiveWriteError
from tests.support.archives import STREAMS, append, check_values, make_meta, write_archive
from tests.support.errors import message_of

SITES = tuple(StreamSpec(f"layers.{i}", "site", "F32", (n,)) for i, n in enumerate((1, 8, 2, 16)))


def shards_of(root: Path) -> dict[str, list[str]]:
    [writer] = open_archive(root).writers
    return {f.name: list(f.streams) for group in writer.groups for f in group.files}


def test_nothing_is_made_before_the_first_value(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "acts"
    writer = Writer(root, make_meta())
    assert writer.commit() is None
    assert not writer.is_full
    writer.close()
    assert not (tmp_path / "deep").exists()


def test_a_commit_says_what_is_on_disk(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "acts"
    writer = Writer(root, make_meta())
    append(writer, [4, 5])
    append(writer, [0])
    commit = writer.commit()
    assert commit is not None
    assert (commit.samples, commit.n_samples) == (((4, 6), (0, 1)), 3)
    assert sum(path.stat().st_size for path in commit.paths) == commit.n_bytes
    assert [path.stat().st_mode & 0o777 for path in commit.paths] == [0o444]
    assert writer.commit() is None
    writer.close()
    writer.close()
    check_values(open_archive(root), {0: 0, 4: 0, 5: 0})


@pytest.mark.parametrize(
    ("own_file_bytes", "expected"),
    [
        (1000, [["layers.0", "layers.1", "layers.2", "layers.3"]]),
        (50, [["layers.1"], ["layers.3"], ["layers.0", "layers.2"]]),
        (13, [["layers.1"], ["layers.2"], ["layers.3"], ["layers.0"]]),
        (1, [["layers.0"], ["layers.1"], ["layers.2"], ["layers.3"]]),
    ],
    ids=range(4),
)
def test_small_streams_share_a_file(
    tmp_path: Path, own_file_bytes: int, expected: list[list[str]]
) -> None:
    root = tmp_path / "acts"
    limits = GroupLimits(own_file_bytes=own_file_bytes)
    write_archive(root, [[[0, 1], [2]]], meta=make_meta(SITES), limits=limits)
    assert list(shards_of(root).values()) == expected
    check_values(open_archive(root), dict.fromkeys(range(3), 0))
    assert not list(root.rglob("*.tmp"))


def test_wide_dtypes_come_first_in_a_shared_file(tmp_path: Path) -> None:
    streams = [StreamSpec(n, "site", n, (3,)) for n in ("U8", "F64", "BF16", "F32", "BOOL", "I16")]
    write_archive(tmp_path / "acts", [[[0]]], meta=make_meta(streams))
    assert list(shards_of(tmp_path / "acts").values()) == [
        ["F64", "F32", "BF16", "I16", "U8", "BOOL"]
    ]


def test_a_group_is_full_by_bytes_of_all_or_of_one_or_by_time(tmp_path: Path) -> None:
    seconds = [0.0]
    meta = make_meta(SITES)  # 4, 32, 8 and 64 bytes per sample
    for name, limits, n_samples in [
        ("all", GroupLimits(group_bytes=216), 2),
        ("more", GroupLimits(group_bytes=217), 3),
        ("one", GroupLimits(stream_bytes=65), 2),
        ("time", GroupLimits(secs=5), 4),
    ]:
        seconds[0] = 0.0
        writer = Writer(tmp_path / name, meta, limits=limits, clock=lambda: seconds[0])
        for sample in range(n_samples):
            assert not writer.is_full
            append(writer, [sample])
            seconds[0] += 1.25
        assert writer.is_full
        writer.commit()
        assert not writer.is_full
        writer.close()


def test_many_streams_make_larger_groups() -> None:
    assert GroupLimits().most_bytes(3) == 1 << 30
    assert GroupLimits().most_bytes(100) == 100 * (32 << 20)
    assert GroupLimits(group_bytes=5).most_bytes(100) == 5


def test_values_are_converted_to_the_dtype_of_the_archive(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "acts", make_meta([StreamSpec("a", "site", "F64", (2,))]))
    values = torch.arange(6, dtype=torch.bfloat16).reshape(3, 2)
    writer.append([0, 1, 2], {"a": values})
    writer.append([3], {"a": values.T[:, :2][:1]})
    writer.commit()
    writer.close()
    found = open_archive(tmp_path / "acts")["a"][:]
    assert torch.equal(found, torch.tensor([[0, 1], [2, 3], [4, 5], [0, 2.0]]).double())


def test_what_is_not_committed_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = Writer(root, make_meta())
    append(writer, [0])
    writer.commit()
    append(writer, [1])
    assert list(root.rglob("*.tmp"))
    writer.close()
    assert not list(root.rglob("*.tmp"))
    assert open_archive(root).ids == [(0, 1)]


def test_offsets_and_ids_are_written_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finishing, "BLOCK_IDS", 2)
    for n_samples in range(1, 7):
        root = tmp_path / str(n_samples)
        write_archive(root, [[[*range(3, 3 + n_samples)], [0, 1]]])
        check_values(open_archive(root), dict.fromkeys([0, 1, *range(3, 3 + n_samples)], 0))


def test_memory_per_sample_is_that_of_one_number_for_each_ragged_stream(tmp_path: Path) -> None:
    stream = StreamSpec("a", "site", "U8", (), is_ragged=True)
    writer = Writer(tmp_path / "acts", make_meta([stream]))
    n_batch, n_batches = 10_000, 20
    values = {"a": torch.zeros(n_batch, dtype=torch.uint8)}
    lengths = {"a": [1] * n_batch}
    writer.append(range(n_batch), values, lengths)
    tracemalloc.start()
    for batch in range(1, n_batches):
        writer.append(range(batch * n_batch, (batch + 1) * n_batch), values, lengths)
    kept, _ = tracemalloc.get_traced_memory()
    commit = writer.commit()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.close()
    assert commit is not None
    assert commit.n_samples == n_batch * n_batches
    assert kept < 12 * commit.n_samples  # a list of ints has 8 bytes and an object for each
    assert most - kept < 40 * commit.n_samples  # offsets and ids, a block at a time


def test_restarts_are_counted_by_rank(tmp_path: Path) -> None:
    root, meta = tmp_path / "acts", make_meta()
    for rank in (0, 0, 1, 0):
        write_archive(root, [[[0]]], meta=meta, rank=rank)
    assert [path.name[:-9] for path in sorted(root.glob("w-*"))] == [
        "w-00000-0",
        "w-00000-1",
        "w-00000-2",
        "w-00001-0",
    ]


def test_the_meta_that_is_there_is_used(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    first = write_archive(root, [[[0]]])
    second = write_archive(root, [[[1]]], rank=1)
    assert second.meta == first.meta
    check_values(open_archive(root), {0: 0, 1: 0})


def test_another_runs_archive_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0]]])
    content = (root / META).read_bytes()
    writer = Writer(root, make_meta(STREAMS[:1]))
    with pytest.raises(ArchiveConfigError, match="was made by the same configuration"):
        append(writer, [1])
    message = message_of(ArchiveWriteError, lambda: append(writer, [1]))
    assert "was made by the same configuration" in message
    writer.close()
    assert (root / META).read_bytes() == content
    check_values(open_archive(root), {0: 0})


def test_a_fork_may_not_go_on_with_its_parents_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path / "acts", make_meta())
    append(writer, [0])
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert message_of(ArchiveError, lambda: append(writer, [1])) == (
        "This writer belongs to the process that made it, and this is a fork of that. Open the "
        "archive again here."
    )


class FullDisk(LocalFiles):
    """A disk that is full after some files."""

    def __init__(self, n_files: int) -> None:
        self.n_left = n_files

    def create(self, path: Path) -> WritableFile:
        self.n_left -= 1
        if self.n_left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return super().create(path)

    def free_bytes(self, path: Path) -> int | None:
        return 12_345_678


def test_after_an_error_a_writer_is_dead_and_says_what_is_safe(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    # The journal, the meta, three streams (no sample has token ids) and the file they share.
    writer = Writer(root, make_meta(), files=FullDisk(n_files=6))
    append(writer, [0, 1])
    writer.commit()
    path = next(root.glob("w-*")) / "000001-000.safetensors.tmp"
    message = (
        f"Making {path} failed: No space left on device, 12.3 MB free there. Everything "
        "committed before is intact (samples of this run: 2). Once the cause is gone, run the "
        "same extraction again: it goes on from there."
    )
    for _ in range(2):
        assert message_of(ArchiveWriteError, lambda: append(writer, [2])) == message
        assert message_of(ArchiveWriteError, writer.commit) == message
    with pytest.raises(ArchiveWriteError) as caught:
        writer.record_total(3)
    assert caught.value.errno == errno.ENOSPC
    writer.close()
    check_values(open_archive(root), {0: 0, 1: 0})
