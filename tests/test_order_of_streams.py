"""Iterable datasets: one order whatever the number of workers, and the same when continued."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import fastcap
from fastcap import FastcapWarning, extract_representations
from fastcap.errors import ArchiveConfigError, ArgumentError
from tests.support.datasets import Sample

# From Python 3.12 on, forking a process that has threads warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

N = 16
MODEL = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 4)).eval()
IDS = torch.arange(N)[:, None].expand(N, 3).contiguous()


class Shards(IterableDataset[Sample]):
    """Each worker has a contiguous share."""

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter([{"input_ids": ids} for ids in IDS[number * N // of : (number + 1) * N // of]])


class Dealt(IterableDataset[Sample]):
    """Batch after batch is dealt out, which is how a loader collects them."""

    has_fixed_order = True

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, of = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(number, N // 4, of):
            yield from ({"input_ids": ids} for ids in IDS[4 * batch : 4 * batch + 4])


class Promises(Shards):
    """It does not keep its word."""

    has_fixed_order = True


def stop(n_done: int, n_expected: int | None) -> None:
    if n_done >= 8:
        raise RuntimeError("stopped")


def stored(archive: fastcap.archive.reader.Archive) -> list[int]:
    return [int(ids[0]) for ids in archive["batch:input_ids"]]


@pytest.mark.parametrize("as_loader", [False, True])
def test_workers_that_share_out_samples_are_refused_for_archives(
    as_loader: bool, tmp_path: Path
) -> None:
    data: Any = DataLoader(Shards(), batch_size=4, num_workers=2) if as_loader else Shards()
    options: dict[str, Any] = {} if as_loader else {"batch_size": 4, "num_workers": 2}
    with pytest.raises(ArgumentError, match=r"\(Shards\).*num_workers=1.*has_fixed_order = True"):
        fastcap.extract(MODEL, data, ["1"], tmp_path, **options)


def test_workers_that_share_out_samples_are_warned_about_in_memory() -> None:
    with pytest.warns(FastcapWarning, match="2 workers share out .*order then depends"):
        found = extract_representations(MODEL, Shards(), ["1"], "cpu", batch_size=4, num_workers=2)
    order = [*range(4), *range(8, 12), *range(4, 8), *range(12, 16)]
    assert torch.equal(found["1"], MODEL(IDS[order]).detach())


@pytest.mark.parametrize("n_workers", [0, 1])
def test_one_worker_or_none_keeps_the_order(n_workers: int, tmp_path: Path) -> None:
    archive = fastcap.extract(MODEL, Shards(), ["1"], tmp_path, batch_size=4, num_workers=n_workers)
    assert stored(archive) == list(range(N))


def test_a_dataset_that_promises_its_order_may_have_workers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "group_bytes": 1}
    with pytest.raises(RuntimeError, match="stopped"):
        fastcap.extract(MODEL, Dealt(), ["1"], tmp_path, num_workers=2, progress=stop, **options)
    assert 0 < len(fastcap.open_archive(tmp_path)) < N

    archive = fastcap.extract(MODEL, Dealt(), ["1"], tmp_path, num_workers=0, **options)

    assert stored(archive) == list(range(N))
    found = extract_representations(MODEL, Dealt(), ["1"], "cpu", batch_size=4, num_workers=2)
    assert torch.equal(found["1"], archive["1"][:])


def test_a_promise_that_is_not_kept_is_found_when_the_run_is_continued(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "group_bytes": 1}
    with pytest.raises(RuntimeError, match="stopped"):
        fastcap.extract(MODEL, Promises(), ["1"], tmp_path, num_workers=2, progress=stop, **options)
    before = fastcap.open_archive(tmp_path).ids

    with pytest.raises(ArchiveConfigError, match="another 'batch:input_ids' for sample 4"):
        fastcap.extract(MODEL, Promises(), ["1"], tmp_path, **options)
    assert fastcap.open_archive(tmp_path).ids == before


class Changing(IterableDataset[dict[str, Any]]):
    """Without a seed: another order each time, or another label."""

    def __init__(self, order: list[int], label: Any) -> None:
        self.order = order
        self.label = label

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in self.order:
            yield {"input_ids": IDS[index], "label": self.label}


@pytest.mark.parametrize(
    ("order", "label", "named"),
    [
        ([1, 0, *range(2, N)], 1.0, "'batch:input_ids' for sample 0"),
        (list(range(N)), 2.0, "'label:label' for sample 0"),
        (list(range(N)), 1, "'label:label' for sample 0"),
    ],
)
def test_other_data_than_what_is_committed_is_refused(
    order: list[int], label: Any, named: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"batch_size": 4, "group_bytes": 1, "columns": ["label"]}
    with pytest.raises(RuntimeError, match="stopped"):
        fastcap.extract(
            MODEL, Changing(list(range(N)), 1.0), ["1"], tmp_path, progress=stop, **options
        )
    with pytest.raises(ArchiveConfigError, match=named):
        fastcap.extract(
            MODEL, Changing(order, label), ["1"], tmp_path, check="fingerprint", **options
        )


@pytest.mark.parametrize("label", [float("nan"), "a text", "naïve"])
def test_the_same_data_is_continued_whatever_its_labels(label: Any, tmp_path: Path) -> None:
    def data() -> Changing:
        return Changing(list(range(N)), label)

    options: dict[str, Any] = {"batch_size": 4, "group_bytes": 1, "columns": ["label"]}
    with pytest.raises(RuntimeError, match="stopped"):
        fastcap.extract(MODEL, data(), ["1"], tmp_path, progress=stop, **options)
    archive = fastcap.extract(MODEL, data(), ["1"], tmp_path, **options)

    assert stored(archive) == list(range(N))
    assert torch.equal(archive["1"][:], MODEL(IDS).detach())
