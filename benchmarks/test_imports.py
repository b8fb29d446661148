"""What is said about the cost of importing the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import imports
from benchmarks.imports import ImportCost, broken_limits, main, summarise


def test_imports_over_the_limit_or_of_optional_packages_are_broken_limits() -> None:
    fine = ImportCost(20.0, 900.0, 21.0, ("fastcap", "safetensors"), cuda_is_initialised=False)
    assert broken_limits(fine) == []
    bad = ImportCost(80.0, 900.0, 82.0, ("fastcap", "tqdm.auto"), cuda_is_initialised=True)
    slow, optional, cuda = broken_limits(bad)
    assert "80.0 ms" in slow
    assert "tqdm" in optional
    assert "CUDA" in cuda


def test_import_costs_are_medians_of_pairs() -> None:
    alone = [{"torch_ms": value} for value in (10.0, 20.0, 30.0)]
    both = [
        {"torch_ms": 10.0, "fastcap_ms": added, "modules": ["m"], "cuda_is_initialised": False}
        for added in (1.0, 30.0, 4.0)
    ]
    cost = summarise(alone, both)
    assert cost.added_ms == 4.0
    assert cost.torch_ms == 10.0
    assert cost.difference_ms == 1.0
    assert cost.modules == ("m",)


def test_figures_are_written_with_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = ImportCost(20.0, 900.0, 21.0, ("fastcap",), cuda_is_initialised=False)
    monkeypatch.setattr(imports, "measure_imports", lambda n_rounds: cost)
    assert main(["--rounds", "3", "--allow-dirty", "--out", str(tmp_path)]) == 0
    [path] = tmp_path.glob("imports-*.json")
    written = json.loads(path.read_text())
    assert set(written) >= {"date", "commit", "machine", "torch", "load"}
    assert (written["added_ms"], written["torch_ms"], written["rounds"]) == (20.0, 900.0, 3)
