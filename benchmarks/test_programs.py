"""The small programs: what they refuse and write, and what each figure is made of."""

from __future__ import annotations

import json
import mmap
import shutil
import subprocess
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import archive, early_stop, hook_cost, host_copy, imports, memory, programs, scaling
from benchmarks import virtual as virtual_runs
from benchmarks.checkout import Checkout, describe_checkout
from benchmarks.gpu import grid
from benchmarks.gpu.grid import ALL, LAST, Group
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN
from benchmarks.memory import Peak, reset_peak, resident_bytes
from benchmarks.models import build_model
from benchmarks.workloads import TINY, Workload, workloads_of
from fastcap.bench import timing
from fastcap.bench.ways import BASELINE, HOOK, WAYS

PROGRAMS = ("suite", "archive", "early_stop", "hook_cost", "host_copy", "imports", "scaling")
MiB = 1 << 20
TINY_WORKLOAD = next(workloads_of(TINY, "cpu"))

needs_clear_refs = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system cannot reset VmHWM"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)


def written_by(program: Any, out: Path, *options: str) -> dict[str, Any]:
    assert program.main([*options, "--allow-dirty", "--out", str(out)]) == 0
    [path] = out.iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    assert set(found) >= {"kind", "machine", "date", "commit", "torch", "python", "load"}
    assert path.name.startswith(f"{found['kind']}-{found['date'][:10]}-")
    return found


@pytest.mark.parametrize("name", PROGRAMS)
def test_figures_of_a_changed_working_tree_are_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dirty = Checkout("c0ffee", ("fastcap/engine.py",))
    monkeypatch.setattr(programs, "describe_checkout", lambda: dirty)
    program = import_module(f"benchmarks.{name}")
    assert program.main(["--out", str(tmp_path)]) == programs.CANNOT_START
    assert "fastcap/engine.py), so the figures could not be traced" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as caught:
        program.main(["--rounds", "1"])
    assert caught.value.code == 2
    assert "an interval needs at least 2 rounds" in capsys.readouterr().err


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
    assert len(found.commit or "") == 40


def test_without_git_the_commit_is_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert describe_checkout(tmp_path) == Checkout(None)
    monkeypatch.setattr(programs, "describe_checkout", lambda: Checkout(None))
    assert programs.origin_of("abc").fields()["commit"] == "abc"


# Memory


@needs_clear_refs
def test_a_peak_counts_memory_that_is_already_given_back() -> None:
    timing.give_back_memory()
    before = reset_peak()
    with mmap.mmap(-1, 64 * MiB) as block:  # never memory that this process has already
        for _ in range(64):
            block.write(b"1" * MiB)
    assert 60 * MiB < resident_bytes("VmHWM") - before < 72 * MiB
    assert abs(reset_peak() - before) < 8 * MiB
    peak = memory.run_and_measure("fastcap", TINY_WORKLOAD.build())
    assert peak.host_bytes >= peak.before_bytes > MiB
    with pytest.raises(OSError, match="has no VmNothing"):
        resident_bytes("VmNothing")


def test_a_failed_child_is_reported_with_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="OSError: no VmHWM")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(RuntimeError, match="no VmHWM"):
        memory.measure_in_child("fastcap", TINY_WORKLOAD)


def test_added_memory_is_counted_from_the_run_without_capture() -> None:
    peaks = {BASELINE: Peak(10, 1), HOOK: Peak(15, 1), "fastcap": Peak(12, 1)}
    assert memory.over_baseline(peaks) == {HOOK: 5, "fastcap": 2}


# Archives


def test_the_plain_loop_writes_files_of_the_same_sizes(tmp_path: Path) -> None:
    n_bytes, model = 3 * archive.SAMPLE_BYTES, archive.Source().eval()
    layout = archive.layout_of(archive.write_archive(model, n_bytes, tmp_path / "archive"))
    archive.write_plainly(model, layout, tmp_path / "plain")
    written = sorted(path.stat().st_size for path in (tmp_path / "plain").iterdir())
    assert written == sorted(layout.file_bytes)
    assert sum(written) >= n_bytes


@needs_clear_refs
def test_an_archive_is_timed_and_its_memory_is_what_the_run_adds(tmp_path: Path) -> None:
    found = written_by(archive, tmp_path, "--rounds", "2", "--gigabytes", "0.006")
    assert {way: len(secs) for way, secs in found["secs"].items()} == {
        **dict.fromkeys(("plain write", "archive", "np.savez"), 2)
    }
    of_run = archive.memory_of_run(3 * archive.SAMPLE_BYTES)
    assert of_run["bytes"] >= 3 * archive.SAMPLE_BYTES
    assert of_run["growth_bytes"] >= 0


# Passes that end early


