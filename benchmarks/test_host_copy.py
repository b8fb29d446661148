"""Host copies: each way writes what it says, and every figure is written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import host_copy
from benchmarks.host_copy import SIZES, main, ways


def test_every_way_fills_as_many_bytes() -> None:
    for name, copy in ways(SIZES[0]).items():
        written = copy()
        assert written is None or (isinstance(written, Tensor) and written.nbytes == SIZES[0]), name


def test_figures_are_written_and_the_threads_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host_copy, "SIZES", SIZES[:1])
    n_threads = torch.get_num_threads()
    assert main(["--rounds", "2", "--allow-dirty", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == n_threads
    [path] = tmp_path.iterdir()
    found = json.loads(path.read_text())["gb_per_sec_by_threads_and_bytes"]
    assert set(found["1"][str(SIZES[0])]) == set(ways(SIZES[0]))
    assert "copy_, transposed value" in capsys.readouterr().out
