"""The GPU benchmarks, without a GPU: every function once, what reports say, and what is not run."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import command, grid, loops, micro, peers, soak, timeline, turns
from benchmarks.gpu.command import Clock, Program
from benchmarks.gpu.grid import (
    ALL,
    ARCHIVE,
    DISK,
    FORWARD,
    FRESH,
    HOST,
    LAST,
    LAUNCH,
    LINK,
    PINNED,
    SLICE,
    SLOTS,
    Group,
    Ways,
    bound_of,
    make_terms,
)
from benchmarks.gpu.report import (
    FAILED,
    MEASURED,
    NOT_REACHED,
    NOT_RUN,
    Entry,
    Figure,
    Range,
    UnavailableError,
)
from benchmarks.gpu.standin import StandIn
from benchmarks.gpu.subjects import GPT2, LLAMA, THIN, Built, Subject, build, tiny
from benchmarks.gpu.toolbox import TINY, MiB
from benchmarks.gpu.turns import Turns
from fastcap.bench import Case, ways
from fastcap.bench.case import Values
from fastcap.bench.equality import same_bytes
from fastcap.errors import SaveError
from fastcap.planning import measure
from fastcap.planning.machine import Machine
from tests.support.soak import MUTANTS, Soak

GB = 10**9
FLOORS = Machine(link_bytes_per_sec=50e9, fresh_bytes_per_sec=8e9, disk_bytes_per_sec=2.5e9)
TINY_LLAMA = tiny(LLAMA)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds, no search for garbage between them, and no import of transformers."""
    for module in (turns, fastcap.bench.timing):
        monkeypatch.setattr(module, "give_back_memory", lambda: None)
    monkeypatch.setattr(turns, "MOST_ROUNDS", 2)
    for name in ("LINK_BYTES", "HOST_BYTES", "DISK_BYTES"):
        monkeypatch.setattr(measure, name, MiB)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    found = StandIn()
    with found.running():
        yield found


@pytest.fixture
def program(gpu: StandIn, tmp_path: Path) -> Program:
    options = command.parser_of("benchmarks.gpu", None, 1e6).parse_args(["--dry-run"])
    found = command.open_program("bench", gpu, options, tmp_path)
    found.facts["floors"] = asdict(FLOORS)
    return found


def results(module: Any, out: Path, *options: str) -> dict[str, Any]:
    assert module.main(["--dry-run", "--out", str(out), *options]) == 0
    (path,) = out.iterdir()  # and no unfinished one
    found: dict[str, Any] = json.loads(path.read_text())
    assert {"machine", "date", "commit", "torch", "driver", "missing"} <= set(found)
    assert (found["is_measurement"], found["is_complete"], found["is_right"]) == (False, True, True)
    return found


# The grid


def test_a_dry_run_runs_everything_and_compares_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (Group(LLAMA, ALL, 60, 3), Group(THIN, SLICE, 60, 3, (*grid.OURS, ARCHIVE)))
    monkeypatch.setattr(grid, "GRID", groups)
    found = results(bench, tmp_path)
    assert len(found["entries"]) == len(micro.QUESTIONS) + 4 + 5
    assert {entry["status"] for entry in found["entries"]} == {MEASURED}
    for entry in found["entries"][-9:]:
        figures = {figure["name"]: figure for figure in entry["figures"]}
        assert figures["wrong values"]["value"] == 0
        assert not entry["problems"]
        raw = entry["raw"]
        assert len(raw["pass_secs"]) == len(raw["baseline_pass_secs"]) == 2
        assert len(raw["steady_pass_secs"]) == len(raw["baseline_steady_pass_secs"]) == 2
        assert raw["first_secs"] > 0
        assert LINK in raw["floor_secs"]
    assert found["models"]["llama"].startswith("benchmarks.Decoder (transformers made")


