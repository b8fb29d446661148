"""Datasets that are batches already: a `DataLoader`, and samples that are batches of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, SubsetRandomSampler

import fastcap
from fastcap import FastcapWarning, extract_representations
from fastcap.errors import ArgumentError, BatchError
from fastcap.reference import differences
from tests.support.datasets import Sample, TokenStream, expected, make_ids, make_samples
from tests.support.models import LanguageModel

SITES = ["norm"]


def pad_free(samples: list[Sample]) -> Sample:
    return {"input_ids": torch.stack([sample["input_ids"] for sample in samples]) + 1}


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "of a list": lambda: DataLoader(make_samples(7), batch_size=3),  # type: ignore[arg-type]
    "that drops the last": lambda: DataLoader(make_samples(7), batch_size=3, drop_last=True),  # type: ignore[arg-type]
    "of a stream": lambda: DataLoader(TokenStream(7), batch_size=3),
    "of a stream that drops the last": lambda: DataLoader(
        TokenStream(7), batch_size=3, drop_last=True
    ),
    "with workers": lambda: DataLoader(make_samples(7), batch_size=3, num_workers=1),  # type: ignore[arg-type]
    "that collates": lambda: DataLoader(make_samples(7), batch_size=3, collate_fn=pad_free),  # type: ignore[arg-type]
}


def rows_of(loader: DataLoader[Any], model: nn.Module) -> dict[str, Tensor]:
    samples = [{"input_ids": ids} for batch in loader for ids in batch["input_ids"]]
    return expected(model, samples, SITES, batch_size=3)


# From Python 3.12 on, forking a process that has threads warns.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", LOADERS)
def test_a_data_loader_gives_a_row_per_sample(kind: str, tmp_path: Path) -> None:
    model = LanguageModel(n_layers=1)
    wanted = rows_of(LOADERS[kind](), model)

    found = extract_representations(model, LOADERS[kind](), SITES, "cpu")
    archive = fastcap.extract(model, LOADERS[kind](), SITES, tmp_path)

    assert differences(wanted, found) == []
    assert differences(wanted, {"norm": archive["norm"][:]}) == []
    assert archive.is_complete


def test_an_archive_of_a_data_loader_is_the_one_of_its_dataset(tmp_path: Path) -> None:
    model = LanguageModel(n_layers=1)
    loader = LOADERS["of a list"]()
    fastcap.extract(model, loader, SITES, tmp_path)

    assert fastcap.extract(model, loader.dataset, SITES, tmp_path, batch_size=3).is_complete


SHUFFLING: dict[str, Callable[[Any], DataLoader[Any]]] = {
    "RandomSampler": lambda data: DataLoader(data, batch_size=3, shuffle=True),
    "SubsetRandomSampler": lambda data: DataLoader(
        data, batch_size=3, sampler=SubsetRandomSampler([4, 2, 0])
    ),
    "Buckets": lambda data: DataLoader(
        data, batch_sampler=Buckets(SubsetRandomSampler([4, 2, 0]), 2, drop_last=False)
    ),
}


class Buckets(BatchSampler):
    """Batches in an order of their own."""


@pytest.mark.parametrize("sampler", SHUFFLING)
def test_another_order_is_refused_for_archives_and_warned_about_in_memory(
    sampler: str, tmp_path: Path
) -> None:
    model, samples = LanguageModel(n_layers=1), make_samples(7)

    with pytest.raises(ArgumentError, match=f"with a {sampler}, .*shuffle=False"):
        fastcap.extract(model, SHUFFLING[sampler](samples), SITES, tmp_path)
    with pytest.warns(FastcapWarning, match=f"with a {sampler}: rows of the result"):
        found = extract_representations(model, SHUFFLING[sampler](samples), SITES, "cpu")

    rows = {tuple(row.flatten().tolist()) for row in found["norm"]}
    wanted = expected(model, samples, SITES)["norm"]
    every = {tuple(row.flatten().tolist()) for row in wanted}
    assert len(rows) == len(found["norm"]) == (7 if sampler == "RandomSampler" else 3)
    assert rows <= every


class Batched(Dataset[Sample]):
    """Items that are batches."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Sample:
        return {"input_ids": make_ids(6)[index * 3 : index * 3 + 3]}


def test_a_loader_of_batches_made_elsewhere_gives_their_rows(tmp_path: Path) -> None:
    model, loader = LanguageModel(n_layers=1), DataLoader(Batched(), batch_size=None)
    found = extract_representations(model, loader, SITES, "cpu")

    assert differences(expected(model, make_samples(6), SITES, 3), found) == []
    with pytest.raises(ArgumentError, match="batch_size=None"):
        fastcap.extract(model, loader, SITES, tmp_path)


