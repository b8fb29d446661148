"""Which commit of a sample is read, against a model that goes sample by sample."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastcap.archive.index import SampleIndex
from fastcap.archive.journal import GroupRecord

Model = dict[int, tuple[int, int, int]]
"""By id: writer, group, row."""


def draw_scan(draw: random.Random) -> tuple[Any, Model]:
    """Writers with random runs, and what must be read of them."""
    model: Model = {}
    writers = []
    n_ids = draw.choice([4, 10, 60])
    for writer in range(draw.randint(0, 4)):
        groups = []
        for number in range(draw.randint(0, 4)):
            ranges = []
            row = 0
            for _ in range(draw.randint(1, 4)):
                start = draw.randrange(n_ids)
                stop = draw.randint(start + 1, n_ids)
                ranges.append((start, stop))
                for sample in range(start, stop):
                    model.setdefault(sample, (writer, number, row))
                    row += 1
            groups.append(GroupRecord(number, tuple(ranges), {}, ()))
        writers.append(SimpleNamespace(groups=groups, directory=Path(str(writer))))
    return SimpleNamespace(writers=writers), model


@pytest.mark.parametrize("seed", range(300))
def test_the_first_commit_of_each_id_is_read(seed: int) -> None:
    draw = random.Random(seed)
    scan, model = draw_scan(draw)
    index = SampleIndex(scan)

    found: Model = {}
    for run in index.runs(0, 100):
        number = next(i for i, each in enumerate(scan.writers) if each is run.writer)
        for sample in range(run.start, run.stop):
            assert sample not in found
            found[sample] = (number, run.group.number, run.row + sample - run.start)
    assert found == model
    assert list(found) == sorted(found)
    assert index.n_samples == len(model)
    assert [i for start, stop in index.ranges for i in range(start, stop)] == sorted(model)
    assert all(a[1] < b[0] for a, b in zip(index.ranges, index.ranges[1:], strict=False))


@pytest.mark.parametrize("seed", range(50))
def test_any_stretch_of_ids_is_found(seed: int) -> None:
    draw = random.Random(seed)
    scan, model = draw_scan(draw)
    index = SampleIndex(scan)
    for _ in range(20):
        start = draw.randrange(62)
        stop = draw.randint(start, 64)
        found = [i for run in index.runs(start, stop) for i in range(run.start, run.stop)]
        assert found == [i for i in range(start, stop) if i in model]
        assert index.has(start, stop) == all(i in model for i in range(start, stop))


def test_runs_that_go_on_are_one() -> None:
    group = GroupRecord(0, ((0, 8),), {}, ())
    later = GroupRecord(0, ((2, 4),), {}, ())
    writers = [SimpleNamespace(groups=[group]), SimpleNamespace(groups=[later])]
    [run] = SampleIndex(SimpleNamespace(writers=writers)).runs(0, 8)  # type: ignore[arg-type]
    assert (run.start, run.stop, run.row) == (0, 8, 0)
