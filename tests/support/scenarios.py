"""Situations that random programs do not reach: threads, memory that is missing, the clock.

Each raises when the engine is broken in the way it is for, and is a test of its own on the sound
one (`tests/test_mutants.py`).
"""

from __future__ import annotations

import copy
import gc
import importlib
import pkgutil
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastcap
from fastcap.devices.base import HostBuffer, Ticket
from fastcap.devices.simulated import Schedule, SimulatedCosts, SimulatedDevice, TimedDevice
from fastcap.devices.simulated.streams import SimulatedEvent
from fastcap.errors import DeviceError, DeviceMemoryError
from fastcap.transfer.budget import Budget
from tests.support.runs import running_on
from tests.support.virtual import (
    BURSTY,
    SEVEN_B,
    Load,
    MiB,
    baseline_secs,
    makespan,
    predicted_secs,
    run_extraction,
)

N_ELEMENTS = 64  # of float32: one chunk of the smallest budget


def echo() -> nn.Sequential:
    """A model that returns what it is given."""
    return nn.Sequential(nn.Identity())


def number(value: float) -> Tensor:
    return torch.full((N_ELEMENTS,), float(value))


class _ReadInterrupted(SimulatedDevice):
    """Lets another thread capture while this one reads a slot."""

    def __init__(self) -> None:
        super().__init__(Schedule("early"), patience=10_000)
        self.interrupt: Any = None

    def read(self, slot: HostBuffer, offset: int, dtype: torch.dtype, target: Tensor) -> None:
        interrupt, self.interrupt = self.interrupt, None
        if interrupt is not None:
            interrupt()
        super().read(slot, offset, dtype, target)


def a_reader_keeps_its_slot() -> None:
    """While `get` reads a slot, the value is replaced and copies look for slots."""
    device, model = _ReadInterrupted(), echo()
    with (
        running_on(device),
        fastcap.ActivationStore(model, ["0"], staging_bytes=512, pinned_bytes=768) as store,
    ):
        model(number(1))

        def replace_it() -> None:
            for value in range(2, 5):  # a copy into every slot
                model(number(value))
                for transfer in store._engine.transfers():  # type: ignore[union-attr]
                    transfer.flush()

        device.interrupt = replace_it
        value = store.get("0")
        assert value is not None
        assert value.eq(value[0]).all()
    assert not device.judge.violations, device.judge.violations[0]


def owned_memory_outlives_its_first_tensor() -> None:
    """A view of a result is kept while the result itself is dropped and more are made."""
    n_elements = 1 << 17  # owned memory is kept for later from 256 KiB on
    model = echo()
    with fastcap.ActivationStore(model, ["0"]) as store:
        model(torch.full((n_elements,), 1.0))
        value = store.get("0")
        assert value is not None
        part = value[1:]
        del value
        for later in range(2, 5):
            store.clear()
            model(torch.full((n_elements,), float(later)))
        assert part.eq(1).all()


def passes_allocate_nothing() -> None:
    """After the first passes, none allocates, pins or makes an event."""
    device, model = SimulatedDevice(Schedule("early")), echo()
    with running_on(device), fastcap.ActivationStore(model, ["0"]) as store:
        counts = []
        for value in range(10):
            model(number(value))
            assert store.get("0") is not None
            counters = device.counters
            counts.append((counters.device_allocations, counters.host_allocations, counters.events))
    assert len(set(counts[3:])) == 1, f"allocations, pinned allocations, events by pass: {counts}"


def missing_memory_is_raised_to_who_asks() -> None:
    """The model runs through; `get` says what is missing."""
    device, model = SimulatedDevice(device_capacity_bytes=100), echo()
    with running_on(device), fastcap.ActivationStore(model, ["0"]) as store:
        assert model(number(1)).eq(1).all()
        try:
            store.get("0")
        except DeviceMemoryError:
            return
    raise AssertionError("nothing was raised")


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def a_dispatch_mode_sees_the_model_only() -> None:
    """What a user's mode counts is the same with and without a store."""
    model, seen = nn.Sequential(nn.Linear(4, 4)), []
    for sites in ([], ["0"]):
        with fastcap.ActivationStore(model, sites, positions=0), _Counting() as mode:
            model(torch.ones(2, 3, 4))
        seen.append(mode.seen)
    assert seen[0] == seen[1], f"with a store: {seen[1]}"