@pytest.mark.parametrize(
    "option", [{"batch_size": 4}, {"num_workers": 2}, {"collate_fn": pad_free}], ids=list
)
def test_what_a_data_loader_has_otherwise_is_refused(option: dict[str, Any]) -> None:
    [name] = option
    with pytest.raises(ArgumentError, match=f"the dataset is a DataLoader with {name}="):
        extract_representations(LanguageModel(), LOADERS["of a list"](), SITES, "cpu", **option)


def test_a_dropped_batch_has_no_rows_in_memory_of_the_callers() -> None:
    model, out = LanguageModel(n_layers=1), {"norm": torch.empty(6, 5, 16)}
    found = extract_representations(model, LOADERS["that drops the last"](), SITES, "cpu", out=out)

    assert differences(expected(model, make_samples(6), SITES, 3), found) == []


# Token ids of another rank


def each(make: Callable[[Tensor], Any], n_samples: int = 4) -> list[Any]:
    return [make(ids) for ids in make_ids(n_samples)]


@pytest.mark.parametrize(
    ("samples", "shape", "advice"),
    [
        (each(lambda ids: {"input_ids": ids[None]}), "4, 1, 5", r"return_tensors='pt'.*ids\[0\]"),
        (each(lambda ids: ids[None]), "4, 1, 5", "return_tensors='pt'"),
        (each(lambda ids: (ids[None],)), "4, 1, 5", "return_tensors='pt'"),
        ([{"input_ids": make_ids(3)}] * 4, "4, 3, 5", "a batch already.*DataLoader"),
        (each(lambda ids: {"input_ids": ids[0]}), "4,", r"ids\[:, None\]"),
        (each(lambda ids: ids[0]), "4,", r"ids\[None\]"),
    ],
)
@pytest.mark.parametrize("way", ["memory", "archive"])
def test_token_ids_of_another_rank_are_refused_with_the_fix(
    samples: list[Any], shape: str, advice: str, way: str, tmp_path: Path
) -> None:
    model = LanguageModel(n_layers=1)
    ways: dict[str, Callable[[], object]] = {
        "memory": lambda: extract_representations(model, samples, SITES, "cpu"),
        "archive": lambda: fastcap.extract(model, samples, SITES, tmp_path),
    }
    with pytest.raises(BatchError, match=rf"\({shape}\), and token ids are \(batch.*{advice}"):
        ways[way]()


def test_a_batch_of_one_in_each_sample_is_refused_whatever_the_input_is_called() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Linear(4, 4))
    with pytest.raises(BatchError, match="a batch of one"):
        extract_representations(model, each(lambda ids: ids[None]), ["1"], "cpu", positions=-1)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.uint8])
def test_ids_that_embeddings_do_not_take_are_refused_with_the_fix(dtype: torch.dtype) -> None:
    samples = each(lambda ids: {"input_ids": ids.to(dtype)})
    with pytest.raises(BatchError, match=rf"dtype {dtype}.*ids.long\(\)"):
        extract_representations(LanguageModel(), samples, SITES, "cpu")


def test_integers_that_are_no_token_ids_have_any_rank() -> None:
    class Pixels(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.float().mean((-1, -2))

    images = torch.randint(256, (4, 3, 2, 2), dtype=torch.uint8)
    found = extract_representations(Pixels(), list(images), [""], "cpu")
    assert differences({"": images.float().mean((-1, -2))}, found) == []

    counts = nn.Embedding(50, 4)  # one index per sample
    picked = extract_representations(counts, list(torch.arange(5)), [""], "cpu")
    assert differences({"": counts.weight[:5].detach()}, picked) == []


def test_a_forward_of_ones_own_takes_ids_of_any_rank() -> None:
    model = LanguageModel(n_layers=1)
    samples = each(lambda ids: {"input_ids": ids[None]})

    found = extract_representations(
        model, samples, SITES, "cpu", forward=lambda model, batch: model(batch["input_ids"][:, 0])
    )

    assert differences(expected(model, make_samples(4), SITES), found) == []


def test_a_loader_whose_batches_are_made_by_hand_is_refused_as_samples() -> None:
    def batches() -> Iterator[Sample]:
        for ids in torch.split(make_ids(6), 3):
            yield {"input_ids": ids}

    with pytest.raises(BatchError, match=r"a batch already.*fastcap.stream\(\)"):
        extract_representations(LanguageModel(), batches(), SITES, "cpu")
