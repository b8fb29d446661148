"""What a run refuses, what it records about its machine and code, and one run from end to end."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import memory, run
from benchmarks.checkout import Checkout, describe_checkout
from benchmarks.memory import Peak
from fastcap.bench import timing
from fastcap.bench.floors import Floors
from fastcap.bench.hardware import describe_machine
from tests.support.requires import needs_greenlet

PEAKS = {"hookless": Peak(1000, 900), "incumbent": Peak(4000, 900), "fastcap": Peak(2000, 900)}


def test_without_a_gpu_the_gpu_workload_says_so_and_exits_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(["--workload", "gpu-llama-7b", "--allow-dirty"]) == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err


@needs_greenlet
def test_a_whole_run_writes_its_files_and_ends_with_the_headline(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    monkeypatch.setattr(run, "measure_floors", lambda device: Floors(8.0, 4.0, 2.0, 1.0))
    monkeypatch.setattr(memory, "measure_all", lambda workload, ways: PEAKS)
    status = run.main(
        ["--workload", "tiny", "--rounds", "2", "--allow-dirty", "--out", str(tmp_path)]
    )
    printed = capsys.readouterr().out.splitlines()
    (path,) = tmp_path.glob("*.json")
    assert status == 0
    assert printed[0] == "workload      tiny"
    assert json.loads(printed[-1]) == json.loads(path.read_text())["headline"]
    assert json.loads(printed[-1])["equal"] is True


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_changes_are_listed_and_new_results_are_not(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message", "empty")
    assert describe_checkout(tmp_path).changes == ()
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    (results / "new.json").write_text("{}")
    (tmp_path / "code.py").write_text("")
    found = describe_checkout(tmp_path)
    assert found.changes == ("code.py",)
    assert found.commit is not None
    assert len(found.commit) == 40


def test_outside_a_checkout_there_is_no_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_checkout(tmp_path) == Checkout(None)


def test_the_machine_is_described_without_a_gpu() -> None:
    machine = describe_machine("cpu")
    assert machine.n_cores >= 1
    assert machine.memory_bytes > 1 << 28
    assert machine.gpu is None
