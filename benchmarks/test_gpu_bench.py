"""The GPU benchmarks, without a GPU: every function once, what reports say, and what is not run."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import fastcap
from benchmarks.checkout import Checkout
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import cells as grid_cells
from benchmarks.gpu import (
    command,
    destinations,
    goals,
    grid,
    micro,
    report,
    session,
    subjects,
    virtual,
)
from benchmarks.gpu.cells import (
    ALL,
    GRID,
    LAST,
    SLICE,
    Cell,
    Group,
    archive_passes,
    fitted,
    open_cells,
)
from benchmarks.gpu.command import Program
from benchmarks.gpu.destinations import (
    DESTINATIONS,
    HOOK,
    LOOP,
    PINNED,
    SLOTS,
    WITH_LOOP,
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
from benchmarks.gpu.micro import HOOK as HOOK_FIGURE
from benchmarks.gpu.micro import Question
from benchmarks.gpu.report import Report, cell_line, ending
from benchmarks.gpu.session import FAILED, MEASURED, NOT_REACHED, NOT_RUN, Clock, Entry
from benchmarks.gpu.standin import FakeCuda, FakeEvent, FakeStream, StandIn
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Subject, build, tiny
from benchmarks.gpu.toolbox import TINY, Gpu
from fastcap.bench import Machine, make_case, ways
from fastcap.bench.case import Values
from fastcap.transfer import pinned_out

GB = 10**9
MiB = 1 << 20
FLOORS = Floors(link=50.0, fresh=2.0, fresh_by_workers=8.0, disk=2.5, n_workers=4)
SMALL_GRID = (Group(LLAMA, ALL, 60, 3), Group(LLAMA, SLICE, 60, 3), Group(THIN, LAST, 60, 3))
TINY_LLAMA = tiny(LLAMA)


@pytest.fixture(scope="module", autouse=True)
def light() -> Iterator[pytest.MonkeyPatch]:
    """Two rounds, no search for garbage between them, and no import of transformers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "give_back_memory", lambda: None)
        patch.setattr(grid, "MOST_ROUNDS", 2)
        patch.setitem(__import__("sys").modules, "transformers", None)
        yield patch
    gc.unfreeze()


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    found = StandIn()
    with found.running():
        yield found


# The whole command


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("results")
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_cells, "GRID", SMALL_GRID)
        assert bench.main(["--dry-run", "--out", str(out)]) == 0
    torch.set_num_threads(n_threads)
    (path,) = out.iterdir()  # and no unfinished one
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_dry_run_runs_everything_and_compares_every_cell(dry_run: dict[str, Any]) -> None:
    entries, cells = dry_run["entries"], dry_run["cells"]
    assert [each["status"] for each in entries] == [MEASURED] * (len(micro.FIRST) + 1)
    assert all(entry["figures"] for entry in entries)
    assert len(cells) == sum(len(group.destinations) for group in SMALL_GRID)
    for cell in cells:
        assert (cell["status"], cell["equal"], len(cell["pass_secs"])) == (MEASURED, True, 2)
        assert len(cell["steady_pass_secs"]) == len(cell["baseline_steady_pass_secs"]) == 2
        assert cell["values_compared"] >= 3 * 3  # a first run and two rounds of three sites
        assert cell["bound"] in cell["floor_secs"]


def test_a_dry_run_names_its_origin_and_is_called_no_measurement(dry_run: dict[str, Any]) -> None:
    assert (dry_run["is_measurement"], dry_run["is_complete"]) == (False, True)
    assert set(dry_run) >= {"machine", "driver", "torch", "commit", "date", "floors_gb_per_sec"}
    assert dry_run["models"]["llama"].startswith("benchmarks.Decoder (transformers made")


def test_without_a_gpu_the_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert "--dry-run shows that the code runs" in capsys.readouterr().err


def open_report(name: str = "bench") -> Report:
    options = command.parser_of("benchmarks.gpu", None, 1).parse_args(["--dry-run"])
    return command.open_report(name, StandIn(), options)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    found = open_report()
    assert set(found.missing) == {"safetensors", "transformers", "nnsight"}


