"""Every tensor of a batch goes where the user meant it to: none is bound by its place alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastcap
from fastcap import extract_representations, stream
from fastcap.errors import BatchError
from fastcap.reference import differences
from tests.support.errors import message_of


class Masked(nn.Module):
    """An encoder as BERT's: its second argument is a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        acts = self.embed(input_ids)
        return acts if attention_mask is None else acts * attention_mask[..., None]


class Returning(nn.Module):
    """A network whose second argument is a flag."""

    def forward(self, x: Tensor, doubled: Any = False) -> Tensor:
        return x * 2 if torch.as_tensor(doubled).any() else x


IDS = torch.arange(12).view(4, 3)
TAGS = torch.tensor([[1, 0, 1]]).expand(4, 3).contiguous()


def test_labels_beside_the_ids_are_not_taken_for_the_second_argument() -> None:
    data = TensorDataset(IDS, TAGS)

    assert message_of(BatchError, lambda: extract_representations(Masked(), data, [""], "cpu")) == (
        "The batch is 2 tensors, and nothing names them. The model is called as "
        "Masked.forward(input_ids, attention_mask=None). Give one name for each tensor, such as "
        "model_inputs=['input_ids', 'attention_mask'], or say which of them are inputs: "
        "forward=lambda model, batch: model(batch[0])."
    )


def test_images_with_labels_are_refused_by_the_iterator_too() -> None:
    pairs: Any = [(torch.ones(3), 1), (torch.ones(3), 0)]
    batches: DataLoader[Any] = DataLoader(pairs, batch_size=2)

    with pytest.raises(BatchError, match=r"Returning\.forward\(x, doubled=False\)"):
        next(stream(Returning(), batches, [""]))

    [records] = stream(Returning(), batches, [""], forward=lambda model, batch: model(batch[0]))
    assert torch.equal(records[""], torch.ones(2, 3))


@pytest.mark.parametrize(
    "names", [["input_ids", "attention_mask"], ("attention_mask", "input_ids")]
)
def test_named_tensors_are_bound_by_their_names(names: Any) -> None:
    tensors = {"input_ids": IDS, "attention_mask": TAGS}
    data = TensorDataset(*(tensors[name] for name in names))
    model = Masked()

    found = extract_representations(model, data, [""], "cpu", 2, model_inputs=names)

    assert differences({"": model(IDS, TAGS).detach()}, found) == []


@pytest.mark.parametrize("names", ["attention_mask", ["input_ids", "attention_mask", "labels"]])
def test_other_than_one_name_for_each_tensor_is_refused(names: Any) -> None:
    with pytest.raises(BatchError, match=r"The batch is 2 tensors, and model_inputs names [13]: "):
        next(stream(Masked(), [(IDS, TAGS)], [""], model_inputs=names))


class Pair(NamedTuple):
    """Tensors that have names already."""

    attention_mask: Tensor
    input_ids: Tensor


def test_a_named_tuple_names_its_tensors() -> None:
    model = Masked()
    pairs = [Pair(mask, ids) for mask, ids in zip(TAGS, IDS, strict=True)]

    found = extract_representations(model, pairs, [""], "cpu", 2)

    assert differences({"": model(IDS, TAGS).detach()}, found) == []


def test_a_tuple_of_one_tensor_is_the_one_argument() -> None:
    found = extract_representations(Masked(), TensorDataset(IDS), ["embed"], "cpu", 2)

    assert found["embed"].shape == (4, 3, 4)


def test_an_example_of_a_list_of_sites_is_bound_by_the_same_rule() -> None:
    with pytest.raises(BatchError, match="2 tensors, and nothing names them"):
        fastcap.list_sites(Masked(), (IDS, TAGS))
