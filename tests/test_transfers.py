"""The engine under pressure: budgets, failures, several devices, several stores, many threads."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import fastcap
from fastcap import devices
from fastcap.devices.base import AnyDevice, Device
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.engine import Engine
from fastcap.errors import DeviceError, DeviceMemoryError, HostMemoryError
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import Selection
from fastcap.transfer.base import Capture
from fastcap.transfer.pool import Chunk
from fastcap.transfer.staged import StagedTransfer

WIDTH = 16
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


class Blocks(nn.Module):
    """Layers in a row; `(batch, sequence)` token ids in, hidden states out."""

    def __init__(self, n_layers: int = 4, width: int = WIDTH) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(input_ids)
        for layer in self.layers:
            hidden = torch.relu_(layer(hidden))  # in place: the captured value changes afterwards
        return hidden


def ids(batch: int = 2, length: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(0, 32, (batch, length), generator=torch.Generator().manual_seed(seed))


def names(model: Blocks) -> list[str]:
    return [f"layers.{i}" for i in range(len(model.layers))]


@contextmanager
def simulated(kind: str = "random", **options: Any) -> Iterator[SimulatedDevice]:
    device = SimulatedDevice(Schedule(kind, seed=1), **options)

    def same(_: torch.device) -> AnyDevice:
        return device

    with devices.substitute(same):
        yield device


# Who copies small records


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What host workers of the simulated device are given."""
    given: list[Any] = []
    deliver = SimulatedDevice.deliver

    def noted(self: SimulatedDevice, *arguments: Any) -> Any:
        given.append(arguments)
        return deliver(self, *arguments)

    monkeypatch.setattr(SimulatedDevice, "deliver", noted)
    return given


@pytest.mark.parametrize("kind", ["random", *EXTREMES])
def test_small_records_of_a_long_run_need_no_worker(kind: str, delivered: list[Any]) -> None:
    model = Blocks(n_layers=8).eval()
    samples = [{"input_ids": ids(1, seed=seed)[0]} for seed in range(40)]
    expected = fastcap.extract_representations(model, samples, names(model), "cpu", 1, positions=-1)
    with simulated(kind) as device:
        found = fastcap.extract_representations(
            model, samples, names(model), "cpu", 1, positions=-1, pinned_bytes=3 << 23
        )
        assert device.counters.copies == len(samples)
    assert delivered == []
    assert differences(expected, found) == []


def test_other_records_are_given_to_workers(
    monkeypatch: pytest.MonkeyPatch, delivered: list[Any]
) -> None:
    monkeypatch.setattr("fastcap.transfer.pool.SMALL_BYTES", 0)
    model = Blocks()
    with simulated():
        for records in fastcap.stream(model, [ids(), ids(seed=1)], names(model)):
            assert len(records) == 4
    assert len(delivered) == 8


def test_a_full_chunk_is_copied_before_the_next_record_comes() -> None:
    model = Blocks()
    n_bytes = ids().numel() * WIDTH * 4
    with (
        simulated("early") as device,
        fastcap.ActivationStore(model, names(model), staging_bytes=2 * 2 * n_bytes) as store,
    ):
        copies = []
        for layer in model.layers:
            layer.register_forward_hook(lambda *_: copies.append(device.counters.copies))
        model(ids())
        assert copies == [0, 1, 1, 2]  # two records fill a chunk
        assert len(store.activations) == 4


# Bytes and copies


def test_one_position_moves_its_share_of_the_bytes() -> None:
    model, n_tokens = Blocks(), 8
    with simulated():
        moved = {}
        for positions in (None, -1):
            with fastcap.ActivationStore(model, names(model), positions=positions) as store:
                model(ids(2, n_tokens))
                assert len(store.activations) == 4
                moved[positions] = store.statistics().captured_bytes
    assert moved[-1] * n_tokens == moved[None]


