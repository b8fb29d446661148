"""What is said about a value that a site produced: positions, dtypes, rows, and odd tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastcap import ActivationStore, FastcapWarning, stream
from fastcap import extract_representations as extract
from fastcap.errors import (
    CastError,
    PositionError,
    ResultError,
    SelectionError,
    UnsupportedTensorError,
)
from fastcap.reference import differences
from tests.support.datasets import expected, make_ids, make_samples, stack
from tests.support.errors import message_of
from tests.support.models import LanguageModel, PositionTable, Returning, WithOddModule, hooks_on

SAMPLES = make_samples(7)  # rows of 5 tokens


def refused(error: type[Exception], model: nn.Module, site: str, **options: Any) -> str:
    """What is said when extraction fails at a site; the model is as before."""
    message = message_of(error, lambda: extract(model, SAMPLES, [site], "cpu", 3, **options))
    assert (hooks_on(model), model.training) == (0, True)
    return message


# Positions


@pytest.mark.parametrize(
    ("positions", "named"), [(5, 5), (-6, -6), ([0, 7], 7), ([-1, -9, 8], -9)], ids=str
)
def test_a_position_out_of_range_is_named_with_the_shape(positions: Any, named: int) -> None:
    assert refused(PositionError, LanguageModel(), "norm", positions=positions) == (
        f"Site 'norm' produced shape (3, 5, 16): position {named} is out of range for the 5 of "
        "dimension 1."
    )


def test_positions_of_a_value_without_that_dimension_are_refused() -> None:
    model = WithOddModule(lambda acts: acts[:, 0, 0])

    assert refused(PositionError, model, "odd", positions=-1) == (
        "Site 'odd' produced shape (3,), which has no dimension 1 to take positions=-1 from. Leave "
        "positions= out for this site, or name the dimension with seq_dim=."
    )
    assert "no dimension 3 to take" in refused(PositionError, model, "odd", positions=0, seq_dim=3)


@pytest.mark.parametrize(
    "make", [lambda acts: acts[:, 0], lambda acts: acts.transpose(1, 2)], ids=["pooled", "heads"]
)
def test_positions_where_dimension_one_does_not_count_tokens_are_refused(
    make: Callable[[Tensor], Tensor],
) -> None:
    model = WithOddModule(make)
    shape = tuple(make(torch.zeros(3, 5, 16)).shape)

    assert refused(SelectionError, model, "odd", positions=-1) == (
        f"Site 'odd' produced shape {shape}, but the pass has 5 tokens per sample, so dimension 1 "
        "does not count tokens. Name the dimension with seq_dim= (seq_dim=1 if this is what you "
        "want)."
    )
    found = extract(model, SAMPLES, ["odd"], "cpu", 3, positions=-1, seq_dim=1)
    assert found["odd"].shape == (7, *shape[2:])


def test_a_guessed_dimension_is_not_held_against_inputs_that_are_no_token_ids() -> None:
    model = nn.Sequential(nn.Linear(5, 6))
    [records] = stream(model, [torch.randn(3, 5)], ["0"], positions=-1)

    assert records["0"].shape == (3,)


# Reduce and dtype


@pytest.mark.parametrize(
    ("reduce", "kind"),
    [(lambda acts: None, "a NoneType"), (lambda acts: acts.max(dim=1), "a max"), (len, "an int")],
    ids=["None", "max", "len"],
)
def test_a_reduce_that_returns_no_tensor_is_refused_with_what_it_returned(
    reduce: Any, kind: str
) -> None:
    assert refused(SelectionError, LanguageModel(), "norm", reduce=reduce) == (
        f"reduce returned {kind} for site 'norm' (input shape (3, 5, 16)); it must return a tensor."
    )


def test_an_error_inside_reduce_arrives_unchanged() -> None:
    problem = ZeroDivisionError("mine")

    def fail(acts: Tensor) -> Tensor:
        raise problem

    model = LanguageModel()
    with pytest.raises(ZeroDivisionError) as caught:
        extract(model, SAMPLES, ["norm"], "cpu", reduce=fail)

    assert caught.value is problem
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    ("produced", "asked"),
    [
        (torch.complex64, torch.float32),
        (torch.complex64, torch.int64),
        (torch.float32, torch.int64),
        (torch.float32, torch.bool),
        (torch.int64, torch.bool),
        (torch.bfloat16, torch.uint8),
    ],
    ids=str,
)
def test_a_dtype_that_cannot_hold_the_values_is_refused(
    produced: torch.dtype, asked: torch.dtype
) -> None:
    model = WithOddModule(lambda acts: acts.to(produced))

    message = refused(CastError, model, "odd", dtype=asked)

    assert message == (
        f"Site 'odd' produced {produced}, which dtype={asked} cannot hold. Leave dtype= out, or "
        "say how to convert with reduce=, such as reduce=lambda acts: acts.abs() for complex "
        "values or acts.round().to(torch.int32)."
    )
    found = extract(model, SAMPLES, ["odd"], "cpu", reduce=lambda acts: acts.abs().float())
    assert found["odd"].dtype is torch.float32


# Rows


def test_a_first_dimension_that_is_not_the_batch_is_refused_and_stream_takes_it() -> None:
    model = PositionTable()

    assert refused(ResultError, model, "wpe") == (
        "Site 'wpe' produced shape (1, 5, 16) for a batch of 3 samples: its first dimension is not "
        "the batch, so its rows cannot be matched to samples. Name the dimension that counts "
        "samples with batch_dim=, capture another module, or receive it batch by batch with "
        "fastcap.stream()."
    )
    assert [records["wpe"].shape for records in stream(model, stack(SAMPLES, 3), ["wpe"])] == (
        [(1, 5, 16)] * 3
    )


def test_a_site_that_produces_one_number_is_refused_with_its_shape() -> None:
    model = WithOddModule(lambda acts: acts.sum())

    assert "'odd' produced shape () for a batch of 3" in refused(ResultError, model, "odd")


def test_batches_of_different_lengths_are_refused_with_both_shapes_and_three_ways_out() -> None:
    model = LanguageModel()
    samples = make_samples(2, n_tokens=4) + make_samples(2, n_tokens=6)

    def run(**options: Any) -> dict[str, Tensor]:
        return extract(model, samples, ["norm"], "cpu", 2, **options)

    assert message_of(ResultError, run) == (
        "Site 'norm' produced rows of shape (6, 16) in batch 1 and (4, 16) before. Rows of one "
        "result need one shape: pad all samples to one length, or select what has one shape in "
        "every batch (positions='last', reduce='mean'), or receive batches as they are with "
        "fastcap.stream()."
    )
    assert hooks_on(model) == 0
    assert run(positions=-1)["norm"].shape == (4, 16)
    assert run(reduce=lambda acts: acts.mean(dim=1))["norm"].shape == (4, 16)
    assert [len(records["norm"]) for records in stream(model, stack(samples, 2), ["norm"])] == [
        2,
        2,
    ]


def test_a_dtype_that_changes_is_refused_and_dtype_settles_it() -> None:
    def model() -> nn.Module:
        dtypes = [torch.float32, torch.float64, torch.float32]
        return WithOddModule(lambda acts: acts.to(dtypes.pop(0)))

    assert refused(ResultError, model(), "odd") == (
        "Site 'odd' produced torch.float64 in batch 1 and torch.float32 before. Ask for one with "
        "dtype=, such as dtype=torch.float32."
    )
    found = extract(model(), SAMPLES, ["odd"], "cpu", 3, dtype=torch.float64)
    steady = WithOddModule(lambda acts: acts.double())
    assert differences(expected(steady, SAMPLES, ["odd"], 3), found) == []


class Sometimes(nn.Module):
    """Calls `other` in the passes it is told to."""

    def __init__(self, passes: list[bool]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 4)
        self.other = nn.Identity()
        self.passes = passes

    def forward(self, ids: Tensor) -> Tensor:
        acts: Tensor = self.embedding(ids)
        if self.passes.pop(0):
            self.other(acts)
        return acts


@pytest.mark.parametrize(
    ("passes", "what", "others"),
    [
        ([True, False, True], "captured nothing in batch 1", "earlier ones did"),
        ([True, True, False], "captured nothing in batch 2", "earlier ones did"),
        ([False, True, True], "captured something in batch 1", "earlier ones did not"),
    ],
    ids=["middle", "end", "late"],
)
def test_a_site_that_fires_in_some_batches_only_is_refused(
    passes: list[bool], what: str, others: str
) -> None:
    model = Sometimes(passes)

    with nullcontext() if passes[0] else pytest.warns(FastcapWarning, match="'other': the forward"):
        message = message_of(
            ResultError, lambda: extract(model, SAMPLES, ["embedding", "other"], "cpu", 3)
        )

    assert message == (
        f"Site 'other' {what}, but {others}: its rows would not match the samples. Leave this site "
        "out, or receive it with fastcap.stream()."
    )
    assert hooks_on(model) == 0


# Tensors whose bytes are not one block


class Wrapping(Tensor):
    """A subclass that says it wraps other tensors, as distributed and quantised ones do."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return [], None

    @staticmethod
    def __tensor_unflatten__(*_: object) -> Tensor:
        raise NotImplementedError


