"""The GPU benchmarks, without a GPU: every function once, what reports say, and what is not run."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import fastcap
from benchmarks.checkout import Checkout
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import (
    cells as grid_cells,
)
from benchmarks.gpu import (
    destinations,
    goals,
    grid,
    link,
    micro,
    overheads,
    results,
    session,
    steady,
    subjects,
    toolbox,
    virtual,
)
from benchmarks.gpu.cells import ALL, GRID, LAST, SLICE, Cell, Group, fitted, open_cells
from benchmarks.gpu.destinations import (
    COMPARED,
    DESTINATIONS,
    HOOK,
    LOOP,
    PINNED,
    SLOTS,
    Outcome,
    slot_budget,
)
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.floors import (
    ARCHIVE,
    DISK,
    FORWARD,
    FRESH,
    HOST,
    LAUNCH,
    LINK,
    Floors,
    make_terms,
    measure_floors,
)
from benchmarks.gpu.host import HOOK as HOOK_FIGURE
from benchmarks.gpu.micro import Benchmark
from benchmarks.gpu.page import markdown
from benchmarks.gpu.report import Report
from benchmarks.gpu.session import FAILED, MEASURED, NOT_RUN, Clock, Entry
from benchmarks.gpu.standin import FakeCuda, FakeEvent, FakeStream, StandIn
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Subject, build, tiny
from benchmarks.gpu.toolbox import TINY, Gpu
from fastcap import hooks
from fastcap.bench import Machine, make_case, ways
from fastcap.bench.case import Values
from fastcap.lanes import straight
from tests.support.sanitizer import SCRIPT

GB = 10**9
MiB = 1 << 20
FLOORS = Floors(50.0, 2.0, 8.0, 10.0, 30.0, 2.5, n_workers=4)
SMALL_GRID = (Group(LLAMA, ALL, 60, 3), Group(LLAMA, SLICE, 60, 3), Group(THIN, LAST, 60, 3))
TINY_LLAMA = tiny(LLAMA)


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[pytest.MonkeyPatch]:
    """Two rounds, no search for garbage between them, and no import of transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "give_back_memory", lambda: None)
        patch.setattr(grid, "MOST_ROUNDS", 2)
        patch.setitem(__import__("sys").modules, "transformers", None)
        patch.setattr(command, "find_spec", lambda name: object())
        yield patch
    gc.unfreeze()


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    found = StandIn()
    with found.running():
        yield found


# The whole command


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    out = tmp_path_factory.mktemp("results")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_cells, "GRID", SMALL_GRID)
        assert command.main(["--dry-run", "--out", str(out)]) == 0
    torch.set_num_threads(n_threads)
    (path,) = out.glob("*.json")
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_a_dry_run_runs_every_benchmark(dry_run: tuple[dict[str, Any], str]) -> None:
    entries = dry_run[0]["micro"]
    assert {entry["name"] for entry in entries} == {f"B{number}" for number in range(1, 23)}
    unmeasured = {entry["name"] for entry in entries if entry["status"] != MEASURED}
    assert unmeasured == {"B16"}  # of the small model, which is not in this grid
    assert all(entry["figures"] for entry in entries if entry["name"] != "B16")


def test_a_dry_run_compares_every_cell_with_the_oracle(
    dry_run: tuple[dict[str, Any], str],
) -> None:
    cells = dry_run[0]["grid"]
    assert len(cells) == sum(len(group.destinations) for group in SMALL_GRID)
    for cell in cells:
        assert (cell["status"], cell["equal"], len(cell["secs"])) == (MEASURED, True, 2)
        assert cell["values_compared"] >= 3 * 3  # a first run and two rounds of three sites
        assert cell["bound"] in cell["floor_secs"]


def test_a_dry_run_names_its_origin_and_is_called_no_measurement(
    dry_run: tuple[dict[str, Any], str],
) -> None:
    written, page = dry_run
    assert written["is_measurement"] is False
    assert written["is_complete"] is True
    assert set(written) >= {"machine", "driver", "torch", "commit", "date", "floors_gb_per_sec"}
    assert written["models"]["llama"].startswith("benchmarks.Decoder (transformers made")
    assert "No figure here is a measurement of anything" in page
    assert page.startswith("# DRY RUN")
    for heading in ("## Goals", "## Grid", "## Floors", "## Micro-benchmarks", "## Not run"):
        assert heading in page


def test_without_a_gpu_the_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    assert "--dry-run shows that the code runs" in capsys.readouterr().err


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    options = command._parse(["--dry-run"])
    report = command._open_report(StandIn(), options)
    assert set(report.missing) == {"safetensors", "transformers", "pytest"}
    assert "safetensors (archives are not read" in markdown(report)


def test_a_module_without_metadata_has_an_unknown_version() -> None:
    assert command._version("no-such-package") == "of unknown version"


def test_the_file_system_of_a_folder_is_named() -> None:
    assert command.file_system(Path("/proc/self")) == "proc"


