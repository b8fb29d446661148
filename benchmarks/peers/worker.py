"""A process that does one task, and says what came out on stdout, one line of JSON each.

    python -m benchmarks.peers.worker TASK FIELDS

`FIELDS` is a JSON object: the arguments of the task's function below.

build       writes the model
oracle      writes the values of a question, as the oracle finds them
time        rounds in which some ways take turns; a line per round
peak        one run, and the memory it took
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load_file, save_file

from benchmarks.memory import Peak, reset_peak, resident_bytes
from benchmarks.peers import ours, theirs
from benchmarks.peers.questions import SIZES, Question, draw_token_ids, find_question, write_model
from benchmarks.peers.ways import BASELINE, COLLECTORS, Run, Values
from benchmarks.turns import Player, take_turns
from fastcap.bench.equality import difference_of
from fastcap.bench.timing import give_back_memory, order_of_round

LOADERS = {**ours.LOADERS, **theirs.LOADERS}

Answers = Iterator[dict[str, Any]]


class Runner:
    """One way, loaded, and the runs of it."""

    def __init__(self, way: str, size: str, folder: Path, scratch: Path) -> None:
        self._prepare = LOADERS[way](folder)
        self._shape = SIZES[size][0]
        self._scratch = scratch

    def prepare(self, question: Question, n_samples: int, collector: str = "rows") -> Run:
        """A run that writes to a folder of its own, if it writes."""
        ids = draw_token_ids(question, self._shape, n_samples)
        out = Path(tempfile.mkdtemp(dir=self._scratch))
        return self._prepare(question, ids, COLLECTORS[collector], out)


def values_of(run: Run, outcome: Values | Path) -> Values:
    """Tensors, read back where the result is a folder."""
    if not isinstance(outcome, Path):
        return outcome
    assert run.values is not None
    return run.values(outcome)


def build(size: str, model: str) -> Answers:
    """Write the model into a folder."""
    write_model(Path(model), SIZES[size][0])
    yield {}


def write_oracle(way: str, size: str, model: str, question: str, out: str) -> Answers:
    """Write what an oracle finds into a safetensors file."""
    with tempfile.TemporaryDirectory() as scratch:
        asked = find_question(size, question)
        run = Runner(way, size, Path(model), Path(scratch)).prepare(asked, asked.n_samples)
        save_file(values_of(run, run.capture()), out)
    yield {}


def time_in_turns(
    ways: Sequence[str], size: str, model: str, question: str, n_rounds: int, oracles: Sequence[str]
) -> Answers:
    """Run every way once per round, after a round of two batches that does not count.

    Gives the seconds by way, and the verdicts on each way that captures: one per oracle.
    """
    asked = find_question(size, question)
    expected = [load_file(path) for path in oracles]
    with tempfile.TemporaryDirectory() as scratch:
        runners = {way: Runner(way, size, Path(model), Path(scratch)) for way in ways}
        play_round(runners, ways, asked, 2 * asked.batch_size)
        for index in range(n_rounds):
            give_back_memory()
            order = order_of_round(ways, index)
            outcome = play_round(runners, order, asked, asked.n_samples)
            yield {
                "secs": {way: outcome[way][0] for way in ways},
                "verdicts": {
                    way: [asdict(difference_of(want, outcome[way][1])) for want in expected]
                    for way in ways
                    if way != BASELINE
                },
            }
            del outcome


def play_round(
    runners: Mapping[str, Runner], order: Sequence[str], question: Question, n_samples: int
) -> dict[str, tuple[float, Values]]:
    """Seconds and values of one run of every way; they take turns before every forward pass."""
    runs = {way: runners[way].prepare(question, n_samples) for way in order}
    players = {way: Player(run.model, run.capture) for way, run in runs.items()}
    outcome = take_turns(players, order)
    return {way: (secs, values_of(runs[way], found)) for way, (secs, found) in outcome.items()}


def measure_peak(way: str, size: str, model: str, question: str, collector: str) -> Answers:
    """The memory of one run, after one of a single batch that loads what is loaded late."""
    asked = find_question(size, question)
    assert asked.n_memory_samples is not None
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(way, size, Path(model), Path(scratch))
        warm = runner.prepare(asked, asked.batch_size, collector)
        warm.capture()
        run = runner.prepare(asked, asked.n_memory_samples, collector)
        del warm
        give_back_memory()
        before = reset_peak()
        outcome = run.capture()
        peak = Peak(resident_bytes("VmHWM"), before)
        del outcome
    yield asdict(peak)


TASKS: Mapping[str, Callable[..., Answers]] = MappingProxyType(
    {"build": build, "oracle": write_oracle, "time": time_in_turns, "peak": measure_peak}
)


def main(arguments: list[str]) -> None:
    task, fields = arguments
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is not an answer
        for answer in TASKS[task](**json.loads(fields)):
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
