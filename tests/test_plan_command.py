"""`fastcap plan`: one screen that can be read, JSON that can be used, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from fastcap.cli import app
from fastcap.cli.command import spread
from fastcap.planning import read_machine
from tests.support.datasets import make_ids
from tests.support.models import LanguageModel
from tests.support.requires import needs_command_line

pytestmark = needs_command_line

HERE = __name__


def make() -> nn.Module:
    return LanguageModel(n_layers=12)


def make_wide() -> nn.Module:
    with torch.device("meta"):
        return nn.Sequential(
            nn.Embedding(32_000, 4096), *[nn.Linear(4096, 4096) for _ in range(32)]
        )


def batch() -> dict[str, Any]:
    return {"input_ids": make_ids(2, 7), "answer": torch.tensor([[1, 2], [3, 4]])}


def wrong_batch() -> Tensor:
    return torch.ones(2, 3)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.make_app(), spread(["plan", *arguments]))


def printed(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert result.stdout.count("\n") <= 40
    return result.stdout


def error_of(*arguments: str) -> str:
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("fastcap: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("fastcap: ").removesuffix("\n")


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 64 GB of memory and 500 GB of disk."""
    monkeypatch.setattr("fastcap.planning.assemble.available_bytes", lambda: 64 * 10**9)
    monkeypatch.setattr("fastcap.archive.files.LocalFiles.free_bytes", lambda *_: 500 * 10**9)


def test_a_plan_is_one_screen() -> None:
    text = printed(
        f"{HERE}:make", "--sites", "layers.*.mlp", "norm", "--samples", "1000", "--tokens", "9"
    )
    assert (
        text
        == """\
1,000 samples in 32 passes of 32, all positions, into memory

site                one pass     dtype    calls  per sample   in all
layers.{0..11}.mlp  32 x 9 x 16  float32     12     6.91 kB  6.91 MB
norm                32 x 9 x 16  float32      1       576 B   576 kB
In all: 7,488 B per sample, 7,488,000 B (7.49 MB)

memory               needed  there is
  result            7.49 MB
host memory in all  7.49 MB     64 GB  fits

time       at least  work
compute   not known  32 passes; forward pass not measured
consumer  not known  7.49 MB into fresh memory; rate not known
hooks     not known  416 calls; cost of one not known
The run: not known.
What is not known can be measured (--measure, measure=True) or given.
"""
    )


def test_a_run_that_does_not_fit_comes_with_ways_out() -> None:
    rates = Path(__file__).with_name("support") / "machine.json"
    text = printed(
        f"{HERE}:make_wide",
        *("--sites", "{1..32}", "--samples", "2048", "--tokens", "4096", "--batch-size", "8"),
        *("--machine", str(rates), "--forward-secs", "1.2", "--device", "cuda"),
    )
    assert (
        text
        == """\
2,048 samples in 256 passes of 8, all positions, into memory

site     one pass         dtype    calls  per sample  in all
{1..32}  8 x 4096 x 4096  float32     32     2.15 GB  4.4 TB
In all: 2,147,483,648 B per sample, 4,398,046,511,104 B (4.4 TB)

memory                   needed   there is
staging, on the device  1.07 GB  not known
  slots at first        1.21 GB
  result                 4.4 TB
host memory in all       4.4 TB      64 GB  DOES NOT FIT
staging: 16 x 67.1 MB (2 of the largest record); slots: 18 to 238 x 67.1 MB (1/4
  of available host memory)

time      at least  work
compute      5 min  256 passes of 1.2 s, and packs
link          80 s  4.4 TB at 55 GB/s
consumer     7 min  4.4 TB into fresh memory at 10 GB/s  <- bound
hooks      81.9 ms  8,192 calls of 10 µs
The run: 7 min, 1.43 times the passes alone; consumer is the bound.

The model has no data, so its forward pass is not measured.

Does not fit: 4.4 TB of host memory, and there is 64 GB.
  slice: one position ('last', or -1 without padding) takes 1.07 GB, fits
  cast: dtype=torch.bfloat16 takes 2.2 TB, still does not fit
  fewer: 29 of 2,048 samples fit
  archive: 4.4 TB on disk instead (fastcap.extract), still does not fit
  stream: 51.5 GB at a time instead (fastcap.stream), fits
"""
    )