def test_without_a_gpu_the_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert "--dry-run shows that the code runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("way", "group", "floors", "base_ms", "bound"),
    [
        (SLOTS, Group(LLAMA, ALL, 1, 3), FLOORS, 290, FORWARD),
        (SLOTS, Group(THIN, ALL, 1, 3), FLOORS, 1.5, LINK),
        (FRESH, Group(THIN, ALL, 1, 3), FLOORS, 1.5, HOST),
        (ARCHIVE, Group(LLAMA, ALL, 1, 3), FLOORS, 290, DISK),
        (ARCHIVE, Group(THIN, ALL, 1, 3), replace(FLOORS, disk_bytes_per_sec=60e9), 1, LINK),
        (SLOTS, Group(LLAMA, LAST, 1, 3), FLOORS, 0.5, LAUNCH),
    ],
)
def test_the_largest_term_bounds_a_pass(
    way: str, group: Group, floors: Machine, base_ms: float, bound: str
) -> None:
    terms = make_terms(floors, group.pass_bytes, 32, base_ms * 1e-3, 1e-3, way)
    assert bound_of(terms) == bound
    assert terms[LINK] == pytest.approx(group.pass_bytes / (50 * GB))


def judged(
    program: Program, subject: Subject, way: str, ms: float, base_ms: float, steady_ms: float = 0.0
) -> dict[str, Figure]:
    """The figures with goals of a group whose times are made up."""
    group = Group(replace(TINY_LLAMA, name=f"{subject.name} {way} {ms}"), ALL, 1e6, 3, (way,))
    made = Turns(program, group, build(replace(TINY_LLAMA, name="llama"), program.gpu))
    made.group = replace(group, subject=subject)
    made.launch_secs = 1e-3
    rounds = (1, 1.01, 0.99)
    for name, of_pass, steady in ((way, ms, steady_ms), ("baseline", base_ms, base_ms)):
        made.secs[name] = [each * of_pass * 1e-3 for each in rounds]
        made.steady[name] = [each * steady * 1e-3 for each in rounds] if steady_ms else []
    return {figure.goal.partition(":")[0]: figure for figure in made.figures(way) if figure.goal}


def test_goals_are_judged_by_the_bound_and_slots_and_hidden_copies_in_the_steady_state(
    program: Program,
) -> None:
    link, disk, host = (32 * LLAMA.site_bytes / rate / 1e6 for rate in (50, 2.5, 8))
    for subject, way, ms, base_ms, steady_ms, goal, is_met in (
        (LLAMA, SLOTS, 293, 290, 0, "compute-bound", True),
        (LLAMA, FRESH, 310, 290, 0, "compute-bound", False),
        (LLAMA, FRESH, 310, 290, 292, "compute-bound", True),
        (THIN, SLOTS, link / 0.94, 1.5, 0, "link-bound, slots", False),
        (THIN, SLOTS, link / 0.8, 1.5, link / 0.97, "link-bound, slots", True),
        (THIN, PINNED, link / 0.96, 1.5, 0, "link-bound, pinned result", True),
        (THIN, PINNED, link / 0.94, 1.5, link / 0.97, "link-bound, pinned result", False),
        (THIN, FRESH, host / 0.91, 1.5, 0, "fresh memory", True),
        (THIN, FRESH, host / 0.89, 1.5, 0, "fresh memory", False),
        (LLAMA, ARCHIVE, disk / 0.91, 290, 0, "archive", True),
        (LLAMA, ARCHIVE, disk / 0.89, 290, 0, "archive", False),
    ):
        found = judged(program, subject, way, ms, base_ms, steady_ms)
        assert {name: figure.is_as_predicted for name, figure in found.items()} == {goal: is_met}


def tried(program: Program, found: Ways, **options: Any) -> dict[str, Entry]:
    group = Group(TINY_LLAMA, LAST, 60, 3, found, **options)
    turns.measure_group(program, group, build(TINY_LLAMA, program.gpu))
    return turns.entries_of(program, group)


def test_a_way_that_fails_or_differs_leaves_the_others(program: Program) -> None:
    runs = iter(range(100))

    def breaks_later(case: Case) -> Values:
        if next(runs) == 1:
            raise RuntimeError("out of slots")
        return ways.in_memory(case)

    def breaks(case: Case) -> Values:
        raise torch.OutOfMemoryError("too large")

    def wrong(case: Case) -> Values:
        return {"layers.0": ways.in_memory(case)["layers.0"] + 1}

    found = tried(
        program,
        {"later": breaks_later, "right": ways.in_memory, "breaks": breaks, "wrong": wrong},
    )
    assert (found["later"].status, found["breaks"].status) == (FAILED, FAILED)
    assert found["breaks"].reason.startswith("OutOfMemoryError: too large")
    assert (found["right"].status, found["right"].problems) == (MEASURED, [])
    assert "layers.0" in found["wrong"].problems[0]
    assert not program.is_right
    text = program.ending()
    assert "failed: llama, last: later: RuntimeError: out of slots" in text
    assert "llama, last: wrong DIFFERS: " in text


