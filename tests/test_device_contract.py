"""What every device promises the engine (`fastcap/devices/base.py`), checked on each of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcap.devices.base import MOST_VIEWS, AnyDevice, HostBuffer, Staging
from fastcap.devices.simulated import SimulatedDevice
from tests.support.devices import open_devices

DEVICES = open_devices()
SIZE = 4096
DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.fixture(
    params=[
        pytest.param(name, marks=[pytest.mark.gpu] if name == "cuda" else []) for name in DEVICES
    ]
)
def device(request: pytest.FixtureRequest) -> Iterator[AnyDevice]:
    with DEVICES[request.param]() as device:
        yield device
        device.close()


def values_on(device: AnyDevice, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    raw = torch.randint(0, 100, sizes, generator=generator)
    return raw.to(dtype).to(device.torch_device)


def copy_to_slot(device: AnyDevice, staging: Staging, n_bytes: int) -> tuple[HostBuffer, Any]:
    """Pack order as the engine keeps it: mark the packing stream, copy after the mark."""
    packed, landed = device.event(), device.event()
    slot = device.host(SIZE)
    device.record(packed, device.current_stream())
    device.copy(staging, slot, n_bytes, after=[packed], then=[landed])
    return slot, landed


def test_a_event_that_was_never_marked_is_done(device: AnyDevice) -> None:
    event = device.event()
    assert device.query(event)
    device.synchronize(event)
    device.wait_event(device.current_stream(), event)


def test_a_event_is_done_after_waiting_for_it(device: AnyDevice) -> None:
    event = device.event()
    for _ in range(3):
        device.record(event, device.current_stream())
        device.synchronize(event)
        assert device.query(event)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_values_land_in_the_slot_byte_for_byte(
    device: AnyDevice, dtype: torch.dtype
) -> None:
    value = values_on(device, 3, 5, dtype=dtype)
    staging = device.staging(SIZE)
    device.pack(value, staging, 256, dtype)
    slot, landed = copy_to_slot(device, staging, 256 + value.nbytes)
    device.synchronize(landed)
    target = torch.empty(3, 5, dtype=dtype)
    device.read(slot, 256, dtype, target)
    assert target.view(torch.uint8).equal(value.cpu().view(torch.uint8))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[0].expand(4, -1),
        lambda x: x[0, 0],
        lambda x: x[:0],
        lambda x: torch.complex(x, x).conj(),
        lambda x: torch.complex(x, x).conj().imag,
    ],
    ids=["transposed", "strided", "expanded", "0-d", "empty", "conjugate", "negative bit"],
)
def test_packing_makes_any_view_dense(device: AnyDevice, make: Any) -> None:
    value = make(values_on(device, 4, 6))
    staging = device.staging(SIZE)
    device.pack(value, staging, 0, value.dtype)
    slot, landed = copy_to_slot(device, staging, value.nbytes)
    device.synchronize(landed)
    target = torch.empty(value.shape, dtype=value.dtype)
    device.read(slot, 0, value.dtype, target)
    assert target.equal(value.cpu().resolve_conj().resolve_neg())


def test_packing_narrows_and_reading_widens(device: AnyDevice) -> None:
    value = values_on(device, 8) / 7
    staging = device.staging(SIZE)
    device.pack(value, staging, 0, torch.bfloat16)
    slot, landed = copy_to_slot(device, staging, 16)
    device.synchronize(landed)
    target = torch.empty(8, dtype=torch.float64)
    device.read(slot, 0, torch.bfloat16, target)
    assert target.equal(value.cpu().bfloat16().double())


def test_a_later_change_of_the_source_does_not_reach_the_slot(device: AnyDevice) -> None:
    value = values_on(device, 16)
    expected = value.cpu().clone()
    staging = device.staging(SIZE)
    device.pack(value, staging, 0, value.dtype)
    value.fill_(-1)
    slot, landed = copy_to_slot(device, staging, value.nbytes)
    device.synchronize(landed)
    target = torch.empty(16)
    device.read(slot, 0, torch.float32, target)
    assert target.equal(expected)


def test_staging_may_be_rewritten_after_a_hold_on_its_copy(device: AnyDevice) -> None:
    first, second = values_on(device, 16), values_on(device, 16) + 1
    staging, copied, landed = device.staging(SIZE), device.event(), device.event()
    packed, slot = device.event(), device.host(SIZE)
    device.pack(first, staging, 0, torch.float32)
    device.record(packed, device.current_stream())
    device.copy(staging, slot, 64, after=[packed], then=[landed, copied])
    device.wait_event(device.current_stream(), copied)
    device.pack(second, staging, 0, torch.float32)
    device.synchronize(landed)
    target = torch.empty(16)
    device.read(slot, 0, torch.float32, target)
    assert target.equal(first.cpu())


def pinned_rows(device: AnyDevice, n_values: int) -> Tensor:
    rows = torch.empty(n_values, pin_memory=device.torch_device.type == "cuda")
    if isinstance(device, SimulatedDevice):
        device.pin(rows)
    return rows


def test_a_copy_takes_any_part_of_staging_to_any_part_of_rows(device: AnyDevice) -> None:
    value, rows = values_on(device, 64), pinned_rows(device, 96)
    staging, packed, landed = device.staging(SIZE), device.event(), device.event()
    device.pack(value, staging, 256, torch.float32)
    device.record(packed, device.current_stream())
    part = HostBuffer(rows[32:].view(torch.uint8))
    device.copy(staging, part, 128, after=[packed], then=[landed], offset=256 + 128)
    device.synchronize(landed)
    assert rows[32:64].equal(value.cpu()[32:])


def test_copies_reach_what_is_pinned_and_nothing_else(device: AnyDevice) -> None:
    can_pin = device.torch_device.type == "cuda" or isinstance(device, SimulatedDevice)
    assert device.reaches(pinned_rows(device, 96)[32:]) is can_pin
    assert not device.reaches(torch.empty(96))


def test_copies_land_in_the_order_they_were_issued(device: AnyDevice) -> None:
    staging, slot = device.staging(SIZE), device.host(SIZE)
    copied, packed, landed = device.event(), device.event(), device.event()
    for number in range(5):
        device.wait_event(device.current_stream(), copied)
        device.pack(values_on(device, 4) * 0 + number, staging, 0, torch.float32)
        device.record(packed, device.current_stream())
        device.copy(staging, slot, 16, after=[packed], then=[landed, copied])
    device.synchronize(landed)
    target = torch.empty(4)
    device.read(slot, 0, torch.float32, target)
    assert target.eq(4).all()


def test_a_delivery_waits_for_its_event_and_widens(device: AnyDevice) -> None:
    value = values_on(device, 32, dtype=torch.float16)
    staging = device.staging(SIZE)
    device.pack(value, staging, 0, torch.float16)
    slot, landed = copy_to_slot(device, staging, value.nbytes)
    target = torch.full((32,), -1.0)
    ticket = device.deliver(slot, 0, torch.float16, target, landed, worker=0)
    device.join(ticket)
    assert ticket.done()
    assert ticket.error() is None
    assert target.equal(value.cpu().float())


def test_deliveries_to_one_worker_keep_their_order(device: AnyDevice) -> None:
    slot, target = device.host(SIZE), torch.empty(4)
    tickets = []
    for number in range(8):
        slot.view(torch.float32, 256 * number, (4,)).fill_(number)
        tickets.append(device.deliver(slot, 256 * number, torch.float32, target, None, worker=5))
    device.join(tickets[-1])
    assert target.eq(7).all()
    assert all(ticket.done() for ticket in tickets)


def test_a_delivery_that_fails_says_so_and_raises_nothing(device: AnyDevice) -> None:
    slot = device.host(SIZE)
    ticket = device.deliver(slot, 0, torch.complex64, torch.empty(SIZE), None, worker=1)
    device.join(ticket)
    assert ticket.done()
    assert isinstance(ticket.error(), Exception)


def test_place_copies_and_casts_at_once(device: AnyDevice) -> None:
    value = values_on(device, 3, 4).t()
    target = torch.empty(4, 3, dtype=torch.float64)
    assert device.place(value, torch.float64, target) is target
    own = device.place(value, torch.float64)
    value.zero_()
    assert own.is_contiguous()
    assert own.is_cpu
    assert own.dtype == torch.float64
    assert target.equal(own)
    assert target.any()


def test_lent_bytes_are_the_slot_and_can_be_taken_back(device: AnyDevice) -> None:
    slot = device.host(SIZE)
    slot.view(torch.float32, 512, (4,)).copy_(torch.arange(4.0))
    array = device.lend(slot, 512, 16)
    assert torch.from_numpy(array).view(torch.float32).equal(torch.arange(4.0))
    del array
    gc.collect()
    device.take_back(slot, 512, 16)


def test_counters_count_memory_and_bytes(device: AnyDevice) -> None:
    staging = device.staging(SIZE)
    slot, landed = copy_to_slot(device, staging, 1000)
    device.synchronize(landed)
    counters = device.counters
    assert (counters.copies, counters.copied_bytes) == (1, 1000)
    assert (counters.device_allocations, counters.staging_bytes) == (1, SIZE)
    assert (counters.host_allocations, counters.pinned_bytes) == (1, SIZE)
    assert counters.events == 2
    device.release(staging, [landed])
    device.release(slot, [landed])
    assert (counters.staging_bytes, counters.pinned_bytes) == (0, 0)


def test_slots_are_memory_that_copies_can_write_without_blocking(device: AnyDevice) -> None:
    slot = device.host(SIZE)
    assert slot.bytes.device.type == "cpu"
    assert slot.bytes.is_contiguous()
    if device.torch_device.type == "cuda":
        assert slot.bytes.is_pinned()


def test_views_are_kept_for_passes_that_repeat_and_not_without_end(device: AnyDevice) -> None:
    staging = device.staging(SIZE)
    view = staging.view(torch.float32, 256, (2, 3))
    assert staging.view(torch.float32, 256, (2, 3)) is view
    for number in range(2 * MOST_VIEWS):
        staging.view(torch.uint8, 0, (number,))
    assert len(staging._views) <= MOST_VIEWS
    assert staging.view(torch.float32, 256, (2, 3)).data_ptr() == view.data_ptr()


def test_time_does_not_go_backwards_and_nothing_is_being_captured(device: AnyDevice) -> None:
    assert device.now() <= device.now()
    assert not device.is_capturing()
    free_bytes = device.free_bytes()
    assert free_bytes is None or free_bytes > 0


def test_memory_made_in_inference_mode_is_usable_outside_it(device: AnyDevice) -> None:
    with torch.inference_mode():
        slot, staging = device.host(SIZE), device.staging(SIZE)
        slot.view(torch.float32, 0, (4,))
    for buffer in (slot, staging):
        assert not buffer.bytes.is_inference()
        assert not buffer.view(torch.float32, 0, (4,)).is_inference()


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_an_upload_is_the_same_tensor_on_the_device(device: AnyDevice, dtype: torch.dtype) -> None:
    for host in (values_on(device, 3, 5).cpu().to(dtype), torch.empty(0, 4, dtype=dtype)):
        uploaded = device.upload(host.T)
        assert uploaded.device.type == device.torch_device.type
        assert uploaded.dtype is dtype
        assert torch.equal(uploaded.cpu(), host.T)
