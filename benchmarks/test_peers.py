"""The comparison with peers, as far as it needs none of them."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import programs
from benchmarks.checkout import Checkout
from benchmarks.figures.peers import Answered
from benchmarks.peers import worker
from benchmarks.peers.questions import (
    QUESTIONS,
    SIZES,
    TINY_SHAPE,
    draw_token_ids,
    write_model,
)
from benchmarks.peers.ways import (
    BASELINE,
    COLLECTORS,
    FASTCAP,
    NNSIGHT,
    PEERS,
    SAE_LENS,
    TRANSFORMER_LENS,
    why_not,
)
from fastcap.bench import timing
from fastcap.bench.equality import Difference, difference_of
from fastcap.bench.floors import Floors
from tests.support.requires import needs_greenlet

pytest.importorskip("transformers")
main = import_module("benchmarks.peers.__main__")
RESIDUAL = SIZES["tiny"][1][0]

needs_clear_refs = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="this system cannot reset VmHWM"
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, TINY_SHAPE)
    return folder


# Questions and ways


def test_every_size_asks_the_same_questions() -> None:
    layers = [[question.layers for question in questions] for _, questions in SIZES.values()]
    assert layers[1] == [(0, 1), (0, 1), (0,), (1,)]
    for _, questions in SIZES.values():
        assert all(question.n_samples % question.batch_size == 0 for question in questions)


def test_token_ids_are_the_same_in_every_process_and_a_prefix_of_more() -> None:
    few, many = (draw_token_ids(RESIDUAL, TINY_SHAPE, n) for n in (4, 6))
    assert few.shape == (4, RESIDUAL.n_tokens)
    assert torch.equal(few, many[:4])


@pytest.mark.parametrize("name", list(COLLECTORS))
def test_both_ways_of_collecting_give_the_same_result(name: str) -> None:
    whole = torch.randn(5, 3)
    slices = (slice(0, 2), slice(2, 4), slice(4, 5))
    found = ((rows, [whole[rows], -whole[rows]]) for rows in slices)
    result = COLLECTORS[name](RESIDUAL, 5, found)
    first, second = RESIDUAL.sites
    assert torch.equal(result[first], whole)
    assert torch.equal(result[second], -whole)


def test_a_way_that_cannot_answer_says_why() -> None:
    questions = {question.name: question for question in QUESTIONS}
    assert "writes no files" in (why_not(NNSIGHT, questions["disk"]) or "")
    assert "run whole" in (why_not(SAE_LENS, questions["stop"]) or "")
    assert all(why_not(FASTCAP, question) is None for question in QUESTIONS)
    assert all(why_not(peer, questions["residual"]) is None for peer in PEERS)


# Values


def test_values_are_compared_by_bits() -> None:
    want = {"site": torch.tensor([0.0, 1.0, 2.0, float("nan")])}
    assert difference_of(want, {"site": want["site"].clone()}).is_equal
    verdict = difference_of(want, {"site": torch.tensor([-0.0, 1.0, 2.5, float("nan")])})
    assert (verdict.n_values, verdict.n_different, verdict.is_equal) == (4, 2, False)


def test_the_largest_difference_is_reported() -> None:
    verdict = difference_of({"site": torch.tensor([1.0, 2.0])}, {"site": torch.tensor([1.0, 2.5])})
    assert str(verdict) == "50.0 % differ, by 5.0e-01 at most"


def test_what_cannot_be_compared_is_a_difference() -> None:
    want = {"site": torch.zeros(2)}
    for found, problem in (
        ({"other": torch.zeros(2)}, "site: missing; other: unexpected"),
        ({"site": torch.zeros(2, 1)}, "site: (2, 1) torch.float32, expected (2,) torch.float32"),
    ):
        difference = difference_of(want, found)
        assert not difference.is_equal
        assert str(difference) == problem


# Processes


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Any:
    (tmp_path / "model").symlink_to(model_folder)
    return main.Place("tiny", tmp_path)


def run_here(*arguments: str, **_: object) -> dict[str, Any]:
    """In the place of `run_child`."""
    return worker.TASKS[arguments[-2]](**json.loads(arguments[-1]))


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "run_child", run_here)
    monkeypatch.setattr(main, "ThreadPoolExecutor", lambda _: ThreadPoolExecutor(1))
    monkeypatch.setattr(worker, "give_back_memory", lambda: None)
    monkeypatch.setattr(timing, "give_back_memory", lambda: None)


@needs_greenlet
@pytest.mark.usefixtures("without_processes")
def test_values_that_are_not_the_oracle_s_are_seen(
    place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_oracles = main.write_oracles

    def write_others(*arguments: Any) -> list[str]:
        paths: list[str] = write_oracles(*arguments)
        values = load_file(paths[0])
        values[RESIDUAL.sites[0]][0, 0, 0] += 1
        save_file(values, paths[0])
        return paths

    monkeypatch.setattr(main, "write_oracles", write_others)
    answer = main.answer_in_turns(place, RESIDUAL, [], 2)
    assert [len(secs) for secs in answer["comparisons"][0].values()] == [2, 2]
    assert Difference(**answer["values"][FASTCAP]).n_different == 1
    assert answer["values_to_eager"][FASTCAP]["n_values"] > 0


@needs_greenlet
def test_a_process_answers_and_one_that_fails_is_reported_with_what_it_said(place: Any) -> None:
    ways: dict[str, Any] = {"names": [BASELINE], "n_rounds": 2, "oracles": []}
    found = place.run("time", RESIDUAL, [BASELINE], main.KEEP_FREED, **ways)
    assert (len(found["secs"][BASELINE]), found["differences"]) == (2, {})
    with pytest.raises(RuntimeError, match="KeyError: 'no such way'"):
        place.run("peak", RESIDUAL, [], {}, way="no such way", collector="rows")


def test_only_transformer_lens_sees_the_newer_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr(main, "run_child", lambda *_, variables: seen.append(variables))
    monkeypatch.setattr(main, "NEWER_TRANSFORMER_LENS", tmp_path)
    for ways in ([BASELINE, TRANSFORMER_LENS], [BASELINE, SAE_LENS]):
        main.Place("tiny", tmp_path).run("time", RESIDUAL, ways, {})
    newer, other = seen
    assert newer["PYTHONPATH"].split(os.pathsep)[0] == str(tmp_path)
    assert str(tmp_path) not in other["PYTHONPATH"]


@needs_clear_refs
@needs_greenlet
@pytest.mark.usefixtures("without_processes")
def test_a_whole_run_without_peers_writes_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(main, "measure_floors", lambda device: Floors(8.0, 4.0, 2.0, 1.0))
    arguments = ["--size", "tiny", "--peers", "--rounds", "2", "--allow-dirty"]
    assert main.main([*arguments, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("peers-*.json")
    written = json.loads(path.read_text())
    assert [q["name"] for q in written["questions"]] == ["residual", "last", "stop", "disk"]
    for question in written["questions"]:
        assert question["values"]["fastcap"]["n_different"] == 0
        (comparison,) = question["comparisons"]
        assert {way: len(secs) for way, secs in comparison.items()} == {BASELINE: 2, FASTCAP: 2}
        for of_way in question["peaks"].values():
            assert of_way["rows"]["host_bytes"] >= of_way["rows"]["before_bytes"] > 0
    assert "**disk: layer 11, all tokens, to disk.**" in capsys.readouterr().out


# What it refuses


def test_without_the_peers_it_says_how_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main.util, "find_spec", lambda name: None)
    assert main.main(["--allow-dirty"]) == 2
    said = capsys.readouterr().err
    assert "nnsight, transformer-lens, sae-lens cannot be imported" in said
    assert "make bench-peers" in said


def test_a_changed_working_tree_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(programs, "describe_checkout", lambda: Checkout("c0ffee", ("a.py",)))
    assert main.main(["--peers"]) == 2
    assert "a.py" in capsys.readouterr().err


# What was measured


def test_fastcap_is_held_against_the_baseline_in_every_process() -> None:
    peaks = {
        BASELINE: {"rows": {"host_bytes": 1100, "before_bytes": 1000}},
        FASTCAP: {"rows": {"host_bytes": 3200, "before_bytes": 2000}},
    }
    comparisons = [
        {BASELINE: [1.0, 1.0], FASTCAP: [1.1, 1.1], NNSIGHT: [1.2, 1.2]},
        {BASELINE: [2.0, 2.0], FASTCAP: [2.6, 2.6], SAE_LENS: [2.6, 2.6]},
    ]
    fields = {"name": "", "what": "", "comparisons": comparisons, "values": {}, "peaks": peaks}
    answer = Answered(fields, Floors(8.0, 4.0, 2.0))
    assert answer.ways == [BASELINE, FASTCAP, NNSIGHT, SAE_LENS]
    assert answer.ratio(FASTCAP, BASELINE).rounds == (1.1, 1.1, 1.3, 1.3)
    assert answer.to_peer(SAE_LENS).rounds == (1.0, 1.0)
    assert answer.added(FASTCAP) == {"rows": 1100}
