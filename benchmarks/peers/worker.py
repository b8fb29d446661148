"""A process that does one task, and says what came out in the last line of its stdout, in JSON.

    python -m benchmarks.peers.worker TASK FIELDS

`FIELDS` is a JSON object: the arguments of the task's function below.

time        rounds in which some ways take turns
peak        one run, and the memory it took
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors.torch import load_file

from benchmarks.memory import Peak, reset_peak, resident_bytes
from benchmarks.peers import theirs, ways
from benchmarks.peers.questions import SIZES, Question, draw_token_ids
from benchmarks.peers.ways import BASELINE, COLLECTORS, Run, Task, Values
from benchmarks.turns import Player, take_turns
from fastcap.bench.equality import Difference, difference_of
from fastcap.bench.timing import give_back_memory, measure_rounds

LOADERS = {**ways.LOADERS, **theirs.LOADERS}


class Runner:
    """Some ways, loaded, and the runs of them.

    Args:
        names: Of the ways.
        size: A key of `SIZES`.
        model: The folder of the model.
        question: Its name.
        scratch: Where runs write, each to a folder of its own.
    """

    def __init__(
        self, names: Sequence[str], size: str, model: str, question: str, scratch: str
    ) -> None:
        self._shape, questions = SIZES[size]
        self.question: Question = next(each for each in questions if each.name == question)
        self._prepare = {way: LOADERS[way](Path(model)) for way in names}
        self._scratch = scratch

    def prepare(self, way: str, n_samples: int, collector: str = "rows") -> Run:
        ids = draw_token_ids(self.question, self._shape, n_samples)
        out = Path(tempfile.mkdtemp(dir=self._scratch))
        return self._prepare[way](Task(self.question, ids, COLLECTORS[collector], out))

    def play(self, order: Sequence[str], n_samples: int) -> dict[str, tuple[float, Values]]:
        """Seconds and values of one run of every way; they take turns before every forward pass."""
        runs = {way: self.prepare(way, n_samples) for way in order}
        players = {way: Player(run.model, run.capture) for way, run in runs.items()}
        outcome = take_turns(players, order)
        return {way: (secs, runs[way].values_of(found)) for way, (secs, found) in outcome.items()}


def time_in_turns(
    names: Sequence[str],
    size: str,
    model: str,
    question: str,
    n_rounds: int,
    oracles: Sequence[str],
) -> dict[str, Any]:
    """Run every way once per round, after a round of two batches that does not count.

    Gives the seconds of every round by way, and for each way that captures what its worst round
    showed beside each oracle.
    """
    expected = [load_file(path) for path in oracles]
    worst: dict[str, list[Difference]] = {}

    def check(way: str, values: Values) -> None:
        if way != BASELINE:
            found = [difference_of(want, values) for want in expected]
            kept = worst.setdefault(way, found)
            worst[way] = [
                max(pair, key=lambda each: each.n_different)
                for pair in zip(kept, found, strict=True)
            ]

    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(names, size, model, question, scratch)
        asked = runner.question
        runner.play(names, 2 * asked.batch_size)
        secs = measure_rounds(
            names, lambda order: runner.play(order, asked.n_samples), n_rounds, check
        )
    return {
        "secs": secs,
        "differences": {way: [asdict(each) for each in found] for way, found in worst.items()},
    }


def measure_peak(way: str, size: str, model: str, question: str, collector: str) -> dict[str, Any]:
    """The memory of one run, after one of a single batch that loads what is loaded late."""
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner([way], size, model, question, scratch)
        asked = runner.question
        assert asked.n_memory_samples is not None
        runner.prepare(way, asked.batch_size, collector).capture()
        run = runner.prepare(way, asked.n_memory_samples, collector)
        give_back_memory()
        before = reset_peak()
        outcome = run.capture()
        peak = Peak(resident_bytes("VmHWM"), before)
        del outcome
    return asdict(peak)


TASKS: Mapping[str, Callable[..., dict[str, Any]]] = MappingProxyType(
    {"time": time_in_turns, "peak": measure_peak}
)


def main(arguments: list[str]) -> None:
    task, fields = arguments
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is not an answer
        answers.write(json.dumps(TASKS[task](**json.loads(fields))) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
