"""Plans of time, on a virtual clock: the machine's rates, the right bound, and the run's time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fastcap
from fastcap.devices.simulated import SimulatedCosts, TimedDevice
from fastcap.formatting import format_secs
from fastcap.planning import Machine, Plan
from fastcap.planning.examples import ID_BYTES
from fastcap.planning.measure import measure_machine
from tests.support.runs import running_on
from tests.support.virtual import Load, baseline_secs, budget_of, model_of
from tests.test_virtual_time import COMPUTE_BOUND, CONSUMER_BOUND, LAUNCH_BOUND, LINK_BOUND

GB = 1e9


@dataclass(frozen=True)
class Case:
    """A run, and the disk that its loop writes to, if there is one."""

    load: Load
    disk_bytes_per_sec: float | None = None

    def faster(self, resource: str) -> Case:
        """The same on a machine with twice as much of one resource."""
        load, costs = self.load, self.load.costs
        rate = self.disk_bytes_per_sec
        return {
            "compute": Case(replace(load, forward_secs=load.forward_secs / 2), rate),
            "hooks": Case(
                replace(
                    load,
                    launch_secs=load.launch_secs / 2,
                    costs=replace(costs, hook_secs=costs.hook_secs / 2),
                ),
                rate,
            ),
            "link": self._with(rate, link_bytes_per_sec=2 * costs.link_bytes_per_sec),
            "consumer": self._with(rate, host_bytes_per_sec=2 * costs.host_bytes_per_sec),
            "disk": Case(load, rate and 2 * rate),
        }[resource]

    def _with(self, rate: float | None, **changes: float) -> Case:
        costs = replace(self.load.costs, **changes)  # type: ignore[arg-type]
        return Case(replace(self.load, costs=costs), rate)

    def run(self) -> float:
        """Seconds of the run."""
        load = self.load
        device = TimedDevice(load.costs)
        model, batches = model_of(load, device), [torch.zeros(1)] * load.n_passes
        with running_on(device), budget_of(load):
            for _ in fastcap.stream(model, batches, load.sites, zero_copy=load.lends):
                if self.disk_bytes_per_sec:
                    # One byte for each sample, and its id.
                    on_disk = load.pass_bytes + ID_BYTES * load.site_bytes
                    device.host_secs += on_disk / self.disk_bytes_per_sec
        return device.synchronise()

    def measured_bound(self) -> str:
        """The resource of which more helps most."""
        resources = ("compute", "link", "consumer", "disk", "hooks")
        return min(resources, key=lambda resource: self.faster(resource).run())

    def plan(self) -> Plan:
        """With rates measured on the machine, but for the disk's, which is stated."""
        load = self.load
        device = TimedDevice(load.costs)
        model = model_of(load, device)
        # Layers return one byte for each sample.
        example = torch.zeros(1).expand(load.site_bytes)
        with running_on(device), budget_of(load):
            return fastcap.plan(
                model,
                example,
                load.sites,
                n_samples=load.n_passes * load.site_bytes,
                into="archive" if self.disk_bytes_per_sec else "loop",
                zero_copy=load.lends and not self.disk_bytes_per_sec,
                machine=Machine(disk_bytes_per_sec=self.disk_bytes_per_sec),
                measure=True,
            )


CASES = {
    "compute": Case(COMPUTE_BOUND),
    "link": Case(LINK_BOUND),
    "consumer": Case(CONSUMER_BOUND),
    "disk": Case(replace(COMPUTE_BOUND, lends=True), disk_bytes_per_sec=2 * GB),
    "hooks": Case(LAUNCH_BOUND),
}


@pytest.mark.parametrize(("bound", "case"), CASES.items(), ids=CASES)
def test_the_bound_that_a_plan_names_is_the_one_that_more_of_helps(bound: str, case: Case) -> None:
    assert case.plan().bound == case.measured_bound() == bound


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_run_takes_the_time_that_was_planned(case: Case) -> None:
    found, secs = case.plan(), case.run()
    assert found.secs == pytest.approx(secs, rel=0.05)
    assert found.overhead == pytest.approx(secs / baseline_secs(case.load), rel=0.05)
    assert str(found).splitlines()[-1].endswith(f"; {found.bound} is the bound.")


def test_a_model_that_waits_for_its_launches_has_room_for_packs() -> None:
    found = CASES["hooks"].plan()
    assert found.forward_secs is not None
    compute = found.costs.terms[0]
    assert compute.secs == pytest.approx(found.size.n_passes * found.forward_secs)


