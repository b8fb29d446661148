"""Reading: values by sample id, in every dtype and shape, and what is not there."""

from __future__ import annotations

import os
import random
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastcap.archive import reader
from fastcap.archive.layout import DTYPES, StreamSpec
from fastcap.archive.limits import GroupLimits
from fastcap.archive.reader import open_archive
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveError, ArgumentTypeError, MissingSampleError
from tests.support.archives import (
    STREAMS,
    append,
    check_values,
    make_meta,
    same,
    text_of,
    value_of,
    write_archive,
)
from tests.support.errors import message_of

EVERY_KIND = (
    *(StreamSpec(f"of {name}", "site", name, (2,)) for name in DTYPES),
    StreamSpec("", "site", "F32", (2, 1, 3)),
    StreamSpec("numbers", "label", "F64", ()),
    StreamSpec("nothing", "site", "BF16", (0, 3)),
    StreamSpec("ragged", "site", "F16", (2, 2), is_ragged=True),
    StreamSpec("ragged nothing", "site", "F8_E5M2", (0,), is_ragged=True),
    StreamSpec("π 😀/../\n", "label", "U8", (), is_ragged=True, is_text=True),
)
ALONE = GroupLimits(own_file_bytes=1)


@pytest.mark.parametrize("limits", [None, ALONE], ids=["together", "alone"])
def test_every_dtype_shape_and_kind(tmp_path: Path, limits: GroupLimits | None) -> None:
    root = tmp_path / "acts"
    groups = [[[0, 1, 2], [3, 4]], [[9, 8]], [[5]], [[6, 7]]]
    write_archive(root, groups, meta=make_meta(EVERY_KIND, 10), limits=limits)

    archive = open_archive(root)
    check_values(archive, dict.fromkeys(range(10), 0))
    assert archive.verify() == []
    assert archive.is_complete
    for spec in EVERY_KIND:
        assert (archive[spec.name].dtype, archive[spec.name].shape) == (
            spec.torch_dtype,
            spec.shape,
        )
        assert all(same(v, spec, i) for i, v in enumerate(archive[spec.name]))


def test_an_archive_without_samples(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "acts", make_meta(n_samples=None))
    writer.record_total(0)
    writer.close()
    archive = open_archive(tmp_path / "acts")
    assert (len(archive), archive.ids, archive.n_samples) == (0, [], 0)
    assert archive.is_complete
    assert archive["layers.1"][:].shape == (0, 2, 2)
    assert archive["layers.1"][3:9:2].dtype == torch.float32
    assert archive["label:text"][:] == []
    assert list(archive["layers.0"]) == []
    assert archive.verify() == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_archive(tmp_path / "acts", [[[0, 1], [2]], [[3, 4, 5, 6]]], meta=make_meta(n_samples=7))
    return tmp_path / "acts"


@pytest.mark.parametrize("seed", range(40))
def test_ids_and_slices_are_as_in_a_list(root: Path, seed: int) -> None:
    draw = random.Random(seed)
    archive = open_archive(root)
    numbers = list(range(7))

    def end() -> int | None:
        choices: list[int | None] = [None, *range(-9, 10)]
        return draw.choice(choices)

    key: Any = slice(end(), end(), draw.choice([None, 1, 2, 3, -1, -2]))
    for spec in STREAMS:
        found = archive[spec.name][key]
        assert len(found) == len(numbers[key])
        assert all(
            same(value, spec, sample) for value, sample in zip(found, numbers[key], strict=True)
        )
    one = draw.randrange(-7, 7)
    for index in (one, np.int64(one), torch.tensor(one)):
        assert same(archive["layers.0"][index], STREAMS[0], numbers[one])  # type: ignore[index]


