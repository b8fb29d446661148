"""What capturing costs the host: microseconds per site, above the same model without hooks.

    python -m benchmarks.hook_cost [--rounds 300] [--out benchmarks/results] [--device cuda]

The model is a row of modules that return what they are given, so that only hooks take time. All
ways alternate, a few passes each, and each is held against the baseline passes of its own round.
Values are tiny: what is left of a copy is its call. "staged" is the transfer of accelerators on a
device without one: its packs and copies are copies in host memory, or nothing at all ("free"). What
a launch costs is the driver's affair, and not in these figures.

With `--device cuda` the device's own transfer is measured, in CPU time of the model's thread. That
needs no GPU: on the stand-in runtime (`tests/standin_cuda/README.md`), with a driver that does
nothing and costs almost nothing, it is torch's and fastcap's host code alone. No kernels are in it:
values are contiguous, so that a pack is one cudaMemcpyAsync. `make hook-cost-standin` does that.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.programs import parser_of, refuse, run
from fastcap import ActivationStore, devices
from fastcap.bench.timing import order_of_round
from fastcap.devices.cpu import SynchronousDevice

N_SITES = 32
SHAPE = (1, 1, 64)  # a step of decoding
BASELINE, EMPTY = "baseline", "empty hook"


class Same(nn.Module):
    """Returns what it is given."""

    def forward(self, acts: Tensor) -> Tensor:
        return acts


class Row(nn.Module):
    """Calls one module after another."""

    def __init__(self, n_modules: int = N_SITES) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Same() for _ in range(n_modules))
        self.sites = [f"layers.{i}" for i in range(n_modules)]

    def forward(self, acts: Tensor) -> Tensor:
        for layer in self.layers:
            acts = layer(acts)
        return acts


class Staging(SynchronousDevice):
    """Staging, slots and workers, as on an accelerator, in host memory."""

    direct = False


class FreeStaging(Staging):
    """The same, and nothing is moved."""

    def pack(self, *args: Any, **kwargs: Any) -> None:
        """Costs nothing."""

    def copy(self, *args: Any, **kwargs: Any) -> None:
        """Costs nothing."""


Step = Callable[[Tensor], Any]
"""One pass."""


def plain(read: Callable[[Tensor], Any]) -> Step:
    """Hooks as one writes them by hand: each puts what it read into a dict."""
    model, found = Row(), {}
    for site in model.sites:

        def hook(module: nn.Module, args: Any, output: Tensor, site: str = site) -> None:
            found[site] = read(output)

        model.get_submodule(site).register_forward_hook(hook)
    return model


def empty() -> Step:
    model = Row()
    for site in model.sites:
        model.get_submodule(site).register_forward_hook(lambda module, args, output: None)
    return model


def store(
    place: str = "cpu",
    transfer: type[SynchronousDevice] | None = None,
    n_sites: int = N_SITES,
    is_read: bool = False,
    **options: Any,
) -> Step:
    """Passes with a store.

    Args:
        place: Where the values are.
        transfer: What takes the place of the device there.
        n_sites: How many of the sites are captured.
        is_read: Whether every value is asked for after every pass.
        options: Of the store.
    """
    model = Row()
    found = ActivationStore(model, model.sites[:n_sites], **options)
    found.enable()
    with devices.substitute(transfer or (lambda _: None)):
        model(torch.zeros(SHAPE, device=place))  # opens the device

    def step(acts: Tensor) -> None:
        model(acts)
        if is_read:
            for site in found.layer_names:
                found.get(site)

    return step


def ways_on(place: str) -> dict[str, Callable[[], Step]]:
    """What makes a step of each way; on the CPU also the transfer of accelerators."""
    found: dict[str, Callable[[], Step]] = {
        BASELINE: Row,
        EMPTY: empty,
        "hook with .detach().cpu()": partial(plain, lambda acts: acts.detach().cpu()),
        "hook with .detach().clone()": partial(plain, lambda acts: acts.detach().clone()),
        "store, one site only": partial(store, place, n_sites=1),
        "store": partial(store, place),
        "store, last position": partial(store, place, positions=-1),
    }
    if place != "cpu":
        return found | {"store, every value read": partial(store, place, is_read=True)}
    return found | {
        "store, staged, free": partial(store, place, FreeStaging),
        "store, staged": partial(store, place, Staging),
        "store, staged, last position": partial(store, place, Staging, positions=-1),
        "store, staged, every value read": partial(store, place, Staging, is_read=True),
    }


FREE_DRIVER = {"STANDIN_CUDA_MODE": "free", "STANDIN_CUDA_OPERATORS": "0"}
STANDIN = "stand-in runtime: no GPU was used, and the driver costs nothing"


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds that hooks add, per site of a pass.

    Attributes:
        over_baseline: Median of the rounds.
        over_empty: The same, against an empty hook at every site.
        quartiles: Of the rounds, over baseline.
        least: The tenth percentile of the rounds' own times, over that of baseline: with little of
            what else the machine did meanwhile.
    """

    over_baseline: float
    over_empty: float
    quartiles: tuple[float, float]
    least: float


