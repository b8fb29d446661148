"""Site aliases: the modules they name, and that what those return adds up to the residual."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import ActivationStore, FastcapWarning
from fastcap.errors import ArgumentError, ArgumentTypeError, SiteNotFoundError
from fastcap.huggingface import sites, verdicts
from tests.support.errors import message_of
from tests.support.huggingface import (
    SIZES,
    SPECIAL_IDS,
    VOCABULARY_SIZE,
    config,
    make,
    make_bert,
    make_gpt2,
    make_llama,
    make_roberta,
    make_t5,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

GROUPED = {**SIZES, **SPECIAL_IDS, "num_key_value_heads": 1}


def make_opt() -> Any:
    sizes = {key: size for key, size in SIZES.items() if key != "intermediate_size"}
    return make(config("OPT", **sizes, ffn_dim=32, word_embed_proj_dim=16))


def make_bart() -> Any:
    halves = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}
    sizes = {f"{half}_{key}": n for half in ("encoder", "decoder") for key, n in halves.items()}
    return make(config("Bart", d_model=16, vocab_size=VOCABULARY_SIZE, **sizes))


def make_vit() -> Any:
    sizes = {key: size for key, size in SIZES.items() if "vocab" not in key and "max" not in key}
    return make(config("ViT", **sizes, image_size=16, patch_size=8))


def make_bloom() -> Any:
    return make(config("Bloom", hidden_size=16, n_layer=2, n_head=2, vocab_size=VOCABULARY_SIZE))


def make_distilbert() -> Any:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return make(config("DistilBert", **sizes, vocab_size=VOCABULARY_SIZE))


def make_mamba() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}
    return make(config("Mamba", **sizes, vocab_size=VOCABULARY_SIZE))


def tails(block: str, attention: str, mlp: str) -> dict[str, str]:
    return {
        "block": block,
        "residual": block,
        "attention": f"{block}.{attention}",
        "mlp": f"{block}.{mlp}",
    }


LLAMA_LIKE = tails("layers.1", "self_attn", "mlp")
BERT_LIKE = tails("encoder.layer.1", "attention.output.dense", "output.dense")
NAMES: list[Any] = [
    pytest.param(make_llama, LLAMA_LIKE, id="llama"),
    pytest.param(lambda: make(config("Mistral", **GROUPED)), LLAMA_LIKE, id="mistral"),
    pytest.param(lambda: make(config("Qwen2", **GROUPED)), LLAMA_LIKE, id="qwen2"),
    pytest.param(lambda: make(config("Gemma", **GROUPED, head_dim=8)), LLAMA_LIKE, id="gemma"),
    pytest.param(lambda: make(config("Gemma2", **GROUPED, head_dim=8)), LLAMA_LIKE, id="gemma2"),
    pytest.param(make_gpt2, tails("h.1", "attn", "mlp"), id="gpt2"),
    pytest.param(
        lambda: make(config("GPTNeoX", **SIZES)), tails("layers.1", "attention", "mlp"), id="neox"
    ),
    pytest.param(make_bert, BERT_LIKE, id="bert"),
    pytest.param(make_roberta, BERT_LIKE, id="roberta"),
    pytest.param(
        make_distilbert, tails("transformer.layer.1", "attention", "ffn"), id="distilbert"
    ),
    pytest.param(make_bloom, tails("h.1", "self_attention.dense", "mlp.dense_4h_to_h"), id="bloom"),
]


@pytest.mark.parametrize(("make_model", "expected"), NAMES)
def test_aliases_name_the_modules_of_each_architecture(
    make_model: Any, expected: dict[str, str]
) -> None:
    model = make_model()
    modules = dict(model.named_modules())
    for alias, name in expected.items():
        assert sites(model, alias, blocks=1) == [name]
        assert sites(model, alias, blocks=-1) == [name]
        assert sites(model, alias) == [name.replace(".1", ".0"), name]
        assert name in modules


def test_vit_has_the_aliases_wherever_its_release_keeps_them() -> None:
    model = make_vit()
    (block,) = sites(model, "block", blocks=1)
    for alias in ("attention", "mlp"):
        (name,) = sites(model, alias, blocks=1)
        assert name.startswith(f"{block}.")


def test_a_model_with_a_head_has_the_same_sites_below_its_prefix() -> None:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(make_llama().config)
    assert sites(model, "mlp", blocks=0) == ["model.layers.0.mlp"]


def test_an_encoder_and_a_decoder_are_two_stacks() -> None:
    import transformers

    t5 = make_t5()
    blocks = ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]
    assert sites(t5, "residual") == blocks
    assert sites(t5, "residual", blocks=[0]) == ["encoder.block.0", "decoder.block.0"]
    assert sites(t5, "attention", blocks=[1], within="decoder") == [
        "decoder.block.1.layer.0.SelfAttention"
    ]
    assert sites(t5, "mlp", blocks=0) == [
        "encoder.block.0.layer.1.DenseReluDense",
        "decoder.block.0.layer.2.DenseReluDense",
    ]
    assert sites(t5.get_encoder(), "residual", blocks=0) == ["block.0"]
    whole = transformers.BartForConditionalGeneration(make_bart().config)
    assert sites(whole, "mlp", blocks=0, within="encoder") == ["model.encoder.layers.0.fc2"]
    assert sites(whole, "mlp", blocks=0, within="model.decoder") == ["model.decoder.layers.0.fc2"]
    assert sites(make_bart(), "mlp", blocks=0) == ["encoder.layers.0.fc2", "decoder.layers.0.fc2"]


def capture(model: Any, names: list[str], **inputs: Tensor) -> dict[str, Tensor]:
    with ActivationStore(model, names) as store, torch.no_grad():
        model(**inputs)
        return dict(store.activations)


PRE_NORM: list[Any] = [
    pytest.param(case.values[0], id=str(case.id))
    for case in NAMES
    if case.id in ("llama", "mistral", "qwen2", "gemma", "gpt2", "neox", "bloom")
]


@pytest.mark.parametrize("make_model", PRE_NORM)
def test_a_block_adds_attention_and_mlp_to_the_residual(make_model: Any) -> None:
    model = make_model()
    before, after = sites(model, "residual")
    (attention,), (mlp,) = (sites(model, alias, blocks=1) for alias in ("attention", "mlp"))
    ids = torch.randint(5, VOCABULARY_SIZE, (2, 6))
    acts = capture(model, [before, after, attention, mlp], input_ids=ids)
    total = acts[before] + acts[attention] + acts[mlp]
    torch.testing.assert_close(acts[after], total)


@pytest.mark.parametrize("make_model", [make_llama, make_gpt2, make_bert])
def test_the_residual_is_the_next_hidden_state_but_for_the_final_norm(make_model: Any) -> None:
    model = make_model()
    before, after = sites(model, "residual")
    ids = torch.randint(5, VOCABULARY_SIZE, (2, 6))
    acts = capture(model, [before, after], input_ids=ids)
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(acts[before], hidden[1])
    has_final_norm = make_model is not make_bert
    assert torch.allclose(acts[after], hidden[2]) != has_final_norm


def test_blocks_of_an_encoder_and_of_images_add_up_too() -> None:
    t5, vit = make_t5().get_encoder(), make_vit()
    calls = [
        (t5, {"input_ids": torch.randint(5, VOCABULARY_SIZE, (2, 6))}),
        (vit, {"pixel_values": torch.randn(2, 3, 16, 16)}),
    ]
    for model, inputs in calls:
        before, after = sites(model, "residual")
        (attention,), (mlp,) = (sites(model, alias, blocks=1) for alias in ("attention", "mlp"))
        acts = capture(model, [before, after, attention, mlp], **inputs)
        total = acts[before] + acts[attention] + acts[mlp]
        torch.testing.assert_close(acts[after], total)


def test_post_norm_blocks_norm_the_sum() -> None:
    model = make_bert()
    before, after = sites(model, "residual")
    (attention,), (mlp,) = (sites(model, alias, blocks=1) for alias in ("attention", "mlp"))
    ids = torch.randint(5, VOCABULARY_SIZE, (2, 6))
    acts = capture(model, [before, after, attention, mlp], input_ids=ids)
    block = model.encoder.layer[1]
    with torch.no_grad():
        middle = block.attention.output.LayerNorm(acts[before] + acts[attention])
        total = block.output.LayerNorm(middle + acts[mlp])
    torch.testing.assert_close(acts[after], total)


def test_opt_has_attention_and_no_mlp_by_sample() -> None:
    model = make_opt()
    assert sites(model, "attention", blocks=0) == ["decoder.layers.0.self_attn"]
    message = message_of(SiteNotFoundError, lambda: sites(model, "mlp", blocks=1))
    assert message == (
        "OPT has no module whose output is that of the MLP by sample: its fc1 and fc2 run on rows "
        "of all samples at once, (batch * sequence, width). Ask for 'residual' or 'attention', or "
        "capture 'decoder.layers.1.fc2' with fastcap.stream, one text per batch."
    )


def test_a_part_goes_on_after_the_alias() -> None:
    assert sites(make_llama(), "attention:output[0]", blocks=0) == ["layers.0.self_attn:output[0]"]


def test_blocks_are_taken_as_asked() -> None:
    model = make_llama()
    assert sites(model, "block", blocks=[1, 0, -1]) == ["layers.1", "layers.0"]
    assert sites(model, "block", blocks=range(2)) == ["layers.0", "layers.1"]
    assert sites(model, "block", blocks=slice(None, None, -1)) == ["layers.1", "layers.0"]


@pytest.mark.parametrize("block", [2, -3])
def test_a_block_beyond_the_last_is_refused(block: int) -> None:
    assert message_of(ArgumentError, lambda: sites(make_llama(), "mlp", blocks=block)) == (
        f"Block {block} does not exist: 'layers' has 2 blocks, 0 to 1 (or -2 to -1 from the end)."
    )


@pytest.mark.parametrize("blocks", ["0", 1.0, True, [None]], ids=repr)
def test_blocks_are_ints(blocks: Any) -> None:
    assert message_of(ArgumentTypeError, lambda: sites(make_llama(), "mlp", blocks=blocks)) == (
        f"blocks must be an int, several ints, a slice or None; got {blocks!r}."
    )


def test_no_blocks_are_refused() -> None:
    assert message_of(ArgumentError, lambda: sites(make_llama(), "mlp", blocks=[])) == (
        "blocks=[] selects none of the 2 blocks of 'layers'. Name at least one, or leave it out "
        "for all."
    )
    with pytest.raises(ArgumentError, match="selects none of the 2 blocks"):
        sites(make_llama(), "mlp", blocks=slice(5, None))


def test_an_unknown_alias_is_refused() -> None:
    assert message_of(ArgumentError, lambda: sites(make_llama(), "ffn")) == (
        "'ffn' is not a site alias. The aliases are 'block', 'residual', 'attention', 'mlp'; "
        "anything else is the name of a module, and needs no alias."
    )


def test_an_unknown_architecture_is_told_what_was_looked_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    assert message_of(SiteNotFoundError, lambda: sites(model, "mlp")) == (
        "No blocks found in Sequential, so 'mlp' names nothing. Looked for module lists *.layers, "
        "*.layer, *.h, *.block, *.blocks whose blocks hold one of 'self_attn', "
        "'attention.output.dense', 'attn', 'attention', 'self_attention', 'layer.*.SelfAttention', "
        "'mixer', 'linear_attn', 'mamba'. Name modules instead; this model has: ['0', '1'] All "
        "names: for name, _ in model.named_modules(): print(name)"
    )


def test_a_place_without_blocks_is_named() -> None:
    with pytest.raises(SiteNotFoundError, match=r"No blocks found in T5Model below 'shared', so"):
        sites(make_t5(), "block", within="shared")


def test_a_block_without_attention_says_what_it_has() -> None:
    model = make_mamba()
    assert sites(model, "residual") == ["layers.0", "layers.1"]
    message = message_of(SiteNotFoundError, lambda: sites(model, "attention", blocks=0))
    assert message == (
        "No attention found in block 'layers.0' (MambaBlock). Looked for 'self_attn', "
        "'attention.output.dense', 'attn', 'attention', 'self_attention', "
        "'layer.*.SelfAttention'; the block has ['norm', 'mixer']. Name the module instead, such "
        "as 'layers.0.norm'."
    )
    with pytest.raises(SiteNotFoundError, match="No mlp found in block"):
        sites(model, "mlp")


def test_hybrid_models_have_attention_in_some_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_said", set())

    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kinds = ["linear_attn", "self_attn", "linear_attn"]
            self.layers = nn.ModuleList(nn.ModuleDict({kind: nn.ReLU()}) for kind in kinds)

    with pytest.warns(FastcapWarning, match="'attention' of ModuleDict as 'layers.1.self_attn'"):
        assert sites(Hybrid(), "attention") == ["layers.1.self_attn"]
    with pytest.raises(SiteNotFoundError, match=r"No attention found in block 'layers\.0'"):
        sites(Hybrid(), "attention", blocks=[0, 1])


def test_wrappers_are_no_part_of_the_names() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    model = make_llama()
    model.layers[0] = Wrapper(model.layers[0])
    assert sites(Wrapper(model), "mlp") == ["layers.0.mlp", "layers.1.mlp"]
