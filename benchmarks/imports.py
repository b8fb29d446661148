"""What importing fastcap's names adds to `import torch`, and what it must not bring along.

    python -m benchmarks.imports [--rounds 20] [--out benchmarks/results]

Each round starts a fresh process that imports torch and then fastcap. The figure is the time of the
second import, within its process. Exit status 1 when a limit is broken.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.programs import parser_of, run, run_child, say

LIMIT_MS = 50.0
OPTIONAL = frozenset(
    ("hypothesis", "matplotlib", "pytest", "rich", "sklearn", "tqdm", "transformers", "typer")
)

CODE = """
import json, sys, time
started = time.perf_counter()
import torch
had_torch, before = time.perf_counter(), set(sys.modules)
from fastcap import ActivationStore, extract_representations, save_activations, stream
had_fastcap = time.perf_counter()
print(json.dumps({
    "torch_ms": 1e3 * (had_torch - started),
    "fastcap_ms": 1e3 * (had_fastcap - had_torch),
    "modules": sorted(set(sys.modules) - before),
    "cuda_is_initialised": torch.cuda.is_initialized(),
}))
"""


@dataclass(frozen=True, slots=True)
class ImportCost:
    """What was measured over all rounds.

    Attributes:
        added_ms: Median time of `import fastcap` after `import torch`.
        torch_ms: Median time of `import torch`.
        modules: What `import fastcap` imported that `import torch` had not.
        cuda_is_initialised: Whether a CUDA context existed afterwards, in any round.
    """

    added_ms: float
    torch_ms: float
    modules: tuple[str, ...]
    cuda_is_initialised: bool


def measure_imports(n_rounds: int) -> ImportCost:
    """Run the rounds, after one process that leaves files cached and byte code written."""
    # Installed packages have byte code; without it every process would compile fastcap again.
    variables = {"PYTHONDONTWRITEBYTECODE": ""}
    children = [run_child("-c", CODE, variables=variables) for _ in range(n_rounds + 1)]
    return summarise(children[1:])


def summarise(children: Sequence[dict[str, Any]]) -> ImportCost:
    """From what the processes printed."""
    return ImportCost(
        added_ms=statistics.median(child["fastcap_ms"] for child in children),
        torch_ms=statistics.median(child["torch_ms"] for child in children),
        modules=tuple(children[0]["modules"]),
        cuda_is_initialised=any(child["cuda_is_initialised"] for child in children),
    )


def broken_limits(cost: ImportCost, limit_ms: float = LIMIT_MS) -> list[str]:
    """What is not as it should be, in words."""
    broken = []
    if cost.added_ms > limit_ms:
        broken.append(
            f"import fastcap adds {cost.added_ms:.1f} ms, limit {limit_ms:.0f} ms. To see where: "
            "python -X importtime -c 'import torch, fastcap'"
        )
    optional = sorted(OPTIONAL & {name.partition(".")[0] for name in cost.modules})
    if optional:
        broken.append(f"import fastcap imports optional packages: {', '.join(optional)}.")
    if cost.cuda_is_initialised:
        broken.append("import fastcap initialises CUDA.")
    return broken


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("benchmarks.imports", __doc__, rounds=20).parse_args(arguments)
    broken: list[str] = []

    def measure() -> dict[str, Any]:
        cost = measure_imports(options.rounds)
        broken.extend(broken_limits(cost))
        return {"rounds": options.rounds, **dataclasses.asdict(cost)}

    status = run(options, "imports", measure, is_good=lambda figures: not broken)
    for problem in broken:
        say(problem)
    return status


if __name__ == "__main__":
    sys.exit(main())
