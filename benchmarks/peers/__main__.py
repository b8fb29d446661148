"""Measure fastcap beside its peers, and write down what came out.

    make bench-peers
    .venv-peers/bin/python -m benchmarks.peers [--rounds 7] [--out benchmarks/results]

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
from benchmarks.peers.questions import SIZES, Question
from benchmarks.peers.team import (
    NEWER_TRANSFORMER_LENS,
    Place,
    Team,
    build_model,
    measure,
    peak_in_child,
)
from benchmarks.peers.ways import (
    COLLECTORS,
    EAGER_ORACLE,
    FASTCAP,
    HOOKLESS,
    ORACLE,
    PEERS,
    TIMED,
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
    ways = [way for way in TIMED if way in (HOOKLESS, FASTCAP, *options.peers)]
    setting = _describe(options, origin)
    say(report.card(setting) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        place = Place(options.size, Path(folder))
        answers = _answer_all(place, ways, options.rounds)
    path = report.write(options.out, answers, setting)
    for answer in answers:
        say("\n" + report.section(answer, setting))
    say(report.bars(answers))
    say(f"Written to {path} and .md\n")
    say(json.dumps(report.headline(answers, setting), separators=(",", ":")))
    return 0 if all(answer.verdicts[FASTCAP].is_equal for answer in answers) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.peers", __doc__, rounds=7, out=Path(RESULTS))
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


def _answer_all(place: Place, ways: Sequence[str], n_rounds: int) -> list[report.Answer]:
    questions = SIZES[place.size][1]
    build_model(place)
    _write_oracles(place, questions)
    answers = []
    with Team(ways, place) as team:
        for question in questions:
            say(f"{question.name}: {question.what}")
            answers.append(_time(team, place, question, ways, n_rounds))
    _measure_memory(place, answers)
    return answers


def _write_oracles(place: Place, questions: Sequence[Question]) -> None:
    with Team([ORACLE, EAGER_ORACLE], place) as team:
        for way, attention in ((ORACLE, "sdpa"), (EAGER_ORACLE, "eager")):
            for question in questions:
                team.prepare([way], question, question.n_samples, None)
                team.workers[way].ask({"write": str(place.oracle(question, attention))})


def _time(
    team: Team, place: Place, question: Question, ways: Sequence[str], n_rounds: int
) -> report.Answer:
    reasons = {way: reason for way in ways if (reason := why_not(way, question)) is not None}
    asked = [way for way in ways if way not in reasons]
    timings = measure(team, asked, question, n_rounds, place.oracle(question), show_round)
    answer = report.Answer(question, timings.secs, timings.verdicts, why_not=reasons)
    for way, verdict in timings.verdicts.items():
        if not verdict.is_equal:
            eager = measure(team, [way], question, 1, place.oracle(question, "eager"))
            answer.eager_verdicts[way] = eager.verdicts[way]
    return answer


def _measure_memory(place: Place, answers: Sequence[report.Answer]) -> None:
    """Two processes at a time: they spend more time importing than capturing."""
    wanted = [
        (answer, way, collector)
        for answer in answers
        if answer.question.n_memory_samples is not None
        for way in answer.secs
        for collector in _collectors(answer, way)
    ]
    with ThreadPoolExecutor(2) as pool:
        peaks = pool.map(lambda w: peak_in_child(w[1], w[0].question, w[2], place), wanted)
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
