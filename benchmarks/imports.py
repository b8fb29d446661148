"""What importing fastcap's names adds to `import torch`.

    python -m benchmarks.imports [--rounds 20] [--out benchmarks/results]

Each round starts a fresh process that imports torch and then fastcap. The figure is the time of the
second import, within its process. Exit status 1 when it is over the limit.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.programs import parser_of, run, run_child

LIMIT_MS = 50.0
CODE = """
import json, time
started = time.perf_counter()
import torch
had_torch = time.perf_counter()
from fastcap import ActivationStore, extract_representations, save_activations, stream
had_fastcap = time.perf_counter()
print(json.dumps({
    "torch_ms": 1e3 * (had_torch - started), "added_ms": 1e3 * (had_fastcap - had_torch),
}))
"""


def measure(n_rounds: int) -> dict[str, Any]:
    """Medians of the rounds, after one process that leaves files cached and byte code written."""
    # Installed packages have byte code; without it every process would compile fastcap again.
    variables = {"PYTHONDONTWRITEBYTECODE": ""}
    children = [run_child("-c", CODE, variables=variables) for _ in range(n_rounds + 1)][1:]
    medians = {name: statistics.median(child[name] for child in children) for name in children[0]}
    return {"rounds": n_rounds, **medians}


def is_fast(figures: Mapping[str, Any]) -> bool:
    """To see where it is not: python -X importtime -c 'import torch, fastcap'."""
    return bool(figures["added_ms"] <= LIMIT_MS)


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("benchmarks.imports", __doc__, rounds=20).parse_args(arguments)
    return run(options, "imports", lambda: measure(options.rounds), is_good=is_fast)


if __name__ == "__main__":
    sys.exit(main())
