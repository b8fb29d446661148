"""The workers side by side: rounds in which they alternate, and peak memory in fresh processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.checkout import PROJECT
from benchmarks.memory import RETURN_AT_ONCE, Peak
from benchmarks.peers.judge import Verdict
from benchmarks.peers.questions import Question
from benchmarks.peers.ways import HOOKLESS, TRANSFORMER_LENS

LIMIT_SECS = 300
NEWER_TRANSFORMER_LENS = Path(sys.prefix) / "transformer-lens-4"
"""Beside the release that SAELens needs, which is older."""

QUIET = {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_MODE": "disabled",
}


KEEP_FREED = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),  # the most that glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
}
"""For processes that are timed. When glibc gives freed memory back, so that the next pass touches
it anew, depends on what else lies in the heap: left to itself, it made passes without capture the
slowest of all.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers find the model, and where they leave files: a temporary folder."""

    size: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def oracle(self, question: Question, attention: str = "sdpa") -> Path:
        return self.folder / f"{question.name}-{attention}.safetensors"


def environment_of(way: str, place: Place) -> dict[str, str]:
    """Variables of a way's process: no hub, no bars, and the library's own release."""
    paths = [str(PROJECT)]
    if way == TRANSFORMER_LENS and NEWER_TRANSFORMER_LENS.exists():
        paths.insert(0, str(NEWER_TRANSFORMER_LENS))
    caches = {"HF_HOME": str(place.folder / "huggingface")}
    return {**os.environ, **QUIET, **caches, "PYTHONPATH": os.pathsep.join(paths)}


def _command(task: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.worker", task, *more]


class WorkerError(RuntimeError):
    """A worker ended early; says what it wrote last."""


class Worker:
    """A way's process.

    Raises:
        WorkerError: In any method, when the process has ended.
    """

    def __init__(self, way: str, place: Place) -> None:
        self.way = way
        self._log = place.folder / f"{way.replace(' ', '-')}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                _command("serve", way, place.size, str(place.model)),
                cwd=place.folder,
                env={**environment_of(way, place), **KEEP_FREED},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Give a command and wait for the answer."""
        self.tell(json.dumps(command))
        return self.hear()

    def tell(self, line: str) -> None:
        try:
            _pipe(self._process.stdin).write(line + "\n")
            _pipe(self._process.stdin).flush()
        except BrokenPipeError:
            self._fail()

    def hear(self) -> dict[str, Any]:
        line = _pipe(self._process.stdout).readline()
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process, which ends by itself when its input does."""
        _pipe(self._process.stdin).close()
        _pipe(self._process.stdout).close()
        self._process.wait(LIMIT_SECS)

    def _fail(self) -> None:
        said = self._log.read_text(errors="replace")[-2000:]
        raise WorkerError(f"The process of {self.way} ended early. It said last:\n{said}")


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


@dataclass
class Timings:
    """Seconds of each counted run, and what was found of its values, by way."""

    secs: dict[str, list[float]] = field(default_factory=dict)
    verdicts: dict[str, Verdict] = field(default_factory=dict)


class Team:
    """Workers that live as long as the `with` block."""

    def __init__(self, ways: Sequence[str], place: Place) -> None:
        self.workers: dict[str, Worker] = {}
        self._place = place
        self._ways = ways

    def __enter__(self) -> Self:
        for way in self._ways:
            self.workers[way] = Worker(way, self._place)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers.values():
            worker.close()

    def prepare(
        self, ways: Sequence[str], question: Question, n_samples: int, oracle: Path | None
    ) -> None:
        for way in ways:
            self.workers[way].ask(
                {
                    "prepare": question.name,
                    "n_samples": n_samples,
                    "oracle": None if oracle is None or way == HOOKLESS else str(oracle),
                }
            )

    def play_round(self, order: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Every way runs once; each gives way to the next before every forward pass."""
        answers: dict[str, dict[str, Any]] = {}
        started: set[str] = set()
        while len(answers) < len(order):
            for way in order:
                if way in answers:
                    continue
                self.workers[way].tell("go" if way in started else json.dumps({"run": True}))
                started.add(way)
                answer = self.workers[way].hear()
                if "secs" in answer:
                    answers[way] = answer
        return answers


def measure(
    team: Team,
    ways: Sequence[str],
    question: Question,
    n_rounds: int,
    oracle: Path,
    on_round: Callable[[int, Mapping[str, float]], None] = lambda index, secs: None,
) -> Timings:
    """Rounds in a random order of the ways, after one of two batches that does not count."""
    team.prepare(ways, question, 2 * question.batch_size, None)
    team.play_round(ways)
    team.prepare(ways, question, question.n_samples, oracle)
    timings = Timings({way: [] for way in ways})
    orders = random.Random(0)
    for index in range(n_rounds):
        answers = team.play_round(orders.sample(list(ways), len(ways)))
        for way in ways:
            timings.secs[way].append(answers[way]["secs"])
            _note(timings.verdicts, way, answers[way]["verdict"])
        on_round(index, {way: answers[way]["secs"] for way in ways})
    return timings


def _note(verdicts: dict[str, Verdict], way: str, fields: dict[str, Any] | None) -> None:
    """Keep a way's first verdict, or the first that is worse."""
    if fields is None:
        return
    verdict = Verdict(**fields)
    kept = verdicts.setdefault(way, verdict)
    if verdict.n_different > kept.n_different:
        verdicts[way] = verdict


def build_model(place: Place) -> None:
    """Write the model that every worker reads.

    Raises:
        WorkerError: The process failed; with the end of what it said.
    """
    place.model.mkdir()
    _run_child("build", HOOKLESS, place, [place.size, str(place.model)])


def peak_in_child(way: str, question: Question, collector: str, place: Place) -> Peak:
    """The memory of one run in a fresh process, freed memory being returned at once.

    Raises:
        WorkerError: The process failed or took too long; with the end of what it said.
    """
    more = [way, place.size, str(place.model), question.name, collector]
    return Peak(**json.loads(_run_child("peak", way, place, more).splitlines()[-1]))


def _run_child(task: str, way: str, place: Place, more: Sequence[str]) -> str:
    try:
        child = subprocess.run(
            _command(task, *more),
            cwd=place.folder,
            env={**environment_of(way, place), **RETURN_AT_ONCE},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECS,
            check=True,
        )
    except subprocess.SubprocessError as error:
        said = str(getattr(error, "stderr", None) or "")[-2000:]
        raise WorkerError(f"{error}\n{said}") from error
    return child.stdout
