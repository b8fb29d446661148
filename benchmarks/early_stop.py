"""What ending passes early saves: a site in the middle of a deep model, on whole and ended passes.

    python -m benchmarks.early_stop [--rounds 9] [--out benchmarks/results]

The two ways alternate, round by round; the figure is the ratio of their times with its 95 %
interval. The floor is the share of the model's multiplications that lie before the site.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

import fastcap
from benchmarks.models import Decoder, ModelShape, build_model
from benchmarks.programs import parser_of, run
from fastcap.bench.timing import measure_rounds, paired_ratio

SHAPE = ModelShape(n_layers=12, width=256, n_heads=4, hidden=1024, vocab_size=1024)
SITE = "layers.5"
N_BATCHES = 8
BATCH_SHAPE = (8, 128)
WAYS = {"whole": False, "ended early": True}


def make_batches(n_batches: int, shape: tuple[int, int] = BATCH_SHAPE) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(SHAPE.vocab_size, shape, generator=generator) for _ in range(n_batches)]


def timed(model: Decoder, batches: Sequence[Tensor], stop: bool) -> tuple[float, list[Tensor]]:
    """Seconds for all batches but the first, from which fastcap learns, and every value."""
    records = fastcap.stream(model, batches, [SITE], stop_after_last_site=stop, prefetch=0)
    values = [next(records)[SITE]]
    started = time.perf_counter()
    values += [record[SITE] for record in records]
    return time.perf_counter() - started, values


def share_before(model: Decoder) -> float:
    """Multiplications by weights up to the site, as a share of all: what time cannot go below."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.ndim == 2}
    sizes = {name: size for name, size in sizes.items() if "embedding" not in name}
    names = list(sizes)
    last = [name for name in names if name.startswith(f"{SITE}.")][-1]
    before = names[: names.index(last) + 1]
    return sum(sizes[name] for name in before) / sum(sizes.values())


def measure(n_rounds: int, batches: Sequence[Tensor]) -> dict[str, object]:
    """Figures by name.

    Raises:
        AssertionError: The ways' values differ.
    """
    model = build_model(SHAPE, torch.float32, "cpu")
    expected = timed(model, batches, False)[1]

    def check(way: str, values: list[Tensor]) -> None:
        assert all(map(torch.equal, values, expected)), f"{way}: values differ"

    def run_round(order: Sequence[str]) -> Mapping[str, tuple[float, list[Tensor]]]:
        return {way: timed(model, batches, WAYS[way]) for way in order}

    secs = measure_rounds(list(WAYS), run_round, n_rounds, check)
    ratio = paired_ratio(secs["ended early"], secs["whole"])
    return {
        "secs": secs,
        "ratio": dataclasses.asdict(ratio),
        "floor": round(share_before(model), 4),
        "rounds": n_rounds,
        "batches": len(batches) - 1,
        "batch_shape": list(batches[0].shape),
        "shape": dataclasses.asdict(SHAPE),
        "site": SITE,
    }


def main(arguments: list[str] | None = None) -> int:
    options = parser_of("benchmarks.early_stop", __doc__, rounds=9).parse_args(arguments)
    batches = make_batches(N_BATCHES + 1)
    return run(options, "early-stop", lambda: measure(options.rounds, batches))


if __name__ == "__main__":
    sys.exit(main())