def measure(n_rounds: int, place: str = "cpu") -> dict[str, Cost]:
    """Every way's cost; rounds of all ways in turn, each starting with another."""
    is_cpu = place == "cpu"
    steps = {name: make() for name, make in ways_on(place).items()}
    acts = torch.zeros(SHAPE, device=place)
    clock = time.perf_counter if is_cpu else time.thread_time  # which leaves host workers out
    micros: dict[str, list[float]] = {name: [] for name in steps}
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad():
            for index in range(-1, n_rounds):  # the first warms up
                for name in order_of_round(list(steps), index):
                    taken = _time(steps[name], acts, clock)
                    if index >= 0:
                        micros[name].append(taken)
    finally:
        gc.enable()
    return {name: _cost(micros, name) for name in steps}


def _time(step: Step, acts: Tensor, clock: Callable[[], float]) -> float:
    """Microseconds of one pass, divided by the sites that a pass has. Of one pass before the next
    way's: longer turns are interrupted more often.
    """
    started = clock()
    step(acts)
    return (clock() - started) / N_SITES * 1e6


def _cost(micros: Mapping[str, Sequence[float]], name: str) -> Cost:
    over = [one - base for one, base in zip(micros[name], micros[BASELINE], strict=True)]
    over_empty = [one - base for one, base in zip(micros[name], micros[EMPTY], strict=True)]
    first, _, third = statistics.quantiles(over, n=4)
    least = _tenth(micros[name]) - _tenth(micros[BASELINE])
    return Cost(
        round(statistics.median(over), 2),
        round(statistics.median(over_empty), 2),
        (round(first, 2), round(third, 2)),
        round(least, 2),
    )


def _tenth(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of("benchmarks.hook_cost", __doc__, rounds=300)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args(arguments)
    is_standin = "STANDIN_CUDA_LIBRARY" in os.environ
    if is_standin and any(os.environ.get(name) != value for name, value in FREE_DRIVER.items()):
        needed = " ".join(f"{name}={value}" for name, value in FREE_DRIVER.items())
        return refuse(f"On the stand-in runtime this measures nothing without {needed}.")
    kind, more = "hook-cost", {}
    if options.device != "cpu":
        kind = "standin-hook-cost" if is_standin else "cuda-hook-cost"
        more = {
            "clock": "CPU time of the model's thread",
            "runtime": STANDIN if is_standin else "CUDA",
        }
    return run(options, kind, lambda: {**figures(options), **more}, options.device)


def figures(options: argparse.Namespace) -> dict[str, Any]:
    costs = measure(options.rounds, options.device)
    return {
        "rounds": options.rounds,
        "sites": N_SITES,
        "shape": SHAPE,
        "micros_per_site": {name: dataclasses.asdict(cost) for name, cost in costs.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