def test_a_pinned_result_is_pinned_once_and_not_right_because_an_earlier_run_was(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Values] = []

    def extract(*args: Any, out: Values, **options: Any) -> Values:
        runs.append(out)
        return out if len(runs) > 2 else fastcap.extract_representations(*args, out=out, **options)

    monkeypatch.setattr(ways, "extract_representations", extract)
    group = Group(TINY_LLAMA, ALL, 60, 3, (PINNED,))
    turns.measure_group(program, group, build(TINY_LLAMA, program.gpu))
    [entry] = program.entries
    assert entry.raw["pinning_secs"] > 0
    assert len({run["layers.0"].data_ptr() for run in runs}) == 1
    assert entry.problems[0].startswith("layers.0: ")


def test_a_model_that_fails_or_has_no_room_leaves_the_others(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns.measure_subject(program, [Group(replace(TINY_LLAMA, needs_bytes=1 << 40), LAST, 10, 3)])
    assert program.entries[0].reason == "llama needs 1.1 TB of the GPU, and 8.59 GB are free"
    assert program.is_right

    def broken(subject: Subject, gpu: StandIn) -> Built:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(turns, "build", broken)
    turns.measure_subject(program, [Group(TINY_LLAMA, SLICE, 10, 3)])
    assert "llama failed: RuntimeError: no such kernel (test_gpu.py:" in program.notes[0]
    assert {entry.status for entry in program.entries} == {NOT_RUN}


def test_fewer_passes_where_memory_or_disk_is_short(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, given_back = Group(LLAMA, ALL, 130, 4), []
    monkeypatch.setattr(gpu, "give_back_pinned", lambda: given_back.append("all"))
    for n_bytes, n_passes, n_calls in ((None, 4, 0), (100, 4, 0), (21, 3, 1), (1, 2, 2)):
        free = None if n_bytes is None else n_bytes * group.pass_bytes
        monkeypatch.setattr(grid, "available_bytes", lambda free=free: free)
        assert grid.fitted(gpu, group, FLOORS) == n_passes
        assert len(given_back) == n_calls
    monkeypatch.setattr(grid, "available_bytes", lambda: None)
    for disk, n_passes in ((None, 4), (2.5e9, 4), (0.3e9, 3), (0.001e9, 2)):
        floors = replace(FLOORS, disk_bytes_per_sec=disk)
        assert grid.fitted(gpu, replace(group, ways=(ARCHIVE,)), floors) == n_passes


def test_an_archive_needs_a_reader_and_room_and_the_other_floors_no_disk(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnavailableError, match=" free, and the archive takes "):
        grid.needs_room(tmp_path, 1 << 60)
    monkeypatch.setattr(grid, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="safetensors is not installed"):
        grid.needs_room(tmp_path, 1)

    def refuse(folder: Path) -> float:
        raise SaveError(28, "the disk is full")

    monkeypatch.setattr(measure, "disk_rate", refuse)
    floors = grid.measure_floors(gpu, tmp_path)
    assert floors.disk_bytes_per_sec is None
    assert floors.link_bytes_per_sec is not None
    assert DISK not in make_terms(floors, 1e9, 1, 1.0, 1.0, ARCHIVE)


def test_passes_are_timed_from_the_second_to_the_last(gpu: StandIn) -> None:
    model = nn.Identity()
    with turns.PassStarts(gpu, model) as starts:
        model(torch.ones(1))
        model(torch.ones(1))
        assert starts.pass_secs == []
        model(torch.ones(1))
    for event, secs in zip(starts._events, (1.0, 5.0, 6.5), strict=True):
        event.secs = secs
    assert starts.pass_secs == [1.5]
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("pass_mib", "n_sites", "chunk_mib", "n_slots"),
    [(32 * 64, 32, 64, 70), (12 * 12, 12, 16, 30), (0, 12, 8, 8), (2 * 100, 2, 64, 14)],
)
def test_slots_are_planned_for_two_passes(
    pass_mib: int, n_sites: int, chunk_mib: int, n_slots: int
) -> None:
    expected = {"staging_bytes": 4 * chunk_mib << 20, "pinned_bytes": n_slots * chunk_mib << 20}
    assert grid.slot_budget(pass_mib << 20 or 12 << 10, n_sites) == expected


@pytest.mark.parametrize("subject", [LLAMA, GPT2, THIN], ids=lambda subject: subject.name)
def test_every_model_is_made_the_same_each_time_and_its_bytes_are_as_said(
    subject: Subject, gpu: StandIn
) -> None:
    group = Group(tiny(subject), SLICE, 1, 3)
    values, again = (
        build(group.subject, gpu).case(gpu, 1, SLICE.positions).oracle() for _ in range(2)
    )
    assert same_bytes(values, again)
    assert sum(value.nbytes for value in values.values()) == group.pass_bytes
    first, second, _ = values.values()
    assert not bool((first == second).all())


# Time, and what ends a run


def test_without_time_nothing_begins_and_the_report_says_so(program: Program) -> None:
    program.clock = Clock(2.0)
    program.measure("nothing", lambda: iter(()), 30)
    tried(program, {"way": ways.in_memory})
    text = program.ending()
    assert "not run: nothing: out of time: 2 s were left, and it takes about 30 s" in text
    assert "not run: llama, last: way: out of time: " in text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "extract"])