def test_fewer_passes_where_the_host_has_little_memory() -> None:
    group = Group(LLAMA, ALL, 1, 4)
    no_disk = replace(FLOORS, disk=None)
    assert fitted(group, None, no_disk) == 4
    assert fitted(group, 100 * group.pass_bytes, no_disk) == 4
    assert fitted(group, 21 * group.pass_bytes, no_disk) == 3
    assert fitted(group, group.pass_bytes, no_disk) == 2


def test_fewer_passes_where_an_archive_of_them_would_take_most_of_the_time() -> None:
    group = Group(LLAMA, ALL, 130, 4)
    assert fitted(group, None, FLOORS) == 4
    assert fitted(group, None, replace(FLOORS, disk=0.3)) == 3
    assert fitted(group, None, replace(FLOORS, disk=0.001)) == 2


def test_pinned_memory_that_torch_keeps_is_given_back_where_memory_is_short(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(LLAMA, ALL, 1000, 4)
    short, enough = 7 * group.pass_bytes, 70 * group.pass_bytes
    given_back: list[str] = []
    monkeypatch.setattr(gpu, "give_back_pinned", lambda: given_back.append("all"))
    for found, n_passes, expected in (
        ([enough], 4, []),
        ([short, enough], 4, ["all"]),
        ([short, 3 * short], 3, ["all"]),
    ):
        left = iter(found)
        monkeypatch.setattr(grid, "available_bytes", lambda left=left: next(left))
        assert grid._n_passes(gpu, group, FLOORS) == n_passes
        assert given_back == expected
        given_back.clear()


def test_giving_back_pinned_memory_works_with_every_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: called.append("torch"), raising=False)
    Gpu("cpu").give_back_pinned()
    monkeypatch.delattr(torch._C, "_host_emptyCache")
    Gpu("cpu").give_back_pinned()
    assert called == ["torch"]


# A run in which things go wrong


def open_run(
    gpu: Gpu, tmp_path: Path, limit_secs: float = 1e6, floors: Floors | None = FLOORS
) -> command.Run:
    report = command._open_report(gpu, command._parse(["--dry-run"]))
    report.floors = floors
    return command.Run(gpu, TINY, Clock(limit_secs), None, tmp_path, report)


