"""Run every workload that this machine can, in every way, and write down what came out.

    python -m benchmarks.suite [--device cpu] [--only acceptance tiny gpt2-last] [--rounds 7]

Within a workload the ways take turns, round by round; those of `acceptance`, batch by batch. The
JSON is written after each workload. Exit status: 0, or 1 when a way's values differ from the
oracle's, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import memory, programs
from benchmarks.checkout import RESULTS
from benchmarks.figures.suite import Measured, every_way
from benchmarks.programs import CANNOT_START, begin, parser_of, refuse, say, show_round
from benchmarks.turns import measure_in_turns
from benchmarks.workloads import (
    ACCEPTANCE,
    Workload,
    fields_of,
    grid,
    llama_case,
    output_hidden_states,
)
from fastcap.bench import Case, Overhead, measure_floors
from fastcap.bench.overhead import N_ROUNDS, measure
from fastcap.bench.report import INTERVAL, choose_passes, point_fields, repeated
from fastcap.bench.ways import ARCHIVE, BASELINE, FASTCAP, HOOK, WAYS, Way, archived_in, ways_for

HIDDEN_STATES = "output_hidden_states"

Measure = Callable[[int], tuple[Overhead, dict[str, Any]]]
"""Runs a workload in so many rounds; what was measured, and more fields of the result file."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    origin = begin(options, options.device)
    if origin is None:
        return CANNOT_START
    chosen = choose(
        measurements(options.device, origin.machine.gpu_memory_bytes, options.out), options.only
    )
    if not chosen:
        return refuse(f"No workload's name begins with any of {options.only}.")
    options.out.mkdir(parents=True, exist_ok=True)
    floors = measure_floors(options.device, folder=options.out)
    found: dict[str, Any] = {
        "device": options.device,
        "only": list(options.only or ()),
        "rounds": options.rounds,
        "floors": asdict(floors),
        "interval": INTERVAL,
        "workloads": {},
    }
    kind = "-".join(("suite", *found["only"]))
    are_equal = True
    for name, measure_it in chosen.items():
        overhead, more = measure_it(options.rounds)
        fields = {**point_fields(overhead), **more}
        say(f"{every_way([Measured(name, fields, floors)])}\n")
        found["workloads"][name] = fields
        path = programs.write(options.out, kind, origin, found)  # what is done is kept
        for way, problems in overhead.problems.items():
            if problems:
                say(f"{way} DIFFERS in {name}: {'; '.join(problems)}")
        are_equal &= overhead.is_equal
        gc.collect()
    say(f"Written to {path}")
    return 0 if are_equal else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.suite", __doc__, rounds=N_ROUNDS, out=Path(RESULTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="workloads whose names begin so")
    return parser.parse_args(arguments)


def measurements(
    device: str, memory_bytes: int | None, folder: Path | None = None
) -> dict[str, Measure]:
    """Everything that can be measured on a device by name, with archives in a folder."""
    ways = {name: way for name, way in ways_for(device).items() if name != BASELINE}
    ways[ARCHIVE] = archived_in(folder)
    found: dict[str, Measure] = {}
    if torch.device(device).type == "cpu":
        found[ACCEPTANCE.name] = partial(in_turns, ACCEPTANCE)
    for workload in grid(device, memory_bytes):
        found[workload.name] = partial(one_after_another, workload.build, ways, fields_of(workload))
    if find_spec("transformers") is not None:
        found["transformers-hidden-states"] = lambda rounds: one_after_another(
            partial(llama_case, device),
            {**ways, HIDDEN_STATES: output_hidden_states(device)},
            {},
            rounds,
        )
    return found


def choose(found: dict[str, Measure], beginnings: Sequence[str] | None) -> dict[str, Measure]:
    """Those whose names begin with one of some texts; all without texts."""
    if not beginnings:
        return found
    return {name: each for name, each in found.items() if name.startswith(tuple(beginnings))}


def one_after_another(
    build: Callable[[], Case], ways: dict[str, Way], fields: dict[str, Any], rounds: int
) -> tuple[Overhead, dict[str, Any]]:
    """Whole runs, each of so many passes that a clock can time it."""
    case = build()
    n_passes = max(len(case.batches), choose_passes(case))
    case = replace(case, batches=repeated(case.batches, n_passes))
    return measure(case, ways, rounds), fields


def in_turns(workload: Workload, rounds: int) -> tuple[Overhead, dict[str, Any]]:
    """The ways alternate batch by batch; then each one's peak memory, in a process of its own."""
    ways = {name: WAYS[name] for name in (BASELINE, HOOK, FASTCAP)}
    found = measure_in_turns(workload.build, ways, rounds, show_round)
    fields: dict[str, Any] = {**fields_of(workload), "peaks": {}, "peak_added_bytes": {}}
    try:
        peaks = {way: memory.measure_in_child(way, workload) for way in ways}
    except RuntimeError as error:  # the times are worth keeping without it
        say(f"Peak memory was not measured: {error}")
        return found, fields
    fields["peaks"] = {way: asdict(peak) for way, peak in peaks.items()}
    fields["peak_added_bytes"] = memory.over_baseline(peaks)
    return found, fields


if __name__ == "__main__":
    sys.exit(main())