def test_whole_and_ended_passes_give_the_same_and_the_floor_is_about_half() -> None:
    model = build_model(early_stop.SHAPE, torch.float32, "cpu")
    batches = early_stop.make_batches(2, (1, 8))
    whole, ended = (early_stop.timed(model, batches, stop)[1] for stop in (False, True))
    assert len(whole) == 2
    assert all(map(torch.equal, whole, ended))
    assert 0.45 < early_stop.share_before(model) < 0.5
    assert early_stop.measure(1, batches)["site"] == early_stop.SITE


# Hooks


def test_a_hook_s_cost_is_the_difference_to_the_baseline_of_the_same_round() -> None:
    micros = {BASELINE: [1.0, 2.0, 3.0], "empty hook": [2.0, 3.0, 4.0], "way": [5.0, 6.0, 9.0]}
    cost = hook_cost._cost(micros, "way")
    assert (cost.over_baseline, cost.over_empty) == (4.0, 3.0)
    assert hook_cost._cost(micros, BASELINE).over_baseline == 0.0


def test_every_way_to_hook_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = written_by(hook_cost, tmp_path, "--rounds", "2")
    assert list(found["micros_per_site"]) == list(hook_cost.ways_on("cpu"))
    packed = []
    monkeypatch.setattr(hook_cost.Staging, "pack", lambda self, *args: packed.append(args))
    step = hook_cost.store("cpu", hook_cost.Staging)
    packed.clear()
    step(torch.zeros(hook_cost.SHAPE))
    assert len(packed) == hook_cost.N_SITES


# Copies


def test_every_copy_fills_as_many_bytes_and_threads_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = host_copy.SIZES[0]
    for name, copy in host_copy.ways(size).items():
        written = copy()
        assert written is None or (isinstance(written, Tensor) and written.nbytes == size), name
    monkeypatch.setattr(host_copy, "SIZES", (size,))
    n_threads = torch.get_num_threads()
    found = written_by(host_copy, tmp_path, "--rounds", "2")
    assert torch.get_num_threads() == n_threads
    rates = found["gb_per_sec_by_threads_and_bytes"]["1"][str(size)]
    assert set(rates) == set(host_copy.ways(size))


# Importing


def test_import_costs_are_medians_of_all_processes_but_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    children = ({"torch_ms": 10.0, "added_ms": added} for added in (900.0, 1.0, 80.0, 60.0))
    monkeypatch.setattr(imports, "run_child", lambda *_, **__: next(children))
    figures = imports.measure(3)
    assert figures == {"rounds": 3, "torch_ms": 10.0, "added_ms": 60.0}
    assert not imports.is_fast(figures)
    assert imports.is_fast({"added_ms": 20.0})


# Scaling


def test_a_point_is_held_against_both_ways_and_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = scaling.measure_point(TINY_WORKLOAD, 2)
    assert {base: len(ratio["rounds"]) for base, ratio in ratios.items()} == {BASELINE: 2, HOOK: 2}
    assert all(scaling.workload() in points.values() for points in scaling.SERIES.values())
    monkeypatch.setattr(scaling, "WAYS", {**WAYS, HOOK: lambda case: {}})
    with pytest.raises(AssertionError, match="expected"):
        scaling.measure_point(TINY_WORKLOAD, 2)


# The virtual clock


def test_memory_is_sized_in_time(tmp_path: Path) -> None:
    found = written_by(virtual_runs, tmp_path)
    assert "not a measurement" in found["note"]
    rows = found["rows"]
    assert len(rows) == len(virtual_runs.PASSES) * len(virtual_runs.HOST_RATES) * 3
    for row in rows:
        assert row["ratio"] <= virtual_runs.LIMITS[row["destination"]], row
        assert not row["spilled_bytes"], row


def test_the_grid_on_the_virtual_clock_takes_what_the_cost_model_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (Group(LLAMA, ALL, 3, 1), Group(THIN, ALL, 3, 1), Group(GPT2, LAST, 3, 1))
    monkeypatch.setattr(grid, "GRID", groups)
    assert virtual_runs.main(["--grid"]) == 0
    assert capsys.readouterr().out.startswith("Arithmetic, not a measurement")
    cells = {
        (group.subject.name, cell.way): cell
        for group in groups
        for cell in virtual_runs.play_group(group)
    }
    for (_, way), cell in cells.items():
        if cell.model_secs is not None and way != grid.LOOP:
            assert cell.secs <= 1.05 * cell.model_secs
    ways = (("llama", grid.SLOTS), ("thin", grid.PINNED), ("thin", grid.ARCHIVE))
    assert [cells[way].bound for way in ways] == ["compute", "link", "disk"]


def test_the_bytes_of_a_workload_are_those_of_its_values() -> None:
    def of(workload: Workload) -> int:
        return sum(value.nbytes for value in workload.build().oracle().values())

    assert all(of(workload) == workload.result_bytes for workload in workloads_of(TINY, "cpu"))