WIDE = ("--samples", "20000000", "--tokens", "4096", "--batch-size", "8")


def make_stack() -> nn.Module:
    """Layers of two sites each, one with a name that does not fit."""
    with torch.device("meta"):
        blocks = []
        for _ in range(12):
            block = nn.Sequential()
            block.add_module("projection_of_the_first_kind", nn.Linear(4096, 4096))
            block.add_module("act", nn.ReLU())
            blocks.append(block)
        return nn.Sequential(nn.Embedding(32_000, 4096), *blocks)


def test_two_sites_of_every_layer_are_two_lines_however_long_names_and_shapes_are() -> None:
    options = (*WIDE, "--dtype", "float8_e4m3fn", "--into", "archive")
    text = printed(f"{HERE}:make_stack", "--sites", "{1..12}.*", *options)
    assert (
        text.partition("\n\nmemory")[0]
        == """\
20,000,000 samples in 2,500,000 passes of 8, all positions as float8_e4m3fn,
  into an archive

site                  one pass         dtype          calls  per sample   in all
{1..12}...first_kind  8 x 4096 x 4096  float8_e4m3fn     12      201 MB  4.03 PB
{1..12}.act           8 x 4096 x 4096  float8_e4m3fn     12      201 MB  4.03 PB
In all: 402,653,184 B per sample, 8,053,063,680,000,000 B (8.05 PB)"""
    )


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ("layers.{0,2,3}.mlp", "layers.{0,2,3}.mlp"),
        ("layers.{0,1,2,4,5,6,8}", "layers.{0,1...8}"),
        ("layers.{3..5}.attention_norm", "layers.{3..5}.attention_norm"),
        ("layers.7.mlp:input", "layers.7.mlp:input"),
        ("", '""'),
    ],
)
def test_a_line_of_the_table_names_its_sites(site: str, label: str) -> None:
    text = printed(f"{HERE}:make", "--sites", site, "--samples", "64", "--tokens", "4")
    assert text.splitlines()[3].startswith(f"{label}  ")


def test_what_comes_after_eight_lines_is_added_up() -> None:
    text = printed(f"{HERE}:make", "--sites", "**", "--samples", "64", "--tokens", "4")
    lines = text.splitlines()[3:13]
    assert lines[8].split() == ["and", "50", "more", "50", "19.2", "kB", "1.23", "MB"]
    assert lines[9] == "In all: 44,544 B per sample, 2,850,816 B (2.85 MB)"


@pytest.mark.parametrize(
    ("positions", "text"),
    [
        ("0,1,2", "positions 0,1,2, into memory"),
        (",".join(map(str, range(40))), "positions 0,1...39, into memory"),
        ("last", "positions 'last', into memory"),
    ],
)
def test_long_lists_of_positions_are_shortened(positions: str, text: str) -> None:
    options = ("--samples", "1", "--tokens", "40", "--positions", positions)
    found = printed(f"{HERE}:make_stack", "--sites", "1.act", *options)
    assert found.startswith(f"1 sample in 1 pass of 1, {text}\n")


