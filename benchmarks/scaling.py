"""How the cost of `extract_representations` on the CPU grows with sites, samples and width.

    python -m benchmarks.scaling [--rounds 7] [--out benchmarks/results]

Every point is a workload of its own, of which the three ways run batch by batch in turn
(`benchmarks.turns`): baseline, synchronous hook, and fastcap. The figures are fastcap's time as a
multiple of the others', with the 95 % interval of the rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from benchmarks.models import ModelShape
from benchmarks.programs import parser_of, run, say
from benchmarks.turns import measure_in_turns
from benchmarks.workloads import Workload, blocks
from fastcap.bench.ways import BASELINE, FASTCAP, HOOK, WAYS

BASES = (BASELINE, HOOK)


def workload(n_sites: int = 4, n_samples: int = 128, width: int = 256) -> Workload:
    """Eight blocks, 64 tokens, batches of 16; the outputs of the first blocks, in float32."""
    shape = ModelShape(8, width, n_heads=8, hidden=4 * width, vocab_size=512)
    name = f"{n_sites}-sites-{n_samples}-samples-{width}-wide"
    return Workload(name, shape, n_samples, 64, 16, blocks(8)[:n_sites])


SERIES: Mapping[str, Mapping[int, Workload]] = {
    "sites": {n: workload(n_sites=n) for n in (1, 2, 4, 8)},
    "samples": {n: workload(n_samples=n) for n in (16, 32, 64, 128, 256)},
    "width": {n: workload(width=n) for n in (64, 128, 256, 512)},
}


def measure_point(point: Workload, n_rounds: int) -> dict[str, dict[str, Any]]:
    """Fastcap's time as a multiple of the others', by way.

    Raises:
        AssertionError: A way's values differ from the oracle's.
    """
    ways = {name: WAYS[name] for name in (*BASES, FASTCAP)}
    found = measure_in_turns(point.build, ways, n_rounds)
    assert found.is_equal, found.problems
    ratios = {base: found.ratio(FASTCAP, base) for base in BASES}
    say(f"{point.name}: " + ", ".join(f"{base} = 1: {ratio}" for base, ratio in ratios.items()))
    return {base: asdict(ratio) for base, ratio in ratios.items()}


def measure(n_rounds: int) -> dict[str, dict[int, Any]]:
    """Every point of every series; those that two series share are measured once."""
    points = dict.fromkeys(point for series in SERIES.values() for point in series.values())
    found = {point: measure_point(point, n_rounds) for point in points}
    return {
        name: {size: found[point] for size, point in series.items()}
        for name, series in SERIES.items()
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("benchmarks.scaling", __doc__, rounds=7).parse_args(arguments)
    return run(
        options,
        "scaling",
        lambda: {"rounds": options.rounds, "ratios": measure(options.rounds)},
    )


if __name__ == "__main__":
    sys.exit(main())
