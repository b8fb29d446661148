"""Random programs against the oracle, bit for bit, on every device there is."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import IterableDataset

import fastcap
from fastcap import devices, reference
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.programs import (
    LEAVES,
    Coverage,
    PlannedError,
    PlannedInterrupt,
    ProgramMaker,
    ScriptedModel,
    TableModel,
    World,
)

pytestmark = pytest.mark.filterwarnings("ignore:Nothing is captured:fastcap.FastcapWarning")

N_PROGRAMS = 300
N_SEEDED = 1000
FAST = settings(
    max_examples=N_PROGRAMS,
    derandomize=True,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
PATHS = ("wrap-around", "slot wait", "spill", "raise", "view", "in-place", "re-entry")


class StoreProgram:
    """A store and the oracle on one model, driven through one random program."""

    def __init__(self, draw: random.Random, device: SimulatedDevice | None) -> None:
        self.draw = draw
        self.device = device
        self.maker = ProgramMaker(draw, ranks=draw.choice([(0, 1, 2, 3, 4), (3,)]))
        self.model = ScriptedModel()
        self.model.world = World(self.compare_one, self.switch_queue)
        self.sites = draw.sample(LEAVES, draw.randint(1, len(LEAVES)))
        selection = self._selection()
        self.store = fastcap.ActivationStore(
            self.model,
            self.sites,
            zero_copy=draw.random() < 0.5,
            device_bytes=draw.choice([256, 512, 1024, 4096]),
            host_bytes=draw.choice([256, 512, 1024, 4096]),
            **selection,
        )
        self.oracle = ReferenceStore(self.model, self.sites, make_selection(**selection))
        self.held: list[tuple[Tensor, Tensor]] = []
        self.queues = [device.compute, device.new_queue("other")] if device else []

    def _selection(self) -> dict[str, Any]:
        if self.maker.ranks != (3,):
            return {}
        slices = [slice(0, 2), slice(None, None, 2), slice(5, None)]
        return {
            "seq_dim": self.draw.choice([0, 1, 2, -1]),
            "positions": self.draw.choice([None, 0, -1, [0, -1], [], *slices]),
            "reduce": self.draw.choice([None, None, lambda acts: acts[:1], torch.zeros_like]),
        }

    def run(self) -> set[str]:
        self.enable()
        for _ in range(self.draw.randint(2, 8)):
            steps = [self.run_pass] * 6 + [self.compare] * 2
            self.draw.choice([*steps, self.call_leaf, self.clear, self.disable])()
        self.compare()
        self.disable()
        self.compare()
        for tensor, copy in self.held:
            assert not differences({"held": copy}, {"held": tensor})
        return self.maker.paths | self._back_pressure()

    def enable(self) -> None:
        if not self.store.enabled:
            self.store.enable()
            self.oracle.enable()

    def disable(self) -> None:
        self.store.disable()
        self.oracle.disable()
        if self.draw.random() < 0.5:
            self.enable()

    def clear(self) -> None:
        self.store.clear()
        self.oracle.clear()

    def run_pass(self) -> None:
        actions = self.maker.actions()
        self._run(lambda: self.model(actions))

    def call_leaf(self) -> None:
        leaf, value = self.draw.choice(list(self.model.leaves)), self.maker.value()
        self._run(lambda: leaf(value))

    def _run(self, call: Callable[[], Any]) -> None:
        modes: list[Callable[[], AbstractContextManager[Any]]]
        modes = [torch.no_grad, torch.inference_mode, nullcontext]
        try:
            with self.draw.choice(modes)():
                call()
        except (PlannedError, PlannedInterrupt):
            return
        finally:
            if self.device is not None:
                self.device.use_queue(self.device.compute)

    def switch_queue(self) -> None:
        if self.device is not None:
            self.device.use_queue(self.draw.choice(self.queues))

    def compare_one(self, site: str) -> None:
        expected, found = self.oracle.get(site), self.store.get(site)
        assert (expected is None) == (found is None)
        if expected is not None and found is not None:
            assert not differences({site: expected}, {site: found})
            assert self.store.get(site) is found
            if self.draw.random() < 0.5:
                self.held.append((found, expected.clone()))

    def compare(self) -> None:
        if self.draw.random() < 0.5:
            assert not differences(self.oracle.activations, self.store.activations)
        else:
            for site in self.draw.sample(LEAVES, len(LEAVES)):
                self.compare_one(site)

    def _back_pressure(self) -> set[str]:
        statistics = self.store.statistics()
        taken = {
            "wrap-around": statistics.copies > statistics.device_allocations,
            "slot wait": statistics.waits > 0,
            "spill": statistics.spills > 0,
            "lend": statistics.lends > 0,
        }
        return {path for path, was_taken in taken.items() if was_taken}


def draw_device(draw: random.Random) -> SimulatedDevice:
    kind = draw.choice([*EXTREMES, "random", "random"])
    return SimulatedDevice(Schedule(kind, seed=draw.randrange(1 << 20)))


def test_a_store_on_a_simulated_accelerator_equals_the_oracle(
    summary: Callable[[str, str], None],
) -> None:
    coverage = Coverage()

    def run(draw: random.Random) -> None:
        device = draw_device(draw)
        with devices.substitute(lambda _: device):
            coverage.note(StoreProgram(draw, device).run())

    for seed in range(N_SEEDED):
        with explained(seed):
            run(random.Random(seed))
    FAST(given(st.randoms(use_true_random=False))(run))()  # fewer and plainer, but it shrinks
    summary("random programs against the oracle, simulated accelerator", coverage.table())
    assert coverage.n_programs >= N_SEEDED + N_PROGRAMS
    rare = {path: coverage.share(path) for path in PATHS if coverage.share(path) < 0.10}
    assert not rare, "paths that too few programs took"


@contextmanager
def explained(seed: int) -> Iterator[None]:
    """Have a failure name the seed that replays it."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"replay with random.Random({seed})")
        raise