def test_a_run_that_is_ended_leaves_its_report(
    program: Program, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ended(turns: Turns) -> None:
        raise error

    monkeypatch.setattr(micro, "QUESTIONS", micro.QUESTIONS[-1:])
    monkeypatch.setattr(grid, "GRID", (Group(LLAMA, LAST, 60, 3), Group(THIN, ALL, 60, 3)))
    monkeypatch.setattr(Turns, "run_rounds", ended)
    program.out = program.scratch / "out"
    assert command.play(program, bench.everything) == 1
    (path,) = program.out.iterdir()  # and no unfinished file
    written, text = json.loads(path.read_text()), program.ending()
    assert (written["is_complete"], written["is_right"]) == (False, False)
    assert type(error).__name__ in written["notes"][0]
    entries = {entry["title"]: entry for entry in written["entries"]}
    assert entries["llama, last: slots"]["raw"]["first_secs"] > 0
    assert f"not run: thin, all positions: fresh memory: {NOT_REACHED}" in text
    assert f"not run: thin, all positions: {SLOTS}: {NOT_REACHED}" in text
    assert "This run did not come to its end." in text


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGTERM])
def test_signals_end_what_runs(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    why = "60 s were over" if number == signal.SIGALRM else "SIGTERM"
    with pytest.raises(command.RunEndedError, match=why), command.ending_after(60, 60):
        signal.raise_signal(number)
    assert signal.getsignal(number) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_each_command_takes_less_than_ten_minutes() -> None:
    ending_secs = command.OVERTIME_SECS + command.GRACE_SECS
    assert bench.LIMIT_SECS + ending_secs <= 600 - 60
    likely_secs = sum(group.likely_secs for group in grid.GRID)
    likely_secs += sum(each.likely_secs for each in micro.QUESTIONS)
    assert likely_secs <= bench.LIMIT_SECS
    soak_secs = soak.SECS + soak.START_SECS
    assert soak_secs <= soak.LIMIT_SECS
    assert soak_secs + timeline.LIMIT_SECS + peers.LIMIT_SECS + 2 * ending_secs <= 600 - 60


def test_a_benchmark_that_fails_keeps_the_figures_it_had(program: Program) -> None:
    figure = Figure("a", 2.5, "s", Range(1, 2), interval=(2, 3))
    assert str(figure) == "a: 2.5 s [2.000, 3.000] (1 to 2 predicted: NO)"

    def run(error: Exception) -> Iterator[Figure]:
        yield figure
        raise error

    for error, status, reason in (
        (ValueError("bad\nmore"), FAILED, "ValueError: bad (test_gpu.py:"),
        (UnavailableError("no counter"), NOT_RUN, "no counter"),
    ):
        program.measure(status, partial(run, error))
        entry = program.ask(status)
        assert (entry.status, entry.figures) == (status, [figure])
        assert entry.reason.startswith(reason)


def test_the_memory_of_an_archive_is_held_against_its_bytes(
    program: Program, tmp_path: Path
) -> None:
    *_, growth = micro.archive_memory(program)
    assert (growth.name, growth.goal) == (micro.GROWTH, micro.MEMORY_GOAL)
    assert not list(tmp_path.iterdir())
    assert replace(growth, value=0.001).is_as_predicted
    assert not replace(growth, value=1.0).is_as_predicted


def test_only_the_toolbox_names_cuda() -> None:
    for path in Path(command.__file__).parent.glob("*.py"):
        if path.name in ("toolbox.py", "command.py"):  # which asks whether there is a GPU
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        names = [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]
        assert not [name for name in names if name.startswith("torch.cuda")], path.name


# Soak


def test_naps_are_the_same_for_the_same_seed(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(gpu, "nap", lambda cycles, stream=None: slept.append(cycles))
    runs = []
    for _ in range(2):
        assert not soak.play_engine(gpu, soak.SOUND, 0, 60, n_most=12).wrong
        runs.append(list(slept))
        slept.clear()
    assert runs[0] == runs[1] != []


def test_a_dry_soak_plays_every_engine(tmp_path: Path) -> None:
    entries = results(soak, tmp_path, "--secs", "1")["entries"]
    assert len(entries) == 1 + len(MUTANTS)
    for entry in entries:
        played, wrong = (figure["value"] for figure in entry["figures"])
        assert (entry["status"], wrong) == (MEASURED, 0)
        assert 1 <= played <= 4


def test_the_sound_engine_is_never_wrong_and_a_broken_one_has_to_be_seen(program: Program) -> None:
    program.is_dry = False
    soak.note(program, soak.SOUND, Soak(), Soak(50, {}, 1.0))
    soak.note(program, "copy", Soak(), Soak(3, {2: "differs"}, 1.0))
    soak.note(program, next(iter(soak.RARE)), Soak(), Soak(50, {}, 1.0))
    assert program.is_right
    soak.note(program, "hold", Soak(), Soak(50, {}, 1.0))
    assert program.notes == ["The engine 'hold' was not seen to be wrong."]
    total = Soak()
    soak.note(program, soak.SOUND, total, Soak(50, {7: "leaves.1 differs"}, 1.0))
    soak.note(program, soak.SOUND, total, Soak(50, {}, 1.0))
    entry = program.ask(soak.title_of(soak.SOUND))
    assert (entry.status, entry.reason) == (FAILED, "seed 7: leaves.1 differs")
    assert [figure.value for figure in entry.figures] == [100, 1]


def test_engines_run_side_by_side_and_one_that_does_not_end_is_ended(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(engine: str, first_seed: int, secs: float) -> subprocess.Popen[str]:
        result = 'echo \'{"programs": 5, "wrong": {"1": "x"}, "secs": 1}\''
        said = {"copy": "exec sleep 60", "end": f"{result}; exec sleep 60", "hold": "exit 3"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = ["sh", "-c", said.get(engine, result)]
        return subprocess.Popen(command, text=True, **pipes)

    monkeypatch.setattr(soak, "start", start)
    monkeypatch.setattr(soak, "START_SECS", 0.2)
    program.is_dry = False
    soak.everything(program, secs=0.0)
    status = {entry.title: (entry.status, entry.reason) for entry in program.entries}
    assert set(status) == {soak.title_of(engine) for engine in (soak.SOUND, *MUTANTS)}
    assert status[soak.title_of("copy")] == (FAILED, "its process ended with -9: ")
    assert status[soak.title_of("hold")] == (FAILED, "its process ended with 3: ")
    assert status[soak.title_of("wait")] == status[soak.title_of("end")] == (MEASURED, "")


# Timeline


def event(kind: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": kind, "name": name, "ts": ts, "dur": dur, "args": args}


TRACE = [
    {"ph": "M", "name": "process_name"},
    event("kernel", "gemm", 0, 400, stream=7),
    event("kernel", "direct_copy_kernel_cuda", 400, 50, stream=7),  # a pack
    event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 450, 50, stream=7),  # another
    event("kernel", "gemm", 500, 400, stream=7),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pinned)", 300, 300, stream=13, bytes=15_000_000),
    event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 900, 100, stream=7, bytes=1_000_000),
    event("cuda_runtime", "cudaHostAlloc", 0, 5),
    event("cuda_runtime", "cudaMallocHost", 0, 5),
    event("cuda_runtime", "cudaMalloc", 0, 5),
    event("cuda_runtime", "cudaEventCreateWithFlags", 0, 5),
    event("cuda_runtime", "cudaLaunchKernel", 0, 5),
]


def test_a_trace_is_read() -> None:
    reading = timeline.read_trace(TRACE)
    assert (reading.window_ms, reading.busy) == (1.0, 0.8)
    assert (reading.copied_ms, reading.copied_bytes) == (0.4, 16_000_000)
    assert reading.beside == pytest.approx(200 / 400)  # not beside packs
    assert (reading.copy_streams, reading.kernel_streams) == ((7, 13), (7,))
    assert reading.calls == {"pinned": 2, "allocated": 1, "event made": 1, "stream waited for": 0}
    found = {figure.name: figure for figure in timeline.figures(reading, is_steady=True)}
    assert found["rate of the copies"].value == pytest.approx(40)
    missed = {name for name, figure in found.items() if figure.is_as_predicted is False}
    assert missed == {
        *("copies beside kernels", "streams of copies", "kinds of copies to memory not pinned"),
        *("pinned", "allocated", "event made"),
    }
    busy = timeline.union([(4, 6), (0, 2), (1, 3), (8, 9)])
    assert busy == [(0, 3), (4, 6), (8, 9)]
    assert timeline.overlap_of([(2, 5), (2, 5), (7, 8), (0, 10)], busy) == 2 + 2 + 0 + 6
    with pytest.raises(UnavailableError, match="saw neither a kernel nor a copy"):
        timeline.read_trace([event("cuda_runtime", "cudaMalloc", 0, 5)])


def test_a_dry_timeline_traces_every_way_and_keeps_the_traces(tmp_path: Path) -> None:
    found = results(timeline, tmp_path / "out", "--traces", str(tmp_path / "traces"))
    assert [entry["status"] for entry in found["entries"]] == [MEASURED] * 5
    assert len(list((tmp_path / "traces").iterdir())) == 5


# Peers and loops


def test_dry_peers_compare_every_way(tmp_path: Path) -> None:
    entries = {each["title"]: each for each in results(peers, tmp_path)["entries"]}
    unmeasured = {title for title, entry in entries.items() if entry["status"] != MEASURED}
    assert {title.rpartition(": ")[2] for title in unmeasured} == {
        *("output_hidden_states, .cpu()", "output_hidden_states, non_blocking"),
        *("nnsight, tracer.cache", peers.DECODE),
    }
    for entry in entries.values():
        wrong = [each["value"] for each in entry["figures"] if "wrong values" in each["name"]]
        assert not any(wrong)


class Cached(nn.Module):
    """A model of transformers' kind: a cache of what it has seen, and hidden states."""

    __module__ = "transformers.models.cached"

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: Tensor | None = None,
        use_cache: bool = False,
        output_hidden_states: bool = False,
    ) -> Any:
        states = [self.embedding(input_ids)]
        if past_key_values is not None:
            states = [states[0] + past_key_values]
        for layer in self.layers:
            states.append(layer(states[-1]))
        past = states[0].mean(1, keepdim=True)
        return SimpleNamespace(hidden_states=states, past_key_values=past)


@pytest.mark.filterwarnings("ignore:The model is compiled:fastcap.FastcapWarning")
def test_decoding_and_hidden_states_are_compared(program: Program) -> None:
    torch.manual_seed(0)
    cached = Built(TINY_LLAMA, Cached().eval(), ("layers.0", "layers.1"), "")
    found = loops.decode(program.gpu, cached, TINY)
    figures = {figure.name: figure.value for figure in found}
    wrong = [value for name, value in figures.items() if "wrong" in name]
    assert wrong == [0, 0, 0]
    assert "store, read after each, baseline = 1" in figures
    everybody = peers.groups_of(program)[0]
    turns.measure_group(program, everybody, cached)
    states = [entry for entry in program.entries if "hidden_states" in entry.title]
    assert [(entry.status, entry.problems) for entry in states] == [(MEASURED, [])] * 2
    one, other = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.zeros(2)}
    assert loops.n_wrong([one, other], [one, {"a": -torch.zeros(2)}]) == 1
    assert loops.n_wrong([one], [other]) == 1


def test_a_compiler_that_fails_leaves_the_rest(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Identity() for _ in range(2))

        def forward(self, *_: object) -> None:
            raise RuntimeError("no C compiler")

    broken: Callable[..., nn.Module] = lambda *_, **__: Fails()  # noqa: E731
    monkeypatch.setattr(torch, "compile", broken)
    found: list[Figure] = []
    with pytest.raises(UnavailableError, match=r"compiled: RuntimeError: no C compiler; compiled"):
        found.extend(loops.compiled(gpu, TINY, is_dry=True, n_tokens=1))
    assert [figure.unit for figure in found].count("x") == 2
