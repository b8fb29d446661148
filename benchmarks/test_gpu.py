"""The GPU benchmarks, without a GPU: every function once, what reports say, and what is not run."""

from __future__ import annotations

import ast
import json
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastcap
from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import command, grid, micro, peers, soak, timeline, turns
from benchmarks.gpu.command import Program
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
from benchmarks.gpu.subjects import GPT2, THIN, tiny
from benchmarks.gpu.subjects import LLAMA as HF_LLAMA
from benchmarks.gpu.turns import Question
from benchmarks.models import build_model
from benchmarks.workloads import Workload
from fastcap.bench import Case, Overhead, ways
from fastcap.bench.case import Values
from fastcap.bench.equality import same_bytes
from fastcap.bench.ways import BASELINE
from fastcap.errors import SaveError
from fastcap.planning import measure
from fastcap.planning.machine import Machine
from fastcap.transfer.budget import MiB
from tests.support.soak import MUTANTS, Soak

GB = 10**9
FLOORS = Machine(link_bytes_per_sec=50e9, fresh_bytes_per_sec=8e9, disk_bytes_per_sec=2.5e9)
LLAMA = replace(HF_LLAMA, make=build_model)  # which takes no import of transformers
TINY_LLAMA = tiny(LLAMA)


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds, and no search for garbage between them."""
    monkeypatch.setattr(fastcap.bench.timing, "give_back_memory", lambda: None)
    monkeypatch.setattr(turns, "MOST_ROUNDS", 2)
    for name in ("LINK_BYTES", "HOST_BYTES", "DISK_BYTES"):
        monkeypatch.setattr(measure, name, MiB)


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


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.9, 1.0), "met"), ((0.9, 1.1), "not shown"), ((1.1, 1.2), "MISSED"), (None, "met")],
)
def test_a_promise_is_kept_or_missed_by_the_whole_interval(
    interval: tuple[float, float] | None, verdict: str
) -> None:
    value = 1.0 if interval is None else sum(interval) / 2
    figure = Figure("steady", value, "x", Range(high=1.02), interval, "at most 1.02")
    assert figure.verdict == verdict


def test_only_what_is_asked_for_is_measured_and_reported(tmp_path: Path) -> None:
    found = results(bench, tmp_path, "--only", "pinning", "--only", "by size")
    assert [entry["title"] for entry in found["entries"]] == [
        "copies to the host by size",
        "pinning",
    ]
    assert found["only"] == ["pinning", "by size"]


# The grid


def test_a_dry_run_runs_everything_and_compares_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = (Group(LLAMA, ALL, 3, 60), Group(THIN, SLICE, 3, 60, (*grid.OURS, ARCHIVE)))
    monkeypatch.setattr(grid, "GRID", groups)
    found = results(bench, tmp_path)
    assert len(found["entries"]) == len(micro.QUESTIONS) + 4 + 5
    assert {entry["status"] for entry in found["entries"]} == {MEASURED}
    for entry in found["entries"][-9:]:
        figures = {figure["name"]: figure for figure in entry["figures"]}
        assert figures["wrong values"]["value"] == 0
        assert "steady, baseline = 1" in figures
        assert not entry["problems"]
        for secs in (entry["raw"]["secs"], entry["raw"]["steady_pass_secs"]):
            assert [len(of_way) for of_way in secs.values()] == [2, 2]
    assert set(found["models"]) == {"llama", "thin"}


def test_without_a_gpu_the_command_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert "--dry-run shows that the code runs" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("way", "group", "floors", "base_ms", "bound"),
    [
        (SLOTS, Group(LLAMA, ALL, 3, 1), FLOORS, 290, FORWARD),
        (SLOTS, Group(THIN, ALL, 3, 1), FLOORS, 1.5, LINK),
        (FRESH, Group(THIN, ALL, 3, 1), FLOORS, 1.5, HOST),
        (ARCHIVE, Group(LLAMA, ALL, 3, 1), FLOORS, 290, DISK),
        (ARCHIVE, Group(THIN, ALL, 3, 1), replace(FLOORS, disk_bytes_per_sec=60e9), 1, LINK),
        (SLOTS, Group(LLAMA, LAST, 3, 1), FLOORS, 0.5, LAUNCH),
    ],
)
def test_the_largest_term_bounds_a_pass(
    way: str, group: Group, floors: Machine, base_ms: float, bound: str
) -> None:
    terms = make_terms(floors, group.pass_bytes, 32, base_ms * 1e-3, 1e-3, way)
    assert bound_of(terms) == bound
    assert terms[LINK] == pytest.approx(group.pass_bytes / (50 * GB))


def judged(
    gpu: StandIn, subject: Workload, way: str, ms: float, base_ms: float, steady_ms: float
) -> dict[str, Figure]:
    """The figures with goals of a way whose times are made up."""
    asked = Question(gpu, tiny(LLAMA).build(), FLOORS)
    asked.launch_secs = 1e-3
    rounds = (1, 1.01, 0.99)
    secs = {way: ms, BASELINE: base_ms}
    found = Overhead(
        secs={name: tuple(3e-3 * ms * each for each in rounds) for name, ms in secs.items()},
        n_mismatches={way: 0},
        problems={},
        captured_bytes=3 * Group(subject, ALL, 3, 1).pass_bytes,
        n_passes=3,
        n_samples=24,
        sites=subject.sites,
    )
    steady = {way: [1e-3 * steady_ms] * 3, BASELINE: [1e-3 * base_ms] * 3}
    return {figure.goal.partition(":")[0]: figure for figure in asked.figures(way, found, steady)}


def test_goals_are_judged_by_the_bound_and_slots_and_hidden_copies_in_the_steady_state(
    gpu: StandIn,
) -> None:
    link, disk, host = (
        32e-6 * (Group(LLAMA, ALL, 3, 1).pass_bytes / 32) / rate for rate in (50, 2.5, 8)
    )
    for subject, way, ms, base_ms, steady_ms, goal, is_met in (
        (LLAMA, FRESH, 310, 290, 292, "compute-bound", True),
        (LLAMA, FRESH, 293, 290, 310, "compute-bound", False),
        (THIN, SLOTS, link / 0.96, 1.5, link / 0.94, "link-bound, slots", False),
        (THIN, SLOTS, link / 0.8, 1.5, link / 0.97, "link-bound, slots", True),
        (THIN, PINNED, link / 0.96, 1.5, link / 0.8, "link-bound, pinned result", True),
        (THIN, PINNED, link / 0.94, 1.5, link / 0.97, "link-bound, pinned result", False),
        (THIN, FRESH, host / 0.91, 1.5, host, "fresh memory", True),
        (THIN, FRESH, host / 0.89, 1.5, host, "fresh memory", False),
        (LLAMA, ARCHIVE, disk / 0.91, 290, disk, "archive", True),
        (LLAMA, ARCHIVE, disk / 0.89, 290, disk, "archive", False),
    ):
        found = judged(gpu, subject, way, ms, base_ms, steady_ms)
        met = {name: figure.is_as_predicted for name, figure in found.items() if name}
        assert met == {goal: is_met}


def tried(program: Program, found: dict[str, ways.Way]) -> dict[str, Entry]:
    question = partial(Question, program.gpu, Group(TINY_LLAMA, LAST, 3, 60).workload(3).build())
    turns.measure_ways(program, "llama, last", question, found, 60)
    return {name: program.ask(f"llama, last: {name}") for name in found}


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
    assert "llama, last: later: failed: RuntimeError: out of slots" in text
    assert "llama, last: wrong DIFFERS: " in text


def test_a_pinned_result_is_pinned_once_and_not_right_because_an_earlier_run_was(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Values] = []

    def extract(*args: Any, out: Values | None = None, **options: Any) -> Values:
        if out is not None:
            runs.append(out)
        if out is not None and len(runs) > 2:
            return out
        return fastcap.extract_representations(*args, out=out, **options)

    monkeypatch.setattr(ways, "extract_representations", extract)
    turns.measure_groups(program, [Group(TINY_LLAMA, ALL, 3, 60, (PINNED,))])
    [entry] = program.entries
    assert len({run["layers.0"].data_ptr() for run in runs}) == 1
    assert entry.problems[0].startswith("layers.0: ")


def test_a_model_that_fails_or_has_no_room_leaves_the_others(program: Program) -> None:
    def fail(error: Exception, *_: object) -> nn.Module:
        raise error

    for error, status, reason in (
        (torch.OutOfMemoryError("13 GB"), NOT_RUN, "the GPU has too little memory for llama"),
        (RuntimeError("no such kernel"), FAILED, "RuntimeError: no such kernel (test_gpu.py:"),
    ):
        subject = replace(TINY_LLAMA, make=partial(fail, error))
        turns.measure_groups(program, [Group(subject, LAST, 3, 10, (SLOTS, FRESH))])
        assert {entry.status for entry in program.entries} == {status}
        assert all(entry.reason.startswith(reason) for entry in program.entries)
    turns.measure_groups(program, [Group(TINY_LLAMA, LAST, 3, 10, (SLOTS,))])
    assert program.entries[0].status == MEASURED


def test_fewer_passes_where_memory_or_disk_is_short(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, given_back = Group(LLAMA, ALL, 5, 130), []
    monkeypatch.setattr(gpu, "give_back_pinned", lambda: given_back.append("all"))
    for n_bytes, n_passes, n_calls in ((None, 5, 0), (100, 5, 0), (28, 4, 1), (1, 3, 2)):
        free = None if n_bytes is None else n_bytes * group.pass_bytes
        monkeypatch.setattr(grid, "available_bytes", lambda free=free: free)
        assert grid.fitted(gpu, group, FLOORS) == n_passes
        assert len(given_back) == n_calls
    monkeypatch.setattr(grid, "available_bytes", lambda: None)
    for disk, n_passes in ((None, 5), (2.5e9, 5), (0.4e9, 4), (0.001e9, 3)):
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


def test_the_steady_state_is_from_the_second_pass_to_the_last(gpu: StandIn) -> None:
    model, steady = nn.Identity(), turns.Steady(gpu, 3)
    with steady.watching(model):
        for index, order in enumerate(("ab", "ba")):
            for _ in range(7 if index == 0 else 6):  # one before the first round, too
                model(torch.ones(1))
            for event, secs in zip(
                steady._starts[-6:], (0.0, 1.0, 5.0, 6.0, 7.0, 8.5), strict=True
            ):
                event.secs = secs
            steady.on_round(index, dict.fromkeys(order, 1.0))
            assert [steady.secs[name][-1] for name in order] == [4.0, 1.5]
        assert steady.is_known
        model(torch.ones(1))
        steady.on_round(2, {"a": 1.0})
    assert not steady.is_known
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("subject", [LLAMA, GPT2, THIN], ids=lambda subject: subject.name)
def test_every_model_is_made_the_same_each_time_and_its_bytes_are_as_said(
    subject: Workload,
) -> None:
    group = Group(tiny(subject), SLICE, 3, 1)
    values, again = (group.workload(1).build().oracle() for _ in range(2))
    assert same_bytes(values, again)
    assert sum(value.nbytes for value in values.values()) == group.pass_bytes
    first, second, _ = values.values()
    assert not bool((first == second).all())


# Time, and what ends a run


def test_without_time_nothing_begins_and_the_report_says_so(program: Program) -> None:
    program.limit_secs = 0.0
    tried(program, {"way": ways.in_memory})
    assert "llama, last: way: not run: 0 s were left, and it takes about 30" in program.ending()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143)], ids=["Ctrl-C", "extract"])
def test_a_run_that_is_ended_leaves_its_report(
    program: Program, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ended(*_: object) -> None:
        raise error

    monkeypatch.setattr(micro, "QUESTIONS", micro.QUESTIONS[-1:])
    monkeypatch.setattr(grid, "GRID", (Group(LLAMA, LAST, 3, 60), Group(THIN, ALL, 3, 60)))
    monkeypatch.setattr(turns.Steady, "on_round", ended)
    program.out = program.scratch / "out"
    assert command.play(program, bench.everything) == 1
    (path,) = program.out.iterdir()  # and no unfinished file
    written, text = json.loads(path.read_text()), program.ending()
    assert (written["is_complete"], written["is_right"]) == (False, False)
    assert type(error).__name__ in written["notes"][0]
    assert written["entries"][0]["status"] == MEASURED
    for title in ("llama, last: slots", "thin, all positions: slots, plain loop"):
        assert f"{title}: not run: {NOT_REACHED}" in text
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
    likely_secs = sum(group.likely_secs * len(group.ways) for group in grid.GRID)
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


def test_the_sound_engine_is_never_wrong_and_a_broken_one_has_to_be_seen(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.gpu, "is_real", True)
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


def test_engines_run_side_by_side_and_one_that_fails_leaves_the_others(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_child(*arguments: str, limit_secs: float) -> dict[str, Any]:
        if "copy" in arguments:
            raise RuntimeError("timed out after 85 s")
        return {"programs": 5, "wrong": {"1": "x"} if "sound" not in arguments else {}, "secs": 1}

    monkeypatch.setattr(soak, "run_child", run_child)
    monkeypatch.setattr(program.gpu, "is_real", True)
    soak.everything(program, secs=0.0)
    status = {entry.title: (entry.status, entry.reason) for entry in program.entries}
    assert status.pop(soak.title_of("copy")) == (FAILED, "timed out after 85 s")
    others = {engine for engine in (soak.SOUND, *MUTANTS) if engine != "copy"}
    assert status == {soak.title_of(engine): (MEASURED, "") for engine in others}


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
    found = {figure.name: figure for figure in timeline.figures(TRACE, is_steady=True)}
    assert {name: figure.value for name, figure in found.items()} == pytest.approx(
        {
            "from first to last": 1.0,
            "kernels of the model run": 80,
            "copied to the host": 0.016,
            "rate of the copies": 40,
            "copies beside kernels": 50,  # and not beside packs
            "streams of copies": 2,
            "of them without kernels": 1,
            "kinds of copies to memory not pinned": 1,
            "pinned": 2,
            "allocated": 1,
            "event made": 1,
            "stream waited for": 0,
        }
    )
    missed = {name for name, figure in found.items() if figure.is_as_predicted is False}
    assert missed == {
        *("copies beside kernels", "kinds of copies to memory not pinned"),
        *("pinned", "allocated", "event made"),
    }
    with pytest.raises(UnavailableError, match="saw neither a kernel nor a copy"):
        list(timeline.figures([event("cuda_runtime", "cudaMalloc", 0, 5)], is_steady=True))


def test_a_dry_timeline_traces_every_way_and_keeps_the_traces(tmp_path: Path) -> None:
    found = results(timeline, tmp_path / "out", "--traces", str(tmp_path / "traces"))
    assert [entry["status"] for entry in found["entries"]] == [MEASURED] * 5
    assert len(list((tmp_path / "traces").iterdir())) == 5


# Peers


def test_dry_peers_compare_every_way(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    entries = {each["title"]: each for each in results(peers, tmp_path)["entries"]}
    unmeasured = {title for title, entry in entries.items() if entry["status"] != MEASURED}
    assert unmeasured == {f"beside nnsight: {way}" for way in (peers.NNSIGHT, peers.LENT)}
    for entry in entries.values():
        wrong = [each["value"] for each in entry["figures"] if "wrong values" in each["name"]]
        assert not any(wrong)


def test_without_transformers_the_model_is_a_stand_in(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    subject = replace(tiny(HF_LLAMA), n_samples=6)
    decoding = peers.of_llama(program, subject)[2]
    with turns.opened(program, subject) as model:
        peers.measure_all(program, decoding, model)
    assert program.facts["models"] == {"llama": "benchmarks.Decoder"}
    assert {entry.reason for entry in program.entries} == {
        "the model is a stand-in, which has no KV cache"
    }


def test_a_compiler_that_fails_leaves_the_rest(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Identity() for _ in range(3))

        def forward(self, *_: object) -> None:
            raise RuntimeError("no C compiler")

    broken: Callable[..., nn.Module] = lambda *_, **__: Fails()  # noqa: E731
    monkeypatch.setattr(torch, "compile", broken)
    eager, made, *_ = peers.of_compiled(program, TINY_LLAMA)
    model = build_model(TINY_LLAMA.shape, TINY_LLAMA.dtype, "cpu")
    for asked in (eager, made):
        peers.measure_all(program, asked, lambda: model)
    first, second = program.entries
    assert (first.status, second.status) == (MEASURED, NOT_RUN)
    assert "does not compile here: RuntimeError: no C compiler" in second.reason
