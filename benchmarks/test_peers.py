"""The comparison with peers, as far as it needs none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import programs
from benchmarks.checkout import Checkout
from benchmarks.memory import Peak
from benchmarks.peers import processes, worker
from benchmarks.peers.answers import Answer
from benchmarks.peers.processes import Place, WorkerError, environment_of
from benchmarks.peers.questions import (
    QUESTIONS,
    SIZES,
    TINY_QUESTIONS,
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
from fastcap.bench.equality import Difference, difference_of
from fastcap.bench.floors import Floors
from tests.support.requires import needs_greenlet

pytest.importorskip("transformers")
main = import_module("benchmarks.peers.__main__")
RESIDUAL = TINY_QUESTIONS[0]

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
    names = [[q.name for q in questions] for _, questions in SIZES.values()]
    assert names[0] == names[1]
    assert all(
        q.n_samples % q.batch_size == 0 for _, questions in SIZES.values() for q in questions
    )


def test_token_ids_are_the_same_in_every_process_and_a_prefix_of_more() -> None:
    few, many = (draw_token_ids(RESIDUAL, TINY_SHAPE, n) for n in (4, 6))
    assert few.shape == (4, RESIDUAL.n_tokens)
    assert torch.equal(few, many[:4])


@pytest.mark.parametrize("name", list(COLLECTORS))
def test_both_ways_of_collecting_give_the_same_result(name: str) -> None:
    whole = torch.randn(5, 3)
    collector = COLLECTORS[name](5)
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        collector.add("site", rows, whole[rows])
    assert torch.equal(collector.result()["site"], whole)


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


# Workers


@pytest.fixture
def place(tmp_path: Path, model_folder: Path) -> Place:
    (tmp_path / "model").symlink_to(model_folder)
    return Place("tiny", tmp_path)


def ask_in_this_process(
    task: str,
    place: Place,
    ways: Sequence[str],
    fields: Mapping[str, Any],
    variables: Mapping[str, str] | None = None,
) -> worker.Answers:
    return worker.TASKS[task](size=place.size, model=str(place.model), **fields)


@needs_greenlet
@pytest.mark.usefixtures("without_processes")
def test_every_round_has_seconds_and_verdicts(place: Place) -> None:
    processes.write_oracles(place, RESIDUAL)
    rounds = list(processes.time_in_turns(place, [BASELINE, FASTCAP], RESIDUAL, 3))
    assert [set(each["secs"]) for each in rounds] == [{BASELINE, FASTCAP}] * 3
    for each in rounds:
        of_oracle, of_eager = (Difference(**fields) for fields in each["verdicts"][FASTCAP])
        assert of_oracle.is_equal
        assert of_eager.n_values == of_oracle.n_values > 0


@needs_greenlet
@pytest.mark.usefixtures("without_processes")
def test_values_that_are_not_the_oracle_s_are_seen(place: Place) -> None:
    processes.write_oracles(place, RESIDUAL)
    for path in place.oracles(RESIDUAL).values():
        values = load_file(path)
        values[RESIDUAL.sites[0]][0, 0, 0] += 1
        save_file(values, path)
    (found,) = processes.time_in_turns(place, [BASELINE, FASTCAP], RESIDUAL, 1)
    assert Difference(**found["verdicts"][FASTCAP][0]).n_different == 1


@needs_clear_refs
@pytest.mark.usefixtures("without_processes")
def test_a_run_is_measured_after_one_that_warms_up(place: Place) -> None:
    peak = processes.peak_in_child(place, FASTCAP, RESIDUAL, "rows")
    assert peak.host_bytes >= peak.before_bytes > 0


@needs_greenlet
def test_a_process_answers_line_by_line(place: Place) -> None:
    processes.write_oracles(place, RESIDUAL)
    rounds = processes.time_in_turns(place, [BASELINE], RESIDUAL, 2)
    assert next(rounds)["secs"][BASELINE] > 0
    assert next(rounds)["verdicts"] == {}
    assert list(rounds) == []


def test_a_process_that_fails_is_reported_with_what_it_said(place: Place) -> None:
    with pytest.raises(WorkerError, match=r"process for 'peak'(.|\n)*KeyError: 'no such way'"):
        processes.peak_in_child(place, "no such way", RESIDUAL, "rows")


def test_only_transformer_lens_sees_the_newer_release(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "NEWER_TRANSFORMER_LENS", tmp_path)
    place = Place("tiny", tmp_path)
    first = environment_of([BASELINE, TRANSFORMER_LENS], place)["PYTHONPATH"].split(os.pathsep)[0]
    assert first == str(tmp_path)
    assert str(tmp_path) not in environment_of([BASELINE, SAE_LENS], place)["PYTHONPATH"]
    assert environment_of([SAE_LENS], place)["HF_HUB_OFFLINE"] == "1"


@pytest.fixture
def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_run", ask_in_this_process)
    monkeypatch.setattr(worker, "give_back_memory", lambda: None)


@needs_greenlet
@pytest.mark.usefixtures("without_processes")
def test_a_whole_run_without_peers_writes_its_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(main, "measure_floors", lambda device: Floors(8.0, 4.0, 2.0, 1.0))
    monkeypatch.setattr(main, "peak_in_child", lambda *_: Peak(2000, 1000))
    arguments = ["--size", "tiny", "--peers", "--rounds", "2", "--allow-dirty"]
    assert main.main([*arguments, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("peers-*.json")
    written = json.loads(path.read_text())
    assert [q["name"] for q in written["questions"]] == ["residual", "last", "stop", "disk"]
    for question in written["questions"]:
        assert question["values"]["fastcap"]["n_different"] == 0
        (comparison,) = question["comparisons"]
        assert {way: len(secs) for way, secs in comparison.items()} == {BASELINE: 2, FASTCAP: 2}
    assert "**disk: layer 1, all tokens, to disk.**" in capsys.readouterr().out


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


def make_answer() -> Answer:
    return Answer(
        RESIDUAL,
        comparisons=[{BASELINE: [1.0, 1.0], FASTCAP: [1.1, 1.1], NNSIGHT: [1.2, 1.2]}],
        peaks={
            BASELINE: {"rows": Peak(1100, 1000)},
            FASTCAP: {"rows": Peak(3200, 2000)},
            NNSIGHT: {"rows": Peak(5500, 4000), "lists": Peak(6000, 4000)},
        },
    )


def test_memory_is_what_a_run_adds_beyond_the_run_without() -> None:
    answer = make_answer()
    assert answer.added_bytes(FASTCAP, "rows") == 1100
    assert answer.added_bytes(NNSIGHT, "lists") == 1900


def test_fastcap_is_held_against_the_baseline_in_every_process() -> None:
    answer = make_answer()
    answer.comparisons.append({BASELINE: [2.0, 2.0], FASTCAP: [2.6, 2.6], SAE_LENS: [2.6, 2.6]})
    assert answer.ways == [BASELINE, FASTCAP, NNSIGHT, SAE_LENS]
    assert answer.ratio(FASTCAP, BASELINE).rounds == (1.1, 1.1, 1.3, 1.3)
    assert answer.ratio(FASTCAP, SAE_LENS).rounds == (1.0, 1.0)


def test_the_worst_round_s_values_are_kept() -> None:
    answer = Answer(RESIDUAL)
    for n_different in (0, 5, 2):
        answer.note(NNSIGHT, [Difference(10, n_different, 1.0), Difference(10, 1, 1.0)])
    assert answer.values[NNSIGHT].n_different == 5
    assert answer.values_to_eager[NNSIGHT].n_different == 1