def test_what_does_not_fit_into_a_line_goes_on_below_its_own_column(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text('{"link_bytes_per_sec": 5e9}')
    long = ("--samples", "2000000000000", "--tokens", "4", "--batch-size", "2")
    rates = ("--machine", str(path), "--forward-secs", "0.0123", "--device", "cuda")
    text = printed(f"{HERE}:make_stack", "--sites", "{1..12}.*", *long, *rates)
    assert (
        "compute   142,361 days  1,000,000,000,000 passes of 12.3 ms, without packs (rate\n"
        "                        not known)\n"
    ) in text


def test_json_is_the_whole_plan() -> None:
    found = json.loads(
        printed_json(
            f"{HERE}:make",
            *("--sites", "layers.{0,1}", "--samples", "10", "--example", f"{HERE}:batch"),
            *("--positions", "answer", "--dtype", "bfloat16", "--into", "archive", "--folder", "x"),
        )
    )
    assert found["total_bytes"] == found["captured_bytes"] == 2 * 10 * 2 * 16 * 2
    assert found["size"] == {"n_samples": 10, "batch_size": 2}
    assert found["sites"][0] == {
        "name": "layers.0",
        "produced": [2, 7, 16],
        "shape": [2, 2, 16],
        "dtype": "bfloat16",
        "n_calls": 1,
        "pass_bytes": 128,
        "link_bytes": 128,
    }
    assert found["selection"] == {
        "positions": "answer",
        "reduce": None,
        "dtype": "bfloat16",
        "seq_dim": None,
        "batch_dim": 0,
    }
    assert (found["into"], found["fits"], found["is_exact"]) == ("archive", True, True)
    # BatchColumns 1,280 bytes of values: token ids, where each sample's begin, and its id.
    assert found["memory"]["beside_bytes"] == 10 * (7 * 8 + 8 + 8)
    assert found["memory"]["archive_bytes"] == 1280 + 720


def printed_json(*arguments: str) -> str:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def measured_in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST_BYTES", "DISK_BYTES", "BLOCK_BYTES"):
        monkeypatch.setattr(f"fastcap.planning.measure.{name}", 1 << 20)
    monkeypatch.setattr("fastcap.planning.measure.N_HOOK_PASSES", 2)


@pytest.mark.usefixtures("measured_in_no_time")
def test_a_measured_machine_can_be_used_for_another_plan(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(printed_json(*OPTIONS, "--measure"))
    again = json.loads(printed_json(*OPTIONS, "--machine", str(path)))
    assert again["machine"] == json.loads(path.read_text())["machine"]
    assert again["machine"]["fresh_bytes_per_sec"] > 0
    assert read_machine(path).link_bytes_per_sec is None


def test_positions_of_every_kind_can_be_written() -> None:
    for text, n_positions in [("-1", 1), ("0,2,-1", 3), (":4", 4), ("1:6:2", 3), ("last", 1)]:
        found = json.loads(
            printed_json(
                *(f"{HERE}:make", "--sites", "norm", "--samples", "1", "--tokens", "7"),
                *("--positions", text),
            )
        )
        assert found["total_bytes"] == n_positions * 16 * 4, text


def test_the_mean_can_be_asked_for() -> None:
    options = (f"{HERE}:make", "--sites", "norm", "--samples", "1", "--tokens", "7")
    assert "the mean of each" in printed(*options, "--reduce", "mean")


OPTIONS = (f"{HERE}:make", "--sites", "norm", "--samples", "4", "--tokens", "5")


def test_a_model_here_can_be_planned_for_an_accelerator_elsewhere() -> None:
    text = printed(*OPTIONS, "--device", "cuda")
    assert "staging, on the device  16.8 MB  not known" in text
    assert "The model has no data, so its forward pass is not measured.\n" in text
    assert "staging" not in printed(*OPTIONS, "--device", "cpu")


# A local folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    ids: Any = {"bos_token_id": 0, "eos_token_id": 0, "vocab_size": 32}
    config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=16, **ids)
    model: Any = GPT2LMHeadModel(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    return tmp_path


PLANNED = ("--sites", "transformer.h.*", "--samples", "8", "--tokens", "6", "--batch-size", "4")


def test_a_folder_is_planned_without_weights_in_the_dtype_they_would_have(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    text = printed(str(folder), *PLANNED)
    assert "transformer.h.{0..1}  4 x 6 x 16  bfloat16" in text
    assert "In all: 384 B per sample, 3,072 B (3.07 kB)" in text
    assert "The model has no data, so its forward pass is not measured. Planned for an" in text
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.usefixtures("measured_in_no_time")
def test_the_weights_of_a_folder_are_read_to_measure_them(folder: Path) -> None:
    text = printed(str(folder), *PLANNED, "--measure")
    assert "times the passes alone;" in text
    (folder / "model.safetensors").unlink()
    assert "forward pass not measured" in printed(str(folder), *PLANNED, "--measure")


# Errors


def test_a_folder_whose_configuration_is_wrong_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": 3}')
    assert error_of(str(tmp_path), *PLANNED).startswith(
        f"MODEL {str(tmp_path)!r}: cannot read its config.json (TypeError: "
    )


def test_something_has_to_say_what_the_model_is_called_with() -> None:
    assert error_of(f"{HERE}:make", "--sites", "norm", "--samples", "4") == (
        "Nothing says what the model is called with. Give an example batch, or, for a model of "
        "token ids, the tokens of each sample (n_tokens=, --tokens)."
    )


def test_positions_that_cannot_be_read_are_refused() -> None:
    assert error_of(*OPTIONS, "--positions", "1:x") == (
        "--positions '1:x' cannot be read. Give an int (-1), a slice (0:64), a list (0,5,-1), "
        "last, unpadded, or the key of the batch that holds positions."
    )
    assert error_of(*OPTIONS, "--positions", "1-2").startswith(
        "positions='1-2' is the key of positions in the batch, and the batch has none"
    )


def test_an_unknown_dtype_is_refused() -> None:
    for text in ("float33", "nn", "torch.Tensor"):
        assert error_of(*OPTIONS, "--dtype", text) == (
            f"--dtype {text!r} is not a torch dtype. Give one such as float32, float16 or bfloat16."
        )


def test_an_unknown_reduction_is_refused() -> None:
    assert error_of(*OPTIONS, "--reduce", "max").startswith("reduce must be 'mean', or a callable")


@pytest.mark.parametrize(
    "options", [("--device", "gpu", "--measure"), ("--device", "xpu", "--measure")]
)
def test_a_device_that_is_not_there_is_refused(options: tuple[str, ...]) -> None:
    text = error_of(*OPTIONS, *options)
    assert text.startswith(f"--device {options[1]!r}: the model cannot be moved there: ")


def test_an_unknown_destination_is_refused() -> None:
    assert error_of(*OPTIONS, "--into", "tape") == (
        "into must be 'memory', 'loop' or 'archive'; got 'tape'."
    )


def test_a_site_that_does_not_exist_is_refused() -> None:
    options = ("--samples", "4", "--tokens", "5")
    assert error_of(f"{HERE}:make", "--sites", "nor", *options).startswith(
        "Module 'nor' not found in model."
    )


def test_a_model_that_cannot_be_called_with_the_example_is_one_line() -> None:
    options = ("--sites", "norm", "--samples", "4", "--example", f"{HERE}:wrong_batch")
    assert error_of(f"{HERE}:make", *options).startswith(
        "Running the model on the example failed with RuntimeError: "
    )
    assert error_of(f"{HERE}:make", *options).endswith(
        ". Give --example a batch that it can be called with, and name its other keys with "
        "--model-inputs."
    )


def test_rates_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    options = (*OPTIONS, "--machine")
    advice = "fastcap plan MODEL ... --measure --json > machine.json"
    path = tmp_path / "machine.json"
    assert error_of(*options, str(path)) == (
        f"The machine's rates cannot be read from {str(path)!r} (No such file or directory). "
        f"Write the file with: {advice}"
    )
    path.write_text("fast")
    assert error_of(*options, str(path)).startswith(
        f"The machine's rates cannot be read from {str(path)!r} (no JSON: "
    )
    path.write_text('{"speed": 1}')
    assert error_of(*options, str(path)) == (
        f"{str(path)!r} holds no rates of a machine. Its keys are link_bytes_per_sec, "
        "device_bytes_per_sec, pack_secs, fresh_bytes_per_sec, warm_bytes_per_sec, "
        f"disk_bytes_per_sec, hook_secs; write the file with: {advice}"
    )
    path.write_text('{"link_bytes_per_sec": "55"}')
    assert error_of(*options, str(path)) == (
        "link_bytes_per_sec must be a positive number, or None where it is not known; got '55'."
    )


def test_a_disk_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fastcap.archive.files.LocalFiles.create", create)
    options = (*OPTIONS, "--measure")
    assert error_of(*options, "--into", "archive", "--folder", "/tmp/nowhere/acts") == (
        "The disk at '/tmp' cannot be measured: Permission denied. Give a folder that can be "
        "written, or leave the measurement out."
    )