def test_a_model_that_fails_leaves_the_others(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(subject: Subject, gpu: Gpu) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(command, "build", broken)
    run = open_run(gpu, tmp_path)
    run._subject([Group(TINY_LLAMA, LAST, 10, 3)], run.clock)
    assert not run.report.is_right
    assert "llama failed: RuntimeError: no such kernel (test_gpu_bench.py:" in run.report.notes[0]
    assert [cell.status for cell in run.report.cells] == [NOT_RUN] * len(DESTINATIONS)


def test_a_model_for_which_the_gpu_is_too_small_is_not_run(gpu: StandIn, tmp_path: Path) -> None:
    run = open_run(gpu, tmp_path)
    run._subject([Group(replace(TINY_LLAMA, needs_bytes=1 << 40), LAST, 10, 3)], run.clock)
    assert "the GPU has 8.59 GB free, and needs 1.1 TB" in run.report.cells[0].reason
    assert run.report.is_right


def test_floors_that_fail_leave_the_micro_benchmarks(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(command, "measure_floors", broken)
    monkeypatch.setattr(micro, "FIRST", (Benchmark("B0", "nothing", nothing, 0),))
    monkeypatch.setattr(micro, "LATER", ())
    run = open_run(gpu, tmp_path, floors=None)
    run.everything([Group(TINY_LLAMA, LAST, 10, 3)])
    assert "The floors could not be measured: OSError: read-only" in run.report.notes[0]
    assert run.report.entries[0].status == MEASURED
    assert {cell.reason for cell in run.report.cells} == {"the floors could not be measured"}


def nothing(*_: object) -> Iterator[Figure]:
    yield Figure("nothing", 0.0, "s")


def test_without_time_nothing_begins_and_the_report_says_so(gpu: StandIn, tmp_path: Path) -> None:
    run = open_run(gpu, tmp_path, limit_secs=2.0)
    run._micro([Benchmark("B0", "nothing", nothing, 30)])
    run._subject([Group(TINY_LLAMA, LAST, 40, 3)], run.clock)
    page = markdown(run.report)
    assert "- B0, nothing: not run: out of time: 2 s were left, and it takes about 30 s" in page
    assert "- llama, last, archive: not run: out of time: " in page
    assert not any(cell.is_measured for cell in run.report.cells)


def test_a_group_whose_time_is_over_after_first_runs_says_so(gpu: StandIn, tmp_path: Path) -> None:
    with torch.no_grad():
        built = build(TINY_LLAMA, gpu)
    ticks = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    clock = Clock(100.0, lambda: next(ticks, 1e9))
    cells = open_cells(Group(TINY_LLAMA, LAST, 10, 3))
    grid.measure_group(gpu, cells, built, FLOORS, tmp_path, clock)
    assert not any(cell.is_measured for cell in cells)
    assert cells[0].reason == "only the first run: out of time"
    assert cells[0].is_equal


def test_a_destination_that_fails_leaves_the_others(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = iter(range(100))

    def breaks_later(question: destinations.Question, on_batch: Any) -> Outcome:
        if next(runs) == 1:
            raise RuntimeError("out of slots")
        return destinations.fresh(question, on_batch)

    def breaks(question: destinations.Question, on_batch: Any) -> Outcome:
        raise torch.OutOfMemoryError("too large")

    def wrong(question: destinations.Question, on_batch: Any) -> Outcome:
        values, first = next(destinations.fresh(question, on_batch).parts)
        return Outcome(iter([({"layers.0": values["layers.0"] + 1}, first)]))

    monkeypatch.setattr(
        grid_cells,
        "DESTINATIONS",
        {SLOTS: breaks_later, FRESH: destinations.fresh, ARCHIVE: breaks, LOOP: wrong},
    )
    group = Group(TINY_LLAMA, LAST, 60, 3)
    built = build(TINY_LLAMA, gpu)
    found = open_cells(group)
    grid.measure_group(gpu, found, built, FLOORS, tmp_path, Clock(1e6))
    cells = {cell.destination: cell for cell in found}
    assert (cells[SLOTS].status, cells[ARCHIVE].status) == (FAILED, FAILED)
    assert cells[ARCHIVE].reason.startswith("OutOfMemoryError: too large")
    assert (cells[FRESH].status, cells[FRESH].is_equal) == (MEASURED, True)
    assert cells[LOOP].problems[1:] == ["layers.1: missing", "layers.2: missing"]
    report = command._open_report(gpu, command._parse(["--dry-run"]))
    report.cells = found
    assert not report.is_right
    assert "slots | failed: RuntimeError: out of slots" in " ".join(markdown(report).split())
    assert "slots, plain loop DIFFERS: layers.0:" in markdown(report)


def test_passes_without_capture_that_fail_end_the_group(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def breaks(question: destinations.Question, on_batch: Any) -> Outcome:
        if next(calls):
            raise RuntimeError("lost the GPU")
        return Outcome(iter([]))

    monkeypatch.setattr(grid, "nowhere", breaks)
    built = build(TINY_LLAMA, gpu)
    cells = open_cells(Group(TINY_LLAMA, LAST, 60, 3))
    with pytest.raises(RuntimeError, match="without capture failed: RuntimeError: lost the GPU"):
        grid.measure_group(gpu, cells, built, FLOORS, tmp_path, Clock(1e6))
    assert cells[0].first_secs is not None
    assert cells[0].reason == grid.FIRST_RUN_ONLY


def test_a_group_that_fails_leaves_the_others_and_what_it_had(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = grid._run_rounds, []

    def breaks_first(alive: dict[str, Cell], turns: grid.Turns) -> None:
        seen.append(alive)
        if len(seen) == 1:
            raise RuntimeError("lost the GPU")
        real(alive, turns)

    monkeypatch.setattr(grid, "_run_rounds", breaks_first)
    run = open_run(gpu, tmp_path)
    run._subject([Group(TINY_LLAMA, LAST, 60, 3), Group(TINY_LLAMA, SLICE, 60, 3)], run.clock)
    cells = {(cell.group.picked.name, cell.destination): cell for cell in run.report.cells}
    assert (cells["last", SLOTS].status, cells["last", SLOTS].is_equal) == (NOT_RUN, True)
    assert cells["slice 64", SLOTS].is_measured
    assert run.report.notes[0].startswith("llama, last failed: RuntimeError: lost the GPU")


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(143), "SystemExit: 143"),
        (session.RunEndedError("SIGTERM"), "RunEndedError: SIGTERM"),
    ],
    ids=["Ctrl-C", "SIGTERM in extract", "SIGTERM"],
)
def test_a_run_that_is_ended_leaves_its_report(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, why: str
) -> None:
    def ended(alive: dict[str, Cell], turns: grid.Turns) -> None:
        raise error

    benchmark = Benchmark("B1", "nothing", nothing, 0)
    monkeypatch.setattr(micro, "FIRST", (benchmark,))
    monkeypatch.setattr(micro, "LATER", (Benchmark("B3", "later", nothing, 0),))
    monkeypatch.setattr(grid, "_run_rounds", ended)
    run = open_run(gpu, tmp_path)
    run.out = tmp_path
    run.everything([Group(TINY_LLAMA, LAST, 60, 3), Group(tiny(THIN), ALL, 60, 3)])
    (path,) = tmp_path.glob("*.json")
    written, page = json.loads(path.read_text()), path.with_suffix(".md").read_text()
    assert (written["is_complete"], written["is_right"]) == (False, False)
    assert written["notes"][0].startswith("Ended after ")
    assert written["notes"][0].endswith(why)
    cells = {cell["cell"]: cell for cell in written["grid"]}
    assert cells["llama, last, slots"]["equal"] is True
    assert "- B3, later: not run: the run ended before it" in page
    assert "- thin, all positions, archive: not run: the run ended before it" in page
    assert "**This run did not come to its end.**" in page


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_signals_end_what_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    why = "60 s were over" if number == signal.SIGALRM else "SIGTERM"
    with pytest.raises(session.RunEndedError, match=why), session.ending_after(60, 60):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_all_times_together_are_less_than_eight_minutes() -> None:
    assert command.LIMIT_SECS + command.OVERTIME_SECS + command.GRACE_SECS <= 480 - 15
    likely_secs = sum(group.likely_secs for group in GRID)
    likely_secs += sum(each.likely_secs for each in (*micro.FIRST, *micro.LATER))
    assert likely_secs <= command.LIMIT_SECS


def test_time_can_be_kept_for_others() -> None:
    clock = Clock(100.0, lambda: 5.0)
    assert clock.reserving(30).left_secs == 70


def test_a_disk_that_cannot_be_written_leaves_the_other_floors(
    gpu: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    floors = measure_floors(gpu, TINY, tmp_path / "missing")
    assert floors.disk is None
    assert floors.link > 0
    assert "Nothing can be written to " in capsys.readouterr().err
    terms = make_terms(floors, 1e9, 1, 1.0, 1.0, ARCHIVE)
    assert DISK not in {**terms.secs, **terms.others}
    report = made_up_report()
    report.floors = floors
    assert "none could be written" in markdown(report)


def test_an_archive_that_would_take_too_long_is_not_begun(gpu: StandIn, tmp_path: Path) -> None:
    group = Group(TINY_LLAMA, LAST, 20, 3)
    slow = replace(FLOORS, disk=group.pass_bytes / 100 / 1e9)
    cells = open_cells(group)
    grid.measure_group(gpu, cells, build(TINY_LLAMA, gpu), slow, tmp_path, Clock(1e6))
    found = {cell.destination: cell for cell in cells}
    assert found[ARCHIVE].reason.endswith("and it takes about 200 s")
    assert found[FRESH].is_measured


# The pinned result


def measured_pinned(gpu: Gpu, folder: Path, subject: Subject = TINY_LLAMA) -> Cell:
    cells = [Cell(Group(subject, ALL, 60, 3), PINNED)]
    grid.measure_group(gpu, cells, build(subject, gpu), FLOORS, folder, Clock(1e6))
    return cells[0]


def test_a_pinned_result_is_pinned_once_outside_its_time(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    def extract(*args: Any, out: Values, **options: Any) -> Values:
        given.append(out["layers.0"].data_ptr())
        return fastcap.extract_representations(*args, out=out, **options)

    monkeypatch.setattr(ways, "extract_representations", extract)
    cell = measured_pinned(gpu, tmp_path)
    assert (cell.status, cell.is_equal, len(cell.secs)) == (MEASURED, True, 2)
    assert cell.prepare_secs is not None
    assert (len(given), len(set(given))) == (3, 1)
    report = made_up_report()
    report.cells = [cell]
    assert " of pinning" in markdown(report)
    assert results.document(report)["grid"][0]["prepare_secs"] == cell.prepare_secs


def test_copies_go_straight_into_a_pinned_result(gpu: StandIn, tmp_path: Path) -> None:
    subject = tiny(THIN)
    wide = replace(subject, shape=replace(subject.shape, width=4096))
    with mock.patch.object(straight, "copy_straight", side_effect=straight.copy_straight) as copied:
        cell = measured_pinned(gpu, tmp_path, wide)
    assert copied.call_count
    assert cell.is_equal


def test_a_pinned_result_is_not_right_because_an_earlier_run_was(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Values] = []

    def extract(*args: Any, out: Values, **options: Any) -> Values:
        runs.append(out)
        if len(runs) > 1:
            return out
        return fastcap.extract_representations(*args, out=out, **options)

    monkeypatch.setattr(ways, "extract_representations", extract)
    cell = measured_pinned(gpu, tmp_path)
    assert len(runs) == 3
    assert cell.is_equal is False
    assert cell.problems[0].startswith("layers.0: ")


def test_an_archive_needs_a_reader_and_room(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(TINY_LLAMA, gpu)
    case = make_case(built.model, built.batches, built.sites)
    question = destinations.Question(case, built, 1 << 60, tmp_path, {})
    with pytest.raises(UnavailableError, match=" free, and the archive takes "):
        destinations.archive(question, None)
    monkeypatch.setattr(destinations, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="safetensors is not installed"):
        destinations.archive(question, None)


def test_an_archive_that_fails_leaves_no_files(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(fastcap, "extract", breaks)
    built = build(TINY_LLAMA, gpu)
    case = make_case(built.model, built.batches, built.sites)
    with pytest.raises(RuntimeError, match="no"):
        destinations.archive(destinations.Question(case, built, 1, tmp_path, {}), None)
    assert list(tmp_path.iterdir()) == []


# Micro-benchmarks


def run_entry(*figures: Figure, error: Exception | None = None) -> Entry:
    def run(gpu: Gpu, sizes: object) -> Iterator[Figure]:
        yield from figures
        if error is not None:
            raise error

    return session.run_benchmark(Benchmark("B0", "t", run, 1), StandIn(), TINY, Clock(1e6))


def test_a_benchmark_that_fails_keeps_the_figures_it_had() -> None:
    figure = Figure("a", 1.0, "s")
    assert run_entry(figure).status == MEASURED
    failed = run_entry(figure, error=ValueError("bad\nmore"))
    assert (failed.status, failed.figures) == (FAILED, [figure])
    assert failed.reason.startswith("ValueError: bad (test_gpu_bench.py:")
    missing = run_entry(figure, error=UnavailableError("no counter"))
    assert (missing.status, missing.reason) == (NOT_RUN, "no counter")
    assert missing.figures == [figure]


def test_a_torch_that_does_not_count_pinned_memory_is_said(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeCuda, "host_memory_stats", dict)
    entry = session.run_benchmark(
        Benchmark("B19", "allocations", steady.allocations, 0), gpu, TINY, Clock(1e6)
    )
    assert (entry.status, len(entry.figures)) == (NOT_RUN, 3)
    assert "does not count what it pins" in entry.reason


def test_a_sanitizer_that_cannot_run_is_no_clean_result(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = gpu.python("", {})
    failed.stdout, failed.stderr = "", "no kernel image"
    monkeypatch.setattr(gpu, "python", lambda script, env: failed)
    with pytest.raises(UnavailableError, match="ended with 'no kernel image'"):
        list(steady.sanitized(gpu, TINY))


def test_the_sanitizers_script_finds_what_python_finds(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def note(script: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        found.append(env["PYTHONPATH"])
        return subprocess.CompletedProcess([], 0, "done\n", "")

    monkeypatch.setattr(gpu, "python", note)
    for before, after in (("/site", f"{steady.ROOT}{os.pathsep}/site"), ("", str(steady.ROOT))):
        monkeypatch.setenv("PYTHONPATH", before)
        list(steady.sanitized(gpu, TINY))
        assert set(found) == {after}
        found.clear()


@pytest.mark.parametrize("is_broken", [False, True])
def test_the_sanitizers_script_runs(
    gpu: StandIn, is_broken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    script = SCRIPT.format(is_broken=is_broken)
    script = script.replace(".cuda()", "").replace('"cuda"', '"cpu"')
    with mock.patch("fastcap.engine.modes_off", hooks.modes_off):
        exec(compile(script, "<script>", "exec"), {})
    assert capsys.readouterr().out == "done\n"


def test_a_script_that_does_not_end_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "SCRIPT_SECS", 0.01)
    with pytest.raises(UnavailableError, match=r"had not ended after 0 s"):
        Gpu("cpu").python("while True: pass", {})


def test_a_profiler_that_sees_no_copies_says_nothing_of_other_calls(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "profiled_calls", lambda run: {"aten::mm": 3})
    with pytest.raises(UnavailableError, match="saw no copy to the host"):
        list(steady.profiled(gpu, TINY))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_profiler_counts_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    toolbox_gpu = Gpu("cpu")
    monkeypatch.setattr(toolbox_gpu, "cuda", FakeCuda())
    counts = toolbox_gpu.profiled_calls(lambda: torch.zeros(2) + 1)
    assert counts["aten::add"] == 1


def test_micro_benchmarks_are_listed_by_number() -> None:
    report = made_up_report()
    report.entries.reverse()
    rows = [line for line in markdown(report).splitlines() if line.startswith("| B")]
    assert [row.split()[1] for row in rows] == ["B1", "B9", "B20"]


def test_memory_that_cannot_be_registered_is_said(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = gpu.cuda.cudart()
    monkeypatch.setattr(type(runtime), "cudaHostRegister", lambda *_: 2)
    with pytest.raises(UnavailableError, match="returned error 2"):
        list(link.pinning(gpu, TINY))


def test_a_range_says_what_was_predicted() -> None:
    texts = [str(each) for each in (Range(1, 2), Range(0, 0), Range(high=3), Range(low=4))]
    assert texts == ["1 to 2", "0", "at most 3", "at least 4"]
    assert Figure("a", 2.5, "s", Range(1, 2)).is_as_predicted is False
    assert Figure("a", 2.5, "s").is_as_predicted is None


# The stand-in


def test_the_stand_in_has_only_what_torch_has() -> None:
    for name, ours in vars(FakeCuda).items():
        if name.startswith("__"):
            continue
        theirs = getattr(torch.cuda, name)
        if inspect.isfunction(ours):
            known = inspect.signature(theirs).parameters
            assert set(inspect.signature(ours).parameters) - {"self"} <= set(known), name
    for fake, real in ((FakeStream, torch.cuda.Stream), (FakeEvent, torch.cuda.Event)):
        known = inspect.signature(real).parameters
        assert set(inspect.signature(fake).parameters) <= set(known)
        for name, ours in vars(fake).items():
            if inspect.isfunction(ours) and not name.startswith("__"):
                theirs = inspect.signature(getattr(real, name))
                assert list(inspect.signature(ours).parameters) == list(theirs.parameters), name


def test_only_the_toolbox_names_cuda() -> None:
    allowed = {"toolbox.py", "__main__.py"}  # which asks whether there is a GPU
    for path in Path(command.__file__).parent.glob("*.py"):
        if path.name in allowed:
            continue
        names = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        ]
        assert not [name for name in names if name.startswith("torch.cuda")], path.name


def test_a_script_runs_in_a_process_of_its_own() -> None:
    done = Gpu("cpu").python("import os; print(os.environ['WHO'])", {"WHO": "me"})
    assert done.stdout == "me\n"


# Models


@pytest.mark.parametrize("subject", [LLAMA, GPT2, THIN], ids=lambda subject: subject.name)
def test_every_model_is_made_the_same_each_time_and_its_bytes_are_as_said(
    subject: Subject, gpu: StandIn
) -> None:
    group = Group(tiny(subject), SLICE, 1, 3)
    built, again = build(group.subject, gpu), build(group.subject, gpu)
    assert torch.equal(built.input_ids, again.input_ids)
    assert grid.repeats_itself(gpu, built)
    case = make_case(built.model, built.batches[:1], built.sites, positions=SLICE.positions)
    assert sum(value.nbytes for value in case.oracle().values()) == group.pass_bytes


def test_a_model_without_room_is_no_stand_in(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(subject: Subject) -> None:
        raise torch.OutOfMemoryError("too large")

    monkeypatch.setattr(subjects, "MAKERS", {"llama": (no_room, "layers")})
    with pytest.raises(torch.OutOfMemoryError, match="too large"):
        build(TINY_LLAMA, gpu)


def test_no_two_thin_layers_give_the_same(gpu: StandIn) -> None:
    built = build(tiny(THIN), gpu)
    values = make_case(built.model, built.batches[:1], built.sites).oracle()
    first, second, third = values.values()
    assert not bool((first == second).all())
    assert not bool((second == third).all())


def test_the_grid_is_every_selection_of_both_models_into_every_destination() -> None:
    cells = {(group.subject.name, group.picked.name) for group in GRID}
    both = {(name, each.name) for name in ("llama", "gpt2") for each in (ALL, LAST, SLICE)}
    assert cells == both | {("thin", ALL.name)}
    assert all(set(group.destinations) >= set(DESTINATIONS) for group in GRID)
    assert Group(LLAMA, ALL, 1, 3).pass_bytes == 32 * 8 * 1024 * 4096 * 2
    assert set(Group(GPT2, ALL, 1, 3).destinations) == set(DESTINATIONS) | set(COMPARED)


@pytest.mark.parametrize(
    ("pass_bytes", "n_sites", "chunk_bytes", "n_slots"),
    [
        (32 * 64 * MiB, 32, 64 * MiB, 70),
        (12 * 12 * MiB, 12, 16 * MiB, 30),
        (12 << 10, 12, 8 * MiB, 8),
        (2 * 100 * MiB, 2, 64 * MiB, 14),
    ],
    ids=["fills a chunk", "fills most", "small", "larger than a chunk"],
)
def test_slots_are_planned_for_two_passes(
    pass_bytes: int, n_sites: int, chunk_bytes: int, n_slots: int
) -> None:
    expected = {"device_bytes": 4 * chunk_bytes, "host_bytes": n_slots * chunk_bytes}
    assert slot_budget(pass_bytes, n_sites) == expected


# Floors, goals and the page, from figures that are made up


def made_up(
    destination: str, ms: float, hookless_ms: float, group: Group, floors: Floors = FLOORS
) -> Cell:
    n_passes = group.n_passes
    secs = [n_passes * each * 1e-3 for each in (ms, 1.01 * ms, 0.99 * ms)]
    terms = make_terms(floors, group.pass_bytes, 32, hookless_ms * 1e-3, 1e-3, destination)
    return Cell(
        group,
        destination,
        status=MEASURED,
        n_passes=n_passes,
        first_secs=3.25,
        secs=secs,
        hookless_secs=[n_passes * hookless_ms * 1e-3 * each for each in (1, 1.01, 0.99)],
        terms=terms,
        n_compared=96,
        statistics={"lends": 128, "spilled_bytes": 0} if destination == SLOTS else {},
    )


LLAMA_ALL, THIN_ALL = Group(LLAMA, ALL, 1, 3), Group(THIN, ALL, 1, 3)
LINK_MS = 32 * LLAMA.site_bytes / (50 * GB) * 1e3
DISK_MS = 32 * LLAMA.site_bytes / (2.5 * GB) * 1e3
HOST_MS = 32 * LLAMA.site_bytes / (8 * GB) * 1e3


@pytest.mark.parametrize(
    ("cell", "bound", "goal", "is_met"),
    [
        (made_up(SLOTS, 293, 290, LLAMA_ALL), FORWARD, goals.HIDDEN, True),
        (
            made_up(FRESH, 310, 290, LLAMA_ALL),
            FORWARD,
            goals.HIDDEN,
            False,
        ),
        (made_up(SLOTS, LINK_MS / 0.96, 1.5, THIN_ALL), LINK, goals.LINK_SHARE, True),
        (made_up(SLOTS, LINK_MS / 0.94, 1.5, THIN_ALL), LINK, goals.LINK_SHARE, False),
        (made_up(PINNED, LINK_MS / 0.96, 1.5, THIN_ALL), LINK, goals.OUT_SHARE, True),
        (made_up(PINNED, LINK_MS / 0.94, 1.5, THIN_ALL), LINK, goals.OUT_SHARE, False),
        (made_up(FRESH, HOST_MS / 0.91, 1.5, THIN_ALL), HOST, goals.HOST_SHARE, True),
        (made_up(FRESH, HOST_MS / 0.89, 1.5, THIN_ALL), HOST, goals.HOST_SHARE, False),
        (made_up(ARCHIVE, DISK_MS / 0.91, 290, LLAMA_ALL), DISK, goals.DISK_SHARE, True),
        (made_up(ARCHIVE, DISK_MS / 0.89, 290, LLAMA_ALL), DISK, goals.DISK_SHARE, False),
        (
            made_up(ARCHIVE, LINK_MS / 0.91, 1, THIN_ALL, replace(FLOORS, disk=60.0)),
            LINK,
            goals.DISK_SHARE,
            True,
        ),
    ],
)
def test_a_goal_is_judged_by_the_cells_bound(
    cell: Cell, bound: str, goal: goals.Goal, is_met: bool
) -> None:
    assert cell.terms is not None
    assert cell.terms.bound == bound
    verdict = goals.judge(cell)
    assert verdict is not None
    assert (verdict.goal, verdict.is_met) == (goal, is_met)


def test_a_loop_is_judged_between_its_batches() -> None:
    cell = made_up(SLOTS, LINK_MS / 0.8, 1.5, THIN_ALL)
    cell.cadence_secs = [LINK_MS / 0.97 * 1e-3]
    verdict = goals.judge(cell)
    assert verdict is not None
    assert (verdict.is_met, verdict.reached) == (True, "0.970 between batches, 0.800 whole")
    assert Outcome(iter([]), arrivals=[1.0, 5.0, 6.0, 7.0]).cadence_secs == 1.0
    assert Outcome(iter([]), arrivals=[1.0, 5.0]).cadence_secs is None


def test_no_goal_where_hooks_are_the_bound_and_none_for_what_is_compared() -> None:
    launch_bound = made_up(SLOTS, 1.5, 0.5, Group(LLAMA, LAST, 1, 3))
    assert launch_bound.terms is not None
    assert launch_bound.terms.bound == LAUNCH
    assert goals.judge(launch_bound) is None
    assert goals.judge(made_up(HOOK, 900, 290, LLAMA_ALL)) is None


def made_up_report() -> Report:
    machine = Machine("Some CPU", 16, 128 * GB, "always", "NVIDIA H200", 141 * GB)
    report = Report(
        title="fastcap on a GPU: nvidia-h200",
        is_measurement=True,
        date="2026-01-02T03:04:05+00:00",
        machine=machine,
        card={"gpu": "NVIDIA H200, 141 GB", "driver": "580.1", "torch": "2.11.0"},
        checkout=Checkout("c" * 40, ("a.py",)),
        missing={"transformers": "the models are stand-ins"},
        limit_secs=450,
        spent_secs=300,
        floors=FLOORS,
        is_complete=True,
    )
    report.cells = [
        made_up(SLOTS, 293, 290, LLAMA_ALL),
        made_up(HOOK, 900, 290, LLAMA_ALL),
        Cell(LLAMA_ALL, PINNED, reason="this fastcap has none"),
        made_up(SLOTS, LINK_MS / 0.9, 1.5, THIN_ALL),
    ]
    report.entries = [
        Entry("B1", "one copy", figures=[Figure("rate", 55.1, "GB/s", Range(52, 57))]),
        Entry("B9", "hook", figures=[Figure(HOOK_FIGURE, 14.2, "µs", Range(8, 12))]),
        Entry("B20", "sanitizer", status=NOT_RUN, reason="out of time"),
    ]
    report.origins, report.repeats = {"llama": "transformers.LlamaModel"}, {"llama": True}
    return report


def test_a_page_has_floors_bounds_goals_predictions_and_what_was_not_run(tmp_path: Path) -> None:
    report = made_up_report()
    path = results.write(tmp_path / "new", report)
    page = path.with_suffix(".md").read_text()
    assert path.name == "2026-01-02-gpu-bench-nvidia-h200.json"
    lines = {" ".join(line.replace("|", " ").split()) for line in page.splitlines()}
    assert (
        "compute-bound: at most 1.02 of the time without capture llama, all positions, slots "
        "forward 1.010 [1.010, 1.010] met"
    ) in lines
    assert any("thin, all positions, slots link 0.900 MISSED" in line for line in lines)
    assert any(
        "hook: at most 10 µs of host time per site 64 sites, B9 14.20 µs MISSED" in line
        for line in lines
    )
    assert any(line.startswith("slots 293.00 1.010") and "128, 0 B" in line for line in lines)
    assert any("forward 290.00, link 42.95, launch and hooks 1.32" in line for line in lines)
    assert any("fresh copy 268.44, warm copy 71.58, disk 858.99" in line for line in lines)
    assert "B1 one copy rate 55.1 GB/s 52 to 57 GB/s yes" in lines
    assert "pinned result not run: this fastcap has none not compared 0" in lines
    assert "- llama, all positions, pinned result: not run: this fastcap has none" in page
    assert "- B20, sanitizer: not run: out of time" in page
    assert "one large copy into pinned memory 50.00" in lines
    assert "dry run" not in page.lower()
    assert "transformers (the models are stand-ins)" in page
    assert f"{'c' * 40}, with 1 changed paths" in page


def test_the_json_has_every_round_and_where_it_comes_from(tmp_path: Path) -> None:
    written = json.loads(results.write(tmp_path, made_up_report()).read_text())
    assert written["commit"] == "c" * 40
    assert (written["driver"], written["torch"], written["date"][:4]) == ("580.1", "2.11.0", "2026")
    slots = written["grid"][0]
    assert len(slots["secs"]) == len(slots["hookless_secs"]) == 3
    assert (slots["goal_met"], slots["equal"], slots["bound"]) == (True, True, FORWARD)
    assert slots["floor_secs"][LINK] == pytest.approx(LINK_MS * 1e-3)
    assert written["grid"][2]["equal"] is None
    assert written["micro"][1]["figures"][0]["as_predicted"] is False


def test_a_report_of_a_run_that_was_ended_or_repeats_nothing_says_so() -> None:
    report = made_up_report()
    report.is_complete, report.repeats, report.floors = False, {"llama": False}, None
    page = markdown(report)
    assert "This run did not come to its end" in page
    assert "llama gave other values for the same batch the second time" in page
    assert "Not measured." in page
    assert not report.is_right


def test_one_round_has_no_interval() -> None:
    report = made_up_report()
    cell = report.cells[0]
    cell.secs, cell.hookless_secs = cell.secs[:1], cell.hookless_secs[:1]
    assert "1.010 (one round)" in markdown(report)
    assert results.document(report)["grid"][0]["ratio_to_hookless"][2] is None


def test_overhead_is_taken_from_the_grid() -> None:
    cells = made_up_report().cells
    figures = {figure.name: figure.value for figure in overheads.overhead_figures(cells, LLAMA)}
    assert figures["without capture"] == pytest.approx(290)
    assert figures["slots adds"] == pytest.approx(3)
    assert figures["hook, .cpu() adds"] == pytest.approx(610)
    with pytest.raises(UnavailableError, match="gpt2, all positions, slots was not measured"):
        list(overheads.overhead_figures(cells, GPT2))
    small = made_up(SLOTS, 11, 10, Group(GPT2, ALL, 1, 3))
    ratios = {figure.name: figure.value for figure in overheads.overhead_figures([small], GPT2)}
    assert ratios["slots, of that"] == pytest.approx(1.1)


# The twin


def test_the_twin_holds_what_the_cost_model_says_and_calls_itself_arithmetic(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (LLAMA_ALL, THIN_ALL, Group(GPT2, LAST, 1, 3))
    monkeypatch.setattr(grid_cells, "GRID", groups)
    assert command.main(["--virtual", "--out", str(tmp_path)]) == 0
    page = capsys.readouterr().out
    assert page.startswith("# Virtual twin of the GPU grid: arithmetic, not a measurement")
    (path,) = tmp_path.glob("*-gpu-virtual.md")
    assert path.read_text() in page
    cells = {(cell.group.subject.name, cell.destination): cell for cell in virtual.play(groups)}
    for (_, destination), cell in cells.items():
        if cell.model_secs is not None and destination != LOOP:
            assert cell.secs <= 1.05 * cell.model_secs
    assert cells["llama", SLOTS].bound == "compute"
    assert cells["thin", SLOTS].bound == "link"
    assert cells["thin", PINNED].bound == "link"
    assert cells["thin", ARCHIVE].bound == "disk"