ODD_TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (
        lambda acts: acts[0].to_sparse(),
        "a sparse tensor (torch.sparse_coo); capture a module that returns a dense one",
    ),
    "compressed": (
        lambda acts: acts[0].to_sparse_csr(),
        "a sparse tensor (torch.sparse_csr); capture a module that returns a dense one",
    ),
    "quantised": (
        lambda acts: torch.quantize_per_tensor(acts, 0.1, 0, torch.qint8),
        "a quantised tensor; capture a module after dequantisation",
    ),
    "meta": (
        lambda acts: acts.to("meta"),
        "a meta tensor, which has no data; load the model's weights onto a device first",
    ),
    "wrapper": (
        lambda acts: acts.as_subclass(Wrapping),
        "a Wrapping, which wraps other tensors; capture where the model has a plain one",
    ),
}


# torch says of several of these kinds that they are prototypes, in beta or on their way out.
@pytest.mark.filterwarnings("ignore:.*(prototype|beta state|deprecated):UserWarning")
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_cannot_be_copied_as_bytes_is_refused_with_what_to_do(kind: str) -> None:
    make, said = ODD_TENSORS[kind]
    text = f"Cannot capture site 'odd': its value is {said}."

    assert refused(UnsupportedTensorError, WithOddModule(make), "odd") == text

    model = WithOddModule(make)
    with ActivationStore(model, ["embedding", "odd"]) as store:
        assert message_of(UnsupportedTensorError, lambda: model(make_ids(3))) == text
        assert list(store.activations) == ["embedding"]


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad], ids=["vmap", "grad"])
def test_values_inside_a_functorch_transform_are_refused(transform: Any) -> None:
    model = Returning(lambda acts: (acts * 2).sum())
    with ActivationStore(model, [""]):
        message = message_of(UnsupportedTensorError, lambda: transform(model)(torch.ones(2, 2)))

    assert message == (
        "Cannot capture site '': its value is inside a functorch transform (vmap, grad); call the "
        "model outside of it."
    )


def test_fake_tensors_pass_through_uncaptured_and_it_is_said_once() -> None:
    model = Returning(lambda acts: acts * 2)
    message = re.escape("Nothing is captured at site '': its value is fake.")
    with (
        ActivationStore(model, [""]) as store,
        FakeTensorMode(),
        pytest.warns(FastcapWarning, match=message) as said,
    ):
        shapes = [model(torch.ones(2, 3)).shape for _ in range(2)]

    assert shapes == [(2, 3)] * 2
    assert len(said) == 1
    assert store.activations == {}
