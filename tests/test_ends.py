"""What is left when something ends early: an error, an interrupt, a store that is just dropped."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import devices
from fastcap.consumers.memory import MemoryResult
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.engine import close_orphans
from fastcap.errors import ArgumentError, DeviceMemoryError, FastcapError, HostMemoryError
from fastcap.host_memory import HostBuffers
from fastcap.model.forward import is_compiled
from fastcap.transfer.memory import TransferMemory
from fastcap.transfer.staged import StagedTransfer
from fastcap.transfer.synchronous import SynchronousTransfer

N_SITES = 4
SITES = [str(site) for site in range(N_SITES)]
LARGE = 1 << 17  # elements: from 256 KiB on, owned memory is kept for later


@contextmanager
def simulated(**options: Any) -> Iterator[SimulatedDevice]:
    device = SimulatedDevice(Schedule("late"), **options)
    with devices.substitute(lambda _: device):
        yield device


def echoes() -> nn.Module:
    return nn.Sequential(*(nn.Identity() for _ in range(N_SITES)))


def transfer_of(store: fastcap.ActivationStore) -> StagedTransfer:
    assert store._engine is not None
    [transfer] = store._engine.transfers()
    assert isinstance(transfer, StagedTransfer)
    return transfer


def value(number: float = 1.0, n_elements: int = 64) -> Tensor:
    return torch.full((n_elements,), number)


def test_missing_memory_does_not_keep_values_of_the_model_alive() -> None:
    model = echoes()
    with simulated(device_capacity_bytes=100), fastcap.ActivationStore(model, SITES) as store:
        kept = []
        for number in range(5):
            acts = value(number)
            kept.append(weakref.ref(acts.untyped_storage()))
            model(acts)
            del acts
            with pytest.raises(DeviceMemoryError):
                store.get("0")
        gc.collect()
        assert not any(storage() for storage in kept)


def test_a_value_that_an_interrupted_disable_left_behind_is_an_error_and_not_an_endless_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = echoes()
    result = StagedTransfer.result
    with simulated():
        store = fastcap.ActivationStore(model, SITES, staging_bytes=1536, pinned_bytes=3072)
        store.enable()
        model(value())

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(StagedTransfer, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            store.disable()
        monkeypatch.setattr(StagedTransfer, "result", result)
        for site in SITES:
            with pytest.raises(FastcapError, match=r"still on its way .* Run the pass again"):
                store.get(site)
    assert not next(model.children())._forward_hooks


class _Announced:
    """The lock of whoever moves bytes, that tells when a thread comes to it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.arrived = threading.Event()

    def __enter__(self) -> None:
        self.arrived.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("ask", [StagedTransfer.result, StagedTransfer.settle])
def test_a_value_asked_for_while_its_transfer_closes_is_an_error_and_never_what_memory_held(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[StagedTransfer, Any], object]
) -> None:
    model = echoes()
    errors: list[str] = []

    def read() -> None:
        try:
            ask(transfer, capture)
        except FastcapError as error:
            errors.append(str(error))

    with simulated(), fastcap.ActivationStore(model, SITES) as store:
        model(value())
        transfer, (_, capture) = transfer_of(store), store._latest.captures["0"]
        moving = transfer._moving
        announced = _Announced(moving)
        monkeypatch.setattr(transfer, "_moving", announced)
        reader = threading.Thread(target=read)
        with moving:  # as another thread's `disable` has it
            reader.start()
            assert announced.arrived.wait(60)
            transfer.close()
        reader.join()
        store.clear()

    assert len(errors) == 1
    assert "still on its way" in errors[0]


