"""`extract_representations` with every kind of data set, honest about its length or not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from fastcap import FastcapWarning, extract_representations
from fastcap.errors import BatchError
from fastcap.reference import differences
from tests.support.datasets import (
    LyingStream,
    Sample,
    Tokens,
    TokenStream,
    expected,
    make_ids,
    make_samples,
    storage_bytes,
)
from tests.support.models import LanguageModel, hooks_on

SITES = ["norm", "layers.0.mlp"]


class UnwillingStream(TokenStream):
    """An iterable data set whose length is asked for in vain."""

    def __len__(self) -> int:
        raise NotImplementedError


DATASETS: dict[str, Callable[[], Any]] = {
    "a list": lambda: make_samples(7),
    "a tuple": lambda: tuple(make_samples(7)),
    "map-style": lambda: Tokens(7),
    "a subset": lambda: Subset(Tokens(9), list(range(7))),
    "two data sets": lambda: ConcatDataset([make_samples(7)[:2], make_samples(7)[2:]]),  # type: ignore[list-item]
    "iterable": lambda: TokenStream(7),
    "an iterable that does not say": lambda: UnwillingStream(7),
    "an iterable that says too few": lambda: LyingStream(7, reported=2),
    "an iterable that says none": lambda: LyingStream(7, reported=0),
    "an iterable that says too many": lambda: LyingStream(7, reported=1000),
}


@pytest.mark.parametrize("max_samples", [None, 1, 3, 5, 6, 100])
@pytest.mark.parametrize("kind", DATASETS)
def test_every_kind_of_data_set_gives_the_rows_of_the_oracle(
    kind: str, max_samples: int | None
) -> None:
    model = LanguageModel(n_layers=1)
    found = extract_representations(model, DATASETS[kind](), SITES, "cpu", 3, max_samples)

    assert differences(expected(model, make_samples(7), SITES, 3, max_samples), found) == []
    for value in found.values():
        assert storage_bytes(value) == value.nbytes


def test_a_subset_in_another_order_gives_rows_in_that_order() -> None:
    model, order = LanguageModel(), [5, 0, 3]
    samples = make_samples(7)
    found = extract_representations(model, Subset(Tokens(7), order), SITES, "cpu", 2)

    assert differences(expected(model, [samples[i] for i in order], SITES, 2), found) == []


def test_no_more_samples_are_read_than_the_last_batch_needs() -> None:
    dataset = TokenStream(30)
    extract_representations(LanguageModel(), dataset, SITES, "cpu", batch_size=3, max_samples=4)

    assert dataset.n_read == 6


@pytest.mark.parametrize("dataset", [[], TokenStream(0)], ids=["list", "iterable"])
def test_an_empty_data_set_gives_an_empty_result_with_a_warning(dataset: Any) -> None:
    with pytest.warns(FastcapWarning, match=r"Nothing was captured at 'norm', 'layers\.0\.mlp'"):
        found = extract_representations(LanguageModel(), dataset, SITES, "cpu")

    assert found == {}


def test_a_map_style_data_set_that_is_shorter_than_it_says_fails_with_its_own_error() -> None:
    class TooShort(Tokens):
        def __len__(self) -> int:
            return 100

    model = LanguageModel()
    with pytest.raises(IndexError, match="list index out of range"):
        extract_representations(model, TooShort(7), SITES, "cpu", 3)
    assert hooks_on(model) == 0


def test_an_error_of_the_data_set_reaches_the_caller_unchanged() -> None:
    problem = OSError("the file went away")

    class Failing(IterableDataset[Sample]):
        def __iter__(self) -> Iterator[Sample]:
            yield from make_samples(4)
            raise problem

    model = LanguageModel()
    with pytest.raises(OSError, match="the file went away") as caught:
        extract_representations(model, Failing(), SITES, "cpu", 2)

    assert caught.value is problem
    assert (hooks_on(model), model.training) == (0, True)


def test_samples_that_are_tensors_are_the_one_argument_of_the_model() -> None:
    model, ids = LanguageModel(), make_ids(7)
    found = extract_representations(model, list(ids), SITES, "cpu", 3)

    assert differences(expected(model, make_samples(7), SITES, 3), found) == []


def test_samples_that_are_tuples_of_named_tensors_are_the_arguments_of_the_model() -> None:
    class Adds(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    left, right = torch.randn(7, 4), torch.randn(7, 4)
    data, names = TensorDataset(left, right), ["left", "right"]
    found = extract_representations(Adds(), data, [""], "cpu", 3, model_inputs=names)

    assert differences({"": left + right}, found) == []


class Pair(NamedTuple):
    """A sample of two tensors."""

    left: Tensor
    right: Tensor


def test_samples_that_are_named_tuples_of_tensors_are_the_arguments_of_the_model() -> None:
    class Adds(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    pairs = [Pair(torch.randn(4), torch.randn(4)) for _ in range(7)]
    found = extract_representations(Adds(), pairs, [""], "cpu", 3)

    wanted = torch.stack([pair.left + pair.right for pair in pairs])
    assert differences({"": wanted}, found) == []


TEXTS: dict[str, list[Any]] = {
    "text": ["a", "bb", "ccc", "dddd", "eeeee"],
    "dicts of text": [{"text": "word " * index} for index in range(5)],
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_forward_of_ones_own_may_make_tensors_of_batches_without_any(kind: str) -> None:
    def tokenise(model: nn.Module, batch: Any) -> Any:
        texts = batch["text"] if isinstance(batch, dict) else batch
        return model(torch.tensor([[len(text), 1] for text in texts]))

    model = LanguageModel()
    found = extract_representations(model, TEXTS[kind], SITES, "cpu", 2, forward=tokenise)

    words = [item["text"] if isinstance(item, dict) else item for item in TEXTS[kind]]
    samples = [{"input_ids": torch.tensor([len(word), 1])} for word in words]
    assert differences(expected(model, samples, SITES, 2), found) == []


def test_samples_of_text_are_refused_with_a_way_out() -> None:
    with pytest.raises(BatchError, match="forward=lambda model, batch"):
        extract_representations(LanguageModel(), ["a", "b"], SITES, "cpu")


def test_text_can_be_turned_into_ids_by_collate_fn() -> None:
    model, samples = LanguageModel(), make_samples(7)
    texts = ["".join(chr(97 + int(i)) for i in sample["input_ids"]) for sample in samples]

    def encode(batch: list[str]) -> Sample:
        ids = torch.tensor([[ord(letter) - 97 for letter in text] for text in batch])
        return {"input_ids": ids}

    found = extract_representations(model, texts, SITES, "cpu", 3, collate_fn=encode)

    assert differences(expected(model, samples, SITES, 3), found) == []


class LoadedElsewhere(Dataset[Sample]):
    """Gives its samples only to processes other than the one that made it."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.process_id = os.getpid()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        assert os.getpid() != self.process_id, "loaded in the main process"
        return self.samples[index]


