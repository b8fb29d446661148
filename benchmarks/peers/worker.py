"""A process that runs one way, and waits before every forward pass when told to.

    python -m benchmarks.peers.worker build SIZE FOLDER
    python -m benchmarks.peers.worker serve WAY SIZE FOLDER
    python -m benchmarks.peers.worker peak WAY SIZE FOLDER QUESTION COLLECTOR

`build` writes the model. `serve` reads one command per line from stdin and answers each with one
line of JSON on stdout:

    {"prepare": question, "n_samples": n, "oracle": file or null}
                        {"ready": true}
    {"run": true}       {"waits": true} before each forward pass, until a line "go"; at the end
                        {"secs": ..., "verdict": {...} or null}
    {"write": file}     {"wrote": true}, when the values of a run without waiting are in the file

What passes while it waits is not counted. `peak` runs once and prints the memory it took.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from safetensors.torch import load_file, save_file

from benchmarks.memory import Peak, reset_peak, resident_bytes
from benchmarks.peers import ours, theirs
from benchmarks.peers.judge import compare
from benchmarks.peers.questions import SIZES, Question, draw_token_ids, find_question, write_model
from benchmarks.peers.ways import COLLECTORS, Run, Values
from fastcap.bench.timing import give_back_memory

LOADERS = {**ours.LOADERS, **theirs.LOADERS}


class Stopwatch:
    """Seconds of a run, without those spent waiting for its turn."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self._waited = 0.0

    def pause(self, *_: object) -> None:
        """A forward pre-hook of the model."""
        started = time.perf_counter()
        self._wait()
        self._waited += time.perf_counter() - started

    def time(self, run: Run) -> tuple[float, Values | Path]:
        """Seconds, and what the run returned."""
        give_back_memory()
        self._waited = 0.0
        handle = run.model.register_forward_pre_hook(self.pause)
        try:
            started = time.perf_counter()
            outcome = run.capture()
            return time.perf_counter() - started - self._waited, outcome
        finally:
            handle.remove()


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


class Server:
    """Answers commands, one line of JSON each."""

    def __init__(self, runner: Runner, size: str, commands: TextIO, answers: TextIO) -> None:
        self._runner = runner
        self._size = size
        self._commands = commands
        self._answers = answers
        self._stopwatch = Stopwatch(self._wait)
        self._question: Question | None = None
        self._n_samples = 0
        self._expected: Values = {}

    def serve(self) -> None:
        """Until there are no more commands."""
        while line := self._commands.readline():
            command = json.loads(line)
            if "prepare" in command:
                self._say(self._take(command))
            elif "write" in command:
                self._say(self._write(command["write"]))
            else:
                self._say(self._run())

    def _take(self, command: dict[str, Any]) -> dict[str, Any]:
        self._question = find_question(self._size, command["prepare"])
        self._n_samples = command["n_samples"]
        self._expected = load_file(command["oracle"]) if command["oracle"] else {}
        return {"ready": True}

    def _write(self, path: str) -> dict[str, Any]:
        run = self._next()
        save_file(values_of(run, run.capture()), path)
        return {"wrote": True}

    def _run(self) -> dict[str, Any]:
        run = self._next()
        secs, outcome = self._stopwatch.time(run)
        if not self._expected:
            return {"secs": secs, "verdict": None}
        return {"secs": secs, "verdict": asdict(compare(self._expected, values_of(run, outcome)))}

    def _next(self) -> Run:
        assert self._question is not None, "no question was prepared"
        return self._runner.prepare(self._question, self._n_samples)

    def _wait(self) -> None:
        self._say({"waits": True})
        self._commands.readline()

    def _say(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def measure_peak(runner: Runner, question: Question, collector: str) -> Peak:
    """The memory of one run, after one of a single batch that loads what is loaded late."""
    assert question.n_memory_samples is not None
    warm = runner.prepare(question, question.batch_size, collector)
    warm.capture()
    run = runner.prepare(question, question.n_memory_samples, collector)
    del warm
    give_back_memory()
    before = reset_peak()
    outcome = run.capture()
    peak = resident_bytes("VmHWM")
    del outcome
    return Peak(peak, before)


def main(arguments: list[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if arguments[0] == "build":
        _, size, folder = arguments
        write_model(Path(folder), SIZES[size][0])
        return
    task, way, size, folder, *rest = arguments
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(way, size, Path(folder), Path(scratch))
        if task == "serve":
            Server(runner, size, sys.stdin, answers).serve()
            return
        question, collector = rest
        peak = measure_peak(runner, find_question(size, question), collector)
        answers.write(json.dumps(asdict(peak)) + "\n")
        answers.close()


if __name__ == "__main__":
    main(sys.argv[1:])
