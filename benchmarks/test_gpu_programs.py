"""Soak, timeline and peers without a GPU: tiny runs, and a trace that was made by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.gpu import __main__ as bench
from benchmarks.gpu import command, grid, loops, peers, soak, timeline
from benchmarks.gpu.cells import open_cells
from benchmarks.gpu.command import Program
from benchmarks.gpu.figures import Figure, Range, UnavailableError
from benchmarks.gpu.session import FAILED, MEASURED, NOT_RUN, Clock
from benchmarks.gpu.standin import StandIn
from benchmarks.gpu.subjects import LLAMA, Built, build, tiny
from benchmarks.gpu.toolbox import TINY, Gpu
from tests.support.soak import MUTANTS, Soak


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (grid, loops):
        monkeypatch.setattr(module, "give_back_memory", lambda: None)
    monkeypatch.setattr(grid, "MOST_ROUNDS", 2)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    found = StandIn()
    with found.running():
        yield found


def results(module: Any, out: Path, *options: str) -> dict[str, Any]:
    assert module.main(["--dry-run", "--out", str(out), *options]) == 0
    (path,) = out.iterdir()
    found: dict[str, Any] = json.loads(path.read_text())
    assert {"machine", "date", "commit", "torch"} <= set(found)
    assert (found["is_measurement"], found["is_complete"]) == (False, True)
    return found


def open_program(gpu: Gpu, name: str, folder: Path, is_real: bool = False) -> Program:
    options = command.parser_of(name, None, 1).parse_args([] if is_real else ["--dry-run"])
    report = command.open_report(name, gpu, options)
    return Program(gpu, TINY, Clock(1e6), None, folder, report)


# Soak


def test_a_dry_soak_plays_every_engine(tmp_path: Path) -> None:
    entries = results(soak, tmp_path, "--secs", "1")["entries"]
    assert len(entries) == 1 + len(MUTANTS)
    for entry in entries:
        played, wrong = (figure["value"] for figure in entry["figures"])
        assert (entry["status"], wrong) == (MEASURED, 0)
        assert 1 <= played <= 4


def test_naps_are_the_same_for_the_same_seed(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[int] = []
    monkeypatch.setattr(gpu.cuda, "_sleep", slept.append)
    runs = []
    for _ in range(2):
        assert not soak.play_engine(gpu, soak.SOUND, 0, 60, n_most=12).wrong
        runs.append(list(slept))
        slept.clear()
    assert runs[0] == runs[1] != []
    assert all(0 < cycles <= 2e6 + 1 for cycles in runs[0])


def test_the_sound_engine_is_never_wrong_and_a_broken_one_has_to_be_seen(
    gpu: StandIn, tmp_path: Path
) -> None:
    program = open_program(gpu, "soak", tmp_path, is_real=True)
    soak.note(program, soak.SOUND, Soak(), Soak(50, {}, 1.0))
    soak.note(program, "copy", Soak(), Soak(3, {2: "differs"}, 1.0))
    assert program.report.is_right
    soak.note(program, next(iter(soak.RARE)), Soak(), Soak(50, {}, 1.0))
    assert program.report.is_right
    soak.note(program, "hold", Soak(), Soak(50, {}, 1.0))
    assert program.report.notes == ["The engine 'hold' was not seen to be wrong."]
    total = Soak()
    soak.note(program, soak.SOUND, total, Soak(50, {7: "leaves.1 differs"}, 1.0))
    soak.note(program, soak.SOUND, total, Soak(50, {}, 1.0))
    entry = program.ask("", soak.title_of(soak.SOUND))
    assert (entry.status, entry.reason) == (FAILED, "seed 7: leaves.1 differs")
    assert [figure.value for figure in entry.figures] == [100, 1]


def test_engines_run_side_by_side_and_one_that_does_not_end_is_ended(
    gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(engine: str, first_seed: int, secs: float) -> soak.Child:
        started.append(engine)
        result = 'echo \'{"programs": 5, "wrong": {"1": "x"}, "secs": 1}\''
        said = {"copy": "exec sleep 60", "end": f"{result}; exec sleep 60", "hold": "exit 3"}
        command = ["sh", "-c", said.get(engine, result)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return soak.Child(engine, subprocess.Popen(command, text=True, **pipes))

    monkeypatch.setattr(soak, "start", start)
    monkeypatch.setattr(soak, "START_SECS", 0.2)
    program = open_program(gpu, "soak", tmp_path, is_real=True)
    soak.everything(program, secs=0.0)
    assert started[0] == soak.SOUND
    assert set(started) == {soak.SOUND, *MUTANTS}
    status = {entry.title: (entry.status, entry.reason) for entry in program.report.entries}
    assert status[soak.title_of("copy")] == (FAILED, "its process ended with -9: ")
    assert status[soak.title_of("hold")] == (FAILED, "its process ended with 3: ")
    assert status[soak.title_of("wait")] == status[soak.title_of("end")] == (MEASURED, "")
    assert status[soak.title_of(soak.SOUND)][0] == FAILED


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
    assert not any(each.predicted for each in timeline.figures(reading, is_steady=False))


def test_spans_are_joined_and_overlaps_counted_for_each() -> None:
    busy = timeline.union([(4, 6), (0, 2), (1, 3), (8, 9)])
    assert busy == [(0, 3), (4, 6), (8, 9)]
    assert timeline.overlap_of([(2, 5), (2, 5), (7, 8), (0, 10)], busy) == 2 + 2 + 0 + 6


def test_a_profiler_that_sees_nothing_says_nothing() -> None:
    with pytest.raises(UnavailableError, match="saw neither a kernel nor a copy"):
        timeline.read_trace([event("cuda_runtime", "cudaMalloc", 0, 5)])


def test_a_dry_timeline_traces_every_way_and_keeps_the_traces(tmp_path: Path) -> None:
    traces = tmp_path / "traces"
    found = results(timeline, tmp_path / "out", "--traces", str(traces))
    assert [entry["status"] for entry in found["entries"]] == [MEASURED] * 5
    assert len(list(traces.iterdir())) == 5


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_profiler_writes_a_trace(tmp_path: Path, gpu: StandIn) -> None:
    real = Gpu("cpu")
    real.cuda = gpu.cuda
    real.trace(lambda: torch.zeros(2) + 1, tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(each.get("name") == "aten::add" for each in events)


# Peers


def test_dry_peers_compare_every_way(tmp_path: Path) -> None:
    found = results(peers, tmp_path)
    unmeasured = {cell["destination"] for cell in found["cells"] if cell["status"] != MEASURED}
    assert unmeasured == {
        *("output_hidden_states, .cpu()", "output_hidden_states, non_blocking"),
        "nnsight, tracer.cache",
    }
    assert all(cell["equal"] for cell in found["cells"] if cell["status"] == MEASURED)
    entries = {entry["name"]: entry for entry in found["entries"]}
    assert {name: entry["status"] for name, entry in entries.items()} == {
        **dict.fromkeys(("P2", "P3", "P4"), MEASURED),
        "P1": NOT_RUN,
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


@pytest.fixture
def cached(gpu: StandIn) -> Built:
    built = build(tiny(LLAMA), gpu)
    torch.manual_seed(0)
    return Built(built.subject, Cached().eval(), ["layers.0", "layers.1"], "", built.input_ids)


@pytest.mark.filterwarnings("ignore:The model is compiled:fastcap.FastcapWarning")
def test_decoding_is_compared_step_by_step(gpu: StandIn, cached: Built) -> None:
    figures = {figure.name: figure.value for figure in loops.decode(gpu, cached, TINY)}
    wrong = {name: value for name, value in figures.items() if "wrong" in name}
    assert len(wrong) == 3
    assert not any(wrong.values())
    assert "store, read after each, baseline = 1" in figures
    one, other = {"a": torch.zeros(2), "b": torch.ones(1)}, {"a": torch.zeros(2)}
    assert loops.n_wrong([one, other], [one, {"a": -torch.zeros(2)}]) == 1
    assert loops.n_wrong([one], [other]) == 1


def test_hidden_states_are_the_blocks_outputs(gpu: StandIn, cached: Built, tmp_path: Path) -> None:
    program = open_program(gpu, "peers", tmp_path)
    everybody = peers.groups_of(program)[0]
    program.report.cells = open_cells(everybody)
    bench.measure_group(program, everybody, cached, program.clock)
    states = [cell for cell in program.report.cells if "hidden_states" in cell.destination]
    assert [(cell.status, cell.is_equal) for cell in states] == [(MEASURED, True)] * 2


def test_a_compiler_that_fails_leaves_the_rest(
    gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> nn.Module:
        class Fails(nn.Module):
            def forward(self, *_: object) -> None:
                raise RuntimeError("no C compiler")

        failing = Fails()
        failing.layers = nn.ModuleList(nn.Identity() for _ in range(2))
        return failing

    monkeypatch.setattr(torch, "compile", broken)
    found: list[Figure] = []
    with pytest.raises(UnavailableError, match=r"compiled: RuntimeError: no C compiler; compiled"):
        found.extend(loops.compiled(gpu, TINY, is_dry=True, n_tokens=1))
    assert [figure.unit for figure in found].count("x") == 2


def test_the_third_command_takes_less_than_ten_minutes() -> None:
    ending_secs = command.OVERTIME_SECS + command.GRACE_SECS
    soak_secs = soak.SECS + soak.START_SECS
    assert soak_secs <= soak.LIMIT_SECS
    assert soak_secs + timeline.LIMIT_SECS + peers.LIMIT_SECS + 2 * ending_secs <= 600 - 60
    assert Range(0, 0) == loops.NONE