# From Python 3.12 on, forking a process that has threads warns.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_data_can_be_loaded_by_other_processes() -> None:
    model = LanguageModel(n_layers=1)
    dataset = LoadedElsewhere(make_samples(7))
    found = extract_representations(model, dataset, SITES, "cpu", 3, num_workers=1)

    assert differences(expected(model, make_samples(7), SITES, 3), found) == []


def test_batches_keep_the_length_of_their_own_when_the_selection_makes_rows_alike() -> None:
    model = LanguageModel()
    lengths = [4, 4, 6, 6, 9]
    samples = [{"input_ids": make_ids(1, n, seed=n)[0]} for n in lengths]
    found = extract_representations(model, samples, ["norm"], "cpu", 2, positions=-1)

    assert found["norm"].shape == (5, 16)


def test_a_batch_without_samples_adds_no_rows_and_it_is_said() -> None:
    model, samples = LanguageModel(), make_samples(4)

    def collate(batch: list[Sample]) -> Sample:
        ids = [sample["input_ids"] for sample in batch]
        kept = [row for row in ids if not torch.equal(row, samples[2]["input_ids"])]
        return {"input_ids": torch.stack(kept) if kept else torch.zeros(0, 5, dtype=torch.int64)}

    with pytest.warns(FastcapWarning, match="1 sample became a batch of 0") as said:
        found = extract_representations(model, samples, ["norm"], "cpu", 1, collate_fn=collate)

    assert [warning.filename for warning in said] == [__file__]
    kept = [samples[0], samples[1], samples[3]]
    assert differences(expected(model, kept, ["norm"], 1), found) == []
