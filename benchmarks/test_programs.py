"""What every program of this folder does in the same way."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import programs
from benchmarks.checkout import Checkout
from benchmarks.programs import CANNOT_START, begin, parser_of, write

PROGRAMS = ("run", "suite", "archive", "early_stop", "hook_cost", "host_copy", "imports", "scaling")
DIRTY = Checkout("c0ffee", ("fastcap/engine.py",))


def checked_out(monkeypatch: pytest.MonkeyPatch, checkout: Checkout) -> None:
    monkeypatch.setattr(programs, "describe_checkout", lambda: checkout)


@pytest.mark.parametrize("name", PROGRAMS)
def test_figures_of_a_changed_working_tree_are_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checked_out(monkeypatch, DIRTY)
    assert import_module(f"benchmarks.{name}").main(["--out", str(tmp_path)]) == CANNOT_START
    assert "fastcap/engine.py), so the figures could not be traced" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_too_few_rounds_for_an_interval_are_refused(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        import_module(f"benchmarks.{name}").main(["--rounds", "1"])
    assert caught.value.code == 2
    assert "an interval needs at least 2 rounds" in capsys.readouterr().err


def test_changes_are_allowed_where_asked_and_where_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked_out(monkeypatch, DIRTY)
    parser = parser_of("benchmarks.some", None, rounds=3)
    assert begin(parser.parse_args([])) is not None
    allowed = begin(parser.parse_args(["--out", "x", "--allow-dirty"]))
    assert allowed is not None
    assert allowed.fields()["changed_paths"] == ["fastcap/engine.py"]
    assert "c0ffee, with 1 changed paths" in dict(allowed.card_rows())["commit"]


def test_a_file_names_machine_date_commit_and_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_out(monkeypatch, Checkout(None))
    parser = parser_of("benchmarks.some", None, rounds=3)
    origin = begin(parser.parse_args(["--commit", "abc", "--out", str(tmp_path)]))
    assert origin is not None
    path = write(tmp_path / "new", "some", origin, {"figure": 1})
    assert path.name == f"some-{origin.day}-{origin.machine.tag}.json"
    written = json.loads(path.read_text())
    assert written["commit"] == "abc"
    assert set(written) >= {"machine", "date", "torch", "python", "threads", "load", "figure"}
