"""Runs on the virtual clock take no longer than they may, from their first pass on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import virtual


def test_memory_is_sized_in_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert virtual.main(["--allow-dirty", "--out", str(tmp_path)]) == 0
    [path] = tmp_path.iterdir()
    found = json.loads(path.read_text())
    assert "not a measurement" in found["kind"]
    rows = [virtual.Row(**row) for row in found["rows"]]
    assert len(rows) == len(virtual.PASSES) * len(virtual.HOST_RATES) * len(virtual.LIMITS)
    for row in rows:
        assert row.ratio <= virtual.LIMITS[row.destination], row
        assert not row.spilled_bytes, row
    assert "12 passes, 25 GB/s per worker, lent slots" in capsys.readouterr().out
