"""The command line: its error paths, and the whole demo on a few docstrings."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import fastcap
from fastcap import FastcapError, cli
from fastcap.cli import app
from fastcap.demo import checkpoint
from fastcap.demo.corpus import PACKAGES
from fastcap.errors import SaveError
from tests.support.requires import needs_command_line

pytestmark = needs_command_line

needs_checkpoint = pytest.mark.skipif(
    importlib.util.find_spec(checkpoint.CHECKPOINT_PACKAGE) is None,
    reason=f"needs the checkpoint: {checkpoint.INSTALL_CHECKPOINT}",
)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app.make_app(), arguments)


@pytest.fixture
def demo_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], dict[str, Any]]:
    """Replace the demo by one that raises; gives a dict of what it was called with."""

    def replace(error: BaseException) -> dict[str, Any]:
        called_with: dict[str, Any] = {}

        def run_demo(out: Path, **options: Any) -> None:
            called_with.update(options, out=out)
            raise error

        monkeypatch.setattr("fastcap.demo.run_demo", run_demo)
        return called_with

    return replace


def test_version_prints_the_version() -> None:
    result = invoke("--version")
    assert (result.exit_code, result.stdout) == (0, f"fastcap {fastcap.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], *([each.__name__, "--help"] for each in app.COMMANDS)],
    ids=" ".join,
)
def test_what_only_prints_does_not_import_torch(arguments: list[str]) -> None:
    program = (
        "import atexit, sys\n"
        "loaded = lambda: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)\n"
        "atexit.register(loaded)\n"
        "from fastcap.cli import main\n"
        f"sys.argv = ['fastcap', *{arguments!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False False\n")
    assert done.stdout


def test_the_package_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "fastcap"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastcap {fastcap.__version__}\n"
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "Usage: python -m fastcap" in shown


def test_help_lists_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for function in app.COMMANDS:
        assert f"  {function.__name__} " in result.stdout


def test_without_arguments_the_help_is_printed() -> None:
    assert "Commands:" in invoke().output


def test_an_unknown_option_is_a_usage_error() -> None:
    result = invoke("demo", "--nonsense")
    assert result.exit_code == 2
    assert "--nonsense" in result.stderr


def test_options_reach_the_demo(demo_that: Callable[[BaseException], dict[str, Any]]) -> None:
    called_with = demo_that(FastcapError("enough"))
    invoke("demo", "--folder", "somewhere", "--limit", "7", "--seed", "3")
    assert called_with["out"] == Path("somewhere")
    assert (called_with["limit"], called_with["seed"]) == (7, 3)


def test_no_progress_bar_is_asked_for_where_nobody_watches(
    demo_that: Callable[[BaseException], dict[str, Any]],
) -> None:
    called_with = demo_that(FastcapError("enough"))
    invoke("demo")
    assert called_with["progress"] is False


def test_an_error_is_one_message_without_traceback(
    demo_that: Callable[[BaseException], dict[str, Any]],
) -> None:
    demo_that(FastcapError("Install with: pip install 'torch-fastcap[demo]'"))
    result = invoke("demo")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "fastcap: Install with: pip install 'torch-fastcap[demo]'\n"


def test_an_error_of_the_file_system_is_told_without_its_number(
    demo_that: Callable[[BaseException], dict[str, Any]],
) -> None:
    demo_that(SaveError(28, "Cannot save: No space left on device."))
    assert invoke("demo").stderr == "fastcap: Cannot save: No space left on device.\n"


def test_ctrl_c_exits_130_without_a_word(
    demo_that: Callable[[BaseException], dict[str, Any]],
) -> None:
    demo_that(KeyboardInterrupt())
    result = invoke("demo")
    assert (result.exit_code, result.output) == (130, "")


def test_a_programming_error_keeps_its_traceback(
    demo_that: Callable[[BaseException], dict[str, Any]],
) -> None:
    error = ZeroDivisionError("a bug")
    demo_that(error)
    assert invoke("demo").exception is error


@pytest.mark.parametrize("package", ["typer", "rich", "tqdm"])
def test_without_its_extra_the_command_says_how_to_install_it(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    # The interpreter prints a string status to stderr and exits with status 1.
    assert caught.value.code == (
        f"fastcap: needs {package}. Install it with: pip install 'torch-fastcap[cli]'"
    )
    assert capsys.readouterr().out == ""


def test_main_runs_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fastcap", "--version"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("fastcap ")


def test_the_installed_script_is_main() -> None:
    scripts = entry_points(group="console_scripts", name="fastcap")
    if not scripts:
        pytest.skip("fastcap is not installed here")
    (script,) = scripts
    assert script.load() is cli.main


def hidden_states(texts: list[str]) -> list[Tensor]:
    """What the model itself says its layers have at position 0."""
    model, tokeniser = checkpoint.load_checkpoint(checkpoint.find_checkpoint())
    rows = checkpoint.tokenise(tokeniser, texts)
    batch = checkpoint.pad_batch(rows, tokeniser.pad_token_id)
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    return [state[:, 0] for state in output.hidden_states]


@needs_checkpoint
def test_the_demo_captures_probes_and_writes_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    result = invoke("demo", "--limit", "4", "--folder", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output

    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["accuracy-by-layer.png", "activations.npz", "docstrings.jsonl"]
    assert all(f"  {tmp_path / 'out' / name}\n" in result.stdout for name in written)
    assert (tmp_path / "out" / "accuracy-by-layer.png").read_bytes().startswith(b"\x89PNG")

    lines = (tmp_path / "out" / "docstrings.jsonl").read_text(encoding="utf-8").splitlines()
    docstrings = [json.loads(line) for line in lines]
    assert sorted(d["package"] for d in docstrings) == sorted(PACKAGES * 4)
    assert all(d["source"].startswith(d["package"] + "/") for d in docstrings)

    acts = np.load(tmp_path / "out" / "activations.npz")
    expected = hidden_states([d["text"] for d in docstrings])
    assert list(acts) == ["embeddings", *(f"encoder.layer.{index}" for index in range(6))]
    for site, state in zip(acts, expected, strict=True):
        assert np.array_equal(acts[site], state.numpy())
        assert site in result.stdout

    assert "(32, 384)" in result.stdout
    assert "At 'embeddings' the probe can only guess" in " ".join(result.stdout.split())
    assert "TF-IDF bag of words" in result.stdout
    assert "Capturing [CLS] at every layer" in result.stderr
