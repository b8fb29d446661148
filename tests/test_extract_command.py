"""`fastcap extract` and `fastcap inspect`: real files, real signals, exact values."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

import fastcap
from fastcap import cli, reference
from fastcap.cli import app
from fastcap.cli.locate import load_model
from fastcap.devices.accelerator import own_device
from fastcap.huggingface import Collator, load
from fastcap.spec import make_selection
from tests.support.datasets import make_ids
from tests.support.huggingface import TEXTS, save
from tests.support.models import LanguageModel
from tests.support.requires import needs_command_line

pytestmark = [
    needs_command_line,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

HERE = __name__
IDS = make_ids(10, 6)


def make() -> nn.Module:
    return LanguageModel()


def make_other() -> nn.Module:
    return LanguageModel(seed=1)


def samples() -> list[dict[str, Any]]:
    return [{"input_ids": ids, "y": index} for index, ids in enumerate(IDS)]


def texts() -> list[str]:
    return TEXTS


class SignalsItself(nn.Module):
    """A model whose third pass is interrupted as terminals and schedulers do it: every process of
    the group receives the signal, loading workers too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inner = make()
        self.n_passes = 0

    def forward(self, input_ids: Tensor) -> Tensor:
        self.n_passes += 1
        if self.n_passes == 3 and (number := os.environ.get("TEST_SIGNAL")):
            os.killpg(0, int(number))
        out: Tensor = self.inner(input_ids)
        return out


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.make_app(), arguments)


@pytest.fixture
def tokens(tmp_path: Path) -> str:
    path = tmp_path / "tokens.npy"
    np.save(path, IDS.numpy().astype("uint16"))
    return str(path)


def expected(batch_size: int = 4, **selection: Any) -> Tensor:
    asked = make_selection(**selection)
    batches = torch.split(IDS, batch_size)
    found = reference.extract(
        make().eval(), batches, ["norm"], lambda model, ids: model(ids), selection=asked
    )
    return found["norm"]


EXTRACT = ("extract", f"{HERE}:make")


def extract(data: str, out: Path, *options: str) -> Result:
    given = ("--data", data, "--sites", "norm", "--folder", str(out), "--batch-size", "4")
    return invoke(*EXTRACT, *given, *options)


def test_token_files_become_an_archive_with_the_values_of_the_oracle(
    tokens: str, tmp_path: Path
) -> None:
    out = tmp_path / "acts"
    result = extract(tokens, out)
    assert result.exit_code == 0, result.output
    archive = fastcap.open_archive(out)
    assert torch.equal(archive["norm"][:], expected())
    size = result.stdout.split(": ")[1].split(".\n")[0]
    assert result.stdout == (
        f"{out} has 10 of 10 samples of 1 site: {size}.\nTo look at it: fastcap inspect {out}\n"
    )
    assert result.stderr.startswith("fastcap: 10 samples in 0:0")
    assert "samples/s, 0.00 GB/s, bound by " in result.stderr


