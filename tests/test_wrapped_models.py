"""Models that somebody has wrapped, placed or exported: the same values as of the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.errors import DeviceError
from fastcap.huggingface import Collator
from tests.support.errors import message_of
from tests.support.huggingface import make_tokenizer

IDS = torch.randint(1, 50, (5, 6), generator=torch.Generator().manual_seed(0))
SAMPLES = [{"input_ids": ids} for ids in IDS]


def small_model() -> nn.Sequential:
    return nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()


# Weights that come when they are needed


def offloaded(model: nn.Module, how: str, folder: Path) -> nn.Module:
    accelerate = pytest.importorskip("accelerate", reason="offloads models")
    if how == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif how == "disk":
        accelerate.disk_offload(model, folder, execution_device="cpu")
    elif how == "some layers":
        places = {"0": "cpu", "1": "disk", "2": "cpu"}
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=folder)
    else:  # hooks of the parent bring the weights of its children
        accelerate.cpu_offload(model, execution_device="cpu", preload_module_classes=["Sequential"])
    return model


@pytest.mark.parametrize("how", ["cpu", "disk", "some layers", "whole block"])
def test_an_offloaded_model_gives_what_it_gives_in_memory(tmp_path: Path, how: str) -> None:
    sites = ["1", "2"]
    expected = fastcap.extract_representations(small_model_of(3), SAMPLES, sites, "cpu", 2)
    model = offloaded(small_model_of(3), how, tmp_path / "weights")

    found = fastcap.extract_representations(model, SAMPLES, sites, "cpu", 2)
    streamed = list(fastcap.stream(model, [{"input_ids": IDS[:2]}], sites))
    archive = fastcap.extract(model, SAMPLES, sites, tmp_path / "acts", batch_size=2)
    with fastcap.ActivationStore(model, sites) as store:
        model(IDS[:2])

    for site in sites:
        assert torch.equal(found[site], expected[site])
        assert torch.equal(streamed[0][site], expected[site][:2])
        assert torch.equal(archive[site][:], expected[site])
        assert torch.equal(store[site], expected[site][:2])


def small_model_of(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return small_model()


def test_an_offloaded_model_runs_where_its_layers_run_and_nowhere_else(tmp_path: Path) -> None:
    model = offloaded(small_model(), "cpu", tmp_path)
    assert message_of(
        DeviceError, lambda: fastcap.extract_representations(model, SAMPLES, ["1"], "cuda")
    ).startswith("device='cuda', but the model's parameters are on cpu.")


def test_weights_that_were_never_loaded_are_still_refused(tmp_path: Path) -> None:
    model = small_model()
    offloaded(model, "some layers", tmp_path).add_module("3", nn.Linear(4, 4, device="meta"))
    message = message_of(
        DeviceError, lambda: fastcap.extract_representations(model, SAMPLES, ["1"], "cpu")
    )
    assert message == (
        "The model's parameters are on the meta device, without data. Load its weights first."
    )


# Programs of torch.export


@pytest.mark.filterwarnings("ignore:Nothing is captured at site '1':fastcap.FastcapWarning")
def test_an_exported_program_is_run_in_the_mode_of_its_export() -> None:
    model, acts = nn.Sequential(nn.Linear(8, 4), nn.Dropout()).eval(), torch.randn(5, 8)
    dynamic = ({0: torch.export.Dim.AUTO},)
    program: Any = torch.export.export(model, (acts,), dynamic_shapes=dynamic).module()
    flags = [module.training for module in program.modules()]

    found = fastcap.extract_representations(program, list(acts), [""], "cpu", 2)

    with torch.no_grad():
        assert torch.equal(found[""], torch.cat([program(part) for part in torch.split(acts, 2)]))
        torch.testing.assert_close(found[""], model(acts))
    assert [module.training for module in program.modules()] == flags


# Adapters


@pytest.mark.filterwarnings("ignore::FutureWarning")  # between peft and transformers
def test_inputs_of_a_model_with_adapters_are_those_of_the_model_inside() -> None:
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft", reason="makes adapters")
    tokenizer = make_tokenizer()
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    plain = Collator(model, tokenizer, padding_side="left")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    wrapped = Collator(peft.get_peft_model(model, lora), tokenizer, padding_side="left")
    assert wrapped.model_inputs == plain.model_inputs == ["attention_mask", "position_ids"]


# Nested values


class Encoder(nn.Module):
    """Takes the fast path of nn.TransformerEncoder, where layers pass nested tensors on."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        padding = attention_mask == 0
        encoded: Tensor = self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)
        return encoded


@pytest.mark.filterwarnings("ignore:.*prototype stage.*:UserWarning")
@pytest.mark.parametrize("selection", [{}, {"positions": "last"}, {"reduce": "mean"}], ids=str)
def test_layers_of_a_padded_encoder_give_padded_values(selection: dict[str, Any]) -> None:
    model = Encoder().eval()
    lengths = [6, 2, 4]
    ids = torch.zeros(3, 6, dtype=torch.int64)
    for row, n_tokens in zip(ids, lengths, strict=True):
        row[:n_tokens] = IDS[0, :n_tokens]
    samples = [{"input_ids": row, "attention_mask": (row != 0).long()} for row in ids]

    options: dict[str, Any] = {"model_inputs": ["attention_mask"], **selection}
    acts = fastcap.extract_representations(
        model, samples, ["encoder.layers.1"], "cpu", 3, **options
    )["encoder.layers.1"]

    for row, n_tokens, found in zip(ids, lengths, acts, strict=True):
        with fastcap.ActivationStore(model, ["encoder.layers.1"]) as store:
            model(row[None, :n_tokens], torch.ones(1, n_tokens))
        alone = store["encoder.layers.1"][0]
        if not selection:
            assert torch.count_nonzero(found[n_tokens:]) == 0
            found = found[:n_tokens]
        elif "reduce" in selection:
            alone = alone.mean(0)
        else:
            alone = alone[-1]
        torch.testing.assert_close(found, alone)


@pytest.mark.filterwarnings("ignore:.*(prototype|beta state):UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
def test_nested_values_are_padded_to_the_longest_sample(layout: torch.layout) -> None:
    class Nests(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            acts = input_ids[..., None].float()
            nested: Tensor = torch.nested.nested_tensor([acts[0], acts[1, :2]], layout=layout)
            return nested

    with fastcap.ActivationStore(model := Nests(), [""]) as store:
        model(IDS[:2])
    expected = IDS[:2, :, None].float()
    expected[1, 2:] = 0
    assert torch.equal(store[""], expected)
