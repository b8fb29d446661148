"""The suite: every workload's tiny form in every way, as benchmark or test; and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import suite
from benchmarks.grid import GPT2_SIZED, LLAMA_SIZED, SIZES, TINY, Size, grid, workloads
from benchmarks.models import Decoder
from benchmarks.workloads import Workload, build_case
from fastcap.bench import Case, Floors, report, timing
from fastcap.bench.equality import Judge, gathered
from fastcap.bench.ways import HOOKLESS, Way, ways_for
from fastcap.reference import differences

CASES = suite.choose(suite.cases("cpu", None), ("tiny", "transformers"))
WAYS = [name for name in ways_for("cpu") if name != HOOKLESS]


@cache
def made(name: str) -> tuple[Case, dict[str, Way], Judge]:
    case, ways = CASES[name]()
    return case, ways, Judge(case.oracle())


def must_be_right(name: str, way: str, benchmark: BenchmarkFixture) -> None:
    case, ways, judge = made(name)
    benchmark.group = name

    def run() -> dict[str, torch.Tensor]:
        outcome = ways[way](case)
        return dict(outcome) if not isinstance(outcome, Iterator) else gathered(outcome)

    values = benchmark(run)
    assert differences(judge.expected, values) == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_every_way_equals_the_oracle(name: str, way: str, benchmark: BenchmarkFixture) -> None:
    must_be_right(name, way, benchmark)


@pytest.mark.skipif("transformers-hidden-states" not in CASES, reason="needs transformers")
def test_hidden_states_equal_the_oracle(benchmark: BenchmarkFixture) -> None:
    must_be_right("transformers-hidden-states", suite.HIDDEN_STATES, benchmark)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_every_workload_of_a_size_has_a_name_and_sites_of_its_model(size: Size) -> None:
    of_size = list(workloads(size, "cpu"))
    assert len({workload.name for workload in of_size}) == len(of_size) == 7
    model = Decoder(size.shape, {"device": "meta", "dtype": size.dtype})
    names = {name for name, _ in model.named_modules()}
    assert all(set(workload.sites) <= names for workload in of_size)


@pytest.mark.parametrize(
    "workload", list(workloads(TINY, "cpu")), ids=lambda workload: workload.name
)
def test_the_bytes_of_a_workload_are_those_of_its_values(workload: Workload) -> None:
    values = build_case(workload).question().oracle()
    assert sum(value.nbytes for value in values.values()) == workload.result_bytes


def test_a_large_model_is_measured_only_where_it_fits() -> None:
    def names(device: str, memory_bytes: int | None) -> set[str]:
        return {workload.name.partition("-")[0] for workload in grid(device, memory_bytes)}

    assert names("cpu", 1 << 40) == {TINY.name, GPT2_SIZED.name}
    assert names("cuda", 24 << 30) == {TINY.name, GPT2_SIZED.name}
    assert names("cuda", 80 << 30) == {TINY.name, GPT2_SIZED.name, LLAMA_SIZED.name}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Arguments of a run that takes no time."""
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    monkeypatch.setattr(report, "RUN_SECS", 0.0)
    monkeypatch.setattr(suite, "measure_floors", lambda *a, **o: Floors(8.0, 4.0, 2.0, 1.0))
    return ["--device", "cpu", "--rounds", "2", "--allow-dirty", "--out", str(tmp_path)]


def test_a_run_writes_figures_floors_and_where_they_come_from(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert suite.main([*quick, "--only", "tiny-last"]) == 0
    (path,) = tmp_path.glob("*-suite-tiny-last-*-cores.json")
    written = json.loads(path.read_text())
    assert set(written["workloads"]) == {"tiny-last"}
    of_workload = written["workloads"]["tiny-last"]
    assert set(of_workload["secs"]) == {HOOKLESS, *WAYS}
    assert not any(of_workload["mismatches"].values())
    assert set(written) >= {"machine", "date", "commit", "torch", "floors", "load"}
    page = path.with_suffix(".md").read_text()
    assert "| tiny-last | " in page
    assert "copy into warm memory 8.00 GB/s" in page
    assert "forward + copy into rested memory" in page
    assert "tiny-last" in capsys.readouterr().out


@pytest.mark.skipif("transformers-hidden-states" not in CASES, reason="needs transformers")
def test_hidden_states_are_measured_beside_the_other_ways(quick: list[str], tmp_path: Path) -> None:
    assert suite.main([*quick, "--only", "transformers"]) == 0
    (path,) = tmp_path.glob("*.json")
    of_workload = json.loads(path.read_text())["workloads"]["transformers-hidden-states"]
    assert set(of_workload["secs"]) == {HOOKLESS, *WAYS, suite.HIDDEN_STATES}


def test_a_workload_that_fails_leaves_what_was_measured_before_it(
    monkeypatch: pytest.MonkeyPatch, quick: list[str], tmp_path: Path
) -> None:
    def fail() -> tuple[Case, dict[str, Way]]:
        raise RuntimeError("no memory")

    monkeypatch.setattr(
        suite, "cases", lambda *a: {"tiny-last": CASES["tiny-last"], "tiny-fails": fail}
    )
    with pytest.raises(RuntimeError, match="no memory"):
        suite.main(quick)
    (path,) = tmp_path.glob("*.json")
    assert list(json.loads(path.read_text())["workloads"]) == ["tiny-last"]


def test_a_workload_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert suite.main(["--device", "cpu", "--only", "huge", "--allow-dirty"]) == 2
    assert "begins with any of ['huge']" in capsys.readouterr().err


def test_a_way_that_differs_shows_in_the_page_and_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, quick: list[str], tmp_path: Path
) -> None:
    def wrong(case: Case) -> dict[str, torch.Tensor]:
        return {site: value + 1 for site, value in case.oracle().items()}

    case, ways, _ = made("tiny-last")
    monkeypatch.setattr(
        suite, "cases", lambda *a: {"tiny-last": lambda: (case, {**ways, "hook": wrong})}
    )
    assert suite.main(quick) == 1
    (page,) = tmp_path.glob("*.md")
    assert "hook DIFFERS in tiny-last: layers.0:" in page.read_text()
