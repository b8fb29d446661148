"""The suite: every workload's tiny form in every way, as benchmark or test; and what it writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks import memory, suite
from benchmarks.memory import Peak
from benchmarks.models import Decoder, ModelShape, build_model
from benchmarks.workloads import (
    ACCEPTANCE,
    GPT2_SIZED,
    LLAMA_SIZED,
    SIZES,
    TINY,
    Size,
    grid,
    llama_case,
    output_hidden_states,
    workloads_of,
)
from fastcap.bench import Case, Floors, report, timing
from fastcap.bench.equality import gathered, same_bytes
from fastcap.bench.ways import BASELINE, Way, ways_for
from fastcap.reference import differences

WORKLOADS = {workload.name: workload for workload in workloads_of(TINY, "cpu")}
WAYS = {name: way for name, way in ways_for("cpu").items() if name != BASELINE}


@cache
def made(name: str) -> tuple[Case, dict[str, torch.Tensor]]:
    case = WORKLOADS[name].build()
    return case, case.oracle()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_way_equals_the_oracle(name: str, way: str, benchmark: BenchmarkFixture) -> None:
    case, expected = made(name)
    benchmark.group = name
    assert differences(expected, benchmark(partial(values_of, WAYS[way], case))) == []


def values_of(way: Way, case: Case) -> dict[str, torch.Tensor]:
    outcome = way(case)
    return gathered(outcome) if isinstance(outcome, Iterator) else dict(outcome)


def test_hidden_states_equal_the_oracle(benchmark: BenchmarkFixture) -> None:
    pytest.importorskip("transformers")
    case, way = llama_case("cpu"), output_hidden_states("cpu")
    assert differences(case.oracle(), benchmark(partial(values_of, way, case))) == []


# Models and workloads


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_every_workload_of_a_size_has_a_name_and_sites_of_its_model(size: Size) -> None:
    of_size = list(workloads_of(size, "cpu"))
    assert len({workload.name for workload in of_size}) == len(of_size) == 7
    with torch.device("meta"):
        model = Decoder(size.shape)
    names = {name for name, _ in model.named_modules()}
    assert all(set(workload.sites) <= names for workload in of_size)


def test_a_large_model_is_measured_only_where_it_fits() -> None:
    def names(device: str, memory_bytes: int | None) -> set[str]:
        return {workload.name.partition("-")[0] for workload in grid(device, memory_bytes)}

    assert names("cpu", 1 << 40) == {TINY.name, GPT2_SIZED.name}
    assert names("cuda", 24 << 30) == {TINY.name, GPT2_SIZED.name}
    assert names("cuda", 80 << 30) == {TINY.name, GPT2_SIZED.name, LLAMA_SIZED.name}


def test_the_model_is_a_causal_decoder_of_its_shape_and_seed() -> None:
    shape = ModelShape(n_layers=2, width=16, n_heads=2, hidden=24, vocab_size=10)
    model, again, other = (build_model(shape, torch.float32, "cpu", seed) for seed in (0, 0, 1))
    assert same_bytes(model.state_dict(), again.state_dict())
    assert not same_bytes(model.state_dict(), other.state_dict())
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    assert sum(p.numel() for p in model.parameters()) == 2 * block + 2 * 10 * 16 + 16
    with torch.no_grad():
        one, later, swapped = (
            model(torch.tensor([ids])) for ids in ([1, 2, 3, 4], [1, 2, 3, 9], [2, 1, 3, 4])
        )
    assert torch.equal(one[:, :3], later[:, :3])  # a token does not see those after it
    assert not torch.equal(one[:, 3], later[:, 3])
    assert not torch.allclose(one[:, 3], swapped[:, 3], atol=1e-4)  # and the order matters


# The program


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Arguments of a run that takes no time."""
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)
    monkeypatch.setattr(report, "RUN_SECS", 0.0)
    monkeypatch.setattr(suite, "measure_floors", lambda *a, **o: Floors(8.0, 4.0, 2.0, 1.0))
    return ["--device", "cpu", "--rounds", "2", "--allow-dirty", "--out", str(tmp_path)]


def result_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("suite-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    assert set(found) >= {"machine", "date", "commit", "torch", "floors", "load"}
    return found


def test_a_run_writes_figures_floors_and_where_they_come_from(
    quick: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert suite.main([*quick, "--only", "tiny-last"]) == 0
    found = result_in(tmp_path)
    assert (found["kind"], set(found["workloads"])) == ("suite-tiny-last", {"tiny-last"})
    of_workload = found["workloads"]["tiny-last"]
    assert set(of_workload["secs"]) == {BASELINE, *WAYS}
    assert not any(of_workload["mismatches"].values())
    assert "| tiny-last | fastcap " in capsys.readouterr().out
    assert suite.main([*quick[:-2], "--only", "huge"]) == 2
    assert "begins with any of ['huge']" in capsys.readouterr().err


def test_the_acceptance_workload_has_memory_beside_times_in_turns(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = next(workloads_of(TINY, "cpu"))
    peaks = {BASELINE: Peak(10, 1), "hook": Peak(15, 1), "fastcap": Peak(12, 1)}
    monkeypatch.setattr(memory, "measure_in_child", lambda way, workload: peaks[way])
    monkeypatch.setattr(
        suite, "measurements", lambda *a: {ACCEPTANCE.name: partial(suite.in_turns, small)}
    )
    assert suite.main([*quick, "--only", "acceptance"]) == 0
    found = result_in(tmp_path)["workloads"][ACCEPTANCE.name]
    assert {way: len(secs) for way, secs in found["secs"].items()} == dict.fromkeys(peaks, 2)
    assert found["mismatches"] == {"hook": 0, "fastcap": 0}
    assert found["peak_added_bytes"] == {"hook": 5, "fastcap": 2}
    assert found["captured_bytes"] == small.result_bytes


def test_what_was_measured_is_kept_where_a_later_workload_fails(
    monkeypatch: pytest.MonkeyPatch, quick: list[str], tmp_path: Path
) -> None:
    def fail(rounds: int) -> None:
        raise RuntimeError("no memory")

    first = {"tiny-last": suite.measurements("cpu", None)["tiny-last"]}
    monkeypatch.setattr(suite, "measurements", lambda *a: {**first, "tiny-fails": fail})
    with pytest.raises(RuntimeError, match="no memory"):
        suite.main(quick)
    assert list(result_in(tmp_path)["workloads"]) == ["tiny-last"]


def test_a_way_that_differs_shows_in_the_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def wrong(case: Case) -> dict[str, torch.Tensor]:
        return {site: value + 1 for site, value in case.oracle().items()}

    build, ways = WORKLOADS["tiny-last"].build, {**WAYS, "hook": wrong}
    measure = partial(suite.one_after_another, build, ways, {})
    monkeypatch.setattr(suite, "measurements", lambda *a: {"tiny-last": measure})
    assert suite.main(quick) == 1
    assert "hook DIFFERS in tiny-last: layers.0:" in capsys.readouterr().out
    assert result_in(tmp_path)["workloads"]["tiny-last"]["mismatches"]["hook"]