def test_thirty_two_last_tokens_are_one_copy() -> None:
    model = Blocks(n_layers=32)
    with simulated(), fastcap.ActivationStore(model, names(model), positions=-1) as store:
        for seed in range(3):
            model(ids(seed=seed))
            assert len(store.activations) == 32
        assert store.statistics().copies == 3


def test_on_the_cpu_each_capture_is_one_copy_of_its_own_size() -> None:
    model = Blocks()
    with fastcap.ActivationStore(model, names(model), positions=-1) as store:
        model(ids(2, 4))
        statistics = store.statistics()
    assert (statistics.copies, statistics.copied_bytes) == (4, 4 * 2 * WIDTH * 4)


def test_values_that_a_loop_replaces_are_counted() -> None:
    model = Blocks(n_layers=1)
    with simulated(), fastcap.ActivationStore(model, ["layers.0"]) as store:
        for _ in range(1000):
            model.layers[0](torch.ones(1, WIDTH))
        assert store.statistics().superseded_bytes == 999 * WIDTH * 4
        assert store.statistics().copies <= 2  # replaced values never left staging


# Budgets


@pytest.mark.parametrize("kind", [*EXTREMES, "random"])
def test_holding_everything_returned_never_blocks_with_one_slot_and_one_chunk(kind: str) -> None:
    model = Blocks()
    held: list[tuple[Tensor, Tensor]] = []
    with (
        simulated(kind) as device,
        fastcap.ActivationStore(
            model, names(model), zero_copy=True, staging_bytes=256, pinned_bytes=256
        ) as store,
        ReferenceStore(model, names(model)) as oracle,
    ):
        for seed in range(5):
            model(ids(seed=seed))
            for name in names(model):
                value, expected = store.get(name), oracle.get(name)
                assert value is not None
                assert expected is not None
                held += [(value, expected), (value.view(-1)[1:], expected.view(-1)[1:])]
                held.append((torch.from_numpy(value.numpy()), expected))
        assert device.counters.host_allocations == 1
        assert device.counters.device_allocations == 1
    for value, expected in held:
        assert value.equal(expected)


def test_nothing_is_allocated_after_the_first_two_passes() -> None:
    model = Blocks()
    with simulated() as device, fastcap.ActivationStore(model, names(model)) as store:
        for seed in range(2):
            model(ids(seed=seed))
        assert store.activations
        before = (
            device.counters.device_allocations,
            device.counters.host_allocations,
            device.counters.events,
        )
        for seed in range(50):
            model(ids(seed=seed))
            assert store.get("layers.3") is not None
        after = (
            device.counters.device_allocations,
            device.counters.host_allocations,
            device.counters.events,
        )
    assert after == before


def test_memory_is_given_back_on_disable() -> None:
    model = Blocks()
    with simulated() as device:
        with fastcap.ActivationStore(model, names(model)) as store:
            model(ids())
            assert device.counters.staging_bytes > 0
            assert device.counters.pinned_bytes > 0
        assert (device.counters.staging_bytes, device.counters.pinned_bytes) == (0, 0)
        assert len(store.activations) == 4


def test_a_pass_larger_than_all_slots_spills_and_is_exact() -> None:
    model = Blocks(n_layers=8)
    with (
        simulated("late"),
        fastcap.ActivationStore(model, names(model), staging_bytes=512, pinned_bytes=512) as store,
        ReferenceStore(model, names(model)) as oracle,
    ):
        model(ids(4, 8))
        assert not differences(oracle.activations, store.activations)
        statistics = store.statistics()
    assert statistics.spills > 0
    assert statistics.spilled_bytes > 0
    assert statistics.waits > 0


# Memory that cannot be had


def test_staging_is_halved_until_it_fits() -> None:
    model = Blocks()
    n_bytes = 5 * (1 << 20)
    with (
        simulated(device_capacity_bytes=n_bytes) as device,
        fastcap.ActivationStore(model, names(model), staging_bytes=1 << 25) as store,
    ):
        model(ids())
        assert len(store.activations) == 4
        assert 0 < device.counters.staging_bytes <= n_bytes


