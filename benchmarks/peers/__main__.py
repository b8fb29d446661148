"""Measure fastcap beside its peers, and write down what came out.

    make bench-peers
    .venv-peers/bin/python -m benchmarks.peers [--rounds 25] [--out benchmarks/results]

Prints the tables of docs/performance.md. Exit status: 0, also where a bar is missed, which they
say; 1 when fastcap's values differ from the oracle's; 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path

import fastcap
from benchmarks.checkout import RESULTS
from benchmarks.peers.answers import Answer
from benchmarks.peers.processes import (
    NEWER_TRANSFORMER_LENS,
    Place,
    build_model,
    peak_in_child,
    time_in_turns,
    write_oracles,
)
from benchmarks.peers.questions import SIZES, Question
from benchmarks.peers.ways import (
    BASELINE,
    COLLECTORS,
    FASTCAP,
    PEERS,
    TRANSFORMER_LENS,
    why_not,
)
from benchmarks.programs import CANNOT_START, begin, finish, parser_of, refuse, say, show_round
from fastcap.bench.equality import Difference
from fastcap.bench.floors import measure_floors
from fastcap.bench.report import INTERVAL

MODULES = {"nnsight": "nnsight", "transformer-lens": "transformer_lens", "sae-lens": "sae_lens"}
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "datasets", *PEERS)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    missing = [peer for peer in options.peers if util.find_spec(MODULES[peer]) is None]
    if missing:
        return refuse(
            f"{', '.join(missing)} cannot be imported by {sys.executable}. `make bench-peers` "
            "builds an environment that has every peer; --peers without a name measures none."
        )
    origin = begin(options)
    if origin is None:
        return CANNOT_START
    shape, floors = SIZES[options.size][0], measure_floors("cpu")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.size, Path(folder))
        answers = _answer_all(place, options.peers, options.rounds)
    figures = {
        "versions": installed_versions(),
        "model": asdict(shape),
        "floors": asdict(floors),
        "interval": INTERVAL,
        "questions": [answer.fields(shape) for answer in answers],
    }
    finish(options, "peers", origin, figures)
    return 0 if all(answer.values[FASTCAP].is_equal for answer in answers) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.peers", __doc__, rounds=25, out=Path(RESULTS))
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    return parser.parse_args(arguments)


def installed_versions() -> dict[str, str]:
    """Of fastcap, and of every package that is here; the release of TransformerLens that is run."""
    versions = {FASTCAP: fastcap.__version__}
    found = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    newer = metadata.distributions(name=TRANSFORMER_LENS, path=[str(NEWER_TRANSFORMER_LENS)])
    found[TRANSFORMER_LENS] = [*newer, *found[TRANSFORMER_LENS]]
    return versions | {name: of[0].version for name, of in found.items() if of}


def _answer_all(place: Place, peers: Sequence[str], n_rounds: int) -> list[Answer]:
    build_model(place)
    answers = []
    for question in SIZES[place.size][1]:
        say(f"{question.name}: {question.what}")
        write_oracles(place, question)
        answers.append(_time(place, question, peers, n_rounds))
    _measure_memory(place, answers)
    return answers


def _time(place: Place, question: Question, peers: Sequence[str], n_rounds: int) -> Answer:
    """In a process per peer; in one without any, where there is none that has an answer."""
    answer = Answer(question)
    answer.why_not = {
        way: reason for way in peers if (reason := why_not(way, question)) is not None
    }
    asked = [way for way in peers if way not in answer.why_not]
    for others in [[way] for way in asked] or [[]]:
        comparison: dict[str, list[float]] = {}
        answer.comparisons.append(comparison)
        rounds = time_in_turns(place, [BASELINE, FASTCAP, *others], question, n_rounds)
        for index, found in enumerate(rounds):
            show_round(index, found["secs"])
            for way, secs in found["secs"].items():
                comparison.setdefault(way, []).append(secs)
            for way, verdicts in found["verdicts"].items():
                answer.note(way, [Difference(**fields) for fields in verdicts])
    return answer


def _measure_memory(place: Place, answers: Sequence[Answer]) -> None:
    """Two processes at a time: they spend more time importing than capturing."""
    wanted = [
        (answer, way, collector)
        for answer in answers
        if answer.question.n_memory_samples is not None
        for way in answer.ways
        for collector in _collectors(answer, way)
    ]
    with ThreadPoolExecutor(2) as pool:
        peaks = pool.map(lambda w: peak_in_child(place, w[1], w[0].question, w[2]), wanted)
        for (answer, way, collector), peak in zip(wanted, peaks, strict=True):
            answer.peaks.setdefault(way, {})[collector] = peak
            say(f"{answer.question.name}: memory of {way} measured ({collector})")


def _collectors(answer: Answer, way: str) -> list[str]:
    """Both ways of collecting batches, where they are the caller's and large."""
    question = answer.question
    both = way in answer.peers and question.position is None and not question.to_disk
    return list(COLLECTORS) if both else ["rows"]


if __name__ == "__main__":
    sys.exit(main())
