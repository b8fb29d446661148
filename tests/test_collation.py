"""Samples that do not stack: who, where and what to do; and datasets that are columns."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fastcap
from fastcap import extract_representations
from fastcap.errors import ArgumentError, ArgumentTypeError, BatchError, CollationError
from fastcap.reference import differences
from tests.support.datasets import expected, make_ids, make_samples
from tests.support.models import LanguageModel

# From Python 3.12 on, forking a process that has threads warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

IDS = make_ids(7)


class Image:
    """As one of PIL."""

    def getbands(self) -> tuple[str, ...]:
        return ("R", "G", "B")


def samples_with(odd: Any, key: str = "extra", ordinary: Any = 1) -> list[Any]:
    """Seven samples, of which number 4 has this value."""
    return [{"input_ids": ids, key: odd if n == 4 else ordinary} for n, ids in enumerate(IDS)]


RAGGED = [{"input_ids": ids[: 3 if n == 4 else 5]} for n, ids in enumerate(IDS)]
LISTS = [{"input_ids": ids.tolist()[: 3 if n == 1 else 5]} for n, ids in enumerate(IDS)]
CASES: dict[str, tuple[list[Any], str]] = {
    "ragged": (
        RAGGED,
        r"'input_ids' of sample 4 has shape \(3,\), and others \(5,\)\. Pad samples",
    ),
    "ragged lists": (LISTS, "'input_ids' of sample 1 has 3 items, and others 5. Pad samples"),
    "ragged tensors": ([r["input_ids"] for r in RAGGED], r"stacked: sample 4 has shape \(3,\)"),
    "ragged arrays": (
        samples_with(np.zeros(2), ordinary=np.zeros(3)),
        r"'extra' of sample 4 has shape \(2,\).* the same shape",
    ),
    "ragged pairs": ([(r["input_ids"], 1) for r in RAGGED[3:]], "0 of sample 1 has shape"),
    "None": (samples_with(None), "'extra' of sample 4 is None. Leave the key out"),
    "all None": ([{"input_ids": ids, "extra": None} for ids in IDS], "of sample 0 is None"),
    "a sample that is None": ([*IDS[:4], None, *IDS[5:]], "stacked: sample 4 is None"),
    "image": ([(Image(), 1)] * 7, "0 of sample 0 is an Image. Turn images into tensors"),
    "date": (samples_with(dt.date(2026, 1, 1)), "'extra' of sample 4 is a date. Give tens"),
    "keys": (
        [{"input_ids": ids} | ({} if n == 4 else {"b": 1}) for n, ids in enumerate(IDS)],
        r"sample 4 has the keys \['input_ids'\], and others \['b', 'input_ids'\]",
    ),
    "kinds": (samples_with("a text"), "'extra' of sample 4 is a str, and others an int"),
    "nested": (samples_with({"a": None}, ordinary={"a": 1}), "'a' of sample 4 is None"),
}


class Streamed(IterableDataset[Any]):
    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_stack_is_named_with_its_sample_and_a_way_out(
    case: str, tmp_path: Path
) -> None:
    samples, message = CASES[case]
    with pytest.raises(CollationError, match=message) as caught:
        extract_representations(LanguageModel(), samples, ["norm"], "cpu", 3)
    assert "collate_fn=" in str(caught.value)

    with pytest.raises(CollationError, match=message):
        fastcap.extract(LanguageModel(), samples, ["norm"], tmp_path, batch_size=3)


@pytest.mark.parametrize("n_workers", [0, 1])
@pytest.mark.parametrize("kind", ["stream", "loader"])
def test_the_number_is_right_however_samples_are_loaded(kind: str, n_workers: int) -> None:
    data: Any = Streamed(RAGGED)
    options: dict[str, Any] = {"batch_size": 3, "num_workers": n_workers}
    if kind == "loader":
        data, options = DataLoader(RAGGED, 3, num_workers=n_workers), {}  # type: ignore[arg-type]
    with pytest.raises(CollationError, match=r"sample 4 has shape \(3,\)"):
        extract_representations(LanguageModel(), data, ["norm"], "cpu", **options)


def test_a_continued_run_numbers_samples_as_the_first(tmp_path: Path) -> None:
    samples, model = make_samples(7), LanguageModel(n_layers=1)

    def stop(n_done: int, n_expected: int | None) -> None:
        if n_done >= 4:
            raise OSError("stopped")

    class Lazy(list[Any]):
        broken = False

        def __getitem__(self, index: Any) -> Any:
            return {"input_ids": IDS[5, :3]} if self.broken and index == 5 else samples[index]

        def fingerprint(self) -> str:
            return "the same"

    data, options = Lazy(samples), {"batch_size": 2, "group_bytes": 1}
    with pytest.raises(OSError, match="stopped"):
        fastcap.extract(model, data, ["norm"], tmp_path, progress=stop, **options)  # type: ignore[arg-type]
    data.broken = True
    with pytest.raises(CollationError, match=r"sample 5 has shape \(3,\)"):
        fastcap.extract(model, data, ["norm"], tmp_path, **options)  # type: ignore[arg-type]


def test_an_error_of_ones_own_collate_fn_arrives_unchanged() -> None:
    problem = ValueError("mine")

    def collate(samples: list[Any]) -> Any:
        raise problem

    with pytest.raises(ValueError, match="mine") as caught:
        extract_representations(
            LanguageModel(), make_samples(3), ["norm"], "cpu", collate_fn=collate
        )
    assert caught.value is problem


# Columns

COLUMNS: dict[str, Any] = {
    "tensors": {"input_ids": IDS},
    "arrays": {"input_ids": IDS.numpy()},
    "lists": {"input_ids": IDS.tolist()},
    "lists of tensors": {"input_ids": list(IDS)},
    "with labels": {"input_ids": IDS, "label": ["a"] * 7, "mask": np.ones((7, 5))},
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_rows_of_columns_are_the_samples(kind: str, tmp_path: Path) -> None:
    model, columns = LanguageModel(n_layers=1), COLUMNS[kind]
    wanted = expected(model, make_samples(7), ["norm"], 3)

    assert differences(wanted, extract_representations(model, columns, ["norm"], "cpu", 3)) == []
    archive = fastcap.extract(model, columns, ["norm"], tmp_path, batch_size=3)
    assert differences(wanted, {"norm": archive["norm"][:]}) == []
    assert fastcap.extract(model, columns, ["norm"], tmp_path, batch_size=3).is_complete


@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_what_a_tokenizer_returns_is_a_dataset(tensors: str | None) -> None:
    transformers = pytest.importorskip("transformers")
    encoded = transformers.BatchEncoding({"input_ids": IDS.tolist()}, tensor_type=tensors)
    model = LanguageModel(n_layers=1)
    found = extract_representations(model, encoded, ["norm"], "cpu", 3)

    assert differences(expected(model, make_samples(7), ["norm"], 3), found) == []


def test_what_a_tokenizer_returns_for_one_text_is_no_dataset_of_tokens() -> None:
    with pytest.raises(ArgumentTypeError, match=r"whose 'input_ids' is .* \[sample\]"):
        extract_representations(LanguageModel(), {"input_ids": 3}, ["norm"], "cpu")
    one = {"input_ids": IDS[0].tolist(), "attention_mask": [1] * 5}
    with pytest.raises(BatchError, match=r"\(5,\), and token ids are \(batch, sequence\)"):
        extract_representations(LanguageModel(), one, ["norm"], "cpu")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"input_ids": IDS, "label": [1, 2]}, r"\{'input_ids': 7, 'label': 2\} values"),
        ({}, "without columns"),
        ({"input_ids": IDS, "name": "a text"}, r"whose 'name' is a str"),
        ("a file.txt", "dataset is one text"),
    ],
)
def test_what_is_no_columns_is_refused(data: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError), match=message):
        extract_representations(LanguageModel(), data, ["norm"], "cpu")


def test_the_splits_of_a_dataset_are_not_its_columns() -> None:
    splits = {"train": Streamed(make_samples(3)), "test": Streamed(make_samples(2))}
    with pytest.raises(ArgumentTypeError, match=r"\['train', 'test'\]. Pass one .*\['train'\]"):
        extract_representations(LanguageModel(), splits, ["norm"], "cpu")


def test_a_table_of_pandas_is_refused_with_its_rows() -> None:
    class DataFrame:
        iloc = ()

        def __getitem__(self, key: str) -> Any:
            raise KeyError(key)

        def __len__(self) -> int:
            return 7

    with pytest.raises(ArgumentTypeError, match=r"DataFrame.*to_dict\('records'\)"):
        extract_representations(LanguageModel(), DataFrame(), ["norm"], "cpu")


def test_a_dict_of_samples_by_number_is_a_dataset() -> None:
    model, samples = LanguageModel(n_layers=1), make_samples(4)
    found = extract_representations(model, dict(enumerate(samples)), ["norm"], "cpu", 3)
    assert differences(expected(model, samples, ["norm"], 3), found) == []


# How many samples a batch has


class Detector(nn.Module):
    """Takes a list of images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)

    def forward(self, images: list[Tensor]) -> Tensor:
        return torch.cat([self.pool(image[None]) for image in images])


