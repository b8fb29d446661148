"""`fastcap sites`: what it prints, and one clear line for everything that goes wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from fastcap import cli
from fastcap.cli import app
from fastcap.cli.command import spread
from tests.support.datasets import make_ids
from tests.support.models import LanguageModel, TupleBlock
from tests.support.requires import needs_command_line

pytestmark = needs_command_line

HERE = __name__


def make() -> nn.Module:
    return LanguageModel(n_layers=3, block=TupleBlock)


def make_mixed() -> nn.Module:
    """Layers 0 and 1 alike, then another, then one more of the first."""
    kinds = [nn.ReLU, nn.ReLU, nn.Tanh, nn.ReLU]
    return nn.Sequential(nn.ModuleList(kind() for kind in kinds))


def needs_an_argument(size: int) -> nn.Module:
    return nn.Linear(size, size)


def three() -> int:
    return 3


def batch() -> dict[str, Any]:
    return {"input_ids": make_ids(2, 7), "attention_mask": torch.ones(2, 7)}


def wrong_batch() -> torch.Tensor:
    return torch.ones(2, 3)


model = nn.Sequential(nn.Linear(2, 2))
model_batch = torch.ones(4, 2)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.make_app(), ["sites", *arguments])


def printed(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str) -> str:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("fastcap: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("fastcap: ").removesuffix("\n")


TREE = """\
""                  LanguageModel
  token_embedding   Embedding
  layers.{0..2}     TupleBlock
    attention_norm  RMSNorm
    attention       SelfAttention
      qkv           Linear
      out           Linear
    mlp_norm        RMSNorm
    mlp             FeedForward
      gate          Linear
      up            Linear
      down          Linear
  norm              RMSNorm
  output_head       Linear