class _PackInterrupted(SimulatedDevice):
    """Starts another thread's capture in the middle of this one's, and gives it time to finish."""

    def __init__(self) -> None:
        super().__init__(Schedule("late"), patience=10_000)
        self.interrupt: Any = None
        self.thread: threading.Thread | None = None

    def pack(self, *args: Any) -> None:
        interrupt, self.interrupt = self.interrupt, None
        super().pack(*args)
        if interrupt is not None:
            self.thread = threading.Thread(target=interrupt)
            self.thread.start()
            self.thread.join(0.2)


def a_capture_is_one_step() -> None:
    """A second thread's captures fill the chunk that the first is packing into."""
    device = _PackInterrupted()
    model = nn.Sequential(nn.Identity(), nn.Identity())
    with (
        running_on(device),
        fastcap.ActivationStore(model, ["0", "1"], staging_bytes=256, pinned_bytes=1024) as store,
    ):

        def capture_others() -> None:
            for value in range(2, 6):
                model[1](number(value))

        device.interrupt = capture_others
        model[0](number(1))
        assert device.thread is not None
        device.thread.join()
        value = store.get("0")
        assert value is not None
        assert value.eq(1).all()
    assert not device.judge.violations, device.judge.violations[0]


class _WaitWatched(SimulatedDevice):
    """Asks whether a lock is held whenever the host waits."""

    def __init__(self) -> None:
        super().__init__(Schedule("late"))
        self.locks: list[Any] = []
        self.n_waits = 0

    def _check(self) -> None:
        self.n_waits += 1
        assert not any(lock.locked() for lock in self.locks), "a wait under the transfer's lock"

    def synchronize(self, event: SimulatedEvent) -> None:
        self._check()
        super().synchronize(event)

    def join(self, ticket: Ticket) -> None:
        self._check()
        super().join(ticket)


def nothing_waits_under_the_lock() -> None:
    """Reads, spills, leases and deliveries, with a look at the lock at each wait."""
    device, model = _WaitWatched(), nn.Sequential(nn.Identity(), nn.Identity())
    for zero_copy in (False, True):
        with (
            running_on(device),
            fastcap.ActivationStore(
                model, ["0", "1"], zero_copy=zero_copy, staging_bytes=256, pinned_bytes=512
            ) as store,
        ):
            for value in range(6):
                model(number(value))
                device.locks = [transfer._lock for transfer in store._engine.transfers()]  # type: ignore[union-attr]
                if value % 2:
                    assert store.get("0") is not None
    assert device.n_waits > 5


def what_is_dropped_is_gone() -> None:
    """A store that is dropped while enabled goes, and so does a stream that was not closed, also
    when a copy of the model still has their hooks.
    """
    model = echo()
    store = fastcap.ActivationStore(model, ["0"])
    store.enable()
    records = fastcap.stream(model, [number(1), number(2)], ["0"])
    next(records)
    twin = copy.deepcopy(model)
    engines = [weakref.ref(owner._engine) for owner in (store, records)]
    del store, records
    gc.collect()
    assert [engine() for engine in engines] == [None, None]
    assert twin(number(1)).eq(1).all()


def a_graph_capture_is_refused() -> None:
    """While a CUDA graph is recorded, hooks run and nothing can be copied."""
    device, model = SimulatedDevice(), echo()
    with running_on(device), fastcap.ActivationStore(model, ["0"]):
        device.capturing = True
        try:
            model(number(1))
        except DeviceError:
            return
    raise AssertionError("nothing was raised")


