"""Site aliases that lead to the wrong module are refused, and those not verified say so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import ActivationStore, FastcapWarning
from fastcap.errors import SiteNotFoundError
from fastcap.huggingface import aliases, sites, verdicts
from fastcap.huggingface.verdicts import VERIFIED
from tests.support.alias_check import check
from tests.support.errors import message_of
from tests.support.huggingface import config, make, make_bert, make_gpt2, make_llama
from tests.test_huggingface_sites import make_bloom


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_said", set())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = acts + self.mlp(acts)
        return result


class Model(nn.Module):
    def __init__(self, kind: type[nn.Module] = Block) -> None:
        super().__init__()
        self.layers = nn.ModuleList([kind(), kind()])

    def forward(self, acts: Tensor) -> Tensor:
        for layer in self.layers:
            acts = layer(acts)
        return acts


def make_mpnet() -> Any:
    return make(
        config(
            "MPNet",
            vocab_size=24,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def make_funnel() -> Any:
    sizes = {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 32, "vocab_size": 24}
    options = {"block_sizes": [2, 2], "num_decoder_layers": 1, "architectures": ["FunnelModel"]}
    return make(config("Funnel", **sizes, **options))


def make_mobilebert() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small = {"intra_bottleneck_size": 16, "embedding_size": 16, "intermediate_size": 32}
    return make(config("MobileBert", vocab_size=24, **sizes, **small))


def test_what_is_not_in_the_table_is_reported_once() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert sites(Model(), "mlp") == ["layers.0.mlp", "layers.1.mlp"]
        sites(Model(), "residual")
    assert [str(warning.message) for warning in said] == [
        (
            f"Found by name, not verified by value: {found} (the class or the name is not in the "
            "table). A block of this class may use another module for it. Compare the values with "
            "what the block adds to its input, or name the modules instead of the alias."
        )
        for found in ("'mlp' of Block as 'layers.0.mlp'", "'residual' of Block as 'layers.0'")
    ]
    assert {warning.filename for warning in said} == {__file__}


def test_a_list_of_modules_is_refused() -> None:
    model = Model()
    for layer in model.layers:
        layer.mlp = nn.ModuleList([nn.Linear(4, 4)])
    assert message_of(SiteNotFoundError, lambda: sites(model, "mlp")) == (
        "'mlp' has no module of its own in 'layers.0' (Block): the name leads to 'layers.0.mlp', "
        "and a ModuleList is never called itself. Name the module that you mean; the block has "
        "['self_attn', 'mlp', 'mlp.0']"
    )


def test_what_the_table_refuses_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = {"mlp": {"mlp": ["refused", "its value includes the residual stream"]}}
    table = {"blocks": {verdicts.class_key(Block): entry}}
    monkeypatch.setattr(verdicts, "_table", lambda: table)
    with pytest.raises(SiteNotFoundError, match=r"'layers\.0\.mlp', and its value includes the "):
        sites(Model(), "mlp")


def test_a_subclass_is_the_same_block_unless_it_computes_another_way() -> None:
    model = make_llama()
    kind = type(model.layers[0])
    for layer in model.layers:
        layer.__class__ = type("FSDPLlamaDecoderLayer", (kind,), {})
    assert len(sites(model, "mlp")) == 2
    for layer in model.layers:
        layer.__class__ = type("Other", (kind,), {"forward": lambda _self, acts: acts})
    with pytest.warns(FastcapWarning, match="not verified by value: 'mlp' of Other as"):
        sites(model, "mlp")


def test_a_site_that_did_not_fire_says_which_alias_led_there() -> None:
    model = Model()
    with pytest.warns(FastcapWarning, match="Found by name"):
        names = sites(model, "attention", blocks=0)
    said = "site 'layers.0.self_attn', to which the alias 'attention' led: the forward pass never"
    with ActivationStore(model, names), pytest.warns(FastcapWarning, match=said):
        model(torch.ones(2, 4))


def test_attention_of_mpnet_is_taken_before_the_norm() -> None:
    assert sites(make_mpnet(), "attention", blocks=0) == ["encoder.layer.0.attention.attn"]


def test_funnel_has_all_of_its_blocks() -> None:
    blocks = [f"encoder.blocks.{stack}.{index}" for stack in (0, 1) for index in (0, 1)]
    assert sites(make_funnel(), "residual") == [*blocks, "decoder.layers.0"]
    assert sites(make_funnel(), "mlp", within="decoder") == ["decoder.layers.0.ffn.linear_2"]


def test_mobilebert_has_no_mlp() -> None:
    with pytest.raises(SiteNotFoundError, match=r"'encoder\.layer\.0\.ffn', and a ModuleList is n"):
        sites(make_mobilebert(), "mlp")


WRONG: list[Any] = [
    pytest.param(make_mpnet, "attention", "attention", id="mpnet"),
    pytest.param(make_funnel, "attention", "attention", id="funnel"),
    pytest.param(make_funnel, "mlp", "ffn", id="funnel-mlp"),
    pytest.param(make_bert, "attention", "attention", id="bert"),
    pytest.param(make_bert, "attention", "attention.self", id="bert-before-projection"),
    pytest.param(make_bert, "mlp", "output", id="bert-mlp"),
    pytest.param(make_bloom, "attention", "self_attention", id="bloom"),
    pytest.param(make_bloom, "mlp", "mlp", id="bloom-mlp"),
    pytest.param(make_gpt2, "mlp", "mlp.c_fc", id="gpt2-inner"),
    pytest.param(make_gpt2, "attention", "ln_1", id="gpt2-norm"),
    pytest.param(make_llama, "mlp", "mlp.up_proj", id="llama-inner"),
    pytest.param(make_llama, "mlp", "post_attention_layernorm", id="llama-norm"),
    pytest.param(make_llama, "attention", "self_attn.v_proj", id="llama-value"),
]


@pytest.mark.parametrize(("make_model", "kind", "inside"), WRONG)
def test_no_other_module_of_a_block_is_verified(
    make_model: Any, kind: str, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "_inside", lambda asked, *_: inside if asked == kind else "")
    found, _ = check(make_model(), {"input_ids": torch.randint(5, 24, (2, 7))})
    verdicts_on = [kinds[kind][inside] for kinds in found.values()]
    assert verdicts_on
    assert all(verdict != VERIFIED for verdict, _ in verdicts_on)
