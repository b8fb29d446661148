"""Selections that look at each sample's own tokens: last, unpadded, mean, positions per sample."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import reference
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.datasets import make_ids
from tests.support.models import LanguageModel, Returning
from tests.support.runs import running_on

MASKS: dict[str, list[list[int]]] = {
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "holes": [[1, 0, 1, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0]],
    "none": [[1, 1, 1, 1, 1]] * 3,
}
SITES = ["layers.0.mlp", "norm"]
SELECTIONS: dict[str, dict[str, Any]] = {
    "last": {"positions": "last"},
    "last in float16": {"positions": "last", "dtype": torch.float16},
    "unpadded": {"positions": "unpadded"},
    "unpadded, reduced": {"positions": "unpadded", "reduce": lambda acts: acts.amax(dim=0)},
    "mean": {"reduce": "mean"},
    "mean in float32": {"reduce": "mean", "dtype": torch.float32},
    "mean in bfloat16": {"reduce": "mean", "dtype": torch.bfloat16},
    "lists": {"positions": [[0, -1], [2, 2], [-5, 4]]},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def on(place: str) -> AbstractContextManager[Any]:
    if place == "cpu":
        return nullcontext()
    return running_on(SimulatedDevice(Schedule(place, seed=3)))


def numpy_of(value: Tensor) -> np.ndarray[Any, Any]:
    return value.double().numpy()


def full_capture(model: nn.Module, ids: Tensor, mask: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    with ReferenceStore(model, SITES) as oracle, torch.no_grad():
        model(ids, mask)
    return {site: numpy_of(value) for site, value in oracle.activations.items()}


@pytest.mark.parametrize("place", ["cpu", *EXTREMES, "random"])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_selection_equals_the_oracle(place: str, selection: str) -> None:
    options = SELECTIONS[selection]
    dtypes = DTYPES if place == "cpu" else DTYPES[:2]
    for dtype in dtypes:
        model = LanguageModel().to(dtype)
        with (
            on(place),
            fastcap.ActivationStore(model, SITES, **options) as store,
            ReferenceStore(model, SITES, make_selection(**options)) as oracle,
        ):
            for padding in MASKS.values():
                model(make_ids(3), torch.tensor(padding))
                assert differences(oracle.activations, store.activations) == []


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_last_and_unpadded_are_numpys_rows_of_the_full_capture(
    padding: str, dtype: torch.dtype
) -> None:
    model, ids, mask = LanguageModel().to(dtype), make_ids(3), torch.tensor(MASKS[padding])
    full = full_capture(model, ids, mask)
    real = [np.flatnonzero(row) for row in MASKS[padding]]

    with fastcap.ActivationStore(model, SITES, positions="last") as store:
        model(ids, mask)
    last_by_site = {site: value.tolist() for site, value in store.activations.items()}
    for site, value in store.activations.items():
        last = np.stack([full[site][i, where[-1]] for i, where in enumerate(real)])
        assert value.dtype is dtype
        assert np.array_equal(numpy_of(value), last)

    with fastcap.ActivationStore(model, SITES, positions="unpadded") as store:
        model(ids, mask)
    for site, value in store.activations.items():
        assert np.array_equal(numpy_of(value), full[site][np.array(MASKS[padding], dtype=bool)])
        assert store.lengths(site) == tuple(map(len, real))
        parts = torch.split(value, [len(where) for where in real])
        assert [part[-1].tolist() for part in parts] == last_by_site[site]


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mean_is_numpys_mean_of_the_full_capture_up_to_float32(
    padding: str, dtype: torch.dtype
) -> None:
    model, ids, mask = LanguageModel().to(dtype), make_ids(3), torch.tensor(MASKS[padding])
    full = full_capture(model, ids, mask)
    weights = np.array(MASKS[padding], dtype=bool)

    found = {}
    for asked in (None, torch.float32):
        with fastcap.ActivationStore(model, SITES, reduce="mean", dtype=asked) as store:
            model(ids, mask)
        found[asked] = store.activations
    for site in SITES:
        means = np.stack(
            [acts[real].mean(axis=0) for acts, real in zip(full[site], weights, strict=True)]
        )
        np.testing.assert_allclose(numpy_of(found[torch.float32][site]), means, rtol=0, atol=1e-6)
        assert found[None][site].dtype is dtype
        assert torch.equal(found[None][site], found[torch.float32][site].to(dtype))


def test_a_mean_is_not_rounded_through_the_dtype_of_the_value() -> None:
    model = Returning(lambda acts: acts)
    acts = torch.tensor([1.0, 1.0, 1.0078125], dtype=torch.bfloat16).view(1, 3, 1)
    mask = torch.ones(1, 3, dtype=torch.int64)
    with fastcap.ActivationStore(
        model, [""], reduce="mean", dtype=torch.float32, mask=mask
    ) as store:
        model(acts)
    mean = store.activations[""]
    assert mean.item() == pytest.approx(1.0026041666, abs=1e-7)
    assert mean.item() != mean.bfloat16().item()


def test_what_stands_in_padding_does_not_matter_not_even_nan() -> None:
    model = Returning(lambda acts: acts)
    acts = torch.tensor([[1.0, 3.0, torch.nan], [torch.inf, -torch.inf, 5.0]])[..., None]
    mask = torch.tensor([[1, 1, 0], [0, 0, 1]])
    for options, expected in (
        ({"reduce": "mean"}, [[2.0], [5.0]]),
        ({"positions": "last"}, [[3.0], [5.0]]),
        ({"positions": "unpadded"}, [[1.0], [3.0], [5.0]]),
    ):
        selection: dict[str, Any] = options
        with fastcap.ActivationStore(model, [""], mask=mask, **selection) as store:
            model(acts)
        assert store.activations[""].tolist() == expected


FRACTIONAL = [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.float64]
WHOLE = [torch.int64, torch.uint8, torch.bool]
ODD_CASES = [
    *itertools.product(["last", "unpadded", "lists"], [*FRACTIONAL, *WHOLE]),
    *itertools.product(["mean"], FRACTIONAL),
]


@pytest.mark.parametrize("seq_dim", [1, 2, -1])
@pytest.mark.parametrize(("selection", "dtype"), ODD_CASES, ids=str)
def test_any_dtype_layout_and_dimension_of_positions(
    selection: str, dtype: torch.dtype, seq_dim: int
) -> None:
    options: dict[str, Any] = {**SELECTIONS[selection], "seq_dim": seq_dim}
    raw = torch.randint(0, 3, (6, 5, 5, 3), generator=torch.Generator().manual_seed(1)).to(dtype)
    layouts = [raw[:3], raw[3:].transpose(1, 2), raw[::2], raw[:3, ..., 0], raw[:3].movedim(3, 1)]
    values = [value for value in layouts if value.shape[seq_dim] == 5]
    mask = None if selection == "lists" else torch.tensor(MASKS["holes"])
    given: dict[str, Any] = {} if mask is None else {"mask": mask}
    model = Returning(lambda acts: acts)
    with (
        fastcap.ActivationStore(model, [""], **options, **given) as store,
        ReferenceStore(model, [""], make_selection(**options)) as oracle,
    ):
        oracle.of_batch = mask
        for value in values:
            model(value)
            assert differences(oracle.activations, store.activations) == []
    assert values


@pytest.mark.parametrize("positions", [np.array([[0], [1]]), torch.tensor([[0], [1]]), [(0,), [1]]])
def test_positions_of_each_sample_are_lists_arrays_or_tensors(positions: Any) -> None:
    model = Returning(lambda acts: acts)
    with fastcap.ActivationStore(model, [""], positions=positions) as store:
        model(torch.arange(6.0).view(2, 3))
    assert store.activations[""].tolist() == [[0.0], [4.0]]
    assert store.lengths("") is None


def test_a_batch_of_no_samples_gives_rows_of_no_samples() -> None:
    model = Returning(lambda acts: acts)
    mask = torch.ones(0, 3, dtype=torch.bool)
    for options, shape in (
        ({"reduce": "mean"}, (0, 2)),
        ({"positions": "last"}, (0, 2)),
        ({"positions": "unpadded"}, (0, 2)),
    ):
        selection: dict[str, Any] = options
        with fastcap.ActivationStore(model, [""], mask=mask, **selection) as store:
            model(torch.ones(0, 3, 2))
        assert store.activations[""].shape == shape


# Runs over batches


def batches_of(padding: str, **more: Tensor) -> list[dict[str, Tensor]]:
    mask = torch.tensor(MASKS[padding])
    return [{"input_ids": make_ids(3, seed=i), "attention_mask": mask, **more} for i in range(3)]


def call(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    return model(batch["input_ids"], batch["attention_mask"])


@pytest.mark.parametrize("place", ["cpu", "random"])
@pytest.mark.parametrize("selection", [*SELECTIONS, "key", "keys"])
def test_streams_equal_the_oracle(place: str, selection: str) -> None:
    model, batches = LanguageModel(), batches_of("left")
    options = SELECTIONS.get(selection, {"positions": "answer"})
    for i, batch in enumerate(batches):
        many = torch.tensor([[i, 1], [-1, 2], [0, i]])
        batch["answer"] = many if selection == "keys" else many[:, 0]
    expected = list(reference.stream(model, batches, SITES, call, make_selection(**options)))
    with on(place):
        found = list(
            fastcap.stream(model, batches, SITES, model_inputs=["attention_mask"], **options)
        )
    assert len(found) == 3
    for want, got in zip(expected, found, strict=True):
        assert differences(want, dict(got)) == []
        ragged = options.get("positions") == "unpadded"
        assert got.lengths("norm") == ((3, 5, 1) if ragged else None)
        assert [record.lengths for record in got.records] == [got.lengths("norm")] * 2


@pytest.mark.parametrize("place", ["cpu", "random"])
@pytest.mark.parametrize("selection", ["last", "mean", "mean in bfloat16", "key"])
def test_extraction_equals_the_oracle(place: str, selection: str) -> None:
    model = LanguageModel()
    options = SELECTIONS.get(selection, {"positions": "answer"})
    mask = torch.tensor(MASKS["right"] + MASKS["left"] + MASKS["holes"])
    answer = torch.arange(9).view(9, 1) % 5
    columns = {"input_ids": make_ids(9), "attention_mask": mask, "answer": answer}
    dataset = [{key: column[i] for key, column in columns.items()} for i in range(9)]
    batches = [{key: part[i : i + 4] for key, part in columns.items()} for i in (0, 4, 8)]
    expected = reference.extract(model, batches, SITES, call, 7, make_selection(**options))
    with on(place):
        found = fastcap.extract_representations(
            model, dataset, SITES, "cpu", 4, 7, model_inputs=["attention_mask"], **options
        )
    assert differences(expected, found) == []
    assert len(found["norm"]) == 7


# Bytes


@pytest.mark.parametrize("selection", ["last", "mean"])
def test_last_over_32_layers_is_one_copy_a_pass_of_the_selected_bytes(selection: str) -> None:
    model, n_passes, n_layers = LanguageModel(n_layers=32), 3, 32
    sites = [f"layers.{i}" for i in range(n_layers)]
    batches = batches_of("right")
    model_inputs = ["attention_mask"]
    with (
        running_on(SimulatedDevice(Schedule("random", seed=1))),
        fastcap.stream(
            model, batches, sites, model_inputs=model_inputs, **SELECTIONS[selection]
        ) as run,
    ):
        for records in run:
            assert records["layers.31"].shape == (3, 16)
        statistics = run.statistics()
    record_bytes = 3 * 16 * 4
    assert statistics.captures == n_passes * n_layers
    assert statistics.captured_bytes == n_passes * n_layers * record_bytes
    assert statistics.copies == n_passes
    # Records start at multiples of 256 bytes; the last one ends where its bytes end.
    assert statistics.copied_bytes == n_passes * ((n_layers - 1) * 256 + record_bytes)
    assert statistics.mask_reads == 0


def test_unpadded_moves_the_bytes_of_real_tokens_and_no_others() -> None:
    model = LanguageModel()
    with (
        running_on(SimulatedDevice(Schedule("random", seed=1))),
        fastcap.ActivationStore(model, SITES, positions="unpadded") as store,
    ):
        model(make_ids(3), torch.tensor(MASKS["right"]))
        assert store.activations["norm"].shape == (9, 16)
        assert store.statistics().captured_bytes == 2 * 9 * 16 * 4