@FAST
@given(st.randoms(use_true_random=False))
def test_a_store_on_the_cpu_equals_the_oracle(draw: random.Random) -> None:
    StoreProgram(draw, None).run()


class RunProgram:
    """One dataset through `stream` and `extract_representations`, and through the oracle."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.model = TableModel(draw)
        self.sites = draw.sample(LEAVES, draw.randint(1, len(LEAVES)))
        self.n_samples = draw.randint(1, 9)
        self.batch_size = draw.randint(1, 4)
        self.max_samples = draw.choice([None, draw.randint(1, 12)])
        self.dataset = [{"input_ids": torch.tensor([i, i + 1])} for i in range(self.n_samples)]
        self.options: dict[str, Any] = {
            "device_bytes": draw.choice([256, 512, 1024, 4096]),
            "host_bytes": draw.choice([256, 512, 1024, 4096]),
        }
        self.selection: dict[str, Any] = {
            "positions": draw.choice([None, 0, -1, slice(0, 1), [1, 0]]),
            "dtype": draw.choice([None, None, torch.complex128]),
            "seq_dim": 1,
        }

    def batches(self) -> list[dict[str, Tensor]]:
        size = self.batch_size
        parts = [self.dataset[i : i + size] for i in range(0, self.n_samples, size)]
        return [{"input_ids": torch.stack([s["input_ids"] for s in part])} for part in parts]

    def run(self) -> None:
        self.extract()
        self.stream(zero_copy=self.draw.random() < 0.5)

    def extract(self) -> None:
        selection = make_selection(**self.selection)
        expected = reference.extract(
            self.model, self.batches(), self.sites, call_model, self.max_samples, selection
        )
        dataset: Any = self.draw.choice([list, Endless])(self.dataset)
        found = fastcap.extract_representations(
            self.model,
            dataset,
            self.sites,
            "cpu",
            self.batch_size,
            self.max_samples,
            **self.selection,
            **self.options,
        )
        assert not differences(expected, found)
        for tensor in found.values():
            assert tensor.untyped_storage().nbytes() == tensor.nbytes

    def stream(self, zero_copy: bool) -> None:
        selection = make_selection(**self.selection)
        expected = reference.stream(self.model, self.batches(), self.sites, call_model, selection)
        records = fastcap.stream(
            self.model,
            self.batches(),
            self.sites,
            zero_copy=zero_copy,
            lookahead=self.draw.randint(0, 2),
            **self.selection,
            **self.options,
        )
        held = []
        for want, got in zip(expected, records, strict=True):
            assert not differences(want, got)
            held.append((want, got))
        for want, got in held:
            assert not differences(want, got)


class Endless(IterableDataset[Any]):
    """A dataset that does not say how long it is."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(self.samples)


def call_model(model: torch.nn.Module, batch: dict[str, Tensor]) -> Any:
    return model(batch["input_ids"])


@pytest.mark.parametrize("on", ["simulated accelerator", "cpu"])
def test_streams_and_extractions_equal_the_oracle(on: str) -> None:
    for seed in range(N_PROGRAMS):
        draw = random.Random(seed)
        device = draw_device(draw)
        on_it: AbstractContextManager[Any] = nullcontext()
        if on != "cpu":
            on_it = devices.substitute(partial(_same, device))
        with explained(seed), on_it:
            RunProgram(draw).run()


def _same(device: SimulatedDevice, _: torch.device) -> SimulatedDevice:
    return device
