"""`extract`: from a name or a built model, and texts, to activations."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcap
from fastcap import huggingface, reference
from fastcap.demo.checkpoint import find_checkpoint
from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    LoadError,
    MissingExtraError,
    ResultError,
    SiteNotFoundError,
)
from fastcap.huggingface import Collator, extract, load, sites
from fastcap.spec import make_selection
from tests.support.errors import message_of
from tests.support.huggingface import (
    CHATS,
    TEXTS,
    alone,
    make_bert,
    make_gpt2,
    make_llama,
    make_roberta,
    make_t5,
    make_tokenizer,
    save,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SIDES = ["right", "left"]
MODELS: list[Any] = [
    pytest.param(make_llama, id="llama"),
    pytest.param(make_gpt2, id="gpt2"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


def test_three_lines_from_a_folder_to_activations(folder: Path) -> None:
    acts = extract(str(folder), TEXTS, "residual", blocks=[1], positions="last")
    assert list(acts) == ["layers.1"]
    model, tokenizer = load(folder)
    for row, text in zip(acts["layers.1"], TEXTS, strict=True):
        torch.testing.assert_close(row, alone(model, tokenizer, text, "layers.1")[-1])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make_model", MODELS)
def test_every_value_is_the_oracles(make_model: Callable[[], Any], side: str) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    positions: Any = -1 if side == "left" else slice(-1, None)  # which may be padding
    found = extract(
        model,
        TEXTS,
        ["residual", "mlp"],
        tokenizer=tokenizer,
        positions=positions,
        batch_size=2,
        padding_side=side,
    )
    batches = Collator(model, tokenizer, padding_side=side).batches(TEXTS, batch_size=2)
    names = [*sites(model, "residual"), *sites(model, "mlp")]
    selection = make_selection(positions, None, None, None)
    expected = reference.extract(
        model, list(batches), names, lambda m, batch: m(**batch), selection=selection
    )
    assert list(found) == names
    assert not reference.differences(expected, found)


def padded_rows(model: Any, side: str, site: str, **options: Any) -> list[torch.Tensor]:
    """What `stream` gives for the real tokens of every text, from padded batches."""
    collator = Collator(model, make_tokenizer(), padding_side=side)
    batches = collator.batches(TEXTS, batch_size=3)
    rows = []
    for records in fastcap.stream(
        model, batches, [site], model_inputs=collator.model_inputs, **options
    ):
        batch: Any = records.batch
        mask = batch["attention_mask"].bool()
        rows += [row[kept] for row, kept in zip(records[site], mask, strict=True)]
    return rows


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make_model", [*MODELS, pytest.param(make_bert, id="bert")])
def test_padded_equals_unpadded(make_model: Callable[[], Any], side: str) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    (site,) = sites(model, "residual", blocks=-1)
    rows = padded_rows(model, side, site)
    for row, text in zip(rows, TEXTS, strict=True):
        torch.testing.assert_close(row, alone(model, tokenizer, text, site))


@pytest.mark.parametrize("side", SIDES)
def test_padded_equals_unpadded_where_positions_start_after_the_padding(side: str) -> None:
    model, tokenizer = make_roberta(), make_tokenizer(pad_token="<unk>")
    (site,) = sites(model, "residual", blocks=-1)
    collator = Collator(model, tokenizer, padding_side=side)
    (batch,) = collator.batches(TEXTS)
    acts = extract(model, TEXTS, site, tokenizer=tokenizer, padding_side=side)[site]
    for row, kept, text in zip(acts, batch["attention_mask"].bool(), TEXTS, strict=True):
        torch.testing.assert_close(row[kept], alone(model, tokenizer, text, site))


def test_without_position_ids_left_padding_would_differ() -> None:
    model, tokenizer = make_gpt2(), make_tokenizer()
    (site,) = sites(model, "residual", blocks=-1)
    (batch,) = Collator(model, tokenizer, padding_side="left").batches(TEXTS[:2])
    acts = fastcap.extract_representations(
        model,
        [batch],
        [site],
        "cpu",
        batch_size=1,
        model_inputs=["attention_mask"],
        collate_fn=lambda batches: batches[0],
        positions=-1,
    )
    expected = alone(model, tokenizer, TEXTS[1], site)[-1]
    assert (acts[site][1] - expected).abs().max() > 0.01


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("make_model", MODELS)
def test_the_last_token_and_the_mean_are_those_of_the_text_alone(
    make_model: Callable[[], Any], side: str
) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "padding_side": side,
        "batch_size": 3,
        "blocks": -1,
    }
    ((site, last),) = extract(model, TEXTS, positions="last", **options).items()
    ((_, mean),) = extract(model, TEXTS, reduce="mean", **options).items()
    for index, text in enumerate(TEXTS):
        acts = alone(model, tokenizer, text, site)
        torch.testing.assert_close(last[index], acts[-1])
        torch.testing.assert_close(mean[index], acts.mean(dim=0))


def test_lengths_that_differ_between_batches_need_a_selection(folder: Path) -> None:
    with pytest.raises(ResultError, match=r"'layers\.0'"):
        extract(folder, TEXTS, blocks=0, batch_size=2)
    whole = extract(folder, TEXTS, blocks=0)["layers.0"]
    assert whole.shape == (5, 6, 16)  # one batch: padding is there, too


def test_chats_and_files(folder: Path, tmp_path: Path) -> None:
    acts = extract(folder, CHATS, "layers.0", positions=0)
    assert acts["layers.0"].shape == (2, 16)
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    from_file = extract(folder, path, "layers.0", positions=0)
    assert from_file["layers.0"].equal(extract(folder, TEXTS, "layers.0", positions=0)["layers.0"])


def test_options_go_through(folder: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    acts = extract(
        folder,
        TEXTS,
        "mlp",
        blocks=0,
        positions=[0, 1],
        reduce=lambda acts: acts.sum(dim=1),
        dtype=torch.float16,
        batch_size=2,
        max_samples=3,
        progress=lambda done, expected: seen.append((done, expected)),
    )
    assert acts["layers.0.mlp"].shape == (3, 16)
    assert acts["layers.0.mlp"].dtype is torch.float16
    assert seen[-1] == (3, 3)


def test_a_model_is_loaded_in_eval_mode_and_in_the_dtype_asked_for(folder: Path) -> None:
    model, _ = load(folder)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model, _ = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    acts = extract(folder, TEXTS, blocks=0, positions=0, model_dtype=torch.bfloat16)
    assert acts["layers.0"].dtype is torch.bfloat16


def test_the_saved_dtype_is_the_default(tmp_path: Path) -> None:
    save(tmp_path, lambda: make_llama().bfloat16())
    model, _ = load(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_another_tokenizer_replaces_that_of_the_name(tmp_path: Path) -> None:
    make_gpt2().save_pretrained(tmp_path)
    acts = extract(tmp_path, TEXTS, "mlp", positions=0, tokenizer=make_tokenizer())
    assert list(acts) == ["h.0.mlp", "h.1.mlp"]


def test_an_encoder_of_an_encoder_decoder() -> None:
    model, tokenizer = make_t5(), make_tokenizer()
    acts = extract(model.get_encoder(), TEXTS, blocks=-1, positions=0, tokenizer=tokenizer)
    expected = alone(model.get_encoder(), tokenizer, TEXTS[1], "block.1")[0]
    torch.testing.assert_close(acts["block.1"][1], expected)
    message = message_of(ArgumentError, lambda: extract(model, TEXTS, tokenizer=tokenizer))
    assert message == (
        "T5Model is an encoder-decoder, whose decoder needs inputs of its own. Pass its encoder, "
        "extract(model.get_encoder(), texts, site, tokenizer=tokenizer), or say how to call the "
        "whole with forward=lambda model, batch: model(**batch, decoder_input_ids=...)."
    )
    whole = extract(
        model,
        TEXTS,
        "decoder.block.1",
        tokenizer=tokenizer,
        forward=lambda model, batch: model(**batch, decoder_input_ids=batch["input_ids"][:, :1]),
    )
    assert whole["decoder.block.1"].shape == (5, 1, 16)


def test_a_real_checkpoint_gives_sentence_vectors_padded_or_not() -> None:
    try:
        folder = find_checkpoint()
    except MissingExtraError as error:
        pytest.skip(str(error))
    texts = ["The cat sat on the mat.", "Copies run while the model computes, on a second stream."]
    (name,) = acts = extract(folder, texts, blocks=-1, reduce="mean", local_files_only=True)
    assert name == "encoder.layer.5"
    model, tokenizer = load(folder, local_files_only=True)
    for row, text in zip(acts[name], texts, strict=True):
        torch.testing.assert_close(
            row, alone(model, tokenizer, text, name).mean(dim=0), atol=1e-5, rtol=1e-5
        )


def test_a_missing_id_says_where_it_was_looked_for() -> None:
    message = message_of(
        LoadError, lambda: extract("nobody/no-such-model", TEXTS, local_files_only=True)
    )
    assert message.startswith("Cannot load the tokenizer of 'nobody/no-such-model': ")
    assert message.endswith(
        "There is no folder 'nobody/no-such-model' either. Looked for the id in this machine's "
        "cache: check its spelling, or, where there is network, run 'hf download "
        "nobody/no-such-model' and pass the folder it prints."
    )


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", Path("missing"), "a/b/c"])
def test_a_missing_folder_is_named(name: Any) -> None:
    assert message_of(LoadError, lambda: load(name)) == (
        f"Cannot load the tokenizer: there is no folder {str(Path(name))!r}. Pass a folder that "
        "save_pretrained wrote, or a model id such as 'openai-community/gpt2'."
    )


def test_a_folder_without_a_tokenizer_says_what_it_holds(tmp_path: Path) -> None:
    make_llama().save_pretrained(tmp_path)
    message = message_of(LoadError, lambda: load(tmp_path))
    assert message.startswith(f"Cannot load the tokenizer of {str(tmp_path)!r}: ")
    assert "The folder holds ['config.json'" in message
    assert message.endswith(
        "Write the tokenizer into it with tokenizer.save_pretrained(folder), or build model and "
        "tokenizer yourself and pass both: extract(model, texts, site, tokenizer=tokenizer)."
    )


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    message = message_of(LoadError, lambda: load(tmp_path))
    assert message.startswith(f"Cannot load the model of {str(tmp_path)!r}: ")
    assert "Write the model into it with model.save_pretrained(folder)" in message


def test_transformers_is_needed_to_load_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert message_of(MissingExtraError, lambda: load(folder)) == (
        "Loading a model by name needs transformers. Install it with: "
        "pip install 'torch-fastcap[hf]'"
    )


def test_importing_the_package_does_not_import_transformers() -> None:
    program = (
        "import sys, torch\n"
        "before = 'transformers' in sys.modules\n"
        "import fastcap.huggingface\n"
        "assert ('transformers' in sys.modules) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_built_model_needs_its_tokenizer() -> None:
    assert message_of(ArgumentError, lambda: extract(make_gpt2(), TEXTS)) == (
        "A built model (GPT2Model) needs its tokenizer: pass tokenizer=, such as "
        "transformers.AutoTokenizer.from_pretrained(folder)."
    )


def test_options_of_loading_are_refused_for_a_built_model() -> None:
    model, tokenizer = make_gpt2(), make_tokenizer()
    message = message_of(
        ArgumentError,
        lambda: extract(model, TEXTS, tokenizer=tokenizer, model_dtype=torch.float16),
    )
    assert message == (
        "model_dtype=torch.float16 is for loading, and this model is built already. Convert it "
        "yourself (model.to(...)), or choose the dtype of the result with dtype=."
    )


def test_a_model_is_a_name_or_a_module() -> None:
    wrong: Any = 3
    assert message_of(ArgumentTypeError, lambda: extract(wrong, TEXTS)) == (
        "model must be a model id, a folder or a torch.nn.Module; got 3."
    )


def test_no_texts_are_refused(folder: Path) -> None:
    assert message_of(ArgumentError, lambda: extract(folder, [])) == (
        "texts is empty: pass at least one text."
    )


def test_blocks_without_an_alias_are_refused(folder: Path) -> None:
    assert message_of(ArgumentError, lambda: extract(folder, TEXTS, "layers.0", blocks=1)) == (
        "blocks=1 says which blocks an alias stands for, and ['layers.0'] has no alias. Write the "
        "number into the module's name, or use 'residual', 'attention' or 'mlp'."
    )
    with pytest.raises(SiteNotFoundError, match=r"Module 'layers\.7' not found"):
        extract(folder, TEXTS, "layers.7")


def test_exported_names_are_sorted_and_documented() -> None:
    assert huggingface.__all__ == sorted(huggingface.__all__)
    for name in huggingface.__all__:
        assert getattr(huggingface, name).__doc__


def test_hooks_are_gone_after_an_extraction() -> None:
    model = make_gpt2().train()
    extract(model, TEXTS, tokenizer=make_tokenizer(), positions=0)
    assert all(not module._forward_hooks for module in model.modules())
    assert model.training