class _Paused(SimulatedDevice):
    """Stops in a hook, until it is told to go on, once it has been asked so often for graphs."""

    def __init__(self, number: int) -> None:
        super().__init__(Schedule("late"))
        self.number = number
        self.arrived, self.go_on = threading.Event(), threading.Event()

    def is_capturing(self) -> bool:
        self.number -= 1
        if self.number == 0:
            self.arrived.set()
            assert self.go_on.wait(60)
        return super().is_capturing()

    @contextmanager
    def late_hook(self, model: nn.Module, acts: Tensor) -> Iterator[None]:
        """A pass runs on another thread; its hook goes on when the block is over."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                model(acts)
            except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        assert self.arrived.wait(60)
        yield
        self.go_on.set()
        thread.join()
        assert not errors, errors


@pytest.mark.parametrize("n_elements", [64, 1000], ids=["whole", "in pieces"])
def test_a_hook_that_comes_after_disable_takes_no_memory_and_its_value_is_an_error(
    n_elements: int,
) -> None:
    model, device = echoes(), _Paused(N_SITES + 2)
    with devices.substitute(lambda _: device):
        store = fastcap.ActivationStore(model, SITES, staging_bytes=512, pinned_bytes=1024)
        store.enable()
        model(value(1, n_elements))
        with device.late_hook(model, value(2, n_elements)):  # in its second site
            store.disable()
            allocated = device.counters.device_allocations
        counters = device.counters
        assert counters.device_allocations == allocated
        assert (counters.staging_bytes, counters.pinned_bytes) == (0, 0)
        with pytest.raises(FastcapError, match="still on its way"):
            store.get("1")
        for site, number in (("0", 2), ("2", 1), ("3", 1)):
            assert store[site].eq(number).all()
        store.enable()
        model(value(3, n_elements))
        assert all(store[site].eq(3).all() for site in SITES)
        store.disable()
    assert not device.judge.violations


def test_a_hook_that_comes_after_disable_opens_no_transfer() -> None:
    model, device = echoes(), _Paused(2)

    def reduce(acts: Tensor) -> Tensor:  # after which the hook asks where the value is now
        device.is_capturing()
        return acts

    with devices.substitute(lambda _: device):
        store = fastcap.ActivationStore(model, SITES, reduce=reduce)
        store.enable()
        with device.late_hook(model, value()):
            store.disable()
        assert store.activations == {}
        assert device.counters.device_allocations == 0
        with store:
            model(value(3))
        assert all(store[site].eq(3).all() for site in SITES)


class _File:
    """A `fastcap.devices.base.Destination` that nothing reaches."""

    shape, nbytes = torch.Size((64,)), 256

    def numel(self) -> int:
        return 64

    def copy_(self, values: Tensor) -> None:
        raise AssertionError("written")

    def segment(self, first: int, last: int) -> _File:
        return self


def test_what_is_to_be_written_after_the_end_is_an_error_and_not_one_of_the_models() -> None:
    transfer = SynchronousTransfer(SynchronousDevice(torch.device("cpu")), HostBuffers(0))
    transfer.close()
    capture = transfer.capture(value(), torch.float32, _File(), 0)
    with pytest.raises(FastcapError, match="still on its way"):
        transfer.settle(capture)


def test_one_value_that_cannot_be_delivered_does_not_cost_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = echoes()
    result, n_calls = StagedTransfer.result, 0

    def failing_first(transfer: StagedTransfer, capture: Any, lend: bool = False) -> Tensor | None:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            raise HostMemoryError("planned")
        return result(transfer, capture, lend)

    with simulated() as device:
        store = fastcap.ActivationStore(model, SITES)
        store.enable()
        model(value())
        monkeypatch.setattr(StagedTransfer, "result", failing_first)
        with pytest.raises(HostMemoryError, match="planned"):
            store.disable()
        for site in SITES[1:]:
            found = store.get(site)
            assert found is not None
            assert found.eq(1).all()
        assert device.counters.staging_bytes == 0


@pytest.mark.parametrize("accelerated", [False, True])
def test_one_kept_result_does_not_keep_the_others_memory(accelerated: bool) -> None:
    model = echoes()
    device = SimulatedDevice(Schedule("early")) if accelerated else None
    with devices.substitute(lambda _: device):
        with fastcap.ActivationStore(model, SITES) as store:
            model(value(1, LARGE))
            kept = store.get("0")
            assert kept is not None
            assert store._engine is not None
            buffers = weakref.ref(store._engine._buffers)
        store.clear()
        del store
        gc.collect()
    assert buffers() is None
    assert kept.eq(1).all()


def test_a_lease_keeps_its_own_slot_and_no_other() -> None:
    model = echoes()
    with simulated():
        store = fastcap.ActivationStore(
            model, SITES, zero_copy=True, staging_bytes=512, pinned_bytes=4096
        )
        with store:
            model(value())
            lent = store.get("0")
            assert lent is not None
            assert store.statistics().lends == 1
            slots = [weakref.ref(slot) for slot in transfer_of(store)._memory.slots.all()]
        del store
        gc.collect()
        assert sum(slot() is not None for slot in slots) <= 1
    assert lent.eq(1).all()


def test_a_store_that_is_dropped_gives_its_memory_back_behind_its_streams() -> None:
    model = echoes()
    with simulated() as device:
        store = fastcap.ActivationStore(model, SITES)
        store.enable()
        model(value())
        assert device.counters.staging_bytes > 0
        del store
        gc.collect()
        close_orphans()  # which the next capture does
        assert (device.counters.staging_bytes, device.counters.pinned_bytes) == (0, 0)


def test_memory_that_cannot_be_resized_is_no_error_in_the_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise HostMemoryError("planned")

    monkeypatch.setattr(TransferMemory, "resize", refuse)
    model = echoes()
    with simulated(), fastcap.ActivationStore(model, SITES) as store:
        for number in range(3):
            model(value(number))
            found = store.get("3")
            assert found is not None
            assert found.eq(number).all()


def test_memory_is_sized_by_a_whole_pass_also_after_enabling_again() -> None:
    model = echoes()
    with simulated():
        store = fastcap.ActivationStore(model, SITES)
        for _ in range(2):
            with store:
                model(value())
                assert not transfer_of(store)._memory.is_sized
                model(value())
                assert transfer_of(store)._memory.is_sized


def test_a_compiled_forward_counts_as_compiled() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert not is_compiled(model)
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    assert is_compiled(model)


def test_an_iterator_is_not_read_by_several_workers() -> None:
    samples = ({"input_ids": torch.ones(3)} for _ in range(4))
    with pytest.raises(ArgumentError, match="Each of 2 workers would give every sample"):
        fastcap.extract_representations(echoes(), samples, ["0"], "cpu", num_workers=2)


@pytest.fixture
def allocations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every result that could be allocated."""
    rows: list[int] = []
    new_rows = MemoryResult._new_rows

    def counted(result: MemoryResult, specs: Any, n_rows: int) -> Any:
        allocated = new_rows(result, specs, n_rows)
        rows.append(n_rows)
        return allocated

    monkeypatch.setattr(MemoryResult, "_new_rows", counted)
    return rows


def extract_without_a_length(n_samples: int) -> None:
    samples = ({"input_ids": value(float(number))} for number in range(n_samples))
    acts = fastcap.extract_representations(echoes(), samples, ["0"], "cpu", batch_size=2)
    assert acts["0"][:, 0].tolist() == list(range(n_samples))


def test_memory_that_comes_and_goes_does_not_cost_the_reservation(
    monkeypatch: pytest.MonkeyPatch, allocations: list[int]
) -> None:
    row_bytes = value(0).numel() * 4
    readings = iter([100 * row_bytes, 95 * row_bytes])  # what is reserved, what is then checked
    monkeypatch.setattr("fastcap.consumers.memory.available_bytes", lambda: next(readings))
    extract_without_a_length(7)
    assert allocations == [90]


def test_where_memory_is_unknown_a_result_grows_by_doubling(
    monkeypatch: pytest.MonkeyPatch, allocations: list[int]
) -> None:
    monkeypatch.setattr("fastcap.consumers.memory.available_bytes", lambda: None)
    extract_without_a_length(40)
    assert allocations == [2, 4, 8, 16, 32, 64]
