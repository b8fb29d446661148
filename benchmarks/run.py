"""Measure one workload in every way, and write down what came out.

    python -m benchmarks.run [--workload NAME] [--rounds 7] [--out benchmarks/results]

Prints a card, then a table; the last line of stdout is one JSON object with the headline figures.
Exit status: 0, or 1 when a way's values differ from the oracle's, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import memory, report
from benchmarks.checkout import RESULTS
from benchmarks.models import model_bytes
from benchmarks.programs import CANNOT_START, Origin, begin, parser_of, refuse, say, show_round
from benchmarks.ways import ORACLE, WAYS, Values, Verifier, play_round
from benchmarks.workloads import WORKLOADS, Case, build_case
from fastcap.bench.floors import measure_floors
from fastcap.bench.timing import (
    Round,
    measure_rounds,
    run_one_after_another,
    synchroniser,
)


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    workload = WORKLOADS[options.workload]
    if workload.needs_cuda and not torch.cuda.is_available():
        return refuse(f"Workload {workload.name!r} needs a CUDA GPU, and torch finds none here.")
    origin = begin(options, workload.device)
    if origin is None:
        return CANNOT_START
    case = build_case(workload)
    setting = _describe(case, origin)
    say(report.card(setting) + "\n")
    outcome = _measure(case, options)
    path = report.write(options.out, setting, outcome)
    say("\n" + report.table(setting, outcome) + "\n")
    for remark in report.remarks(setting, outcome):
        say(remark)
    say(f"Written to {path} and .md\n")
    say(json.dumps(report.headline(setting, outcome), separators=(",", ":")))
    return 0 if outcome.is_equal else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.run", __doc__, rounds=7, out=Path(RESULTS))
    parser.add_argument("--workload", choices=WORKLOADS, default="acceptance")
    parser.add_argument("--time-oracle", action="store_true", help="as one more way")
    parser.add_argument("--limit-secs", type=float, help="start no round after this, beyond two")
    return parser.parse_args(arguments)


def _describe(case: Case, origin: Origin) -> report.Setting:
    workload = case.workload
    return report.Setting(
        workload=workload,
        origin=origin,
        model_bytes=model_bytes(case.model),
        floors=measure_floors(workload.device),
    )


def _measure(case: Case, options: argparse.Namespace) -> report.Outcome:
    ways = [way for way in WAYS if way != ORACLE or options.time_oracle]
    verifier = Verifier()
    verifier.check(ORACLE, WAYS[ORACLE](case))
    secs = measure_rounds(
        ways,
        _round_of(case, ways),
        options.rounds,
        verifier.check,
        show_round,
        options.limit_secs or case.workload.limit_secs,
    )
    try:
        peaks = memory.measure_all(case.workload.name, ways)
    except RuntimeError as error:  # the times are worth keeping without it
        return report.Outcome(secs, verifier.problems, {}, str(error))
    return report.Outcome(secs, verifier.problems, peaks)


def _round_of(case: Case, ways: Sequence[str]) -> Round[Values]:
    """How the ways of a round are run. Every way has run once when this returns."""
    workload = case.workload
    if torch.device(workload.device).type == "cpu":
        cases = {way: build_case(workload) for way in ways}
        n_warm = 2 * workload.batch_size
        warm = {way: replace(case, dataset=case.dataset[:n_warm]) for way, case in cases.items()}
        play_round(warm, ways)
        return partial(play_round, cases)
    runs = {way: partial(WAYS[way], case) for way in ways}
    synchronise = synchroniser(workload.device)
    run_one_after_another(runs, ways, synchronise)
    return partial(run_one_after_another, runs, synchronise=synchronise)


if __name__ == "__main__":
    sys.exit(main())