def test_samples_that_are_not_there(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    write_archive(root, [[[0, 1]], [[4, 5]]], meta=make_meta(n_samples=9))
    archive = open_archive(root)
    assert (archive.ids, len(archive), archive.n_samples) == ([(0, 2), (4, 6)], 4, 9)
    assert [archive.has(*each) for each in [(0, 2), (0, 3), (4, 6), (5, 7), (3, 3)]] == [
        True,
        False,
        True,
        False,
        True,
    ]
    for key, missing in [(2, 2), (-1, 8), (9, 9), (-10, -10), (slice(0, 5), 2), (slice(None), 2)]:
        message = message_of(MissingSampleError, lambda k=key: archive["layers.0"][k])  # type: ignore[misc]
        assert message == (
            f"Sample {missing} is not in {str(root)!r}; it has 0-1, 4-5. Run the same extraction "
            "again to add what is missing."
        )
    with pytest.raises(IndexError):
        archive["layers.0"][slice(0, 6, 2)]
    assert len(archive["layers.0"][4:6]) == 2
    assert len(list(archive["label:text"])) == 4


def test_keys_of_the_wrong_kind(root: Path) -> None:
    archive = open_archive(root)
    assert message_of(ArchiveError, lambda: archive["layer.0"]) == (
        f"{str(root)!r} has no 'layer.0'. Did you mean 'layers.0' or 'layers.1'? It has "
        "['layers.0', 'layers.1', 'batch:input_ids', 'label:text']."
    )
    assert message_of(ArgumentTypeError, lambda: archive[3]) == (  # type: ignore[index]
        "archive[3]: an archive is read by stream and then by sample, as in "
        "archive['layers.0'][3]. It has ['layers.0', 'layers.1', 'batch:input_ids', 'label:text']."
    )
    for key in ("3", 1.5, [1, 2], None):
        assert message_of(ArgumentTypeError, lambda k=key: archive["layers.0"][k]) == (  # type: ignore[misc]
            f"Samples are read by an int or a slice of their ids; got {key!r}."
        )


def test_what_an_archive_says_of_itself(root: Path) -> None:
    archive = open_archive(root)
    assert repr(archive) == (
        f"Archive({str(root)!r}, samples: 7 of 7, sites: ['layers.0', 'layers.1'])"
    )
    assert repr(archive["layers.0"]) == "Samples('layers.0', n=7, shape=(3,), torch.bfloat16)"
    assert archive.sites == ["layers.0", "layers.1"]
    assert archive.streams == [spec.name for spec in STREAMS]
    assert "label:text" in archive
    assert "nothing" not in archive
    assert len(archive["layers.0"]) == 7


def test_writing_to_what_was_read_does_not_change_the_file(root: Path) -> None:
    archive = open_archive(root)
    before = [path.read_bytes() for path in sorted(root.rglob("*.safetensors"))]
    archive["layers.1"][0].fill_(0)
    archive["layers.1"][0:2].fill_(0)
    archive["batch:input_ids"][3].fill_(0)
    assert archive.verify() == []
    assert [path.read_bytes() for path in sorted(root.rglob("*.safetensors"))] == before
    check_values(open_archive(root), dict.fromkeys(range(7), 0))


def test_values_outlive_the_archive_and_its_files(root: Path) -> None:
    archive = open_archive(root)
    kept = archive["layers.1"][5]
    for path in root.rglob("*.safetensors"):
        path.unlink()
    del archive
    assert same(kept, STREAMS[1], 5)


def test_texts_with_every_kind_of_character(root: Path) -> None:
    archive = open_archive(root)
    assert archive["label:text"][:] == [text_of(sample) for sample in range(7)]
    assert archive["label:text"][-4] == "😀 and 👩‍🚀"


def test_several_writers_and_the_first_commit_of_each_sample(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    meta = make_meta(n_samples=12)
    draw = random.Random(3)
    salts: dict[int, int] = {}
    for rank in range(4):
        groups = []
        for _ in range(3):
            start = draw.randrange(9)
            groups.append([list(range(start, start + 3)), [draw.randrange(12)]])
        write_archive(root, groups, meta=meta, rank=rank, salt=rank)
        for batches in groups:
            for sample in chain.from_iterable(batches):
                salts.setdefault(sample, rank)
    archive = open_archive(root)
    check_values(archive, salts)
    assert archive.verify() == []
    assert [writer.is_live for writer in archive.writers] == [False] * 4


def test_an_archive_that_is_being_written(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    writer = Writer(root, make_meta())
    append(writer, [0, 1])
    assert open_archive(root).ids == []
    writer.commit()
    early = open_archive(root)
    append(writer, [2, 3])
    writer.commit()
    append(writer, [4])

    check_values(early, {0: 0, 1: 0})  # what was there when it was opened
    late = open_archive(root)
    check_values(late, dict.fromkeys(range(4), 0))
    assert [state.is_live for state in late.writers] == [True]
    assert late.verify() == []
    writer.close()
    assert [state.is_live for state in open_archive(root).writers] == [False]


def test_no_more_than_64_shards_stay_mapped(tmp_path: Path) -> None:
    root = tmp_path / "acts"
    meta = make_meta(STREAMS[:1])
    write_archive(root, [[[sample]] for sample in range(reader.OPEN_SHARDS + 9)], meta=meta)
    archive = open_archive(root)
    n_before = n_mapped(root)
    for _ in range(2):
        for sample in range(reader.OPEN_SHARDS + 9):
            assert same(archive["layers.0"][sample], STREAMS[0], sample)
            assert n_mapped(root) - n_before <= reader.OPEN_SHARDS
    assert n_mapped(root) == reader.OPEN_SHARDS
    archive.verify()
    assert n_mapped(root) == reader.OPEN_SHARDS
    n_open = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - links that may be gone
    assert n_open < reader.OPEN_SHARDS


def n_mapped(root: Path) -> int:
    """Shards of an archive that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return len({line.split(maxsplit=5)[5] for line in lines if str(root) in line})


def test_a_slice_within_a_group_is_not_copied(root: Path) -> None:
    archive = open_archive(root)
    both = archive["layers.1"][3:5]
    assert both[0].data_ptr() == archive["layers.1"][3].data_ptr()
    across = archive["layers.1"][2:4]
    assert across[0].data_ptr() != archive["layers.1"][2].data_ptr()
    assert torch.equal(across[1].view(torch.int32), value_of(STREAMS[1], 3).view(torch.int32))


def test_damaged_groups_count_as_missing_and_a_later_commit_takes_their_place(
    tmp_path: Path,
) -> None:
    root = tmp_path / "acts"
    meta = make_meta(n_samples=4)
    write_archive(root, [[[0, 1]], [[2, 3]]], meta=meta)
    lost, kept = sorted(root.rglob("*.safetensors"))
    lost.unlink()
    archive = open_archive(root)
    check_values(archive, {2: 0, 3: 0})
    [damage] = archive.damages
    assert damage.reason == f"{lost}: No such file or directory"
    assert damage.group.samples == ((0, 2),)
    [problem] = archive.verify()
    assert (problem.path, problem.what, problem.samples) == (
        lost.parent,
        damage.reason,
        ((0, 2),),
    )

    write_archive(root, [[[0, 1]]], meta=meta, rank=1, salt=1)
    check_values(open_archive(root), {0: 1, 1: 1, 2: 0, 3: 0})
    n_bytes = kept.stat().st_size
    kept.chmod(0o644)
    os.truncate(kept, n_bytes - 1)
    assert [each.reason for each in open_archive(root).damages][1:] == [
        f"{kept} has {n_bytes - 1} bytes instead of {n_bytes}"
    ]