@pytest.mark.parametrize(
    ("text", "positions"),
    [("-1", -1), ("0:2", slice(0, 2)), ("::2", slice(None, None, 2)), ("0,3", [0, 3])],
)
def test_positions_are_read_as_python_writes_them(
    tokens: str, tmp_path: Path, text: str, positions: Any
) -> None:
    result = extract(tokens, tmp_path / "acts", "--positions", text, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    found = fastcap.open_archive(tmp_path / "acts")["norm"][:]
    assert torch.equal(found, expected(positions=positions, dtype=torch.bfloat16))


def test_raw_tokens_and_datasets_of_python_work_the_same(tmp_path: Path) -> None:
    raw = tmp_path / "tokens.bin"
    IDS.numpy().astype("<u4").tofile(raw)
    outs = tmp_path / "raw", tmp_path / "python"
    cut = ("--context-length", "6", "--token-dtype", "uint32")
    assert extract(str(raw), outs[0], *cut).exit_code == 0
    result = extract(f"{HERE}:samples", outs[1], "--columns", "y", "--max-samples", "9")
    assert result.exit_code == 0, result.output
    first, second = map(fastcap.open_archive, outs)
    assert torch.equal(first["norm"][:], expected())
    assert torch.equal(second["norm"][:], expected()[:9])
    assert second["label:y"][:].tolist() == list(range(9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("suffix", [".jsonl", ".txt", "python"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_tokenized_by_the_folder_of_the_model(
    folder: Path, tmp_path: Path, suffix: str, side: str
) -> None:
    path, options = tmp_path / f"texts{suffix}", ["--padding-side", side]
    if suffix == ".jsonl":
        lines = [{"q": text, "n": index, "w": str(index)} for index, text in enumerate(TEXTS)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options += ["--text-key", "q", "--columns", "n", "--columns", "w"]
    elif suffix == ".txt":
        path.write_text("\n".join(TEXTS))
    else:
        options += ["--tokenizer", str(folder)]
    data = f"{HERE}:texts" if suffix == "python" else str(path)
    site, out = "layers.1", tmp_path / "acts"
    given = ("--data", data, "--sites", site, "--folder", str(out), "--positions", "last")
    result = invoke("extract", str(folder), *given, "--batch-size", "2", *options)
    assert result.exit_code == 0, result.output

    model, tokenizer = load(folder)
    collate = Collator(model, tokenizer, padding_side=side)
    wanted = reference.extract(
        model,
        list(collate.batches(TEXTS, batch_size=2)),
        [site],
        lambda model, batch: model(**batch),
        selection=make_selection("last", None, None, None),
    )
    archive = fastcap.open_archive(out)
    assert torch.equal(archive[site][:], wanted[site])
    if suffix == ".jsonl":
        assert archive["label:n"][:].tolist() == list(range(len(TEXTS)))
        assert archive["label:w"][1] == "1"


def test_a_folder_is_loaded_in_the_dtype_it_was_saved_in(tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "acts"
    folder.mkdir()
    save(folder)
    load(folder, dtype=torch.bfloat16)[0].save_pretrained(folder)  # type: ignore[operator]
    (tmp_path / "a.txt").write_text("one two\n")
    given = ("--data", str(tmp_path / "a.txt"), "--sites", "layers.1", "--folder", str(out))
    result = invoke("extract", str(folder), *given)
    assert result.exit_code == 0, result.output
    assert fastcap.open_archive(out)["layers.1"].dtype == torch.bfloat16


def test_the_same_command_again_does_nothing_and_another_one_is_refused(
    tokens: str, tmp_path: Path
) -> None:
    out = tmp_path / "acts"
    assert extract(tokens, out).exit_code == 0
    again = extract(tokens, out)
    assert again.exit_code == 0
    assert again.stdout.startswith(f"{out} has 10 of 10 samples of 1 site")
    assert again.stderr == ""
    unchecked = extract(tokens, out, "--check", "fingerprint")
    assert unchecked.stdout == again.stdout
    assert "check='all'" in extract(tokens, out, "--check", "all").stderr
    other = extract(tokens, out, "--positions", "-1")
    assert other.exit_code == 1
    assert "selection: positions: asked -1, " in other.stderr
    assert other.stderr.startswith("fastcap: ")
    given = ("--data", tokens, "--sites", "norm", "--folder", str(out), "--batch-size", "4")
    changed = invoke("extract", f"{HERE}:make_other", *given)
    assert changed.exit_code == 1
    assert "model: tensors: " in changed.stderr


def test_ranks_share_the_work_and_torchrun_says_who_they_are(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "acts"
    assert extract(tokens, out, "--rank", "1", "--world-size", "2").exit_code == 0
    assert len(fastcap.open_archive(out)) == 4
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert extract(tokens, out).exit_code == 0
    archive = fastcap.open_archive(out)
    assert torch.equal(archive["norm"][:], expected())
    assert [writer.directory.name[:7] for writer in archive.writers] == ["w-00000", "w-00001"]


def test_a_share_of_the_samples_is_said_at_the_start(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "its share" not in extract(tokens, tmp_path / "whole").stderr
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert extract(tokens, tmp_path / "acts", "--device", "cpu").stderr.startswith(
        "Process 1 of 4 on cpu: extracts its share of the samples, not all. --rank and "
        "--world-size, or RANK and WORLD_SIZE of the environment, say so.\n"
    )


@pytest.mark.parametrize(
    ("device", "local_rank", "taken"),
    [
        ("cuda", "1", "cuda:1"),
        ("cuda", "0", "cuda:0"),
        ("cuda", "2", "cuda"),  # CUDA_VISIBLE_DEVICES shows each process its own device only
        ("cuda", "", "cuda"),
        ("cuda:0", "1", "cuda:0"),
        ("cpu", "1", "cpu"),
    ],
)
def test_each_process_of_a_machine_takes_its_own_device(
    monkeypatch: pytest.MonkeyPatch, device: str, local_rank: str, taken: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert own_device(device, local_rank) == taken


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--positions", "1:x"], "--positions '1:x' cannot be read. Give an int (-1), a slice"),
        (["--dtype", "float17"], "--dtype 'float17' is not a torch dtype. Give one such as"),
        (["--dtype", "nn"], "--dtype 'nn' is not a torch dtype. Give one such as"),
        (["--device", "nowhere"], "--device 'nowhere': the model cannot be moved there: "),
        (["--max-tokens", "3"], "--max-tokens is for texts: give --tokenizer DIR where"),
        (["--padding-side", "left"], "--padding-side is for texts: give --tokenizer DIR"),
        (["--columns", "y"], "--columns is not for token ids, and --data "),
        (["--reduce", "median"], "reduce must be "),
        (["--batch-size", "0"], "batch_size must be at least 1; got 0."),
        (["--rank", "3"], "rank=3, but there are world_size=1 processes, counted from 0."),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be_used_are_one_line(
    tokens: str, tmp_path: Path, options: list[str], message: str
) -> None:
    result = extract(tokens, tmp_path / "acts", *options)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith(f"fastcap: {message}")
    assert result.stdout == ""
    assert not (tmp_path / "acts").exists()


def test_texts_without_a_tokenizer_say_how_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    assert extract(str(tmp_path / "a.txt"), tmp_path / "acts").stderr == (
        "fastcap: Texts need a tokenizer, and MODEL is not a folder that could have one. Give "
        "--tokenizer DIR, or token ids.\n"
    )


def test_what_was_left_out_is_one_line_too(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    np.save(path, IDS.numpy().reshape(-1))
    result = extract(str(path), tmp_path / "acts", "--context-length", "7")
    assert result.exit_code == 0
    assert result.stderr.startswith(
        f"fastcap: The last 4 tokens of {path} do not fill a sample of 7, and are left out.\n"
    )


def test_sites_may_be_several_words(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fastcap", *EXTRACT, "--data", tokens, "--folder", str(tmp_path / "acts")]
    monkeypatch.setattr(sys, "argv", [*words, "--sites", "norm", "layers.0"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert fastcap.open_archive(tmp_path / "acts").sites == ["norm", "layers.0"]


# Signals


COMMAND = "from fastcap.cli import main; main()"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)]
)
def test_a_signal_saves_what_is_complete_and_the_same_command_goes_on(
    tokens: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "acts"
    words = ["extract", f"{HERE}:SignalsItself", "--data", tokens, "--sites", "inner.norm"]
    words += ["--folder", str(out), "--batch-size", "2", "--num-workers", "1"]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TEST_SIGNAL": str(int(number))}
    stopped = subprocess.run(
        [sys.executable, "-c", COMMAND, *words],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        start_new_session=True,
    )
    assert stopped.returncode == code, stopped.stderr
    assert stopped.stdout == ""
    assert stopped.stderr.splitlines()[-1] == (
        f"fastcap: Stopped by {number.name}: 6 of 10 samples are saved in {str(out)!r}. To go on "
        "with the rest, run the same again."
    )
    assert len(fastcap.open_archive(out)) == 6
    assert invoke(*words).exit_code == 0
    archive = fastcap.open_archive(out)
    assert torch.equal(archive["inner.norm"][:], expected(batch_size=2))
    assert len(archive.writers) == 2


# Inspecting


@pytest.fixture
def archived(tokens: str, tmp_path: Path) -> Path:
    out = tmp_path / "acts"
    args = ("--sites", "layers.0", "--positions", "0:2", "--max-samples", "9")
    assert extract(tokens, out, *args).exit_code == 0
    return out


def shard(archive: Path) -> Path:
    return next(iter(archive.glob("w-*/*.safetensors")))


def test_inspect_shows_what_is_there(archived: Path) -> None:
    result = invoke("inspect", str(archived))
    assert result.exit_code == 0, result.output
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{archived}: 9 of 9 samples, ")
    assert "norm float32 (2, 16)" in lines
    assert "layers.0 float32 (2, 16)" in lines
    assert "batch:input_ids int64 (n,)" in lines
    (writer,) = [line for line in lines if line.startswith("w-00000-0-")]
    assert writer.split()[1:4] == ["0", "1", "9"]
    assert writer.endswith(" ended")
    assert f"torch {torch.__version__}" in lines[-1]


def test_inspect_as_json_says_the_same(archived: Path) -> None:
    found = json.loads(invoke("inspect", str(archived), "--verify", "--json").stdout)
    assert (found["n_samples"], found["n_expected"], found["missing"]) == (9, 9, [])
    assert [stream["name"] for stream in found["streams"]][:2] == ["norm", "layers.0"]
    assert found["streams"][0] == {
        "name": "norm",
        "kind": "site",
        "dtype": "float32",
        "shape": [2, 16],
        "is_ragged": False,
    }
    assert found["damaged"] == []
    assert found["is_verified"] is True
    assert found["bytes"] == sum(path.stat().st_size for path in archived.glob("w-*/*.safetensors"))
    assert found["config"]["sites"] == ["norm", "layers.0"]
    assert found["writers"][0]["is_running"] is False


def test_inspect_says_what_is_missing(tokens: str, tmp_path: Path) -> None:
    out = tmp_path / "acts"
    assert extract(tokens, out, "--rank", "1", "--world-size", "2").exit_code == 0
    lines = invoke("inspect", str(out)).stdout.splitlines()
    assert lines[0].startswith(f"{out}: 4 of 10 samples, ")
    assert lines[1] == "Missing samples: 0 to 3, 8 to 9"


def test_verify_finds_a_byte_that_has_changed(archived: Path) -> None:
    assert "Verified: every committed byte is as it was written." in (
        invoke("inspect", str(archived), "--verify").stdout
    )
    path = shard(archived)
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert invoke("inspect", str(archived)).exit_code == 0
    result = invoke("inspect", str(archived), "--verify")
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("Damaged: ")]
    assert line.startswith(f"Damaged: {path}: ")
    assert line.endswith("Samples 0 to 8.")


def test_a_file_that_is_cut_or_gone_is_seen_without_reading_it(archived: Path) -> None:
    path = shard(archived)
    path.unlink()
    (path.parent / "000009-000.safetensors.tmp").write_bytes(b"unfinished")
    with (path.parent / "journal.jsonl").open("ab") as journal:
        journal.write(b'0badc0de {"group"')
    result = invoke("inspect", str(archived))
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{archived}: 0 of 9 samples, 0 B\nMissing samples: 0 to 8\n")
    assert "last line of its journal torn, 1 files not committed (10 B)" in result.stdout
    assert "Damaged: " in result.stdout


def test_what_is_no_archive_is_one_line(tmp_path: Path) -> None:
    result = invoke("inspect", str(tmp_path))
    assert result.exit_code == 1
    assert result.stderr == f"fastcap: {tmp_path} is not an archive: it has no meta.json.\n"


@pytest.mark.parametrize("name", ["AutoConfig", "pipeline", "no_such_class", "__version__"])
def test_a_configuration_names_model_classes_and_nothing_else(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"architectures": [name]}))
    assert type(load_model(str(folder), with_weights=True)).__name__ == "LlamaModel"
    assert type(load_model(str(folder), with_weights=False)).__name__ == "LlamaModel"
