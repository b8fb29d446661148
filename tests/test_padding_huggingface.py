"""Padding in real architectures: transformers' Llama and GPT-2 with random weights."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastcap
from fastcap import FastcapWarning, reference
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.huggingface import Collator
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.huggingface import config, make, make_tokenizer
from tests.support.runs import running_on
from tests.test_huggingface_models import MODELS, ids

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

N_SAMPLES, N_TOKENS = 6, 7
N_REAL = [7, 3, 1, 5, 2, 6]
INPUTS = ["attention_mask"]


def make_mask(side: str) -> Tensor:
    right = torch.arange(N_TOKENS)[None] < torch.tensor(N_REAL)[:, None]
    return (right if side == "right" else right.flip(1)).long()


def call(model: Any, batch: dict[str, Tensor]) -> Any:
    return model(**batch)


def on(place: str) -> AbstractContextManager[Any]:
    if place == "cpu":
        return nullcontext()
    return running_on(SimulatedDevice(Schedule("random", seed=5)))


@pytest.mark.parametrize("place", ["cpu", "simulated"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_last_and_mean_of_padded_batches(
    make: Any, sites: list[str], dtype: torch.dtype, side: str, place: str
) -> None:
    model, mask = make().to(dtype), make_mask(side)
    columns = {"input_ids": ids(N_SAMPLES, N_TOKENS), "attention_mask": mask}
    dataset = [{key: column[i] for key, column in columns.items()} for i in range(N_SAMPLES)]
    batches = [{key: part[i : i + 4] for key, part in columns.items()} for i in (0, 4)]
    full = reference.extract(model, batches, sites, call)

    def extract(**selection: Any) -> dict[str, Tensor]:
        expected = reference.extract(
            model, batches, sites, call, selection=make_selection(**selection)
        )
        with on(place):
            found = fastcap.extract_representations(
                model, dataset, sites, "cpu", 4, model_inputs=INPUTS, **selection
            )
        assert differences(expected, found) == []
        return found

    last, mean = extract(positions="last"), extract(reduce="mean", dtype=torch.float32)
    for site in sites:
        acts, real = full[site].double().numpy(), mask.bool().numpy()
        last_real = [np.flatnonzero(row)[-1] for row in real]
        assert np.array_equal(last[site].double().numpy(), acts[np.arange(N_SAMPLES), last_real])
        means = np.stack([rows[kept].mean(axis=0) for rows, kept in zip(acts, real, strict=True)])
        np.testing.assert_allclose(mean[site].numpy(), means, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_unpadded_tokens_split_into_samples(make: Any, sites: list[str]) -> None:
    model, mask = make(), make_mask("left")
    batch = {"input_ids": ids(N_SAMPLES, N_TOKENS), "attention_mask": mask}
    [full] = reference.stream(model, [batch], sites, call)
    [records] = fastcap.stream(model, [batch], sites, model_inputs=INPUTS, positions="unpadded")
    for site in sites:
        lengths = records.lengths(site)
        assert lengths == tuple(N_REAL)
        for sample, part in enumerate(torch.split(records[site], list(lengths))):
            assert torch.equal(part, full[site][sample, mask[sample].bool()])


@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_the_store_reads_the_mask_of_the_call(make: Any, sites: list[str]) -> None:
    model, mask = make(), make_mask("right")
    tokens = ids(N_SAMPLES, N_TOKENS)
    with (
        fastcap.ActivationStore(model, sites, positions="last") as store,
        reference.ReferenceStore(model, sites, make_selection("last")) as oracle,
        torch.no_grad(),
    ):
        model(tokens, attention_mask=mask)
    assert differences(oracle.activations, store.activations) == []
    assert store.activations[sites[0]].shape == (N_SAMPLES, 16)


def test_a_model_that_takes_no_mask_is_said_to_see_padding_once() -> None:
    model = make(config("FNet", vocab_size=24, hidden_size=16, num_hidden_layers=1))
    collator = Collator(model, make_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(["one two", "two one"])
    with pytest.warns(FastcapWarning, match="FNetModel names no attention_mask"):
        collator(["one two", "two"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(["one two", "two"])
