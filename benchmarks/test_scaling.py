"""Scaling: points are measured against the oracle, and drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling
from benchmarks.checkout import Checkout
from benchmarks.programs import Origin
from benchmarks.scaling import BASES, SERIES, measure_point, workload, write
from benchmarks.workloads import WORKLOADS
from fastcap.bench.hardware import describe_machine
from fastcap.bench.timing import Ratio
from tests.support.requires import needs_greenlet


@needs_greenlet
def test_a_point_is_held_against_both_ways() -> None:
    ratios = measure_point(WORKLOADS["tiny"], 2)
    assert list(ratios) == list(BASES)
    assert all(len(ratio.rounds) == 2 for ratio in ratios.values())


@needs_greenlet
def test_values_that_differ_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "oracle", lambda case: {})
    with pytest.raises(AssertionError):
        measure_point(WORKLOADS["tiny"], 2)


def test_every_series_goes_through_one_workload() -> None:
    assert all(workload() in points.values() for points in SERIES.values())


def test_figures_and_picture_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture needs the demo extra")
    ratio = Ratio(1.0, 0.9, 1.1, (1.0, 1.0))
    figures = {
        series: {size: dict.fromkeys(BASES, ratio) for size in points}
        for series, points in SERIES.items()
    }
    origin = Origin(describe_machine("cpu"), Checkout("c0ffee"), "2026-11-23T10:00", 0.5, 2)
    write(tmp_path, origin, figures, 2)
    [picture] = tmp_path.glob("*.svg")
    assert picture.stat().st_size > 10_000
    [content] = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert set(content["ratios"]) == set(SERIES)
