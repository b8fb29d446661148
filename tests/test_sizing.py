"""Memory is there when the first pass needs it, grows where a pass turns out larger, and never
exceeds its budget; values are exact throughout.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice, TimedDevice
from fastcap.transfer.budget import Budget, MiB, settled_budget
from tests.support import scenarios
from tests.support.runs import running_on
from tests.support.virtual import SEVEN_B, run_stream

KiB = 1 << 10
SMALL: dict[str, Any] = {"staging_bytes": 16 * KiB, "pinned_bytes": 64 * KiB}


class Cut(nn.Module):
    """The first values of what the model is given, and the model's input again."""

    def __init__(self, share: float, from_pass: int = 0) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.share = share
        self.from_pass = from_pass
        self.n_passes = 0

    def forward(self, acts: Tensor) -> Tensor:
        self.n_passes += 1
        if self.n_passes > self.from_pass:
            self.inner(acts[:, : max(1, int(self.share * acts.shape[1]))])
        return acts


def model_of(*shares: float) -> tuple[nn.Sequential, list[str]]:
    model = nn.Sequential(*map(Cut, shares))
    return model, [f"{number}.inner" for number in range(len(shares))]


def batches_of(*widths: int) -> list[Tensor]:
    return [
        torch.arange(4 * width, dtype=torch.float32).view(4, width) + 1000 * number
        for number, width in enumerate(widths)
    ]


def must_be_exact(
    model: nn.Sequential,
    sites: list[str],
    batches: list[Tensor],
    device: SimulatedDevice,
    **budget: Any,
) -> fastcap.Statistics:
    """A stream's values are the oracle's, and memory stays within the budget."""
    counted = fastcap.Statistics()
    with running_on(device), fastcap.stream(model, batches, sites, **budget) as stream:
        for batch, records in zip(batches, stream, strict=True):
            counted = stream.statistics()
            for site, cut in zip(sites, model.children(), strict=True):
                assert isinstance(cut, Cut)
                if site in records:
                    expected = batch[:, : max(1, int(cut.share * batch.shape[1]))]
                    assert torch.equal(records[site], expected), site
    assert not device.judge.violations, device.judge.violations[0]
    if budget:
        assert device.peak_device_bytes <= budget["staging_bytes"]
        assert device.peak_host_bytes <= budget["pinned_bytes"]
    assert (device.counters.staging_bytes, device.counters.pinned_bytes) == (0, 0)
    return counted


