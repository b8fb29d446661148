"""How batches get to the model: through the device, where that gives what `.to` gives."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import devices
from fastcap.devices.cpu import SynchronousDevice
from fastcap.model.forward import BatchCaller


class Pair(NamedTuple):
    left: Any
    right: Any


class Uploading(SynchronousDevice):
    """Stands in for an accelerator: notes what is uploaded, which stays where it is."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.uploads: list[Tensor] = []

    def upload(self, value: Tensor) -> Tensor:
        self.uploads.append(value)
        return value.clone()


@pytest.fixture
def device() -> Iterator[Uploading]:
    device = Uploading()
    with devices.substitute(lambda torch_device: device):
        yield device


def caller(**options: Any) -> BatchCaller:
    """Of a model without parameters, which is as much on an accelerator as anywhere."""
    return BatchCaller(nn.Identity(), "cuda", None, options.pop("forward", None))


class Encoding(UserDict):  # type: ignore[type-arg]
    """As transformers' `BatchEncoding`, which moves itself in place and drops what is `None`."""

    def to(self, device: Any) -> Encoding:
        self.data = {key: item for key, item in self.data.items() if item is not None}
        self.moved_to = device
        return self


def run(model: nn.Module, batch: Any) -> None:
    """A `forward=`."""


def test_every_tensor_of_a_batch_is_uploaded_wherever_it_is(device: Uploading) -> None:
    ids, mask, width = torch.ones(2, 3), torch.zeros(2, 3), torch.ones(2)
    batch = {"input_ids": ids, "nested": [mask, Pair(width, "text")], "n": 3}
    moved = caller(forward=run).prepare(batch)
    assert [id(each) for each in device.uploads] == [id(ids), id(mask), id(width)]
    assert moved["input_ids"].equal(ids)
    assert isinstance(moved["nested"][1], Pair)
    assert moved["nested"][1].right == "text"
    assert moved["n"] == 3
    assert batch["input_ids"] is ids


def test_the_inputs_of_a_model_are_uploaded(device: Uploading) -> None:
    call = BatchCaller(nn.Identity(), "cuda", ["attention_mask"], None)
    batch = {"input_ids": torch.ones(2, 3), "attention_mask": torch.ones(2, 3), "label": "text"}
    assert list(call.prepare(batch)) == ["input_ids", "attention_mask"]
    assert len(device.uploads) == 2


def test_a_batch_that_moves_itself_has_its_tensors_moved_before(device: Uploading) -> None:
    ids = torch.ones(2, 3)
    batch = Encoding({"input_ids": ids, "labels": None})
    moved = caller(forward=run).prepare(batch)
    assert isinstance(moved, Encoding)
    assert moved.moved_to == torch.device("cuda")
    assert dict(moved) == {"input_ids": moved["input_ids"]}
    assert [id(each) for each in device.uploads] == [id(ids)]
    assert dict(batch) == {"input_ids": ids, "labels": None}


class Labelled(Tensor):
    """A kind of tensor of the user's."""


class NotPlain(NamedTuple):
    kind: str
    value: Tensor


@pytest.mark.parametrize(
    "case",
    [
        NotPlain("subclass", torch.ones(2).as_subclass(Labelled)),
        NotPlain("parameter", nn.Parameter(torch.ones(2))),
        NotPlain("requires a gradient", torch.ones(2, requires_grad=True)),
        NotPlain("sparse", torch.eye(2).to_sparse()),
        NotPlain("elsewhere", torch.ones(2, device="meta")),
    ],
    ids=lambda case: case.kind,
)
def test_what_is_no_plain_host_tensor_moves_as_torch_moves_it(
    device: Uploading, monkeypatch: pytest.MonkeyPatch, case: NotPlain
) -> None:
    asked: list[Any] = []

    def to(value: Tensor, *args: Any) -> Tensor:
        asked.append(args)
        return value

    monkeypatch.setattr(type(case.value), "to", to, raising=False)
    assert caller(forward=run).prepare(case.value) is case.value
    assert asked == [(torch.device("cuda"),)]
    assert not device.uploads


def test_batches_for_a_cpu_model_are_not_copied(device: Uploading) -> None:
    ids = torch.ones(2, 3)
    call = BatchCaller(nn.Linear(3, 3), "cpu", None, None)
    assert call.prepare({"input_ids": ids})["input_ids"] is ids
    assert not device.uploads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, none is here")
@pytest.mark.parametrize("pinned", [False, True])
def test_a_batch_may_be_written_to_as_soon_as_its_pass_has_begun(pinned: bool) -> None:
    model = nn.Sequential(nn.Identity()).cuda()
    batch = torch.empty(256, 1024, pin_memory=pinned)

    def batches() -> Iterator[Tensor]:
        for number in range(8):
            yield batch.fill_(number)

    torch.cuda._sleep(200_000_000)  # type: ignore[no-untyped-call]
    run = fastcap.stream(model, batches(), ["0"], device="cuda")
    for number, records in enumerate(run):
        assert records["0"].eq(number).all()
