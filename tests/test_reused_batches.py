"""Loaders that fill one buffer again: every record comes with the batch it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import FastcapWarning
from tests.support.datasets import make_ids

MODEL = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8)).eval()
IDS = [make_ids(4, 6, seed=seed) for seed in range(7)]


class Pair(NamedTuple):
    """A batch of named things."""

    ids: Tensor
    extra: Any


SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "tensor": lambda ids: ids,
    "dict": lambda ids: {"input_ids": ids, "label": ["a"]},
    "dict of a view": lambda ids: {"input_ids": ids[:, :]},
    "tuple": lambda ids: (ids, 3),
    "named tuple": lambda ids: Pair(ids, [ids]),
    "array": lambda ids: {"input_ids": ids.numpy()},
}


def ids_of(batch: Any) -> Tensor:
    found = batch["input_ids"] if isinstance(batch, dict) else batch
    return torch.as_tensor(found[0] if isinstance(found, tuple) else found)


def run(batches: Iterable[Any], **options: Any) -> fastcap.Stream:
    return fastcap.stream(
        MODEL, batches, ["1"], forward=lambda model, batch: model(ids_of(batch)), **options
    )


def refilled(shape: Callable[[Tensor], Any], n_buffers: int = 1, n_fresh: int = 0) -> Iterator[Any]:
    """Batches in turns of so many buffers; the first ones in memory of their own."""
    buffers = [torch.empty_like(IDS[0]) for _ in range(n_buffers)]
    for number, ids in enumerate(IDS):
        buffer = torch.empty_like(ids) if number < n_fresh else buffers[number % n_buffers]
        buffer.numpy()[:] = ids.numpy()  # which leaves no trace in the tensor
        yield shape(buffer)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("n_buffers", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_records_come_with_their_own_batch(shape: str, n_buffers: int, prefetch: int) -> None:
    n_seen = 0
    stream = run(refilled(SHAPES[shape], n_buffers), prefetch=prefetch)
    for records, ids in zip(stream, IDS, strict=True):
        assert torch.equal(ids_of(records.batch), ids)
        assert torch.equal(records["1"], MODEL(ids).detach())
        n_seen += 1
    assert n_seen == len(IDS)


def test_parts_of_one_buffer_that_do_not_overlap_are_handed_out_as_they_are() -> None:
    memory = torch.cat(IDS)
    batches = list(memory.split(4))  # type: ignore[no-untyped-call]
    found = list(run(iter(batches)))
    assert all(records.batch is batch for records, batch in zip(found, batches, strict=True))


@pytest.mark.parametrize("as_list", [False, True])
def test_batches_of_their_own_memory_are_handed_out_as_they_are(as_list: bool) -> None:
    batches = [{"input_ids": ids} for ids in IDS]
    found = list(run(batches if as_list else iter(batches)))
    assert all(records.batch is batch for records, batch in zip(found, batches, strict=True))


def test_one_batch_again_and_again_in_a_list_is_itself() -> None:
    batches = [IDS[0]] * 4
    assert all(records.batch is IDS[0] for records in run(batches))


def test_a_loader_that_begins_late_is_told() -> None:
    stream = run(refilled(SHAPES["dict"], n_fresh=4))
    with pytest.warns(FastcapWarning, match="prefetch=0") as warned:
        found = [ids_of(records.batch).clone() for records in stream]
    assert len(warned) == 1
    wrong = [n for n, ids in enumerate(IDS) if not torch.equal(found[n], ids)]
    assert wrong == [4]


def test_what_has_no_memory_is_no_trouble() -> None:
    batches = (
        {"input_ids": np.zeros((0, 3), dtype=np.int64), "sparse": sparse} for sparse in SPARSE
    )
    assert [tuple(records["1"].shape) for records in run(batches)] == [(0, 3, 8)] * 2


SPARSE = [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()]