@pytest.mark.parametrize("budget", [{}, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("kind", [*EXTREMES, "random"])
@pytest.mark.parametrize("place", [0, 15, 30], ids=["first", "middle", "last"])
def test_one_huge_record_and_thirty_small_ones(
    place: int, kind: str, budget: dict[str, Any]
) -> None:
    shares = [0.001] * 31
    shares[place] = 1.0
    model, sites = model_of(*shares)
    device = SimulatedDevice(Schedule(kind, seed=place), patience=10_000)
    must_be_exact(model, sites, batches_of(4000, 4000, 4000), device, **budget)


@pytest.mark.parametrize("budget", [{}, SMALL], ids=["default", "small"])
@pytest.mark.parametrize("widths", list(permutations([40, 400, 4000])))
def test_passes_of_other_lengths(widths: tuple[int, ...], budget: dict[str, Any]) -> None:
    model, sites = model_of(1.0, 0.5, 1.0)
    device = SimulatedDevice(Schedule("random", seed=1), patience=10_000)
    must_be_exact(model, sites, batches_of(*widths, *widths), device, **budget)


@pytest.mark.parametrize("budget", [{}, SMALL], ids=["default", "small"])
def test_a_site_that_first_fires_in_pass_five(budget: dict[str, Any]) -> None:
    model, sites = model_of(0.1, 0.1, 1.0)
    model[2] = Cut(1.0, from_pass=4)
    device = SimulatedDevice(Schedule("random", seed=1), patience=10_000)
    with pytest.warns(fastcap.FastcapWarning, match=r"Nothing is captured at site '2\.inner'"):
        must_be_exact(model, sites, batches_of(*[4000] * 7), device, **budget)


# The first pass


def test_the_first_record_says_what_a_pass_takes() -> None:
    outcome = run_stream(replace(SEVEN_B, n_passes=1), TimedDevice(SEVEN_B.costs))
    assert outcome.staging_bytes == 256 * MiB
    assert outcome.spilled_bytes == 0


def test_what_was_chosen_is_said_with_its_reason() -> None:
    model, batch = nn.Sequential(nn.Identity(), nn.Identity()), torch.zeros(4, 4 * MiB)
    with running_on(SimulatedDevice(Schedule("early"))):
        stream = fastcap.stream(model, [batch] * 2, ["0", "1"], pinned_bytes=160 * MiB)
        next(stream)
        staging = "cpu: staging: 4 x 67.1 MB (2 passes of 134 MB)"
        slots = "slots: 2 of at most 2 x 67.1 MB (pinned_bytes=)"
        assert stream.statistics().memory == (f"{staging}; {slots}",)
        stream.close()
        assert stream.statistics().memory == ()


def test_a_pass_that_was_underrated_gets_larger_chunks() -> None:
    """A small record comes first, so that 8 MiB chunks are taken for what needs 64."""
    model, batch = nn.Sequential(Cut(1e-6), nn.Identity()), torch.zeros(4, 16 * MiB)
    with (
        running_on(SimulatedDevice(Schedule("early"))),
        fastcap.stream(model, [batch] * 3, ["0.inner", "1"], prefetch=0) as stream,
    ):
        memory = [stream.statistics().memory[0] for _ in stream]
    assert "staging: 2 x 8.39 MB (the least)" in memory[0]
    assert "staging: 8 x 67.1 MB (2 of the largest record)" in memory[-1]


def test_more_chunks_of_the_same_size_are_added_without_a_pause() -> None:
    first = Budget(8 * MiB, 2, 4, "a", "b")
    better = Budget(8 * MiB, 3, 9, "c", "d")
    assert settled_budget(first, better) == Budget(8 * MiB, 3, 9)
    model, batch = nn.Sequential(Cut(0.1), nn.Identity()), torch.zeros(4, 3 * MiB // 4)
    device = SimulatedDevice(Schedule("late", seed=1), patience=10_000)
    with running_on(device), fastcap.stream(model, [batch] * 4, ["0.inner", "1"]) as stream:
        for records in stream:
            assert torch.equal(records["1"], batch)
        assert stream.statistics().device_allocations == 3
    assert not device.judge.violations, device.judge.violations[0]


def test_memory_that_was_planned_for_is_kept() -> None:
    large, small = Budget(64 * MiB, 4, 100), Budget(8 * MiB, 2, 4)
    assert settled_budget(large, small) == large


# Slots


def test_slots_are_pinned_instead_of_spilling_values() -> None:
    outcome = run_stream(SEVEN_B, TimedDevice(SEVEN_B.costs))
    assert outcome.spilled_bytes == 0
    assert 2 * SEVEN_B.pass_bytes < outcome.slot_bytes <= 3 * SEVEN_B.pass_bytes + 6 * 64 * MiB


def test_values_are_spilled_where_the_budget_ends() -> None:
    load = replace(SEVEN_B, pinned_bytes=2 << 30)
    outcome = run_stream(load, TimedDevice(load.costs))
    assert outcome.spilled_bytes
    assert outcome.slot_bytes == 2 << 30


def test_a_consumer_that_keeps_up_needs_few_slots() -> None:
    scenarios.a_consumer_that_keeps_up_needs_few_slots()


def test_slots_are_pinned_while_a_consumer_is_behind() -> None:
    scenarios.a_consumer_that_pauses_does_not_hold_up_the_model()


def test_a_system_that_refuses_to_pin_more_makes_values_spill() -> None:
    model, sites = model_of(1.0, 1.0, 1.0, 1.0)
    device = SimulatedDevice(Schedule("random", 1), host_capacity_bytes=8 * KiB, patience=10_000)
    budget: dict[str, Any] = {"staging_bytes": 8 * KiB, "pinned_bytes": 64 * KiB}
    counted = must_be_exact(model, sites, batches_of(400, 400, 400), device, **budget)
    assert counted.spilled_bytes


def test_the_last_slot_is_lent_once_there_is_another() -> None:
    model, sites = model_of(1.0, 1.0, 1.0)
    batch = torch.zeros(4, 64)
    budget: dict[str, Any] = {"staging_bytes": 2 * KiB, "pinned_bytes": 64 * KiB}
    with (
        running_on(SimulatedDevice(Schedule("early"))),
        fastcap.stream(model, [batch] * 3, sites, zero_copy=True, **budget) as stream,
    ):
        n_lends = [stream.statistics().lends for _ in stream]
    assert n_lends == [3, 6, 9]


def test_a_device_with_little_memory_gets_a_twentieth_of_it() -> None:
    device = SimulatedDevice(Schedule("early"), device_capacity_bytes=40 * MiB)
    model, batch = nn.Identity(), torch.zeros(4, MiB // 4)
    with running_on(device), fastcap.stream(model, [batch] * 2, "") as stream:
        [_, memory] = [stream.statistics().memory[0] for _ in stream]
    assert "(2 of the largest record)" in memory
    assert device.peak_device_bytes <= 32 * MiB


def test_records_that_fill_no_large_slot_are_lent_out_of_smaller_ones() -> None:
    """Sized by a pass alone, a slot would be 16 MiB, and three records would share it."""
    model, sites = model_of(*[1.0] * 12)
    batch = torch.zeros(5 * MiB // 256, 64)
    with (
        running_on(SimulatedDevice(Schedule("early"))),
        fastcap.stream(model, [batch] * 2, sites, zero_copy=True) as stream,
    ):
        n_lends = [stream.statistics().lends for _ in stream]
    assert n_lends == [12, 24]