def test_staging_that_never_fits_is_reported_by_get_and_not_to_the_model() -> None:
    model = Blocks()
    with simulated(device_capacity_bytes=1000):
        with fastcap.ActivationStore(model, names(model), staging_bytes=1 << 25) as store:
            assert model(ids()).shape == (2, 4, WIDTH)
            with pytest.raises(DeviceMemoryError, match=r"does not fit .* smaller staging_bytes="):
                store.get("layers.0")
        assert not model.layers[0]._forward_hooks


def test_fewer_slots_do_when_not_all_can_be_pinned() -> None:
    model = Blocks()
    with (
        simulated(host_capacity_bytes=600) as device,
        fastcap.ActivationStore(model, names(model), staging_bytes=512, pinned_bytes=4096) as store,
        ReferenceStore(model, names(model)) as oracle,
    ):
        model(ids())
        assert not differences(oracle.activations, store.activations)
        assert device.counters.host_allocations == 2


def test_memory_that_cannot_be_pinned_at_all_is_reported_by_get() -> None:
    model = Blocks()
    with simulated(host_capacity_bytes=10) as device:
        with fastcap.ActivationStore(model, ["layers.0"], pinned_bytes=4096) as store:
            model(ids())
            with pytest.raises(HostMemoryError):
                store.get("layers.0")
        assert device.counters.staging_bytes == 0


# Several at once


def test_values_on_two_devices_go_through_two_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    # CPU tensors have one device, so calls are dealt out to two pretended ones in turn.
    places = [torch.device("cuda", 0), torch.device("cuda", 1)]
    turns = itertools.cycle(places)
    open_lane = Engine._open_transfer

    def open_in_turn(engine: Engine, _: torch.device) -> Any:
        return open_lane(engine, next(turns))

    def one_each(_: torch.device) -> AnyDevice:
        return SimulatedDevice(Schedule("late"))

    monkeypatch.setattr(Engine, "_open_transfer", open_in_turn)
    model = Blocks()
    with (
        devices.substitute(one_each),
        fastcap.ActivationStore(model, names(model)) as store,
        ReferenceStore(model, names(model)) as oracle,
    ):
        for seed in range(3):
            model(ids(seed=seed))
            assert not differences(oracle.activations, store.activations)
        assert store._engine is not None
        assert [transfer.statistics().copies for transfer in store._engine.transfers()] == [3, 3]
    assert store.statistics().copies == 6


def test_two_stores_on_one_model_do_not_disturb_each_other() -> None:
    model = Blocks()
    with simulated():
        first = fastcap.ActivationStore(model, names(model), staging_bytes=512, pinned_bytes=512)
        second = fastcap.ActivationStore(model, ["layers.1"], positions=-1)
        with first, second, ReferenceStore(model, names(model)) as oracle:
            model(ids())
            expected = oracle.get("layers.1")
            assert expected is not None
            assert not differences(oracle.activations, first.activations)
            assert not differences({"layers.1": expected[:, -1]}, second.activations)
            first.disable()
            model(ids(seed=5))
            assert not differences(
                {"layers.1": oracle.activations["layers.1"][:, -1]}, second.activations
            )


def run_threads(n_threads: int, work: Any) -> None:
    problems: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's thread
            problems.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem in problems:
        raise problem


@pytest.mark.parametrize("accelerated", [False, True])
def test_threads_each_run_their_own_model(accelerated: bool) -> None:
    def work(number: int) -> None:
        torch.manual_seed(number)
        model = Blocks()
        store = fastcap.ActivationStore(model, names(model), staging_bytes=512, pinned_bytes=1024)
        with store, ReferenceStore(model, names(model)) as oracle:
            for seed in range(10):
                model(ids(seed=seed))
                assert not differences(oracle.activations, store.activations)

    def own_device(_: torch.device) -> AnyDevice | None:
        return SimulatedDevice(Schedule("random", seed=3)) if accelerated else None

    with devices.substitute(own_device):
        run_threads(4, work)


