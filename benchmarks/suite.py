"""Run every workload that this machine can, in every way, and write down what came out.

    python -m benchmarks.suite [--device cpu] [--only tiny gpt2-last] [--rounds 7]

Within a workload the ways take turns, round by round. Writes one JSON and one Markdown file. Exit
status: 0, or 1 when a way's values differ from the oracle's, or 2 when it cannot start.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.checkout import RESULTS
from benchmarks.grid import grid
from benchmarks.hidden_states import llama_case, output_hidden_states
from benchmarks.programs import CANNOT_START, Origin, begin, parser_of, refuse, say
from benchmarks.workloads import Workload, build_case
from fastcap.bench import Case, Floors, Overhead, measure_floors, predict
from fastcap.bench.floors import predict_archive
from fastcap.bench.overhead import N_ROUNDS, measure
from fastcap.bench.report import INTERVAL, choose_passes, floor_text, point_fields, repeated
from fastcap.bench.ways import (
    ARCHIVE,
    FASTCAP,
    HOOK,
    HOOKLESS,
    Way,
    archived_in,
    ways_for,
)
from fastcap.formatting import format_bytes, markdown_table

HIDDEN_STATES = "output_hidden_states"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One workload's figures."""

    name: str
    overhead: Overhead


@dataclass(frozen=True, slots=True)
class Setting:
    """What all workloads were measured on."""

    device: str
    origin: Origin
    rounds: int
    floors: Floors


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    origin = begin(options, options.device)
    if origin is None:
        return CANNOT_START
    gpu_memory_bytes = origin.machine.gpu_memory_bytes
    chosen = choose(cases(options.device, gpu_memory_bytes, options.out), options.only)
    if not chosen:
        return refuse(f"No workload's name begins with any of {options.only}.")
    options.out.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        device=options.device,
        origin=origin,
        rounds=options.rounds,
        floors=measure_floors(options.device, folder=options.out),
    )
    outcomes: list[Outcome] = []
    for name, make in chosen.items():
        outcomes.append(_run(name, make, options.rounds))
        path = write(options.out, setting, outcomes, options.only or ())  # what is done is kept
    say(f"Written to {path} and .md")
    return 0 if all(outcome.overhead.is_equal for outcome in outcomes) else 1


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = parser_of("benchmarks.suite", __doc__, rounds=N_ROUNDS, out=Path(RESULTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="workloads whose names begin so")
    return parser.parse_args(arguments)


Cases = dict[str, Callable[[], tuple[Case, dict[str, Way]]]]
"""By name, how to make a workload's case and its ways."""


def cases(device: str, memory_bytes: int | None, folder: Path | None = None) -> Cases:
    """Everything that can be measured on a device, with archives in a folder."""
    ways = {name: way for name, way in ways_for(device).items() if name != HOOKLESS}
    ways[ARCHIVE] = archived_in(folder)
    made: Cases = {
        workload.name: partial(_make, workload, ways) for workload in grid(device, memory_bytes)
    }
    if find_spec("transformers") is not None:
        made["transformers-hidden-states"] = lambda: (
            llama_case(device),
            {**ways, HIDDEN_STATES: output_hidden_states(device)},
        )
    return made


def _make(workload: Workload, ways: dict[str, Way]) -> tuple[Case, dict[str, Way]]:
    return build_case(workload).question(), ways


def choose(all_cases: Cases, beginnings: Sequence[str] | None) -> Cases:
    """Those whose names begin with one of some texts; all without texts."""
    if beginnings is None:
        return all_cases
    return {n: make for n, make in all_cases.items() if n.startswith(tuple(beginnings))}


def _run(name: str, make: Callable[[], tuple[Case, dict[str, Way]]], rounds: int) -> Outcome:
    case, ways = make()
    n_passes = max(len(case.batches), choose_passes(case))
    case = replace(case, batches=repeated(case.batches, n_passes))
    found = measure(case, ways, rounds)
    del case
    gc.collect()
    say(f"{name}\n{markdown_table([HEADER, *_rows(Outcome(name, found))])}\n")
    return Outcome(name, found)


HEADER = ("workload", "per pass", "way", "ms per pass", "x hookless", "x hook", "equal")


def _rows(outcome: Outcome) -> Iterator[tuple[str, ...]]:
    found = outcome.overhead
    for way in found.secs:
        yield (
            outcome.name,
            format_bytes(found.captured_bytes / found.n_passes),
            way,
            f"{1e3 * found.median_secs(way) / found.n_passes:.3f}",
            "1" if way == HOOKLESS else str(found.ratio(way, HOOKLESS)),
            "" if way in (HOOKLESS, HOOK) else str(found.ratio(way, HOOK)),
            "" if way == HOOKLESS else "no" if found.n_mismatches[way] else "yes",
        )


FLOOR_HEADER = ("workload", "way", "floors predict, ms per pass", "by", "times that")


def _floor_rows(setting: Setting, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, ...]]:
    for outcome in outcomes:
        found, floors = outcome.overhead, setting.floors
        hookless_secs = found.median_secs(HOOKLESS)
        predictions = {FASTCAP: predict(found.captured_bytes, floors, hookless_secs)}
        if ARCHIVE in found.secs:
            predictions[ARCHIVE] = predict_archive(found.captured_bytes, floors, hookless_secs)
        for way, floor in predictions.items():
            yield (
                outcome.name,
                way,
                f"{1e3 * floor.secs / found.n_passes:.3f}",
                floor.what,
                f"{found.median_secs(way) / floor.secs:.3f}",
            )


def document(setting: Setting, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Everything, raw times included."""
    return {
        "format": 1,
        **setting.origin.fields(),
        "device": setting.device,
        "rounds": setting.rounds,
        "floors": asdict(setting.floors),
        "interval": INTERVAL,
        "workloads": {outcome.name: point_fields(outcome.overhead) for outcome in outcomes},
    }


def markdown(setting: Setting, outcomes: Sequence[Outcome]) -> str:
    """The page beside the JSON."""
    card = "\n".join(f"{name:<9}{text}" for name, text in _card_rows(setting))
    rows = [row for outcome in outcomes for row in _rows(outcome)]
    notes = (
        f"{INTERVAL}, {setting.rounds} rounds. Workloads are described in benchmarks/grid.py, ways "
        "in fastcap/bench/ways.py. A loop over a stream or store drops each batch's values."
    )
    parts = [
        f"# The suite on {setting.origin.machine.tag}, {setting.origin.day}",
        f"```\n{card}\n```",
        markdown_table([HEADER, *rows]),
        markdown_table([FLOOR_HEADER, *_floor_rows(setting, outcomes)]),
        notes,
    ]
    parts += [
        f"{way} DIFFERS in {outcome.name}: {'; '.join(problems)}"
        for outcome in outcomes
        for way, problems in outcome.overhead.problems.items()
        if problems
    ]
    return "\n\n".join(parts) + "\n"


def _card_rows(setting: Setting) -> Iterator[tuple[str, str]]:
    yield from setting.origin.card_rows()
    yield "floors", floor_text(setting.floors)


def write(
    folder: Path, setting: Setting, outcomes: Sequence[Outcome], only: Sequence[str] = ()
) -> Path:
    """Write both files, named after what was chosen; returns the path of the JSON."""
    what = "-".join(("suite", *only))
    path = folder / f"{setting.origin.day}-{what}-{setting.origin.machine.tag}.json"
    path.write_text(json.dumps(document(setting, outcomes), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(setting, outcomes))
    return path


if __name__ == "__main__":
    sys.exit(main())