def staging_may_be_allocated_on_any_stream() -> None:
    """A store that is enabled again while the model uses another stream."""
    device, model = SimulatedDevice(Schedule("late")), echo()
    with running_on(device):
        store = fastcap.ActivationStore(model, ["0"], staging_bytes=4096, pinned_bytes=4096)
        for stream in (device.compute, device.new_stream("other")):
            device.use_stream(stream)
            with store:
                model(number(1))
                device.use_stream(device.compute)
                model(number(2))
                assert store.activations["0"].eq(2).all()
    assert not device.judge.violations, device.judge.violations[0]


def an_unwanted_chunk_changes_streams() -> None:
    """What one stream packed is cleared before its copy; then another stream packs there."""
    device, model = SimulatedDevice(Schedule("late")), echo()
    with (
        running_on(device),
        fastcap.ActivationStore(model, ["0"], staging_bytes=2048, pinned_bytes=1024) as store,
    ):
        model(number(0))
        store.clear()
        device.use_stream(device.new_stream("other"))
        model(torch.ones(200))  # fills what the other would have left no room for
        assert store.activations["0"].eq(1).all()
        assert store.statistics().copies == 1
    assert not device.judge.violations, device.judge.violations[0]


def a_stream_ends_before_its_values_are_read() -> None:
    """A model runs twice on a stream of its own, which its owner then ends."""
    for kind in ("early", "late"):
        device, model = SimulatedDevice(Schedule(kind)), nn.Sequential(nn.Identity(), nn.Identity())
        with running_on(device):
            theirs = device.new_stream("theirs", lasts=False)
            device.use_stream(theirs)
            store = fastcap.ActivationStore(
                model, ["0", "1"], staging_bytes=4096, pinned_bytes=4096
            )
            store.enable()
            for value in (1, 2):
                model(number(value))
            theirs.is_ended = True
            device.use_stream(device.compute)
            assert all(found.eq(2).all() for found in store.activations.values())
            store.disable()
        assert not device.judge.violations, device.judge.violations[0]


def what_was_lent_is_taken_back() -> None:
    """Values are lent and dropped more often than there are slots."""
    device, model = SimulatedDevice(Schedule("early")), echo()
    with (
        running_on(device),
        fastcap.ActivationStore(
            model, ["0"], zero_copy=True, staging_bytes=512, pinned_bytes=1024
        ) as store,
    ):
        for value in range(8):
            model(number(value))
            assert store.activations["0"].eq(value).all()
            store.clear()
        assert store.statistics().lends == 8
    assert not device.judge.violations, device.judge.violations[0]


def several_values_of_a_chunk_go_straight() -> None:
    """Four sites whose values share chunks, into pinned rows."""
    model = nn.Sequential(*(nn.Identity() for _ in range(4)))
    names = ["0", "1", "2", "3"]
    dataset = [{"input_ids": number(value)} for value in range(8)]
    for seed in range(8):
        device = SimulatedDevice(Schedule("random", seed), patience=10_000)
        out = {site: torch.zeros(8, N_ELEMENTS) for site in names}
        for rows in out.values():
            device.pin(rows)
        with running_on(device):
            fastcap.extract_representations(
                model, dataset, names, "cpu", 1, out=out, staging_bytes=1024, pinned_bytes=1024
            )
        assert device.counters.copies == 8 * 4
        assert not device.judge.violations, device.judge.violations[0]
        for rows in out.values():
            assert rows.eq(torch.arange(8.0)[:, None]).all()


def staging_leaves_room_for_the_model() -> None:
    """Without a budget, no more of the device is taken than a twentieth of what is free."""
    free_bytes = 100_000
    device, model = SimulatedDevice(device_capacity_bytes=free_bytes), echo()
    with running_on(device), fastcap.ActivationStore(model, ["0"]):
        model(number(1))
    assert 0 < device.peak_device_bytes <= free_bytes // 20