@pytest.mark.parametrize("accelerated", [False, True])
def test_threads_that_share_a_store_always_read_a_whole_value(accelerated: bool) -> None:
    model = nn.Sequential(nn.Identity())

    def work(number: int) -> None:
        for step in range(30):
            model(torch.full((40,), float(number * 100 + step)))
            value = store.get("0")
            assert value is not None
            assert value.eq(value[0]).all()

    def own_device(_: torch.device) -> AnyDevice | None:
        return SimulatedDevice(Schedule("random", seed=3)) if accelerated else None

    with (
        devices.substitute(own_device),
        fastcap.ActivationStore(model, ["0"], staging_bytes=512, pinned_bytes=512) as store,
    ):
        run_threads(4, work)


def test_a_value_that_another_thread_is_dropping_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unlink = StagedTransfer._unlink_all
    model = nn.Sequential(nn.Identity())
    with simulated(), fastcap.ActivationStore(model, ["0"]) as store:
        model(torch.ones(4))
        [(transfer, capture)] = store._latest.all()

        def read_meanwhile(self: StagedTransfer, dropped: Capture) -> None:
            monkeypatch.setattr(StagedTransfer, "_unlink_all", unlink)
            assert transfer.result(capture) is None
            unlink(self, dropped)

        monkeypatch.setattr(StagedTransfer, "_unlink_all", read_meanwhile)
        store.clear()


# Lifetimes


def test_dropping_a_store_takes_its_hooks_and_memory_along() -> None:
    model = Blocks()
    with simulated():
        store = fastcap.ActivationStore(model, names(model))
        store.enable()
        model(ids())
        gone = weakref.ref(store)
        del store
        gc.collect()
    assert gone() is None
    assert not any(layer._forward_hooks for layer in model.layers)


def test_a_store_does_not_keep_values_of_the_model_alive() -> None:
    model = nn.Sequential(nn.Identity())
    with simulated(), fastcap.ActivationStore(model, ["0"]) as store:
        value = torch.ones(100)
        gone = weakref.ref(value.untyped_storage())
        model(value)
        assert store.get("0") is not None
        del value
        gc.collect()
        assert gone() is None


def test_a_dropped_stream_takes_its_hooks_along() -> None:
    model = Blocks()
    records = fastcap.stream(model, [ids(), ids(), ids()], names(model))
    next(records)
    assert model.layers[0]._forward_hooks
    del records
    gc.collect()
    assert not any(layer._forward_hooks for layer in model.layers)


def test_worker_threads_end_with_the_run() -> None:
    model = Blocks()
    with simulated():
        pass
    before = threading.active_count()
    dataset = [{"input_ids": row} for row in ids(8)]
    fastcap.extract_representations(model, dataset, names(model), "cpu", batch_size=2)
    assert threading.active_count() == before


class Plain(SimulatedDevice):
    """Counts packs, none of which may be of a value that is negated as it is read."""

    n_packs = 0

    def pack(self, value: Tensor, *args: Any) -> None:
        assert not value.is_conj()
        assert not value.is_neg()
        self.n_packs += 1
        super().pack(value, *args)