def test_the_file_system_of_a_folder_is_named() -> None:
    assert command.file_system(Path("/proc/self")) == "proc"


def test_fewer_passes_where_the_host_has_little_memory() -> None:
    group = Group(LLAMA, ALL, 1, 4)
    assert fitted(group, None) == 4
    assert fitted(group, 100 * group.pass_bytes) == 4
    assert fitted(group, 21 * group.pass_bytes) == 3
    assert fitted(group, group.pass_bytes) == 2


def test_a_slow_disk_takes_passes_from_the_archive_only(gpu: StandIn, tmp_path: Path) -> None:
    group = Group(LLAMA, ALL, 130, 4)
    for disk, n_passes in ((None, 4), (2.5, 4), (0.3, 3), (0.001, 2)):
        assert archive_passes(group, 4, replace(FLOORS, disk=disk)) == n_passes
    assert archive_passes(group, 4, None) == 4
    small = Group(TINY_LLAMA, ALL, 60, 3)
    floors = replace(FLOORS, disk=2 * small.pass_bytes / 10 / 1e9)
    cells = {cell.destination: cell for cell in open_cells(small)}
    grid.measure_group(
        gpu, list(cells.values()), build(TINY_LLAMA, gpu), floors, tmp_path, Clock(1e6)
    )
    assert {name: cell.n_passes for name, cell in cells.items()} == {
        **dict.fromkeys(cells, 3),
        ARCHIVE: 2,
    }
    assert all(cell.is_equal for cell in cells.values())


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
        assert grid._n_passes(gpu, group) == n_passes
        assert given_back == expected
        given_back.clear()


# A run in which things go wrong


def open_program(
    gpu: Gpu, tmp_path: Path, limit_secs: float = 1e6, floors: Floors | None = FLOORS
) -> Program:
    found = open_report()
    found.floors = floors
    return Program(gpu, TINY, Clock(limit_secs), None, tmp_path, found)


def measure(program: Program, *groups: Group) -> None:
    program.report.cells = [cell for group in groups for cell in open_cells(group)]
    for of_subject in grid_cells.by_subject(groups).values():
        bench.measure_subject(program, of_subject, program.clock)


