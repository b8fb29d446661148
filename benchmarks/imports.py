"""What importing fastcap's names adds to `import torch`, and what it must not bring along.

    python -m benchmarks.imports [--rounds 20] [--out benchmarks/results]

Each round starts two fresh processes, in turn first and second: one imports torch alone, the other
torch and then fastcap. The figure is the time of the second import within its process, since there
the two are paired exactly; the difference between the two processes is printed as a check, and
carries the noise of two imports of torch. Exit status 1 when a limit is broken.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.checkout import PROJECT
from benchmarks.programs import CANNOT_START, begin, finish, parser_of

LIMIT_MS = 50.0
OPTIONAL = frozenset(
    ("hypothesis", "matplotlib", "pytest", "rich", "sklearn", "tqdm", "transformers", "typer")
)

TORCH_ALONE = """
import json, time
started = time.perf_counter()
import torch
print(json.dumps({"torch_ms": 1e3 * (time.perf_counter() - started)}))
"""

TORCH_THEN_FASTCAP = """
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
        difference_ms: Median difference between the two processes of a round.
        modules: What `import fastcap` imported that `import torch` had not.
        cuda_is_initialised: Whether a CUDA context existed afterwards, in any round.
    """

    added_ms: float
    torch_ms: float
    difference_ms: float
    modules: tuple[str, ...]
    cuda_is_initialised: bool


def measure_imports(n_rounds: int) -> ImportCost:
    """Run the rounds, after one process that leaves files cached and byte code written."""
    _import_in_child(TORCH_THEN_FASTCAP)
    alone, both = [], []
    for index in range(n_rounds):
        if index % 2:
            both.append(_import_in_child(TORCH_THEN_FASTCAP))
            alone.append(_import_in_child(TORCH_ALONE))
        else:
            alone.append(_import_in_child(TORCH_ALONE))
            both.append(_import_in_child(TORCH_THEN_FASTCAP))
    return summarise(alone, both)


def summarise(alone: Sequence[dict[str, Any]], both: Sequence[dict[str, Any]]) -> ImportCost:
    """From what the processes printed, round by round."""
    return ImportCost(
        added_ms=statistics.median(child["fastcap_ms"] for child in both),
        torch_ms=statistics.median(child["torch_ms"] for child in (*alone, *both)),
        difference_ms=statistics.median(
            second["torch_ms"] + second["fastcap_ms"] - first["torch_ms"]
            for first, second in zip(alone, both, strict=True)
        ),
        modules=tuple(both[0]["modules"]),
        cuda_is_initialised=any(child["cuda_is_initialised"] for child in both),
    )


def _import_in_child(code: str) -> dict[str, Any]:
    # Installed packages have byte code; without it every process would compile fastcap again.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    child = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    printed: dict[str, Any] = json.loads(child.stdout)
    return printed


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
    origin = begin(options)
    if origin is None:
        return CANNOT_START
    cost = measure_imports(options.rounds)
    broken = broken_limits(cost)
    finish(options, "imports", origin, {"rounds": options.rounds, **dataclasses.asdict(cost)})
    sys.stdout.writelines(f"{problem}\n" for problem in broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