@pytest.mark.parametrize("view", [Tensor.conj, lambda acts: acts.conj().imag])
@pytest.mark.parametrize("dtype", [None, torch.complex64])
def test_what_is_negated_lazily_is_negated_whole_before_it_is_cut(
    view: Callable[[Tensor], Tensor], dtype: torch.dtype | None
) -> None:
    """Which NaN comes of a negated one depends on how a kernel is given its values."""

    class Negating(nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            return view(acts)

    device, model = Plain(Schedule("random", 1)), nn.Sequential(Negating())
    acts = torch.randn(64, WIDTH, dtype=torch.complex128)
    with (
        devices.substitute(lambda _: device),
        fastcap.ActivationStore(
            model, ["0"], dtype=dtype, staging_bytes=1024, pinned_bytes=2048
        ) as store,
        ReferenceStore(model, ["0"], Selection(dtype=dtype)) as oracle,
    ):
        model(acts)
        assert not differences(oracle.activations, dict(store.activations))
    assert device.n_packs > 1


class Recording(SimulatedDevice):
    """Notes what is asked of it while it records a graph."""

    def __init__(self) -> None:
        super().__init__(Schedule("early"))
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        is_verb = callable(found) and not name.startswith("_") and name in vars(Device)
        if is_verb and super().__getattribute__("capturing"):
            super().__getattribute__("asked").append(name)
        return found


@pytest.mark.parametrize("options", [{}, {"positions": [0]}, {"positions": "last", "mask": MASK}])
@pytest.mark.parametrize("n_passes", [0, 1, 2])
def test_a_graph_is_asked_for_before_anything_else_is_done(
    options: dict[str, Any], n_passes: int
) -> None:
    """After one pass memory would be sized anew, which waits for copies."""
    device, model = Recording(), nn.Sequential(nn.Identity())
    acts = torch.ones(2, 3, WIDTH)
    with devices.substitute(lambda _: device), fastcap.ActivationStore(model, ["0"], **options):
        for _ in range(n_passes):
            model(acts)
        device.capturing = True
        with pytest.raises(DeviceError, match="A CUDA graph is being captured"):
            model(acts)
        assert device.asked == ["is_capturing"]
        device.capturing = False


def test_values_that_go_straight_make_no_more_events_the_more_there_are() -> None:
    model = Blocks(2)
    counts = []
    for n_samples in (16, 64):
        dataset = [{"input_ids": ids(1, 4, seed)[0]} for seed in range(n_samples)]
        with simulated("early") as device:
            out = {site: torch.zeros(n_samples, 4, WIDTH) for site in names(model)}
            for rows in out.values():
                device.pin(rows)
            fastcap.extract_representations(
                model,
                dataset,
                names(model),
                "cpu",
                2,
                out=out,
                staging_bytes=1024,
                pinned_bytes=2048,
            )
            assert device.counters.copies >= n_samples
            assert not device.judge.violations
        counts.append(device.counters.events)
    assert counts[0] == counts[1]


def test_each_pack_of_a_stream_that_may_be_ended_is_an_edge_of_its_own() -> None:
    """What has its name for the next pack may be another stream, in no order with this one."""
    device = SimulatedDevice(Schedule("late"))
    theirs, chunk = device.new_stream("theirs", lasts=False), Chunk(device, 1024)
    for _ in range(2):
        holds = device.counters.stream_waits
        chunk.open_to(theirs)
        assert device.counters.stream_waits == holds + 1
        assert chunk.is_fleeting
        chunk.close_to(theirs)
    events = chunk.record_packed()
    assert len(events) == len(set(map(id, events))) == 2
    assert not chunk.abandon()
    chunk.reset()
    events_made = device.counters.events
    for _ in range(2):
        chunk.open_to(theirs)
        chunk.close_to(theirs)
    assert device.counters.events == events_made


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, on its first use
@pytest.mark.parametrize("accelerated", [False, True])
def test_a_forward_gradient_does_not_reach_what_is_captured(accelerated: bool) -> None:
    """Nor staging, which later values would inherit it from."""
    model = nn.Sequential(nn.Identity())
    with (
        simulated() if accelerated else nullcontext(),
        fastcap.ActivationStore(model, ["0"]) as store,
    ):
        for is_dual in (True, False):
            with forward_ad.dual_level():
                value = torch.ones(2)
                model(forward_ad.make_dual(value, torch.ones(2)) if is_dual else value)  # type: ignore[no-untyped-call]
                found = store.get("0")
                assert found is not None
                assert forward_ad.unpack_dual(found).tangent is None  # type: ignore[no-untyped-call]