IMAGES = [torch.randn(3, 4 + n, 5, generator=torch.Generator().manual_seed(n)) for n in range(7)]
POOLED = {"": Detector()(IMAGES)}
"""The root, so that there is a row per image."""


def zipped(samples: list[Any]) -> Any:
    return tuple(zip(*samples, strict=True))


@pytest.mark.parametrize("n_batch", [2, 3, 4])
@pytest.mark.parametrize("way", ["zip", "list", "images", "dict", "object"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_that_are_lists_have_as_many_samples_as_they_were_made_of(
    way: str, n_batch: int, workers: int, tmp_path: Path
) -> None:
    class Holder:
        def __init__(self, samples: list[Any]) -> None:
            self.images = [image for image, _ in samples]

    data: Any = [(image, {"boxes": torch.zeros(1, 4)}) for image in IMAGES]
    collate: Any
    call: Any
    collate, call = {
        "zip": (zipped, lambda model, batch: model(list(batch[0]))),
        "list": (list, lambda model, batch: model([image for image, _ in batch])),
        "images": (lambda s: [image for image, _ in s], lambda model, batch: model(batch)),
        "dict": (lambda s: {"x": [image for image, _ in s]}, lambda m, batch: m(batch["x"])),
        "object": (Holder, lambda model, batch: model(batch.images)),
    }[way]
    if workers and way == "object":
        pytest.skip("a local class cannot be pickled")
    options: dict[str, Any] = {"collate_fn": collate, "forward": call, "num_workers": workers}
    found = extract_representations(Detector(), data, [""], "cpu", n_batch, **options)
    assert differences(POOLED, found) == []

    streamed: Any = Streamed(data)
    for number, source in enumerate([data, streamed] if not workers else []):
        folder = tmp_path / str(number)
        archive = fastcap.extract(Detector(), source, [""], folder, batch_size=n_batch, **options)
        assert differences(POOLED, {"": archive[""][:]}) == []