"""


def test_layers_that_look_the_same_are_one_line_of_the_tree() -> None:
    assert printed(f"{HERE}:make") == TREE


def test_layers_that_differ_are_lines_of_their_own() -> None:
    assert printed(f"{HERE}:make_mixed") == (
        '""          Sequential\n  0.{0..1}  ReLU\n  0.2       Tanh\n  0.3       ReLU\n'
    )


def test_an_example_adds_calls_shapes_dtypes_and_bytes() -> None:
    assert printed(f"{HERE}:make", "--example", f"{HERE}:batch", "--sites", "layers.*") == (
        "layers.{0..2}  TupleBlock  1 call\n"
        "    :output     (2, 7, 16)  float32  448 B per sample\n"
        "    :output[1]  (2, 7)  float32  28 B per sample\n"
        "    :input      (2, 7, 16)  float32  448 B per sample\n"
    )


def test_inputs_are_passed_by_name() -> None:
    options = ["--example", f"{HERE}:batch", "--model-inputs", "attention_mask", "--sites", ""]
    assert "    :input.attention_mask  (2, 7)  float32  28 B per sample\n" in printed(
        f"{HERE}:make", *options
    )


def test_several_patterns_may_be_given() -> None:
    assert printed(f"{HERE}:make", "--sites", "layers.{0,2}.mlp", "--sites", "norm") == (
        "layers.0.mlp  FeedForward\nlayers.2.mlp  FeedForward\nnorm          RMSNorm\n"
    )


def test_what_lies_deeper_than_asked_is_counted() -> None:
    result = invoke(f"{HERE}:make", "--depth", "1")
    assert result.stdout == (
        '""                 LanguageModel\n  token_embedding  Embedding\n'
        "  norm             RMSNorm\n  output_head      Linear\n"
    )
    assert result.stderr == "Not shown, deeper than --depth 1: 30.\n"
    assert printed(f"{HERE}:make", "--depth", "9") == TREE


def test_json_has_every_module_and_part() -> None:
    listed = json.loads(printed(f"{HERE}:model", "--example", f"{HERE}:model_batch", "--json"))
    part = {"part": ":output", "shape": [4, 2], "dtype": "float32", "bytes_per_sample": 8}
    parts = [part, {**part, "part": ":input"}]
    assert listed == [
        {"name": "", "type": "Sequential", "calls": 1, "parts": parts},
        {"name": "0", "type": "Linear", "calls": 1, "parts": parts},
    ]
    assert json.loads(printed(f"{HERE}:make", "--json"))[2] == {
        "name": "layers.0",
        "type": "TupleBlock",
        "calls": None,
        "parts": [],
    }


def test_modules_in_the_working_directory_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lying_here.py").write_text("import torch\nkeep = {'m': 1}\nnet = torch.nn.ReLU\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert printed("lying_here:net") == '""  ReLU\n'


# A local folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids: Any = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 32}
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, **ids)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_is_listed_by_its_own_architecture_without_reading_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    text = printed(str(folder), "--depth", "3")
    assert text.startswith('""')
    assert "GPT2LMHeadModel" in text
    assert "    h.{0..1}   GPT2Block\n" in text


def test_an_example_runs_the_weights_of_a_folder(folder: Path) -> None:
    text = printed(str(folder), "--example", f"{HERE}:batch", "--sites", "transformer.h.1")
    assert text.startswith("transformer.h.1  GPT2Block  1 call\n")
    (folder / "model.safetensors").unlink()
    assert error_of(str(folder), "--example", f"{HERE}:batch").startswith(
        f"MODEL {str(folder)!r}: transformers cannot load it: OSError: "
    )


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    reason = f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/config.json'"
    assert error_of(str(tmp_path)) == (
        f"MODEL {str(tmp_path)!r}: cannot read its config.json ({reason}). Give the folder of a "
        "saved transformers model, or an import path: package.module:attribute."
    )


def test_a_folder_needs_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastcap.cli.locate.find_spec", lambda name: None)
    assert error_of(str(folder)) == (
        f"MODEL {str(folder)!r} is a folder, which needs transformers: "
        "pip install 'torch-fastcap[hf]'."
    )


# Errors


def test_what_is_neither_a_folder_nor_an_import_path_is_refused() -> None:
    assert error_of("gpt2") == (
        "MODEL 'gpt2' is neither a folder nor an import path of the form package.module:attribute. "
        "Models are not downloaded: give a folder with a config.json."
    )


@pytest.mark.parametrize("text", [":make", "package:"])
def test_half_an_import_path_is_refused(text: str) -> None:
    assert error_of(text) == (
        f"MODEL {text!r} is not of the form package.module:attribute, such as mymodels:make."
    )


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason() -> None:
    assert error_of("no_such_module:make") == (
        "MODEL 'no_such_module:make': importing 'no_such_module' failed with ModuleNotFoundError: "
        "No module named 'no_such_module'. Run from the folder that has it, or install the package."
    )


def test_an_attribute_that_is_not_there_is_answered_with_those_that_are() -> None:
    assert error_of("fastcap.spec:Site.nothing").startswith(
        "MODEL 'fastcap.spec:Site.nothing': 'fastcap.spec' has no 'Site.nothing'. It has ["
    )


def test_a_function_that_fails_is_told() -> None:
    assert error_of(f"{HERE}:needs_an_argument") == (
        f"MODEL '{HERE}:needs_an_argument': calling it without arguments failed with TypeError: "
        "needs_an_argument() missing 1 required positional argument: 'size'."
    )


def test_what_is_no_model_is_refused() -> None:
    assert error_of(f"{HERE}:three") == (
        f"MODEL '{HERE}:three' gives an int, not a torch.nn.Module. Name a module, or a function "
        "without arguments that returns one."
    )


def test_a_pattern_that_matches_nothing_is_told_as_everywhere() -> None:
    assert error_of(f"{HERE}:make", "--sites", "layers.{0..9}").startswith(
        "Pattern 'layers.{0..9}' not found in model: nothing matches with '9' in the braces"
    )


def test_an_example_that_cannot_be_found_or_run_is_told() -> None:
    assert error_of(f"{HERE}:make", "--example", "nowhere").startswith(
        "--example 'nowhere' is not of the form package.module:attribute"
    )
    assert error_of(f"{HERE}:make", "--example", f"{HERE}:three").startswith(
        "Cannot call the model with a batch of type int."
    )
    assert error_of(f"{HERE}:make", "--example", f"{HERE}:wrong_batch").startswith(
        "Running the model on --example failed with RuntimeError: Expected tensor"
    )


def test_a_negative_depth_is_a_usage_error() -> None:
    assert invoke(f"{HERE}:make", "--depth", "-1").exit_code == 2


def test_sites_takes_several_values_as_a_shell_makes_them_of_braces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fastcap", "sites", f"{HERE}:make", "--sites", "layers.0", "layers.2", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert [site["name"] for site in json.loads(capsys.readouterr().out)] == [
        "layers.0",
        "layers.2",
    ]


def test_values_of_other_options_are_left_alone() -> None:
    words = ["sites", "m:x", "--sites", "a", "b", "--depth", "2", "--model-inputs", "c", "d"]
    assert spread(words) == [
        *("sites", "m:x", "--sites", "a", "--sites", "b"),
        *("--depth", "2", "--model-inputs", "c", "d"),
    ]


def prints() -> nn.Module:
    print("loading")  # noqa: T201 - as models do
    return make()


def test_what_a_model_prints_is_no_part_of_the_list(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastcap", "sites", f"{HERE}:prints", "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["name"] == ""
    assert err == "loading\n"


def test_a_depth_that_shows_nothing_prints_nothing() -> None:
    assert printed(f"{HERE}:make", "--depth", "0", "--sites", "layers.*").strip() in ("", SHALLOW)


SHALLOW = "Not shown, deeper than --depth 0: 3."
