"""Peak memory, and the floors that times and memory are held against."""

from __future__ import annotations

import mmap
import subprocess
import time
from pathlib import Path

import pytest
import torch

from benchmarks.memory import (
    Peak,
    measure_in_child,
    over_hookless,
    reset_peak,
    resident_bytes,
    run_and_measure,
)
from benchmarks.workloads import WORKLOADS, build_case
from fastcap.bench.floors import Floors, copy_rates, predict
from fastcap.bench.timing import give_back_memory

MiB = 1 << 20

needs_clear_refs = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system cannot reset VmHWM"
)


def test_a_copy_rate_is_bytes_over_seconds() -> None:
    source = torch.zeros(MiB, dtype=torch.uint8)
    target = torch.ones(MiB, dtype=torch.uint8)
    rates = copy_rates(source, lambda: target)
    assert all(0.01 < rate < 1000 for rate in rates)
    assert not target.any()


def test_memory_is_rested_before_every_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(time, "sleep", rests.append)
    source = torch.zeros(8, dtype=torch.uint8)
    copy_rates(source, lambda: torch.empty_like(source), n_repeats=3, rest_secs=5.0)
    assert rests == [5.0, 5.0, 5.0]


def test_on_the_cpu_the_copy_adds_to_the_forward() -> None:
    prediction = predict(
        WORKLOADS["acceptance"].result_bytes, Floors(8.0, 4.0, 2.0, 1.0), hookless_secs=10.0
    )
    assert prediction.secs == pytest.approx(10.0 + 0.805306368 / 1.0)


@pytest.mark.parametrize(
    ("floors", "what"),
    [
        (Floors(10.0, 10.0, 10.0, 10.0, link_gb_per_sec=50.0), "forward"),
        (Floors(10.0, 10.0, 10.0, 10.0, link_gb_per_sec=1.0), "link"),
        (Floors(10.0, 10.0, 10.0, 1.0, link_gb_per_sec=50.0), "copy into rested memory"),
    ],
)
def test_behind_an_accelerator_the_slowest_stage_sets_the_time(floors: Floors, what: str) -> None:
    assert predict(WORKLOADS["gpu-llama-7b"].result_bytes, floors, hookless_secs=1.2).what == what


@needs_clear_refs
def test_a_peak_counts_memory_that_is_already_given_back() -> None:
    give_back_memory()
    before = reset_peak()
    with mmap.mmap(-1, 64 * MiB) as block:  # never memory that this process has already
        for _ in range(64):
            block.write(b"1" * MiB)
    added = resident_bytes("VmHWM") - before
    assert 60 * MiB < added < 72 * MiB
    assert abs(reset_peak() - before) < 8 * MiB


@needs_clear_refs
def test_a_way_is_run_and_its_peak_read() -> None:
    case = build_case(WORKLOADS["tiny"])
    peak = run_and_measure("fastcap", case)
    assert peak.host_bytes >= peak.before_bytes > MiB
    assert peak.device_bytes is None


def test_a_failed_child_is_reported_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="OSError: no VmHWM")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="no VmHWM"):
        measure_in_child("fastcap", "tiny")


def test_a_field_that_the_system_lacks_is_an_error() -> None:
    with pytest.raises(OSError, match="has no VmNothing"):
        resident_bytes("VmNothing")


def test_added_memory_is_counted_from_the_run_without_capture() -> None:
    peaks = {"hookless": Peak(10, 1), "incumbent": Peak(15, 1), "oracle": Peak(16, 1)}
    assert over_hookless({**peaks, "fastcap": Peak(12, 1)}) == {
        "incumbent": 5,
        "oracle": 6,
        "fastcap": 2,
    }
