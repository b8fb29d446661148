"""`fastcap.Consumer`: a class of the user's own receives what passes capture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.base import AnyDevice
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import Schedule, SimulatedDevice
from fastcap.engine import Pass
from fastcap.errors import ArgumentError, ArgumentTypeError
from tests.support.runs import running_on


class MeanAndVariance(fastcap.Consumer):
    """Mean and variance of each site's features over all rows; the page docs/consumers.md has it.

    A pass's values are copied while the next pass runs, and are added then.
    """

    def __init__(self) -> None:
        self.n_rows: dict[str, int] = {}
        self.mean: dict[str, Tensor] = {}
        self._squares: dict[str, Tensor] = {}
        self._on_its_way: Pass | None = None

    def end(self, finished: Pass) -> None:
        finished.deliver()
        self.drain()
        self._on_its_way = finished

    def drain(self) -> None:
        finished, self._on_its_way = self._on_its_way, None
        if finished is not None:
            for site in finished.sites:
                self._add(site, finished.tensor(site).flatten(0, -2).double())

    def _add(self, site: str, rows: Tensor) -> None:
        n, mean = len(rows), rows.mean(dim=0)
        squares = (rows - mean).square().sum(dim=0)
        n_before = self.n_rows.get(site, 0)
        if n_before:  # Chan's update: stable, whatever the mean is
            shift, n_all = mean - self.mean[site], n_before + n
            mean = self.mean[site] + shift * (n / n_all)
            squares += self._squares[site] + shift.square() * (n_before * n / n_all)
        self.n_rows[site] = n_before + n
        self.mean[site], self._squares[site] = mean, squares

    def variance(self, site: str) -> Tensor:
        return self._squares[site] / self.n_rows[site]


class Journal(fastcap.Consumer):
    """Notes what is called, and takes the first `n_rows` of each value into tensors of its own."""

    def __init__(self, n_rows: int | None = None) -> None:
        self.calls: list[str] = []
        self.found: list[Tensor] = []
        self._n_rows = n_rows
        self._finished: list[Pass] = []

    def begin(self, n_samples: int) -> None:
        self.calls.append(f"begin {n_samples}")

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor | None]:
        self.calls.append(f"place {site} {tuple(value.shape)} {dtype} {lengths}")
        value = value[: self._n_rows]
        if self._n_rows is None:
            return value, None
        self.found.append(torch.empty(value.shape, dtype=dtype))
        return value, self.found[-1]

    def end(self, finished: Pass) -> None:
        self.calls.append(f"end {finished.sites}")
        self._finished.append(finished)

    def drain(self) -> None:
        self.calls.append("drain")
        for finished in self._finished:
            finished.settle()


MODEL = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
BATCHES = [torch.randn(n, 5, 3, generator=torch.Generator().manual_seed(n)) for n in (4, 4, 3)]


@pytest.fixture(params=["cpu", "simulated"])
def device(request: pytest.FixtureRequest) -> Iterator[AnyDevice]:
    found: AnyDevice = (
        SynchronousDevice(torch.device("cpu"))
        if request.param == "cpu"
        else SimulatedDevice(Schedule("late"))
    )
    with running_on(found):
        yield found


def run(consumer: Any, batches: Any = BATCHES, **options: Any) -> list[fastcap.BatchRecords]:
    return list(fastcap.stream(MODEL, batches, ["0", "2"], consumer=consumer, **options))


def expected(site: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([MODEL[: site + 1](batch).flatten(0, 1) for batch in BATCHES]).double()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_statistics_of_all_passes(device: AnyDevice, prefetch: int) -> None:
    statistics = MeanAndVariance()
    handed_out = run(statistics, prefetch=prefetch, staging_bytes=1024, pinned_bytes=2048)
    assert [len(records) for records in handed_out] == [0, 0, 0]
    assert statistics.n_rows == {"0": 55, "2": 55}
    for site in (0, 2):
        rows = expected(site)
        torch.testing.assert_close(statistics.mean[str(site)], rows.mean(dim=0))
        found = statistics.variance(str(site))
        torch.testing.assert_close(found, rows.var(dim=0, correction=0))


def test_methods_are_called_in_the_order_described(device: AnyDevice) -> None:
    journal = Journal()
    run(journal, BATCHES[:2])
    one = [
        "begin 4",
        "place 0 (4, 5, 4) torch.float32 None",
        "place 2 (4, 5, 2) torch.float32 None",
        "end ['0', '2']",
    ]
    assert journal.calls == [*one, *one, "drain"]


def test_rows_go_where_place_says(device: AnyDevice) -> None:
    journal = Journal(n_rows=2)
    run(journal)
    with torch.no_grad():
        wanted = [MODEL[:stop](batch)[:2] for batch in BATCHES for stop in (1, 3)]
    assert all(map(torch.equal, journal.found, wanted))
    assert len(journal.found) == len(wanted)


def test_what_was_captured_before_an_error_is_drained() -> None:
    journal = Journal()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run(journal, [BATCHES[0], torch.zeros(2, 9)])
    assert journal.calls[-2:] == ["begin 2", "drain"]
    assert journal.calls.count("end ['0', '2']") == 1


def test_a_stream_that_is_closed_early_drains_nothing() -> None:
    journal = Journal()
    with fastcap.stream(MODEL, BATCHES, ["0"], consumer=journal) as records:
        next(records)
    assert list(records) == []
    assert "drain" not in journal.calls


def test_an_end_is_drained_once() -> None:
    journal = Journal()
    records = fastcap.stream(MODEL, BATCHES, ["0"], consumer=journal)
    assert len(list(records)) == 3
    assert list(records) == []
    assert journal.calls.count("drain") == 1


@pytest.mark.parametrize("options", [{"calls": "all"}, {"zero_copy": True}])
def test_options_of_a_loop_are_refused(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ArgumentError) as refused:
        run(Journal(), **options)
    assert str(refused.value) == (
        f"{name}={value!r} is for a loop over the stream's records, and consumer= receives what "
        "they would hold. Leave one of them out."
    )


def test_a_class_is_not_a_consumer() -> None:
    with pytest.raises(ArgumentTypeError) as refused:
        run(Journal)
    assert str(refused.value) == (
        "consumer must be an instance of a subclass of fastcap.Consumer; got <class "
        "'tests.test_consumers.Journal'>."
    )
