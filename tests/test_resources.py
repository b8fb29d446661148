"""What a run may take and must give back: counted, not timed.

That live bytes stay within the budgets and that every program ends is checked in every run of
`tests/test_races.py`; here is what needs a closer look.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import ReferenceStore
from tests.support.runs import must_equal, running_on

WIDTH = 64


def model_of(n_layers: int = 4) -> nn.Module:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(n_layers)))


SITES = [str(layer) for layer in range(4)]


def allocated(device: SimulatedDevice) -> tuple[int, int, int]:
    counters = device.counters
    return counters.device_allocations, counters.host_allocations, counters.events


def through_a_store(device: SimulatedDevice, model: nn.Module) -> list[tuple[int, int, int]]:
    counts = []
    with fastcap.ActivationStore(model, SITES) as store:
        for _ in range(12):
            model(torch.ones(2, WIDTH))
            assert len(store.activations) == len(SITES)
            counts.append(allocated(device))
    return counts


def through_a_stream(
    device: SimulatedDevice, model: nn.Module, **options: Any
) -> list[tuple[int, int, int]]:
    batches = [torch.ones(2, WIDTH)] * 12
    return [allocated(device) for _ in fastcap.stream(model, batches, SITES, **options)]


def through_an_extraction(device: SimulatedDevice, model: nn.Module) -> list[tuple[int, int, int]]:
    counts: list[tuple[int, int, int]] = []
    fastcap.extract_representations(
        model,
        [{"input_ids": torch.ones(WIDTH)}] * 24,
        SITES,
        "cpu",
        batch_size=2,
        progress=lambda done, expected: counts.append(allocated(device)),
    )
    return counts


WAYS: dict[str, Callable[..., list[tuple[int, int, int]]]] = {
    "store": through_a_store,
    "stream": through_a_stream,
    "lending stream": lambda *args: through_a_stream(*args, zero_copy=True),
    "extraction": through_an_extraction,
}


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("way", WAYS)
def test_after_the_first_passes_nothing_is_allocated_pinned_or_created(way: str, kind: str) -> None:
    device = SimulatedDevice(Schedule(kind))
    with running_on(device):
        counts = WAYS[way](device, model_of())
    assert len(counts) >= 12
    assert len(set(counts[3:])) == 1, counts


@pytest.mark.parametrize("kind", EXTREMES)
def test_one_chunk_and_one_slot_suffice_while_everything_is_held(kind: str) -> None:
    """And every stream, lending or not, ends."""
    model = model_of()
    device = SimulatedDevice(Schedule(kind), patience=50_000)
    held: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    options: dict[str, Any] = {"staging_bytes": 256, "pinned_bytes": 256, "zero_copy": True}
    batches = [torch.full((2, WIDTH), float(i)) for i in range(6)]
    with running_on(device), ReferenceStore(model, SITES) as oracle:
        records = fastcap.stream(model, batches, SITES, prefetch=0, **options)
        held.extend((oracle.activations.copy(), dict(of_pass)) for of_pass in records)
    for expected, found in held:
        must_equal(expected, found)
    assert device.peak_device_bytes == 256
    assert device.peak_host_bytes == 256
    assert not device.judge.violations


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("kind", EXTREMES)
def test_after_the_end_nothing_of_the_device_is_referenced(kind: str, raises: bool) -> None:
    device = SimulatedDevice(Schedule(kind))
    buffers: list[weakref.ref[Any]] = []
    values: list[weakref.ref[Any]] = []
    staging = device.staging

    def remembered(n_bytes: int) -> Any:
        buffer = staging(n_bytes)
        buffers.append(weakref.ref(buffer.bytes.untyped_storage()))
        return buffer

    device.staging = remembered  # type: ignore[method-assign]
    model = model_of()

    def batches() -> Any:
        for i in range(4):
            value = torch.full((2, WIDTH), float(i))
            values.append(weakref.ref(value.untyped_storage()))
            yield value
            del value
        if raises:
            raise ValueError("planned")

    with running_on(device):
        try:
            kept = [dict(records) for records in fastcap.stream(model, batches(), ["0"])]
        except ValueError:
            kept = []
    assert bool(kept) is not raises
    for stream in device._runner.streams:  # what is pending there holds its memory
        device._wait_for(device._mark(stream))
    device._names.clear()  # the judge's own memory of them
    device.judge = type(device.judge)()
    gc.collect()
    assert buffers
    assert not any(buffer() for buffer in buffers)
    assert not any(value() for value in values)
    assert (device.counters.staging_bytes, device.counters.pinned_bytes) == (0, 0)
