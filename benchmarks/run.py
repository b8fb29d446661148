"""Measure one workload in every way, and write down what came out.

    python -m benchmarks.run [--workload NAME] [--rounds 7] [--out benchmarks/results]

Prints a card, then a table; the last line of stdout is one JSON object with the headline figures.
Exit status: 0, or 1 when a way's values differ from the oracle's, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks import memory, report
from benchmarks.checkout import RESULTS, Checkout, describe_checkout
from benchmarks.models import model_bytes
from benchmarks.slices import play_round
from benchmarks.ways import ORACLE, WAYS, Values, Verifier
from benchmarks.workloads import WORKLOADS, Case, Workload, build_case
from fastcap.bench.floors import measure_floors
from fastcap.bench.machine import describe_machine
from fastcap.bench.timing import (
    FEWEST_ROUNDS,
    Round,
    measure_rounds,
    run_one_after_another,
    synchroniser,
)

CANNOT_START = 2


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    workload = WORKLOADS[options.workload]
    checkout = describe_checkout()
    if checkout.commit is None:
        checkout = Checkout(options.commit)
    refusal = why_not(workload, checkout, options.allow_dirty)
    if refusal is not None:
        sys.stderr.write(refusal + "\n")
        return CANNOT_START
    case = build_case(workload)
    setting = _describe(case, checkout)
    _say(report.card(setting) + "\n")
    outcome = _measure(case, options)
    path = report.write(options.out, setting, outcome)
    _say("\n" + report.table(setting, outcome) + "\n")
    for remark in report.remarks(setting, outcome):
        _say(remark)
    _say(f"Written to {path} and .md\n")
    _say(json.dumps(report.headline(setting, outcome), separators=(",", ":")))
    return 0 if outcome.is_equal else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--workload", choices=WORKLOADS, default="acceptance")
    parser.add_argument("--rounds", type=as_rounds, default=7, help="timed rounds (default 7)")
    parser.add_argument("--out", type=Path, default=Path(RESULTS), help="folder for the results")
    parser.add_argument(
        "--allow-dirty", action="store_true", help="measure a working tree with changes"
    )
    parser.add_argument("--time-oracle", action="store_true", help="as one more way")
    parser.add_argument("--limit-secs", type=float, help="start no round after this, beyond two")
    parser.add_argument("--commit", help="what is measured, where this is no git checkout")
    return parser.parse_args(arguments)


def as_rounds(text: str) -> int:
    """A number of rounds, on a command line."""
    n_rounds = int(text)
    if n_rounds < FEWEST_ROUNDS:
        raise argparse.ArgumentTypeError(f"an interval needs at least {FEWEST_ROUNDS} rounds")
    return n_rounds


def why_not(workload: Workload, checkout: Checkout, allow_dirty: bool) -> str | None:
    """Why this cannot be measured, with the next step; `None` when it can."""
    if workload.needs_cuda and not torch.cuda.is_available():
        return f"Workload {workload.name!r} needs a CUDA GPU, and torch finds none here."
    if checkout.changes and not allow_dirty:
        shown = ", ".join(checkout.changes[:5])
        return (
            f"The working tree differs from its commit in {len(checkout.changes)} paths ({shown}), "
            "so the figures could not be traced to code. Commit first, or pass --allow-dirty."
        )
    return None


def _describe(case: Case, checkout: Checkout) -> report.Setting:
    workload = case.workload
    return report.Setting(
        workload=workload,
        machine=describe_machine(workload.device),
        checkout=checkout,
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        load=os.getloadavg()[0],
        n_threads=torch.get_num_threads(),
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
        _show_round,
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
    if torch.device(workload.device).type == "cpu" and ORACLE not in ways:
        # A model of its own for each: one way's hooks would fire in the others' batches.
        cases = {way: build_case(workload) for way in ways}
        n_warm = 2 * workload.batch_size
        warm = {way: replace(case, dataset=case.dataset[:n_warm]) for way, case in cases.items()}
        play_round(warm, ways)
        return partial(play_round, cases)
    runs = {way: partial(WAYS[way], case) for way in ways}
    synchronise = synchroniser(workload.device)
    run_one_after_another(runs, ways, synchronise)
    return partial(run_one_after_another, runs, synchronise=synchronise)


def _show_round(index: int, secs: Mapping[str, float]) -> None:
    shown = ", ".join(f"{way} {elapsed:.2f} s" for way, elapsed in secs.items())
    _say(f"round {index + 1}: {shown}")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
