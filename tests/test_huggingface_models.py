"""Real architectures with random weights: what transformers' models do to hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastcap
from fastcap import reference
from fastcap.reference import ReferenceStore, differences

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def make_gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=64, n_positions=64)
    return GPT2LMHeadModel(config).train(False)


def make_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=2,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=64,
    )
    return LlamaForCausalLM(config).train(False)


MODELS: list[Any] = [
    pytest.param(make_gpt2, ["transformer.h.0", "transformer.h.1.mlp"], id="gpt2"),
    pytest.param(make_llama, ["model.layers.0", "model.layers.1.self_attn"], id="llama"),
]


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(1, 64, (batch, length))


@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_every_step_of_generate_is_captured_exactly(make: Any, sites: list[str]) -> None:
    model = make()
    with (
        fastcap.ActivationStore(model, sites) as store,
        ReferenceStore(model, sites) as oracle,
    ):
        model.generate(ids(), max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert not differences(oracle.activations, store.activations)
        assert store.activations[sites[0]].shape == (2, 1, 16)  # the last step, one token


@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_last_position_of_generate_counts_the_tokens_of_each_step(
    make: Any, sites: list[str]
) -> None:
    model = make()
    with fastcap.ActivationStore(model, sites, positions=-1) as store:
        model.generate(ids(), max_new_tokens=3, do_sample=False, pad_token_id=0)
        assert store.activations[sites[0]].shape == (2, 16)


@pytest.mark.parametrize(("make", "sites"), MODELS)
def test_extraction_with_a_mask_equals_the_oracle(make: Any, sites: list[str]) -> None:
    model = make()
    mask = torch.ones(5, 6, dtype=torch.int64)
    mask[:, 4:] = 0
    dataset = [
        {"input_ids": row, "attention_mask": kept}
        for row, kept in zip(ids(5, 6), mask, strict=True)
    ]
    found = fastcap.extract_representations(
        model, dataset, sites, "cpu", batch_size=2, model_inputs=["attention_mask"]
    )
    batches = [
        {key: torch.stack([sample[key] for sample in dataset[i : i + 2]]) for key in dataset[0]}
        for i in range(0, 5, 2)
    ]
    expected = reference.extract(model, batches, sites, lambda m, batch: m(**batch))
    assert not differences(expected, found)


def test_a_position_embedding_is_refused_because_its_rows_are_not_samples() -> None:
    dataset = [{"input_ids": row} for row in ids(4)]
    with pytest.raises(
        fastcap.FastcapError, match=r"'transformer\.wpe' produced shape \(1, 7, 16\)"
    ):
        fastcap.extract_representations(make_gpt2(), dataset, ["transformer.wpe"], "cpu")


def test_a_model_output_object_is_reported_with_the_parts_it_has() -> None:
    model = make_llama()
    with fastcap.ActivationStore(model, ["model"]) as store:
        with pytest.warns(fastcap.FastcapWarning, match=r"'model:output\.last_hidden_state'"):
            model(ids())
        assert store.get("model") is None
    with fastcap.ActivationStore(model, ["model:output.last_hidden_state"]) as store:
        model(ids())
        assert store.activations["model:output.last_hidden_state"].shape == (2, 7, 16)
