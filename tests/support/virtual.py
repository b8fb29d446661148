"""Runs on the device with a clock, and what docs/design/cost-model.md says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from fastcap.transfer.budget import Budget
from tests.support.runs import running_on

MiB = 1 << 20
MS = 1e-3


@dataclass(frozen=True)
class Load:
    """Some passes of a model whose layers take time, with every layer's output captured.

    Attributes:
        n_passes: Passes in the run.
        n_layers: Layers, each of which is a site.
        site_bytes: What one site gives per pass.
        forward_secs: Of one pass on the device.
        launch_secs: Of one pass on the host, without hooks.
        is_bursty: Whether all the computing is in the first layer, so that sites fire together.
        budget: Staging and slots; `None` for what fastcap chooses.
        pinned_bytes: What slots may take; `None` for what fastcap chooses.
        lends: Whether results stay in slots instead of being copied into fresh memory.
        costs: The machine.
    """

    n_passes: int = 16
    n_layers: int = 32
    site_bytes: int = 64 * MiB
    forward_secs: float = 290 * MS
    launch_secs: float = 2 * MS
    is_bursty: bool = False
    budget: Budget | None = None
    pinned_bytes: int | None = None
    lends: bool = False
    costs: SimulatedCosts = field(default_factory=SimulatedCosts)

    @property
    def pass_bytes(self) -> int:
        return self.n_layers * self.site_bytes

    @property
    def sites(self) -> list[str]:
        return [str(layer) for layer in range(self.n_layers)]


class Layer(nn.Module):
    """Takes time, and returns as many bytes as it should, which nobody has to store."""

    def __init__(self, device: TimedDevice, secs: float, host_secs: float, n_bytes: int) -> None:
        super().__init__()
        self.timing = (secs, host_secs)
        self.launch = device.launch
        self.value = torch.zeros(1, dtype=torch.uint8).expand(n_bytes)

    def forward(self, acts: Tensor) -> Tensor:
        self.launch(*self.timing)
        return self.value


def model_of(load: Load, device: TimedDevice) -> nn.Module:
    host_secs = load.launch_secs / load.n_layers
    shares = [1 / load.n_layers] * load.n_layers
    if load.is_bursty:
        shares = [1.0] + [0.0] * (load.n_layers - 1)
    layers = [Layer(device, load.forward_secs * s, host_secs, load.site_bytes) for s in shares]
    return nn.Sequential(*layers)


@contextmanager
def budget_of(load: Load) -> Iterator[None]:
    if load.budget is None:
        yield
        return
    with mock.patch("fastcap.transfer.memory.plan_budget", return_value=load.budget):
        yield


class SynchronousTimed(TimedDevice):
    """The same machine, used as a hook that calls `.cpu()` uses it."""

    direct = True


@dataclass(frozen=True)
class Outcome:
    """What a run took.

    Attributes:
        secs: Until everything captured is where it is wanted.
        slot_bytes: The most that slots took.
        staging_bytes: The most that staging took.
        spilled_bytes: What the calling thread had to copy out of a slot to make room.
    """

    secs: float
    slot_bytes: int
    staging_bytes: int
    spilled_bytes: int


def run_stream(load: Load, device: TimedDevice, keeps_batch: bool = True) -> Outcome:
    """A loop over `stream`, whose variable may keep a batch until it is given the next."""
    model, batches = model_of(load, device), [torch.zeros(1)] * load.n_passes
    counted = fastcap.Statistics()
    with running_on(device), budget_of(load):
        stream = fastcap.stream(
            model, batches, load.sites, zero_copy=load.lends, pinned_bytes=load.pinned_bytes
        )
        while (records := next(stream, None)) is not None:
            counted = stream.statistics()
            if not keeps_batch:
                del records
    sizes = counted.pinned_bytes, counted.staging_bytes
    return Outcome(device.synchronise(), *sizes, counted.spilled_bytes)


def run_extraction(load: Load, device: TimedDevice, is_pinned: bool = False) -> Outcome:
    """`extract_representations`, into fresh memory or the caller's pinned rows; one pass is one
    sample.
    """
    model = model_of(load, device)
    for layer in model.children():
        assert isinstance(layer, Layer)
        layer.value = layer.value[None]
    dataset = [{"input_ids": torch.zeros(1)}] * load.n_passes
    shape = (load.n_passes, load.site_bytes)
    rows = {site: torch.empty(shape, dtype=torch.uint8) for site in load.sites}
    slot_bytes = staging_bytes = 0
    n_read_before = device.n_read_bytes

    def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        nonlocal slot_bytes, staging_bytes
        result: Tensor = model(batch["input_ids"])
        slot_bytes = max(slot_bytes, device.counters.pinned_bytes)
        staging_bytes = max(staging_bytes, device.counters.staging_bytes)
        return result

    with running_on(device), budget_of(load):
        fastcap.extract_representations(
            model,
            dataset,
            load.sites,
            "cpu",
            1,
            forward=forward,
            out=rows if is_pinned else None,
            pinned_bytes=load.pinned_bytes,
            check_memory=False,
        )
    # With its rows known in the hook, no value of this size is read by the calling thread.
    n_read_bytes = device.n_read_bytes - n_read_before
    return Outcome(device.synchronise(), slot_bytes, staging_bytes, n_read_bytes)


def run(load: Load, device: TimedDevice) -> float:
    """Seconds until everything captured is where it is wanted."""
    return run_stream(load, device).secs


def makespan(load: Load) -> float:
    return run(load, TimedDevice(load.costs))


def baseline_secs(load: Load) -> float:
    """The same passes with nothing captured."""
    device = TimedDevice(load.costs)
    model = model_of(load, device)
    for _ in range(load.n_passes):
        model(torch.zeros(1))
    return device.synchronise()


def synchronous_secs(load: Load) -> float:
    """The same run with a hook that copies and waits."""
    return run(load, SynchronousTimed(load.costs))


@dataclass(frozen=True)
class Bounds:
    """The terms of the cost model for one pass, in seconds."""

    compute: float
    link: float
    consumer: float
    host: float

    @property
    def pass_secs(self) -> float:
        return max(self.compute, self.link, self.consumer, self.host)

    @property
    def name(self) -> str:
        terms = {"compute": self.compute, "link": self.link, "consumer": self.consumer}
        terms["host"] = self.host
        return max(terms, key=lambda name: terms[name])


def staging_bytes(load: Load) -> int:
    assert load.budget is not None
    return load.budget.chunk_bytes * load.budget.n_chunks


def bounds(load: Load) -> Bounds:
    costs, n_bytes = load.costs, load.pass_bytes
    pack = 2 * n_bytes / costs.memory_bytes_per_sec + load.n_layers * costs.launch_secs
    stall = 0.0
    if load.is_bursty:
        stall = max(0, n_bytes - staging_bytes(load)) / costs.link_bytes_per_sec
    consumer = n_bytes / (costs.host_bytes_per_sec * costs.n_workers)
    return Bounds(
        compute=load.forward_secs + pack + stall,
        link=n_bytes / costs.link_bytes_per_sec,
        consumer=0.0 if load.lends else consumer,
        host=load.launch_secs + load.n_layers * costs.hook_secs,
    )


def predicted_secs(load: Load) -> float:
    """All passes, and the drain: the last chunk's copy and delivery, and what filled it first."""
    costs, term = load.costs, bounds(load)
    last_bytes = min(load.pass_bytes, staging_bytes(load)) if load.is_bursty else load.site_bytes
    drain = last_bytes / costs.link_bytes_per_sec
    if not load.lends:
        drain += last_bytes / costs.host_bytes_per_sec
    if term.name in ("link", "consumer"):
        drain += load.forward_secs / (1 if load.is_bursty else load.n_layers)
    return load.n_passes * term.pass_secs + drain


BURSTY = Load(
    forward_secs=40 * MS,
    is_bursty=True,
    budget=Budget(64 * MiB, 16, 110),
    lends=True,
)
"""All 32 sites at once into staging for half of them: do packs wait for one copy each?"""

SEVEN_B = Load(n_passes=4, lends=True, pinned_bytes=32 << 30)
"""32 layers of width 4096 in bfloat16, 8 x 1,024 tokens: 64 MiB each, in 290 ms."""
