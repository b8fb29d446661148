"""`fastcap bench`: a whole run on a small model, and every way to ask for what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fastcap.bench import Floors, charts, page, report, timing
from fastcap.bench.files import check_writable
from fastcap.cli import app, bench
from fastcap.cli.command import spread
from fastcap.errors import SaveError

MODELS = """
import torch
from torch import nn
from tests.support.requires import needs_command_line

pytestmark = needs_command_line

def make_model():
    print("loading")
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 8), *(nn.Linear(8, 8) for _ in range(4)))

def make_configured():
    model = make_model()
    model.get_input_embeddings = lambda: model[0]
    return model

def make_batch():
    return {"input_ids": torch.arange(10).view(2, 5)}

def make_wrong_batch():
    return {"input_ids": torch.full((2, 5), 99)}

def make_compiled():
    return torch.compile(make_model(), backend="eager")

def make_mutating():
    return nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.ReLU(inplace=True))
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module to name, quick floors, and no collection between runs."""
    (tmp_path / "benchmodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "benchmodels", raising=False)
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    monkeypatch.setattr(report, "measure_floors", lambda *a, **o: Floors(8.0, 4.0, 2.0))


def invoke(*arguments: str) -> Result:
    words = spread(["bench", *arguments])
    return CliRunner().invoke(app.make_app(), [*words, "--rounds", "2", "--passes", "2"])


ASKED = ("benchmodels:make_model", "--example", "benchmodels:make_batch", "--sites", "{1..4}")


def test_a_table_of_every_way_and_the_floors() -> None:
    result = invoke(*ASKED)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "model    benchmodels:make_model, on cpu"
    assert "capture  4 sites, whole values: 1.28 kB per pass" in lines
    ways = [line.split("|")[3].strip() for line in lines if line.startswith(("| 1 ", "| 4 "))]
    assert ways == ["baseline", "hook", "fastcap"] * 2
    assert "copy into warm memory 8.00 GB/s" in result.stdout
    assert "loading" not in result.stdout  # what models print is not part of it
    assert "1 site, round 2: " in result.stderr
    assert "4 sites, round 2: " in result.stderr


def test_json_is_one_object() -> None:
    result = invoke(*ASKED, "--json", "--positions", "-1")
    content = json.loads(result.stdout)
    assert content["settings"]["sites"] == ["1", "2", "3", "4"]
    assert content["settings"]["selection"] == {"positions": "-1"}
    assert content["points"][-1]["captured_bytes"] == 2 * 4 * 2 * 8 * 4
    assert content["equal"] is True
    assert len(content["points"][-1]["secs"]["fastcap"]) == 2


def test_the_page_and_the_trace_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws pictures")
    html, trace = tmp_path / "new" / "report.html", tmp_path / "trace.json"
    result = invoke(*ASKED, "--html", str(html), "--trace", str(trace))
    assert result.exit_code == 0, result.output
    assert html.read_text().count("<svg") == 3
    assert len(json.loads(trace.read_text())["traceEvents"]) > 4


def test_without_a_batch_token_ids_are_drawn() -> None:
    sizes = ("--batch-size", "3", "--tokens", "7")
    result = invoke("benchmodels:make_configured", "--sites", "1", "--json", *sizes)
    content = json.loads(result.stdout)
    assert content["points"][-1]["captured_bytes"] == 2 * 3 * 7 * 8 * 4


def test_a_way_that_differs_is_a_status() -> None:
    example = ("--example", "benchmodels:make_batch")
    result = invoke("benchmodels:make_mutating", *example, "--sites", "1", "2")
    assert result.exit_code == 1
    assert "hook DIFFERS with 2 sites captured: 1: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((ASKED[0], "--sites", "1"), "how many token ids it has, as models of transformers do."),
        ((*ASKED, "--positions", "1:a"), "--positions '1:a' cannot be read. Give an int (-1)"),
        ((*ASKED, "--positions", "last"), "Measure with an int, a slice or a list of ints."),
        (
            (*ASKED, "--folder", "nowhere"),
            "--folder 'nowhere' is not a folder. Name one that exists.",
        ),
        ((*ASKED, "--device", "nonsense"), "--device 'nonsense': the model cannot be moved there"),
        ((*ASKED[:4], "9"), "Module '9' not found in model."),
        ((*ASKED[:4], "1:output[0]"), "Site '1:output[0]' gave no tensor in a pass. Leave it out"),
        (
            (ASKED[0], "--example", "benchmodels:make_wrong_batch", "--sites", "1"),
            "Running the model on its batch failed with IndexError",
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else None,
)
def test_what_cannot_be_measured_is_one_message(arguments: tuple[str, ...], text: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert text in result.stderr
    assert result.stdout == ""


def test_without_matplotlib_a_page_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    monkeypatch.setattr(report, "make_report", None)
    result = invoke(*ASKED, "--html", "report.html")
    assert result.exit_code == 1
    assert "pip install 'torch-fastcap[bench]'" in result.stderr


@pytest.mark.parametrize("option", ["--html", "--trace"])
def test_a_file_that_cannot_be_written_is_found_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="draws pictures")
    monkeypatch.setattr(report, "make_report", None)
    (tmp_path / "file").write_text("")
    for path in ("file/out", "."):
        result = invoke(*ASKED, option, path)
        assert result.exit_code == 1
        assert f"Cannot write {path}: " in result.stderr


def test_finding_out_leaves_no_file_and_changes_none(tmp_path: Path) -> None:
    new, old = tmp_path / "new.html", tmp_path / "old.html"
    old.write_text("kept")
    check_writable(new)
    check_writable(old)
    assert not new.exists()
    assert old.read_text() == "kept"


def test_figures_are_printed_even_where_writing_fails_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise SaveError(28, "Cannot write report.html: No space left on device.")

    monkeypatch.setattr(page, "write", fail)
    monkeypatch.setattr(charts, "check_matplotlib", lambda: None)
    result = invoke(*ASKED, "--html", "report.html", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["equal"] is True
    assert "No space left on device" in result.stderr


def test_ctrl_c_in_the_middle_is_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_show_round", interrupt)
    result = invoke(*ASKED)
    assert result.exit_code == 130
    assert result.stdout == ""


def test_a_compiled_model_is_measured() -> None:
    example = ("--example", "benchmodels:make_batch")
    result = invoke("benchmodels:make_compiled", *example, "--sites", "{1..4}")
    assert result.exit_code == 0, result.output
    assert "Compiled graphs skip hooks" in result.stdout