def test_a_model_that_fails_leaves_the_others(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(subject: Subject, gpu: Gpu) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(bench, "build", broken)
    program = open_program(gpu, tmp_path)
    measure(program, Group(TINY_LLAMA, LAST, 10, 3))
    found = program.report
    assert not found.is_right
    assert "llama failed: RuntimeError: no such kernel (test_gpu_bench.py:" in found.notes[0]
    assert [cell.status for cell in found.cells] == [NOT_RUN] * len(DESTINATIONS)
    assert {cell.reason for cell in found.cells} == {found.notes[0].removeprefix("llama failed: ")}


def test_a_model_for_which_the_gpu_is_too_small_is_not_run(
    gpu: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = open_program(gpu, tmp_path)
    measure(program, Group(replace(TINY_LLAMA, needs_bytes=1 << 40), LAST, 10, 3))
    assert program.report.cells[0].reason == "the GPU has too little memory"
    assert "llama needs 1.1 TB, and 8.59 GB are free" in capsys.readouterr().out
    assert program.report.is_right


def test_floors_that_fail_leave_the_micro_benchmarks(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(bench, "measure_floors", broken)
    monkeypatch.setattr(micro, "FIRST", (Question("B0", "nothing", nothing, 0),))
    monkeypatch.setattr(grid_cells, "GRID", (Group(LLAMA, LAST, 10, 3),))
    program = open_program(gpu, tmp_path, floors=None)
    assert command.play(program, bench.everything) == 1
    assert "measuring the floors failed: OSError: read-only" in program.report.notes[0]
    assert program.report.entries[0].status == MEASURED
    assert {cell.reason for cell in program.report.cells} == {"the floors could not be measured"}


def nothing(*_: object) -> Iterator[Figure]:
    yield Figure("nothing", 0.0, "s")


def test_without_time_nothing_begins_and_the_report_says_so(gpu: StandIn, tmp_path: Path) -> None:
    program = open_program(gpu, tmp_path, limit_secs=2.0)
    program.measure("B0", "nothing", nothing, 30)
    measure(program, Group(TINY_LLAMA, LAST, 40, 3))
    text = ending(program.report)
    assert "not run: B0, nothing: out of time: 2 s were left, and it takes about 30 s" in text
    assert "not run: llama, last, archive: out of time: " in text
    assert not any(cell.is_measured for cell in program.report.cells)


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


def test_a_destination_that_fails_leaves_the_others(gpu: StandIn, tmp_path: Path) -> None:
    runs = iter(range(100))

    def breaks_later(question: destinations.Question) -> Values:
        if next(runs) == 1:
            raise RuntimeError("out of slots")
        return ways.in_memory(question.case)

    def breaks(question: destinations.Question) -> Values:
        raise torch.OutOfMemoryError("too large")

    def wrong(question: destinations.Question) -> Values:
        return {"layers.0": ways.in_memory(question.case)["layers.0"] + 1}

    def short(question: destinations.Question) -> Values:
        return {site: value[:-1] for site, value in ways.in_memory(question.case).items()}

    tried = {
        SLOTS: breaks_later,
        FRESH: DESTINATIONS[FRESH],
        ARCHIVE: breaks,
        LOOP: wrong,
        "short": short,
    }
    group = Group(TINY_LLAMA, LAST, 60, 3, tried)
    found = open_cells(group)
    grid.measure_group(gpu, found, build(TINY_LLAMA, gpu), FLOORS, tmp_path, Clock(1e6))
    cells = {cell.destination: cell for cell in found}
    assert (cells[SLOTS].status, cells[ARCHIVE].status) == (FAILED, FAILED)
    assert cells[ARCHIVE].reason.startswith("OutOfMemoryError: too large")
    assert (cells[FRESH].status, cells[FRESH].is_equal) == (MEASURED, True)
    assert cells[LOOP].problems[1:] == ["layers.1: missing", "layers.2: missing"]
    assert cells["short"].problems[0].startswith("layers.0: (5, 16) ")
    made = open_report()
    made.cells = found
    assert not made.is_right
    assert "failed: llama, last, slots: RuntimeError: out of slots" in ending(made)
    assert "DIFFERS: layers.0: " in cell_line(cells[LOOP])


def test_passes_without_capture_that_fail_end_the_group(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))

    def breaks(question: destinations.Question) -> Values:
        if next(calls):
            raise RuntimeError("lost the GPU")
        return {}

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
    program = open_program(gpu, tmp_path)
    measure(program, Group(TINY_LLAMA, LAST, 60, 3), Group(TINY_LLAMA, SLICE, 60, 3))
    cells = {(cell.group.picked.name, cell.destination): cell for cell in program.report.cells}
    assert (cells["last", SLOTS].status, cells["last", SLOTS].is_equal) == (NOT_RUN, True)
    assert cells["slice 64", SLOTS].is_measured
    assert program.report.notes[0].startswith("llama, last failed: RuntimeError: lost the GPU")


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

    monkeypatch.setattr(micro, "FIRST", (Question("B1", "nothing", nothing, 0),))
    monkeypatch.setattr(grid_cells, "GRID", (Group(LLAMA, LAST, 60, 3), Group(THIN, ALL, 60, 3)))
    monkeypatch.setattr(grid, "_run_rounds", ended)
    program = open_program(gpu, tmp_path)
    program.out = tmp_path / "out"
    assert command.play(program, bench.everything) == 1
    (path,) = program.out.iterdir()  # and no unfinished file
    written, text = json.loads(path.read_text()), ending(program.report)
    assert (written["is_complete"], written["is_right"]) == (False, False)
    assert written["notes"][0].startswith("Ended after ")
    assert written["notes"][0].endswith(why)
    cells = {cell["cell"]: cell for cell in written["cells"]}
    assert cells["llama, last, slots"]["equal"] is True
    assert f"not run: {', '.join(micro.ARCHIVE_MEMORY)}: {NOT_REACHED}" in text
    assert f"not run: thin, all positions, archive: {NOT_REACHED}" in text
    assert "This run did not come to its end." in text


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_signals_end_what_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    why = "60 s were over" if number == signal.SIGALRM else "SIGTERM"
    with pytest.raises(session.RunEndedError, match=why), session.ending_after(60, 60):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_all_times_together_are_less_than_ten_minutes() -> None:
    ending_secs = command.OVERTIME_SECS + command.GRACE_SECS
    assert bench.LIMIT_SECS + ending_secs <= 600 - 60
    likely_secs = sum(group.likely_secs for group in GRID) + micro.ARCHIVE_SECS
    likely_secs += sum(each.likely_secs for each in micro.FIRST)
    assert likely_secs <= bench.LIMIT_SECS


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
    assert DISK not in make_terms(floors, 1e9, 1, 1.0, 1.0, ARCHIVE).secs


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
    made = made_up_report()
    made.cells = [cell]
    assert report.document(made)["cells"][0]["prepare_secs"] == cell.prepare_secs


def test_copies_go_straight_into_a_pinned_result(gpu: StandIn, tmp_path: Path) -> None:
    subject = tiny(THIN)
    wide = replace(subject, shape=replace(subject.shape, width=4096))
    copy = pinned_out.Landings.copy
    with mock.patch.object(pinned_out.Landings, "copy", autospec=True, side_effect=copy) as copied:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match=" free, and the archive takes "):
        destinations.needs_room(tmp_path, 1 << 60)
    monkeypatch.setattr(destinations, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="safetensors is not installed"):
        destinations.needs_room(tmp_path, 1)


# Micro-benchmarks


def run_entry(*figures: Figure, error: Exception | None = None) -> Entry:
    def run() -> Iterator[Figure]:
        yield from figures
        if error is not None:
            raise error

    entry = Entry("B0", "t")
    session.measure(entry, run, Clock(1e6), 1)
    return entry


def test_a_benchmark_that_fails_keeps_the_figures_it_had() -> None:
    figure = Figure("a", 1.0, "s")
    assert run_entry(figure).status == MEASURED
    failed = run_entry(figure, error=ValueError("bad\nmore"))
    assert (failed.status, failed.figures) == (FAILED, [figure])
    assert failed.reason.startswith("ValueError: bad (test_gpu_bench.py:")
    missing = run_entry(figure, error=UnavailableError("no counter"))
    assert (missing.status, missing.reason) == (NOT_RUN, "no counter")
    assert missing.figures == [figure]


def test_the_memory_of_an_archive_is_held_against_its_bytes(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = list(micro.archive_memory(gpu, TINY, tmp_path, 2.5))
    assert [figure.name for figure in figures] == ["over 0.0042 GB", "over 0.017 GB", micro.GROWTH]
    assert not list(tmp_path.iterdir())
    for growth, is_met in ((0.001, True), (1.0, False)):
        entry = Entry("B23", "memory", MEASURED, figures=[Figure(micro.GROWTH, growth, "B")])
        [(_, verdict)] = goals.judge_entries([entry])
        assert (verdict.goal, verdict.is_met) == (goals.DISK_MEMORY, is_met)

    def no_peak() -> int:
        raise OSError("no VmHWM")

    monkeypatch.setattr(micro, "reset_peak", no_peak)
    with pytest.raises(UnavailableError, match="no VmHWM"):
        list(micro.archive_memory(gpu, TINY, tmp_path, 2.5))


def test_a_range_says_what_was_predicted() -> None:
    texts = [str(each) for each in (Range(1, 2), Range(0, 0), Range(high=3), Range(low=4))]
    assert texts == ["1 to 2", "0", "at most 3", "at least 4"]
    missed = Figure("a", 2.5, "s", Range(1, 2), interval=(2, 3))
    assert str(missed) == "a: 2.5 s [2.000, 3.000] (1 to 2 predicted: NO)"
    assert missed.is_as_predicted is False
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
    allowed = {"toolbox.py", "command.py"}  # which asks whether there is a GPU
    for path in Path(command.__file__).parent.glob("*.py"):
        if path.name in allowed:
            continue
        names = [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        ]
        assert not [name for name in names if name.startswith("torch.cuda")], path.name


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


def test_the_grid_is_what_bounds_in_every_destination() -> None:
    cells = {(group.subject.name, group.picked.name) for group in GRID}
    both = {(name, each.name) for name in ("llama", "gpt2") for each in (ALL, LAST)}
    assert cells == both | {("thin", ALL.name), ("llama", SLICE.name)}
    for group in GRID:
        wanted = {ALL.name: WITH_LOOP, LAST.name: DESTINATIONS, SLICE.name: destinations.IN_MEMORY}
        assert set(group.destinations) == set(wanted[group.picked.name])
    assert Group(LLAMA, ALL, 1, 3).pass_bytes == 32 * 8 * 1024 * 4096 * 2


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
    expected = {"staging_bytes": 4 * chunk_bytes, "pinned_bytes": n_slots * chunk_bytes}
    assert slot_budget(pass_bytes, n_sites) == expected


# Floors, goals and the page, from figures that are made up


def made_up(
    destination: str, ms: float, baseline_ms: float, group: Group, floors: Floors = FLOORS
) -> Cell:
    terms = make_terms(floors, group.pass_bytes, 32, baseline_ms * 1e-3, 1e-3, destination)
    return Cell(
        group,
        destination,
        status=MEASURED,
        n_passes=group.n_passes,
        first_secs=3.25,
        secs=[each * ms * 1e-3 for each in (1, 1.01, 0.99)],
        baseline_secs=[each * baseline_ms * 1e-3 for each in (1, 1.01, 0.99)],
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


def test_slots_and_hidden_copies_are_judged_by_the_steady_state() -> None:
    cell = made_up(SLOTS, LINK_MS / 0.8, 1.5, THIN_ALL)
    cell.steady_secs, cell.baseline_steady_secs = [LINK_MS / 0.97 * 1e-3], [1.5e-3]
    verdict = goals.judge(cell)
    assert verdict is not None
    assert (verdict.is_met, verdict.reached) == (True, "0.970, whole 0.800")
    cell = made_up(FRESH, 310, 290, LLAMA_ALL)
    cell.steady_secs, cell.baseline_steady_secs = [0.292, 0.292], [0.29, 0.29]
    verdict = goals.judge(cell)
    assert verdict is not None
    assert verdict.is_met
    assert verdict.reached.endswith("whole 1.069")


def test_passes_are_timed_from_the_second_to_the_last(gpu: StandIn) -> None:
    model = torch.nn.Identity()
    with grid.PassStarts(gpu, model) as starts:
        model(torch.ones(1))
        model(torch.ones(1))
        assert starts.pass_secs is None
        model(torch.ones(1))
    for event, secs in zip(starts._events, (1.0, 5.0, 6.5), strict=True):
        event.secs = secs
    assert starts.pass_secs == 1.5
    assert not model._forward_pre_hooks


def test_no_goal_where_hooks_are_the_bound_and_none_for_what_is_compared() -> None:
    launch_bound = made_up(SLOTS, 1.5, 0.5, Group(LLAMA, LAST, 1, 3))
    assert launch_bound.terms is not None
    assert launch_bound.terms.bound == LAUNCH
    assert goals.judge(launch_bound) is None
    assert goals.judge(made_up(HOOK, 900, 290, LLAMA_ALL)) is None


def made_up_report() -> Report:
    machine = Machine("Some CPU", 16, 128 * GB, "always", "NVIDIA H200", 141 * GB)
    made = Report(
        name="bench",
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
    made.cells = [
        made_up(SLOTS, 293, 290, LLAMA_ALL),
        made_up(HOOK, 900, 290, LLAMA_ALL),
        Cell(LLAMA_ALL, PINNED, reason="this fastcap has none"),
        made_up(SLOTS, LINK_MS / 0.9, 1.5, THIN_ALL),
    ]
    rate = Figure("rate", 55.1, "GB/s", Range(52, 57), interval=(54, 56))
    made.entries = [
        Entry("B1", "one copy", MEASURED, "", [rate]),
        Entry("B9", "hook", MEASURED, "", [Figure(HOOK_FIGURE, 14.2, "µs", Range(8, 12))]),
        Entry("B20", "sanitizer", NOT_RUN, "out of time"),
    ]
    made.origins, made.repeats = {"llama": "transformers.LlamaModel"}, {"llama": True}
    return made


def test_what_is_read_first_has_bounds_goals_and_what_was_not_run() -> None:
    made = made_up_report()
    text = ending(made)
    lines = {" ".join(line.replace("|", " ").split()) for line in text.splitlines()}
    assert (
        "compute-bound: at most 1.02 of the time without capture llama, all positions, slots "
        "forward 1.010 [1.010, 1.010], whole 1.010 met"
    ) in lines
    assert any("thin, all positions, slots link 0.900, whole 0.900 MISSED" in it for it in lines)
    assert "hook: at most 10 µs of host time per site hook 14.20 µs MISSED" in lines
    assert "not run: llama, all positions, pinned result: this fastcap has none" in lines
    assert "not run: B20, sanitizer: out of time" in lines
    assert "dry run" not in text.lower()
    assert cell_line(made.cells[0]) == (
        "slots: 293.00 ms, 1.010 of the baseline, 0.990 of what forward allows, equal"
    )


def test_the_json_has_every_round_and_where_it_comes_from(tmp_path: Path) -> None:
    path = report.write(tmp_path / "new", made_up_report())
    assert path.name == "2026-01-02-gpu-bench-nvidia-h200.json"
    written = json.loads(path.read_text())
    assert written["commit"] == "c" * 40
    assert (written["driver"], written["torch"], written["date"][:4]) == ("580.1", "2.11.0", "2026")
    slots = written["cells"][0]
    assert len(slots["pass_secs"]) == len(slots["baseline_pass_secs"]) == 3
    assert (slots["goal_met"], slots["equal"], slots["bound"]) == (True, True, FORWARD)
    assert slots["floor_secs"][LINK] == pytest.approx(LINK_MS * 1e-3)
    assert written["cells"][2]["equal"] is None
    assert written["entries"][1]["figures"][0]["as_predicted"] is False


def test_a_report_of_a_run_that_was_ended_or_repeats_nothing_says_so() -> None:
    made = made_up_report()
    made.is_complete, made.repeats, made.floors = False, {"llama": False}, None
    text = ending(made)
    assert "This run did not come to its end" in text
    assert "llama gave other values for the same batch the second time" in text
    assert not made.is_right


def test_one_round_has_no_interval() -> None:
    made = made_up_report()
    cell = made.cells[0]
    cell.secs, cell.baseline_secs = cell.secs[:1], cell.baseline_secs[:1]
    assert report.document(made)["cells"][0]["ratio"][2] is None


# The twin


def test_the_twin_holds_what_the_cost_model_says_and_calls_itself_arithmetic(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (LLAMA_ALL, THIN_ALL, Group(GPT2, LAST, 1, 3))
    monkeypatch.setattr(grid_cells, "GRID", groups)
    assert bench.main(["--virtual", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# Virtual twin of the GPU grid: arithmetic, not a measurement")
    (path,) = tmp_path.glob("*-gpu-virtual.md")
    assert path.read_text() in text
    cells = {(cell.group.subject.name, cell.destination): cell for cell in virtual.play(groups)}
    for (_, destination), cell in cells.items():
        if cell.model_secs is not None and destination != LOOP:
            assert cell.secs <= 1.05 * cell.model_secs
    assert cells["llama", SLOTS].bound == "compute"
    assert cells["thin", SLOTS].bound == "link"
    assert cells["thin", PINNED].bound == "link"
    assert cells["thin", ARCHIVE].bound == "disk"