def an_ended_stream_leaves_no_hook() -> None:
    """After a stream was closed half-way, the model is as before."""
    model = echo()
    with fastcap.stream(model, [number(1), number(2), number(3)], ["0"]) as records:
        next(records)
    assert not model[0]._forward_hooks


FORBIDDEN = frozenset(
    {
        "data_ptr",  # an address says nothing about whose memory it is now
        "record_stream",
        "wait_stream",
        "register_module_forward_hook",
        "register_module_forward_pre_hook",
    }
)


COMPARES_ADDRESSES = {"fastcap.consumers.out._check_apart", "fastcap.batching.reuse._spans"}
"""Of memory that is held meanwhile: whether two results, or two batches, overlap."""


def no_function_names_what_is_forbidden() -> None:
    """No function of the package uses a name that R13 rules out, or recognises by address."""
    found = [
        f"{function.__module__}.{function.__qualname__} uses {name}"
        for function in _functions()
        for name in FORBIDDEN.intersection(_names(function.__code__))
        if f"{function.__module__}.{function.__qualname__}" not in COMPARES_ADDRESSES
    ]
    assert not found, found


def _functions() -> Iterator[FunctionType]:
    for info in pkgutil.walk_packages(fastcap.__path__, "fastcap."):
        if info.name.startswith(("fastcap.demo", "fastcap.cli")):
            continue
        for owner in list(vars(importlib.import_module(info.name)).values()):
            members = vars(owner).values() if isinstance(owner, type) else [owner]
            for member in members:
                if isinstance(member, FunctionType) and member.__module__ == info.name:
                    yield member


def _names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant)
    return names


def copies_hide_behind_the_model() -> None:
    """A bursty run takes what the cost model says, and not as if copies took turns with packs."""
    found, expected = makespan(BURSTY), predicted_secs(BURSTY)
    assert found <= 1.05 * expected, f"{found:.4f} s, and the cost model says {expected:.4f} s"


class _Pausing(TimedDevice):
    """Host workers stand still for `secs` before the fortieth delivery, as on a disk that syncs."""

    def __init__(self, costs: SimulatedCosts, secs: float) -> None:
        super().__init__(costs)
        self._secs = secs
        self._n_deliveries = 0

    def deliver(self, slot: HostBuffer, *rest: Any) -> Ticket:
        self._n_deliveries += 1
        if self._n_deliveries == 40:
            for worker in self.workers:
                worker.run(self.host_secs, self._secs)
        return super().deliver(slot, *rest)


def a_consumer_that_pauses_does_not_hold_up_the_model() -> None:
    """A pause that two passes of slots can hold, and then one for which there are too few."""
    load = replace(SEVEN_B, n_passes=8)
    plain_secs, few_bytes = baseline_secs(load), 6 * 64 * MiB
    found = run_extraction(load, _Pausing(load.costs, secs=0.4))
    assert found.secs <= 1.03 * plain_secs, f"{found.secs:.3f} s, and {plain_secs:.3f} s without"
    assert few_bytes < found.slot_bytes <= 2 * load.pass_bytes + few_bytes
    cramped = replace(load, pinned_bytes=few_bytes)
    assert run_extraction(cramped, _Pausing(load.costs, secs=0.4)).secs > 1.1 * plain_secs


def a_consumer_that_keeps_up_needs_few_slots() -> None:
    """One for each chunk and two more, although the host runs a pass ahead of the model."""
    found = run_extraction(SEVEN_B, TimedDevice(SEVEN_B.costs))
    assert found.slot_bytes == 6 * 64 * MiB, f"{found.slot_bytes} bytes of slots"


def a_full_chunk_is_copied_before_the_next_layer_is_done() -> None:
    """One chunk, and never a slot free when it is full: the copy waits for a slot, and for nothing
    that the model has launched meanwhile.
    """
    load = Load(budget=Budget(64 * MiB, 1, 3))
    found, plain = run_extraction(load, TimedDevice(load.costs)).secs, baseline_secs(load)
    assert found <= 1.02 * plain, f"{found:.3f} s, and {plain:.3f} s without"
