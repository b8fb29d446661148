"""What capturing costs in the steady state, counted instead of timed.

Once the first passes have been seen, a pass takes a fixed number of calls into the device, copies,
bytes and waits. Every figure here is exact: a change that makes one larger made capture dearer, and
one that makes it smaller may lower the figure.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import fastcap
from fastcap.devices.base import AnyDevice, Device
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.records import Statistics
from tests.support.runs import running_on

N_SITES, N_SAMPLES, N_TOKENS, WIDTH = 32, 4, 6, 16
SITES = [str(i) for i in range(N_SITES)]
SITE_BYTES = N_SAMPLES * N_TOKENS * WIDTH * 4
LAST_BYTES = N_SAMPLES * WIDTH * 4
N_WARM = 4
"""Passes after which memory is sized, slots have gone round, and everything exists."""

MODEL = nn.Sequential(*(nn.Identity() for _ in SITES))
SEAM = sorted(
    name for name, value in vars(Device).items() if callable(value) and not name.startswith("_")
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one pass: calls into the device by name, and what `statistics()` counted."""

    calls: dict[str, int]
    counted: dict[str, float]


@contextmanager
def counting(device: AnyDevice) -> Iterator[Counter[str]]:
    """Count what the engine asks a device, but not what that asks of itself."""
    calls: Counter[str] = Counter()
    is_inside = False

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal is_inside
            if is_inside:
                return method(*args, **options)
            calls[name] += 1
            is_inside = True
            try:
                return method(*args, **options)
            finally:
                is_inside = False

        return call

    for name in SEAM:
        setattr(device, name, counted(name, getattr(device, name)))
    with running_on(device):
        yield calls


def simulated() -> SimulatedDevice:
    return SimulatedDevice(Schedule("early"))


def grown(before: Statistics, after: Statistics) -> dict[str, float]:
    old, new = dataclasses.asdict(before), dataclasses.asdict(after)
    assert old.pop("memory") == new.pop("memory")
    changes = {name: new[name] - old[name] for name in new}
    return {name: change for name, change in changes.items() if change and name != "waited_secs"}


def batches() -> Iterator[torch.Tensor]:
    while True:
        yield torch.ones(N_SAMPLES, N_TOKENS, WIDTH)


def cost_of_stream(device: AnyDevice, **options: Any) -> Cost:
    """Of one pass of a stream in its steady state, which must be that of the three after it."""
    costs = []
    with (
        counting(device) as calls,
        fastcap.stream(MODEL, batches(), SITES, device="cpu", **options) as run,
    ):
        for _ in range(N_WARM):
            next(run)
        for _ in range(4):
            calls_before, before = Counter(calls), run.statistics()
            next(run)
            costs.append(Cost(dict(calls - calls_before), grown(before, run.statistics())))
    assert all(cost == costs[0] for cost in costs)
    return costs[0]


def cost_of_store(device: AnyDevice, **options: Any) -> Cost:
    """Of one pass under a store whose values are read after each."""
    costs = []
    with counting(device) as calls, fastcap.ActivationStore(MODEL, SITES, **options) as store:
        for number in range(N_WARM + 4):
            calls_before, before = Counter(calls), store.statistics()
            MODEL(torch.ones(N_SAMPLES, N_TOKENS, WIDTH))
            assert len(store.activations) == N_SITES
            if number >= N_WARM:
                costs.append(Cost(dict(calls - calls_before), grown(before, store.statistics())))
    assert all(cost == costs[0] for cost in costs)
    return costs[0]


ALLOCATING = {"device_allocations", "host_allocations", "staging_bytes", "pinned_bytes", "events"}
CREATING = {"staging", "host", "release", "event", "upload"}


@pytest.mark.parametrize("options", [{}, {"positions": -1}], ids=["whole", "last"])
@pytest.mark.parametrize("cost_of", [cost_of_stream, cost_of_store])
def test_nothing_is_allocated_pinned_or_created_in_the_steady_state(
    cost_of: Callable[..., Cost], options: dict[str, Any]
) -> None:
    cost = cost_of(simulated(), **options)
    assert not ALLOCATING & set(cost.counted)
    assert not CREATING & set(cost.calls)


def test_thirty_two_last_tokens_cross_in_one_copy_and_nothing_else_does() -> None:
    cost = cost_of_stream(simulated(), positions=-1)
    assert cost.counted["copies"] == 1
    assert cost.counted["captured_bytes"] == N_SITES * LAST_BYTES
    assert cost.counted["copied_bytes"] == N_SITES * LAST_BYTES
    assert not {"spills", "superseded_bytes", "mask_reads"} & set(cost.counted)


def test_whole_values_cross_once() -> None:
    cost = cost_of_stream(simulated())
    assert cost.counted["captured_bytes"] == N_SITES * SITE_BYTES
    assert cost.counted["copied_bytes"] == N_SITES * SITE_BYTES


def test_narrowing_halves_what_crosses() -> None:
    cost = cost_of_stream(simulated(), dtype=torch.float16)
    assert cost.counted["copied_bytes"] == N_SITES * SITE_BYTES / 2


PER_HOOK = {"is_capturing": 1, "current_stream": 1, "pack": 1}


def test_a_hook_asks_the_device_three_things() -> None:
    """And a pass of 32 sites a few more: one flush, and to read each value, which is small."""
    calls = cost_of_stream(simulated(), positions=-1).calls
    per_hook = {name: n_calls / N_SITES for name, n_calls in calls.items()}
    assert {name: n for name, n in per_hook.items() if name in PER_HOOK} == PER_HOOK
    reading = {"synchronize", "read"}
    per_pass = {n: calls[n] for n in calls if n not in PER_HOOK and n not in reading}
    assert per_pass == {"copy": 1, "wait_event": 1, "lasts": 1, "record": 1, "query": 1}
    assert {name: calls[name] for name in reading} == dict.fromkeys(reading, N_SITES)


def test_large_values_go_to_workers_and_each_is_joined_once() -> None:
    """Two chunks of two values each: a copy, a mark and a hold for every two."""
    calls = cost_of_stream(simulated(), staging_bytes=1 << 13).calls
    assert {name: calls.pop(name) / N_SITES for name in PER_HOOK} == PER_HOOK
    assert calls == {
        **dict.fromkeys(("copy", "wait_event", "lasts", "record", "query"), N_SITES // 2),
        **dict.fromkeys(("deliver", "join"), N_SITES),
    }


def test_a_hook_on_a_cpu_model_asks_for_one_copy() -> None:
    cost = cost_of_stream(SynchronousDevice(torch.device("cpu")))
    assert cost.calls == {"place": N_SITES}
    assert cost.counted == {
        "captures": N_SITES,
        "captured_bytes": N_SITES * SITE_BYTES,
        "copies": N_SITES,
        "copied_bytes": N_SITES * SITE_BYTES,
    }


def test_the_host_waits_for_no_copy_inside_a_pass_it_can_run_ahead_of() -> None:
    assert "waits" not in cost_of_stream(simulated(), positions=-1).counted


def test_a_cost_that_grows_is_seen() -> None:
    class Wasteful(SimulatedDevice):
        def is_capturing(self) -> bool:
            self.counters.events += 1
            return super().is_capturing()

    cost = cost_of_stream(Wasteful(Schedule("early")))
    assert cost.counted["events"] == N_SITES
