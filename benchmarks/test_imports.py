"""What is said about the cost of importing the library."""

from __future__ import annotations

from benchmarks.imports import ImportCost, broken_limits, summarise


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
