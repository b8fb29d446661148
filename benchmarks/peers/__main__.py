"""Measure fastcap beside its peers, and write down what came out.

    make bench-peers
    .venv-peers/bin/python -m benchmarks.peers [--rounds 25] [--out benchmarks/results]

Prints a card, then a table per question; the last line of stdout is one JSON object with the
headline figures. Exit status: 0, also where a bar is missed, which the report says; 1 when
fastcap's values differ from the oracle's; 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path

import fastcap
from benchmarks.checkout import RESULTS
from benchmarks.peers import report
from benchmarks.peers.judge import Verdict
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
    COLLECTORS,
    FASTCAP,
    HOOKLESS,
    PEERS,
    TRANSFORMER_LENS,
    why_not,
)
from benchmarks.programs import CANNOT_START, Origin, begin, parser_of, refuse, say, show_round
from fastcap.bench.floors import measure_floors

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
    setting = _describe(options, origin)
    say(report.card(setting) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.size, Path(folder))
        answers = _answer_all(place, options.peers, options.rounds)
    path = report.write(options.out, answers, setting)
    for answer in answers:
        say("\n" + report.section(answer, setting))
    say(report.bars(answers))
    say(f"Written to {path} and .md\n")
    say(json.dumps(report.headline(answers, setting), separators=(",", ":")))
    return 0 if all(answer.verdicts[FASTCAP].is_equal for answer in answers) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.peers", __doc__, rounds=25, out=Path(RESULTS))
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    return parser.parse_args(arguments)


def _describe(options: argparse.Namespace, origin: Origin) -> report.Setting:
    return report.Setting(
        shape=SIZES[options.size][0],
        origin=origin,
        n_rounds=options.rounds,
        floors=measure_floors("cpu"),
        versions=installed_versions(),
    )


def installed_versions() -> dict[str, str]:
    """Of fastcap, and of every package that is here; the release of TransformerLens that is run."""
    versions = {FASTCAP: fastcap.__version__}
    found = {name: list(metadata.distributions(name=name)) for name in PACKAGES}
    newer = metadata.distributions(name=TRANSFORMER_LENS, path=[str(NEWER_TRANSFORMER_LENS)])
    found[TRANSFORMER_LENS] = [*newer, *found[TRANSFORMER_LENS]]
    return versions | {name: of[0].version for name, of in found.items() if of}


def _answer_all(place: Place, peers: Sequence[str], n_rounds: int) -> list[report.Answer]:
    build_model(place)
    answers = []
    for question in SIZES[place.size][1]:
        say(f"{question.name}: {question.what}")
        write_oracles(place, question)
        answers.append(_time(place, question, peers, n_rounds))
    _measure_memory(place, answers)
    return answers


def _time(place: Place, question: Question, peers: Sequence[str], n_rounds: int) -> report.Answer:
    """In a process per peer; in one without any, where there is none that has an answer."""
    answer = report.Answer(question)
    answer.why_not = {
        way: reason for way in peers if (reason := why_not(way, question)) is not None
    }
    asked = [way for way in peers if way not in answer.why_not]
    for others in [[way] for way in asked] or [[]]:
        comparison = report.Comparison()
        answer.comparisons.append(comparison)
        rounds = time_in_turns(place, [HOOKLESS, FASTCAP, *others], question, n_rounds)
        for index, found in enumerate(rounds):
            show_round(index, found["secs"])
            for way, secs in found["secs"].items():
                comparison.setdefault(way, []).append(secs)
            for way, verdicts in found["verdicts"].items():
                answer.note(way, [Verdict(**fields) for fields in verdicts])
    return answer


def _measure_memory(place: Place, answers: Sequence[report.Answer]) -> None:
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


def _collectors(answer: report.Answer, way: str) -> list[str]:
    """Both ways of collecting batches, where they are the caller's and large."""
    question = answer.question
    both = way in answer.peers and question.position is None and not question.to_disk
    return list(COLLECTORS) if both else ["rows"]


if __name__ == "__main__":
    sys.exit(main())
