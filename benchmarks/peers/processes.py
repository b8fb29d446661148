"""The tasks of `worker`, each in a fresh process that has the releases it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.checkout import PROJECT
from benchmarks.memory import RETURN_AT_ONCE, Peak
from benchmarks.peers.questions import Question
from benchmarks.peers.ways import EAGER_ORACLE, ORACLE, TRANSFORMER_LENS

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
"""For processes that are timed: memory that one pass gave back is not touched anew by the next.
Left to itself, glibc returns it or not by what else lies in the heap, which is nobody's cost.
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where workers find the model and the oracles' values: a temporary folder."""

    size: str
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def oracles(self, question: Question) -> dict[str, Path]:
        """Files of values, by the oracle's name."""
        return {
            way: self.folder / f"{question.name}-{way.replace(' ', '-')}.safetensors"
            for way in (ORACLE, EAGER_ORACLE)
        }


class WorkerError(RuntimeError):
    """A worker failed; says what it wrote last."""


def build_model(place: Place) -> None:
    """Write the model that every worker reads."""
    place.model.mkdir()
    _run_one("build", place, (), {})


def write_oracles(place: Place, question: Question) -> None:
    """Write what both oracles find, into files of their own."""
    for way, path in place.oracles(question).items():
        _run_one("oracle", place, [way], {"way": way, "question": question.name, "out": str(path)})


def time_in_turns(
    place: Place, ways: Sequence[str], question: Question, n_rounds: int
) -> Iterator[dict[str, Any]]:
    """Rounds in one process: `secs` by way, and `verdicts` by way, one per oracle."""
    oracles = [str(path) for path in place.oracles(question).values()]
    fields = {"ways": list(ways), "n_rounds": n_rounds, "oracles": oracles}
    return _run("time", place, ways, {**fields, "question": question.name}, KEEP_FREED)


def peak_in_child(place: Place, way: str, question: Question, collector: str) -> Peak:
    """The memory of one run in a fresh process, freed memory being returned at once."""
    fields = {"way": way, "question": question.name, "collector": collector}
    return Peak(**_run_one("peak", place, [way], fields, RETURN_AT_ONCE))


def environment_of(ways: Sequence[str], place: Place) -> dict[str, str]:
    """Variables of the process that runs some ways: no hub, no bars, the releases they need."""
    paths = [str(PROJECT)]
    if TRANSFORMER_LENS in ways and NEWER_TRANSFORMER_LENS.exists():
        paths.insert(0, str(NEWER_TRANSFORMER_LENS))
    caches = {"HF_HOME": str(place.folder / "huggingface")}
    return {**os.environ, **QUIET, **caches, "PYTHONPATH": os.pathsep.join(paths)}


def _run_one(*arguments: Any) -> dict[str, Any]:
    (answer,) = _run(*arguments)
    return answer


def _run(
    task: str,
    place: Place,
    ways: Sequence[str],
    fields: Mapping[str, Any],
    variables: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Run a task in a process; give its answers as they come.

    Raises:
        WorkerError: The process failed; with the end of what it said.
    """
    fields = {"size": place.size, "model": str(place.model), **fields}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", task, json.dumps(fields)],
            cwd=place.folder,
            env={**environment_of(ways, place), **(variables or {})},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        yield from map(json.loads, process.stdout)
        if process.wait() != 0:
            log.seek(0)
            said = log.read().decode(errors="replace")[-2000:]
            raise WorkerError(f"The process for {task!r} of {fields} failed. It said last:\n{said}")
