"""Every limit of the reader, from both sides: what is acknowledged is read, the rest refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.archive import journal, layout, meta, parsing, recovery
from fastcap.archive.files import LocalFiles
from fastcap.archive.layout import StreamSpec
from fastcap.archive.limits import GroupLimits
from fastcap.archive.meta import new_meta
from fastcap.archive.reader import open_archive, reopen
from fastcap.archive.writer import Writer
from fastcap.errors import ArchiveError, ArchiveWriteError, ArgumentError
from tests.support.archives import make_meta
from tests.support.datasets import make_samples
from tests.support.errors import message_of


@dataclass
class Asked:
    """What one writer is asked to write."""

    name: str = "a"
    shape: tuple[int, ...] = ()
    lengths: Sequence[int] | None = None
    ids: Sequence[int] = (0, 1)
    rank: int = 0
    total: int = 2
    n_groups: int = 1
    n_samples: int | None = None
    batch_size: int = 1
    config: Any = None

    def values(self) -> Tensor:
        n_rows = len(self.ids) if self.lengths is None else sum(self.lengths)
        return torch.zeros((n_rows, *self.shape), dtype=torch.uint8)

    def write(self, root: Path) -> list[tuple[int, int]]:
        """The ids that are acknowledged."""
        spec = StreamSpec(self.name, "site", "U8", self.shape, self.lengths is not None)
        found = new_meta([spec], self.n_samples, self.batch_size, {"x": self.config}, {})
        writer = Writer(root, found, rank=self.rank)
        acknowledged: list[tuple[int, int]] = []
        lengths = {} if self.lengths is None else {self.name: self.lengths}
        try:
            for _ in range(self.n_groups):
                writer.append(self.ids, {self.name: self.values()}, lengths)
                commit = writer.commit()
                assert commit is not None
                acknowledged += commit.samples
            writer.record_total(self.total)
        finally:
            writer.close()
        return acknowledged


def is_taken(root: Path, asked: Asked) -> bool:
    """Whether it is written; it can be read then, and else nothing was acknowledged or left."""
    try:
        acknowledged = asked.write(root)
    except ArchiveError:
        assert not list(root.rglob("*.tmp"))
        if root.exists() and any(root.iterdir()):
            archive = reopen(root, LocalFiles())
            assert archive.verify() == []
            assert archive.meta.streams[0].name == asked.name
        return False
    archive = reopen(root, LocalFiles())
    assert archive.verify() == []
    assert not archive.writers[0].journal.is_torn
    assert len(archive) == len(set(asked.ids))
    assert all(archive.has(*pair) for pair in acknowledged)
    assert archive.n_samples == asked.total
    assert len(archive[asked.name][asked.ids[0]].shape) == len(asked.shape) + (
        asked.lengths is not None
    )
    return True


def nested(depth: int) -> Any:
    found: Any = 0
    for _ in range(depth):
        found = [found]
    return found


LIMITS: dict[str, tuple[Callable[[int], Asked], int, int]] = {
    "rank": (lambda n: Asked(rank=n), 10**10 - 1, 10**10),
    "id": (lambda n: Asked(ids=[n]), 2**62 - 2, 2**62 - 1),
    "total": (lambda n: Asked(total=n), 2**63 - 1, 2**63),
    "samples": (lambda n: Asked(n_samples=n, total=2**62), 2**63 - 1, 2**63),
    "batch size": (lambda n: Asked(batch_size=n), 2**63 - 1, 2**63),
    "dimensions": (lambda n: Asked(shape=(1,) * n), 32, 33),
    "size of a shape": (lambda n: Asked(shape=(0, n)), 2**45 - 1, 2**45),
    "rows": (lambda n: Asked(shape=(0, 2**44), lengths=[n, 0]), 2**18 - 1, 2**18),
    "depth": (lambda n: Asked(config=nested(n)), 63, 64),
    "meta": (lambda n: Asked(config="x" * n), 1000, 2000),
    "header": (lambda n: Asked(name="x" * n), 3000, 10_000),
    "line": (lambda n: Asked(ids=range(0, 2 * n, 2)), 500, 1500),
    "value": (lambda n: Asked(ids=range(0, 2 * n, 2)), 50, 500),
    "journal": (lambda n: Asked(n_groups=n), 2, 8),
}
"""By name: what is asked for, something that is taken, and something more that is refused."""


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_is_one_for_the_writer_and_for_the_reader(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name, n_bytes in (
        (meta, "META_LIMIT", 2000),
        (meta, "HEADER_LIMIT", 8192),
        (layout, "HEADER_LIMIT", 8192),
        (journal, "LINE_LIMIT", 8000),
        (parsing, "VALUE_LIMIT", 300),
        (journal, "JOURNAL_LIMIT", 1200),
        (recovery, "JOURNAL_LIMIT", 1200),
    ):
        if limit == name.partition("_")[0].lower():
            monkeypatch.setattr(module, name, n_bytes)
    ask, within, beyond = LIMITS[limit]
    roots = (tmp_path / str(number) for number in itertools.count())
    assert is_taken(next(roots), ask(within))
    assert not is_taken(next(roots), ask(beyond))
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if is_taken(next(roots), ask(middle)):
            within = middle
        else:
            beyond = middle


@pytest.mark.parametrize("name", ["\ud800", "x" * (17 << 20), "samples"])
def test_names_that_no_reader_takes_are_refused_before_anything_is_made(
    name: str, tmp_path: Path
) -> None:
    assert not is_taken(tmp_path / "acts", Asked(name=name))
    assert not (tmp_path / "acts").exists()


def test_what_can_never_be_written_is_refused_before_the_first_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unused(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(2, 2))

        def forward(self, input_ids: Tensor) -> Tensor:
            raise AssertionError("a pass was run")

    def why_not(name: str = "a", **options: Any) -> str:
        return message_of(
            ArgumentError if "rank" in options else ArchiveError,
            lambda: fastcap.extract(
                Unused(name), make_samples(4), [name], tmp_path / "acts", **options
            ),
        )

    monkeypatch.setattr(meta, "HEADER_LIMIT", 8192)
    long = "n" * 9000
    assert why_not(long) == (
        "The names of 1 streams make a shard's header of 12288 bytes, and readers take at most "
        f"8192. The longest is {long[:80]!r}, of 9000 characters. Give shorter names, or extract "
        "fewer sites at a time."
    )
    assert "cannot be the name of a stream" in why_not("samples")
    assert "is not valid Unicode" in why_not("\ud800")
    assert "make a shard's header of" in why_not(columns=[long])
    assert why_not(rank=10**10, world_size=10**11) == (
        "rank must be below 10000000000; got 10000000000."
    )
    assert not (tmp_path / "acts").exists()


def test_a_commit_that_no_reader_would_take_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "acts"
    monkeypatch.setattr(journal, "LINE_LIMIT", 2000)
    writer = Writer(root, make_meta([StreamSpec("a", "site", "F32", ())]))
    writer.append([0, 1], {"a": torch.zeros(2)})
    assert writer.commit() is not None
    writer.append(range(2, 800, 2), {"a": torch.zeros(399)})
    message = message_of(ArchiveWriteError, writer.commit)
    assert message.startswith(
        "399 samples from 2 on cannot be committed, since no reader would take them: the line of "
        "the journal takes "
    )
    assert message.endswith(
        " bytes, and readers take at most 2000. Everything committed before is intact (samples of "
        "this run: 2). Commit fewer samples at a time."
    )
    again = message_of(ArchiveWriteError, lambda: writer.append([2], {"a": torch.zeros(1)}))
    assert again == message
    writer.close()
    assert not list(root.rglob("*.tmp"))
    assert len(list(root.rglob("*.safetensors"))) == 1
    assert open_archive(root).ids == [(0, 2)]


@pytest.mark.parametrize(
    ("limits", "step", "expected"),
    [
        (GroupLimits(samples=6), 2, [6, 6, 4]),
        (GroupLimits(samples=6), 5, [6, 6, 4]),
        (GroupLimits(ranges=3), 2, [16]),
        (GroupLimits(ranges=3), 5, [6, 6, 4]),
    ],
    ids=range(4),
)
def test_a_group_is_full_by_samples_or_by_ranges(
    limits: GroupLimits, step: int, expected: list[int], tmp_path: Path
) -> None:
    writer = Writer(tmp_path, make_meta([StreamSpec("a", "site", "F32", ())]), limits=limits)
    found = []
    for start in range(0, 8 * step, step):
        writer.append(range(start, start + 2), {"a": torch.zeros(2)})
        if writer.is_full:
            found.append(writer.commit())
    found.append(writer.commit())
    writer.close()
    assert [commit.n_samples for commit in found if commit is not None] == expected
