"""Hook costs: every way runs, the stores among them capture, and figures are differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import hook_cost
from benchmarks.hook_cost import EMPTY, HOOKLESS, N_SITES, SHAPE, WAYS, Staging, main, store


def test_figures_are_differences_to_the_hookless_passes_of_the_same_round() -> None:
    micros = {HOOKLESS: [1.0, 2.0, 3.0], EMPTY: [2.0, 3.0, 4.0], "way": [5.0, 6.0, 9.0]}
    cost = hook_cost._cost(micros, "way")
    assert cost.over_hookless == 4.0
    assert cost.over_empty == 3.0
    assert hook_cost._cost(micros, HOOKLESS).over_hookless == 0.0


def test_every_way_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--rounds", "2", "--allow-dirty", "--out", str(tmp_path)]) == 0
    [path] = tmp_path.iterdir()
    assert list(json.loads(path.read_text())["micros_per_site"]) == list(WAYS)
    printed = capsys.readouterr().out
    assert all(name in printed for name in WAYS)


def test_staged_stores_use_the_transfers_of_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = []
    monkeypatch.setattr(Staging, "pack", lambda self, *args: packed.append(args))
    step = store(Staging)
    packed.clear()
    step(torch.zeros(SHAPE))
    assert len(packed) == N_SITES