def test_rates_measured_through_the_device_are_those_of_the_machine() -> None:
    costs = SimulatedCosts(link_bytes_per_sec=12 * GB, host_bytes_per_sec=3 * GB, hook_secs=8e-6)
    device = TimedDevice(costs)
    with running_on(device):
        found = measure_machine(device)
    assert found.link_bytes_per_sec == pytest.approx(12 * GB, rel=0.01)
    assert found.fresh_bytes_per_sec == pytest.approx(3 * GB * costs.n_workers, rel=0.01)
    assert found.warm_bytes_per_sec == pytest.approx(3 * GB * costs.n_workers, rel=0.01)
    assert found.device_bytes_per_sec == pytest.approx(costs.memory_bytes_per_sec, rel=0.3)
    assert found.hook_secs == pytest.approx(8e-6, rel=0.01)
    assert found.disk_bytes_per_sec is None
    assert (device.counters.staging_bytes, device.counters.pinned_bytes) == (0, 0)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements that take no time, for tests that look at no rate."""
    for name in ("HOST_BYTES", "DISK_BYTES", "BLOCK_BYTES"):
        monkeypatch.setattr(f"fastcap.planning.measure.{name}", 1 << 20)
    monkeypatch.setattr("fastcap.planning.measure.N_HOOK_PASSES", 2)


@pytest.mark.usefixtures("small")
def test_a_plan_on_this_machine_knows_every_rate_that_matters_here(tmp_path: Path) -> None:
    model, batch = torch.nn.Linear(8, 8), torch.ones(4, 8)
    found = fastcap.plan(
        model, batch, "", n_samples=8, into="archive", folder=tmp_path / "acts", measure=True
    )
    assert [term.name for term in found.costs.terms] == ["compute", "consumer", "disk", "hooks"]
    assert all(term.secs and term.secs > 0 for term in found.costs.terms)
    assert found.machine.link_bytes_per_sec is None
    assert found.secs is not None
    assert found.overhead is not None
    assert found.overhead >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small")
def test_given_rates_go_before_measured_ones() -> None:
    machine = Machine(fresh_bytes_per_sec=1.0)
    found = fastcap.plan(
        torch.nn.ReLU(),
        torch.ones(4, 8),
        "",
        n_samples=8,
        machine=machine,
        forward_secs=3.0,
        measure=True,
    )
    assert found.machine.fresh_bytes_per_sec == 1.0
    assert found.forward_secs == 3.0
    assert found.bound == "consumer"


def test_on_the_cpu_one_thread_does_it_all_and_the_disk_works_beside_it() -> None:
    rates = Machine(
        fresh_bytes_per_sec=100.0,
        warm_bytes_per_sec=200.0,
        hook_secs=0.5,
        disk_bytes_per_sec=10.0,
    )
    model, batch = torch.nn.Linear(5, 5), (torch.ones(2, 5),)  # 40 bytes per pass
    options: dict[str, Any] = {"n_samples": 10, "machine": rates, "forward_secs": 1.0}
    into_memory = fastcap.plan(model, batch, "", **options)
    assert into_memory.secs == pytest.approx(5 * (1.0 + 0.4 + 0.5))
    assert into_memory.overhead == pytest.approx(1.9)
    archive = fastcap.plan(model, batch, "", into="archive", **options)
    assert archive.secs == pytest.approx(5 * (4.0 + 1.6))  # and the ids of two samples
    assert (into_memory.bound, archive.bound) == ("compute", "disk")


def test_on_the_cpu_the_disk_is_the_bound_only_where_it_takes_longer_than_the_thread() -> None:
    model, batch = torch.nn.Linear(5, 5), (torch.ones(2, 5),)
    rates = {"hook_secs": 0.75, "warm_bytes_per_sec": 40.0}
    for disk_rate, secs, bound in [(56 / 1.5, 2.75, "compute"), (56 / 3.0, 3.0, "disk")]:
        machine = Machine(disk_bytes_per_sec=disk_rate, **rates)
        options: dict[str, Any] = {"machine": machine, "forward_secs": 1.0, "into": "archive"}
        found = fastcap.plan(model, batch, "", n_samples=2, **options)
        assert found.secs == pytest.approx(secs)
        assert found.bound == bound


def test_on_an_accelerator_the_slowest_is_the_run_and_the_last_chunk_comes_after() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(1 << 20, 1)
    rates = Machine(
        link_bytes_per_sec=1e6, fresh_bytes_per_sec=4e6, hook_secs=1e-3, device_bytes_per_sec=1e9
    )
    found = fastcap.plan(
        model,
        torch.ones(2, 1 << 20),
        ":input",
        n_samples=6,
        machine=rates,
        forward_secs=5.0,
        device="cuda",
    )
    pass_bytes = 2 * 4 * (1 << 20)
    assert found.bound == "link"
    assert found.secs == pytest.approx(3 * pass_bytes / 1e6 + pass_bytes / 1e6 + pass_bytes / 4e6)
    compute = found.costs.terms[0]
    assert compute.secs == pytest.approx(15.0 + 3 * 2 * pass_bytes / 1e9)


def test_a_record_larger_than_staging_stalls_the_model() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(1 << 20, 1)
    rates = Machine(link_bytes_per_sec=1e6, device_bytes_per_sec=1e12)
    options: dict[str, Any] = {
        "n_samples": 1,
        "machine": rates,
        "forward_secs": 1.0,
        "staging_bytes": 1 << 20,
    }
    found = fastcap.plan(model, torch.ones(1, 1 << 20), ":input", **options)
    assert found.memory.staging_bytes == 1 << 20
    assert found.costs.terms[0].secs == pytest.approx(1.0 + 3 * (1 << 20) / 1e6, rel=0.01)
    assert found.costs.terms[0].work.endswith("and packs, and stalls")


def test_what_is_not_known_is_not_guessed() -> None:
    found = fastcap.plan(
        torch.nn.ReLU(), torch.ones(2, 3), "", n_samples=4, machine=Machine(hook_secs=2.0)
    )
    assert (found.secs, found.overhead, found.bound) == (None, None, "hooks")
    assert found.costs.at_least_secs == 4.0
    assert "<- bound" not in str(found)
    assert "The run: not known, at least 4 s.\n" in str(found)


@pytest.mark.parametrize(
    ("secs", "text"),
    [
        (4e-6, "4 µs"),
        (999.9e-6, "1 ms"),
        (0.0391, "39.1 ms"),
        (0.9996, "1 s"),
        (3.04, "3.04 s"),
        (119.0, "119 s"),
        (150.0, "2 min"),
        (7500.0, "2 h 5 min"),
        (2.5e5, "69 h 27 min"),
        (4e6, "46.3 days"),
        (1e9, "11,574 days"),
    ],
)
def test_seconds_are_shown_in_units_people_use(secs: float, text: str) -> None:
    assert format_secs(secs) == text
