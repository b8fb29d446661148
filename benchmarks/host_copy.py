"""What one copy in a hook can cost at least: ways to copy a value on the host, in GB/s.

    python -m benchmarks.host_copy [--rounds 15] [--out benchmarks/results]

The hook of a CPU model copies with `Tensor.copy_`. Held against NumPy's copy, with one thread and
with all of torch's; into memory that was written before and into new memory; and for values that
are not contiguous, or change their dtype on the way. Ways alternate; figures are medians of the
bytes of the destination per second.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.programs import parser_of, run
from fastcap.bench.timing import order_of_round

KiB, MiB = 1 << 10, 1 << 20
SIZES = (16 * KiB, 256 * KiB, 4 * MiB, 64 * MiB)
WIDTH = 512

Copy = Callable[[], object]


def ways(n_bytes: int) -> dict[str, Copy]:
    """Copies that write `n_bytes` of float32 (or of bfloat16, where that is asked for)."""
    n_rows = n_bytes // 4 // WIDTH
    value, warm = torch.randn(n_rows, WIDTH), torch.empty(n_rows, WIDTH)
    narrow = torch.empty(2 * n_rows, WIDTH, dtype=torch.bfloat16)
    return {
        "copy_": partial(warm.copy_, value),
        "numpy": partial(np.copyto, warm.numpy(), value.numpy()),
        "copy_, new numpy memory": lambda: _new_numpy(n_bytes).copy_(_raw(value)),
        "copy_, new torch memory": lambda: torch.empty(n_bytes, dtype=torch.uint8).copy_(
            _raw(value)
        ),
        "copy_, transposed value": partial(warm.copy_, torch.randn(WIDTH, n_rows).t()),
        "copy_, every other column": partial(warm.copy_, torch.randn(n_rows, 2 * WIDTH)[:, ::2]),
        "copy_, bfloat16 to float32": partial(warm.copy_, value.bfloat16()),
        "copy_, float32 to bfloat16": partial(narrow.copy_, torch.randn(2 * n_rows, WIDTH)),
    }


def _raw(value: Tensor) -> Tensor:
    return value.view(-1).view(torch.uint8)


def _new_numpy(n_bytes: int) -> Tensor:
    return torch.from_numpy(np.empty(n_bytes, dtype=np.uint8))


def rates(n_bytes: int, n_rounds: int) -> dict[str, float]:
    """GB/s by way, at the number of threads that torch is set to."""
    copies = ways(n_bytes)
    n_calls = max(1, MiB // n_bytes)  # what is too short to time is done several times
    secs: dict[str, list[float]] = {name: [] for name in copies}
    for index in range(-1, n_rounds):  # the first warms up
        for name in order_of_round(list(copies), index):
            started = time.perf_counter()
            for _ in range(n_calls):
                copies[name]()
            if index >= 0:
                secs[name].append((time.perf_counter() - started) / n_calls)
    return {name: round(n_bytes / statistics.median(of) / 1e9, 2) for name, of in secs.items()}


def measure(n_rounds: int) -> dict[int, dict[int, dict[str, float]]]:
    """GB/s by number of threads, size and way."""
    n_threads = torch.get_num_threads()
    found = {}
    try:
        for count in sorted({1, n_threads}):
            torch.set_num_threads(count)
            found[count] = {n_bytes: rates(n_bytes, n_rounds) for n_bytes in SIZES}
    finally:
        torch.set_num_threads(n_threads)
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("benchmarks.host_copy", __doc__, rounds=15).parse_args(arguments)
    return run(
        options,
        "host-copy",
        lambda: {
            "rounds": options.rounds,
            "gb_per_sec_by_threads_and_bytes": measure(options.rounds),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
