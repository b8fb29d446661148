"""`out=`: results in the caller's memory, ordinary or pinned."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.consumers.out import check_out
from fastcap.devices import substitute
from fastcap.devices.base import AnyDevice
from fastcap.devices.cpu import SynchronousDevice
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.engine import Engine
from fastcap.errors import ArgumentError, ArgumentTypeError, ResultError
from fastcap.reference import differences
from fastcap.transfer.base import Transfer
from tests.support.runs import Endless, running_on

WIDTH, N_TOKENS, N_SAMPLES = 16, 6, 11
SITES = ["0", "1", "3"]
BUDGETS = {"staging_bytes": 4096, "pinned_bytes": 8192}


def make_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Embedding(50, WIDTH),
        nn.Linear(WIDTH, WIDTH),
        nn.ReLU(inplace=True),  # the captured value changes afterwards
        nn.Linear(WIDTH, WIDTH),
    )


def make_dataset(n_samples: int = N_SAMPLES) -> list[dict[str, Tensor]]:
    ids = torch.randint(0, 50, (n_samples, N_TOKENS), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row} for row in ids]


def extract(dataset: Any = None, **options: Any) -> dict[str, Tensor]:
    dataset = make_dataset() if dataset is None else dataset
    return fastcap.extract_representations(make_model(), dataset, SITES, "cpu", 3, **options)


def memory_like(values: dict[str, Tensor], n_spare: int = 0) -> dict[str, Tensor]:
    return {
        site: torch.full((len(value) + n_spare, *value.shape[1:]), 7, dtype=value.dtype)
        for site, value in values.items()
    }


def test_results_are_written_into_what_was_given() -> None:
    expected = extract()
    out = memory_like(expected)
    found = extract(out=out)
    assert list(found) == SITES
    assert all(found[site] is out[site] for site in SITES)
    assert differences(expected, found) == []


def test_the_same_memory_serves_run_after_run() -> None:
    out = memory_like(extract())
    extract(out=out)
    dataset = make_dataset(N_SAMPLES)[::-1]
    assert differences(extract(dataset), extract(dataset, out=out)) == []


@pytest.mark.parametrize(
    "options",
    [
        {"positions": -1},
        {"positions": slice(1, 3)},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64},
        {"max_samples": 7},
        {"stop_after_last_site": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("says_length", [True, False])
def test_selections_and_lengths(options: dict[str, Any], says_length: bool) -> None:
    dataset = make_dataset() if says_length else Endless(make_dataset())
    expected = extract(make_dataset(), **options)
    out = memory_like(expected)
    assert differences(expected, extract(dataset, out=out, **options)) == []


def test_rows_to_spare_stay_as_they_were() -> None:
    expected = extract()
    out = memory_like(expected, n_spare=2)
    found = extract(out=out)
    assert differences(expected, found) == []
    for site in SITES:
        assert found[site].data_ptr() == out[site].data_ptr()
        assert out[site][N_SAMPLES:].eq(7).all()


def test_a_site_that_never_fires_is_left_out() -> None:
    model = make_model()
    model.register_module("unused", nn.Linear(2, 2))
    model.forward = lambda ids: model[1](model[0](ids))  # type: ignore[method-assign]
    out = {"1": torch.zeros(N_SAMPLES, N_TOKENS, WIDTH), "unused": torch.zeros(N_SAMPLES, 2)}
    with pytest.warns(fastcap.FastcapWarning, match="unused"):
        found = fastcap.extract_representations(
            model, make_dataset(), ["1", "unused"], "cpu", 3, out=out
        )
    assert list(found) == ["1"]
    assert out["unused"].eq(0).all()


def test_rows_for_a_site_that_never_fires_end_no_run() -> None:
    model = make_model()
    model.register_module("unused", nn.Linear(2, 2))
    model.forward = lambda ids: model[1](model[0](ids))  # type: ignore[method-assign]
    out = {"1": torch.zeros(N_SAMPLES, N_TOKENS, WIDTH), "unused": torch.zeros(3, 2)}
    with pytest.warns(fastcap.FastcapWarning, match="unused"):
        found = fastcap.extract_representations(
            model, Endless(make_dataset()), ["1", "unused"], "cpu", 3, out=out
        )
    assert len(found["1"]) == N_SAMPLES


# Pinned


@pytest.mark.parametrize("kind", ["random", *EXTREMES])
@pytest.mark.parametrize("seed", range(4))
def test_pinned_rows_are_copied_to_without_a_slot(kind: str, seed: int) -> None:
    expected = extract()
    device = SimulatedDevice(Schedule(kind, seed), patience=20_000)
    out = memory_like(expected)
    for rows in out.values():
        device.pin(rows)
    with running_on(device):
        found = extract(out=out, **BUDGETS)
    assert differences(expected, found) == []
    n_passes = -(-N_SAMPLES // 3)
    assert device.counters.copies >= n_passes * len(SITES)
    assert device.counters.copied_bytes == sum(value.nbytes for value in expected.values())
    assert device.counters.pinned_bytes == 0
    assert device.judge.violations == []


def test_small_records_for_pinned_rows_share_copies() -> None:
    expected = extract(positions=-1)
    device = SimulatedDevice(Schedule("early", 0), patience=20_000)
    out = memory_like(expected)
    for rows in out.values():
        device.pin(rows)
    with running_on(device):
        found = extract(positions=-1, out=out, staging_bytes=1 << 20, pinned_bytes=1 << 20)
    assert differences(expected, found) == []
    assert device.counters.copies == -(-N_SAMPLES // 3)


def test_only_the_sites_whose_rows_are_pinned_go_straight() -> None:
    expected = extract()
    device = SimulatedDevice(Schedule("random", 3), patience=20_000)
    out = memory_like(expected)
    device.pin(out["1"])
    with running_on(device):
        assert differences(expected, extract(out=out, **BUDGETS)) == []
    assert device.judge.violations == []


class Twice(nn.Module):
    """Calls one child twice or more; the calls give other dtypes."""

    def __init__(self, *dtypes: torch.dtype) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.dtypes = dtypes

    def forward(self, ids: Tensor) -> Tensor:
        for call, dtype in enumerate(self.dtypes):
            value: Tensor = self.child((ids.repeat(1, 400) + call).to(dtype))
        return value


@pytest.mark.filterwarnings("ignore:A pass calls these")
@pytest.mark.parametrize("memory", ["", "plain", "pinned"])
@pytest.mark.parametrize("staging_bytes", [1 << 15, 1 << 16])  # a chunk holds one call, or several
@pytest.mark.parametrize(
    "schedule",
    [*((kind, 0) for kind in EXTREMES), *(("random", seed) for seed in range(4))],
    ids=str,
)
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float32, torch.float32, torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_the_last_call_wins_whichever_way_each_goes(
    memory: str,
    staging_bytes: int,
    schedule: tuple[str, int],
    dtypes: tuple[torch.dtype, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fastcap.transfer.pool.MANY_RECORDS", 1)
    monkeypatch.setattr(
        "fastcap.transfer.pool.SMALL_BYTES", 15_000
    )  # between what the two calls copy
    model, dataset = Twice(*dtypes), make_dataset(4)
    device = SimulatedDevice(Schedule(*schedule), patience=20_000)
    expected = torch.stack([s["input_ids"] for s in dataset]).repeat(1, 400).float()
    expected += len(dtypes) - 1
    out = None if not memory else {"child": torch.zeros(4, 400 * N_TOKENS)}
    if out is not None and memory == "pinned":
        device.pin(out["child"])
    with running_on(device):
        found = extract_child(model, dataset, out, staging_bytes)
    assert differences({"child": expected}, found) == []


def extract_child(
    model: nn.Module, dataset: Any, out: dict[str, Tensor] | None, staging_bytes: int
) -> dict[str, Tensor]:
    return fastcap.extract_representations(
        model,
        dataset,
        ["child"],
        "cpu",
        2,
        dtype=torch.float32,
        out=out,
        staging_bytes=staging_bytes,
        pinned_bytes=1 << 16,
    )


class TwoDevices(nn.Module):
    """Calls one child once on each of two devices; on which is switched by hand."""

    def __init__(self, devices: list[AnyDevice]) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.devices = devices
        self.current = devices[0]

    def forward(self, ids: Tensor) -> Tensor:
        for call, device in enumerate(self.devices):
            self.current = device
            dtype = torch.float32 if call else torch.bfloat16  # the first is widened by the host
            value: Tensor = self.child((ids.repeat(1, 400) + call).to(dtype))
        return value


@contextmanager
def lanes_of(model: TwoDevices) -> Iterator[None]:
    """A transfer per device of the model, though all their values are on the CPU."""
    numbers = {device: torch.device("cpu", i) for i, device in enumerate(model.devices)}
    by_number = {number: device for device, number in numbers.items()}
    lane_on = Engine._transfer

    def transfer(engine: Engine, torch_device: torch.device) -> Transfer:
        return lane_on(engine, numbers[model.current])

    with pytest.MonkeyPatch.context() as patch, substitute(lambda where: by_number.get(where)):
        patch.setattr(Engine, "_transfer", transfer)
        yield


@pytest.mark.filterwarnings("ignore:A pass calls these")
@pytest.mark.parametrize("memory", ["", "plain", "pinned"])
@pytest.mark.parametrize(
    "kinds", ["late early", "late cpu", "cpu late", "late cpu late", "late late cpu"]
)
def test_the_last_call_wins_on_whichever_device_each_runs(memory: str, kinds: str) -> None:
    simulated = SimulatedDevice(Schedule("late", 0), patience=20_000)
    made: dict[str, AnyDevice] = {
        "late": simulated,
        "early": SimulatedDevice(Schedule("early", 0), patience=20_000),
        "cpu": SynchronousDevice(torch.device("cpu")),
    }
    model, dataset = TwoDevices([made[kind] for kind in kinds.split()]), make_dataset(4)
    expected = torch.stack([s["input_ids"] for s in dataset]).repeat(1, 400).float()
    expected += len(model.devices) - 1
    out = None if not memory else {"child": torch.zeros(4, 400 * N_TOKENS)}
    if out is not None and memory == "pinned":
        for device in model.devices:
            if isinstance(device, SimulatedDevice):
                device.pin(out["child"])
    with running_on(simulated), lanes_of(model):
        found = extract_child(model, dataset, out, staging_bytes=1 << 14)
    assert differences({"child": expected}, found) == []


def test_rows_that_are_pinned_are_written_at_once_by_values_on_the_cpu() -> None:
    simulated = SimulatedDevice(Schedule("late", 0), patience=20_000)
    model, dataset = TwoDevices([SynchronousDevice(torch.device("cpu"))]), make_dataset(4)
    out = {"child": torch.zeros(4, 400 * N_TOKENS)}
    simulated.pin(out["child"])
    before = {t.name for t in threading.enumerate()}
    with running_on(simulated), lanes_of(model):
        fastcap.extract_representations(
            model, dataset, ["child"], "cpu", 2, dtype=torch.float32, out=out
        )
    assert {t.name for t in threading.enumerate()} == before
    (device,) = model.devices
    assert device.counters.copies == 2
    assert device.counters.delivery_secs == 0  # no host worker had anything to do


# What is refused


def good() -> dict[str, Any]:
    return memory_like({site: torch.zeros(N_SAMPLES, N_TOKENS, WIDTH) for site in SITES})


def with_site(value: Any) -> dict[str, Any]:
    return {**good(), "1": value}


SHAPE = (N_SAMPLES, N_TOKENS, WIDTH)


def inference_tensor() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("out", "kind", "says"),
    [
        (lambda: [torch.zeros(SHAPE)], ArgumentTypeError, "out must be a mapping from site names"),
        (lambda: {"1": torch.zeros(SHAPE)}, ArgumentError, r"none for \['0', '3'\]"),
        (
            lambda: {**good(), "9": 1},
            ArgumentError,
            r"\['9'\] are not captured. The sites are: '0'",
        ),
        (lambda: with_site([1]), ArgumentTypeError, r"out\['1'\] must be a tensor; got list"),
        (lambda: with_site(torch.zeros(3, 6, 16)), ArgumentError, "3 rows, and there are 11"),
        (lambda: with_site(torch.zeros(())), ArgumentError, "has no dimension"),
        (lambda: with_site(torch.zeros(SHAPE).to_sparse()), ArgumentError, "is sparse"),
        (lambda: with_site(torch.zeros(6, 11, 16).mT), ArgumentError, "is not contiguous"),
        (lambda: with_site(torch.zeros(SHAPE, device="meta")), ArgumentError, "is on meta"),
        (lambda: with_site(torch.zeros(SHAPE).requires_grad_()), ArgumentError, "requires grad"),
        (lambda: with_site(inference_tensor()), ArgumentError, "made in inference mode"),
        (lambda: with_site(good()["0"].as_subclass(Odd)), ArgumentError, "is a Odd"),
        (lambda: with_site((torch.zeros(SHAPE) + 0j).conj()), ArgumentError, "conjugated or neg"),
        (lambda: with_site(torch._neg_view(torch.zeros(SHAPE))), ArgumentError, "negated view"),
        (lambda: dict.fromkeys(SITES, torch.zeros(SHAPE)), ArgumentError, "share memory"),
        (lambda: with_site(torch.zeros(11, 6, 17)), ResultError, r"rows of shape \(6, 17\)"),
        (
            lambda: with_site(torch.zeros(SHAPE, dtype=torch.float16)),
            ResultError,
            r"and the site gave \(6, 16\) in torch.float32. Give torch.empty\(\(n_samples, 6, 16\)",
        ),
    ],
)
def test_what_cannot_hold_the_result_is_refused(out: Any, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        extract(out=out())


class Odd(Tensor):
    """A subclass, which may mean anything by its values."""


def test_no_rows_at_all_are_answered_with_no_impossible_advice() -> None:
    out = {site: torch.zeros(0, N_TOKENS, WIDTH) for site in SITES}
    with pytest.raises(ArgumentError, match=r"0 rows, and there are 11 .* at least as many\.$"):
        extract(out=out)
    with pytest.raises(ResultError, match=r"0 rows, and the dataset .* Give it more rows\.$"):
        extract(Endless(make_dataset()), out=out)


def test_a_mapping_is_asked_once_for_each_tensor() -> None:
    made = []

    class Maker(dict[str, Tensor]):
        def __getitem__(self, site: str) -> Tensor:
            made.append(super().__getitem__(site).clone())
            return made[-1]

    found = extract(out=Maker(memory_like(extract())))
    assert [id(tensor) for tensor in found.values()] == [id(tensor) for tensor in made]


def test_a_dataset_that_turns_out_longer_is_an_error() -> None:
    out = {site: torch.zeros(7, N_TOKENS, WIDTH) for site in SITES}
    with pytest.raises(ResultError, match=r"out has 7 rows, and the dataset has given 9 samples"):
        extract(Endless(make_dataset()), out=out)


@pytest.mark.parametrize("memory", ["plain", "pinned", "on the CPU"])
def test_a_first_batch_that_is_too_long_is_an_error_before_anything_runs(memory: str) -> None:
    device = SimulatedDevice(Schedule("early", 0), patience=20_000)
    out = {site: torch.zeros(2, N_TOKENS, WIDTH) for site in SITES}
    for rows in out.values():
        if memory == "pinned":
            device.pin(rows)
    before = {site: rows.clone() for site, rows in out.items()}
    says = r"out has 2 rows, and the dataset has given 3 samples"
    with (
        running_on(None if memory == "on the CPU" else device),
        pytest.raises(ResultError, match=says),
    ):
        extract(Endless(make_dataset()), out=out, **BUDGETS)
    assert differences(before, out) == []


def test_nothing_is_written_after_an_error() -> None:
    device = SimulatedDevice(Schedule("late", 0), patience=20_000)
    out = {site: torch.zeros(20, N_TOKENS, WIDTH) for site in SITES}
    for rows in out.values():
        device.pin(rows)
    with running_on(device), pytest.raises(ZeroDivisionError):
        extract(Endless(make_dataset(), raises=ZeroDivisionError), out=out, **BUDGETS)
    before = {site: rows.clone() for site, rows in out.items()}
    with running_on(device):
        extract(**BUDGETS)
    assert differences(before, out) == []


@pytest.mark.parametrize("n_copies", range(1, 8))
def test_nothing_is_written_after_an_interrupt_between_copies(
    n_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedDevice(Schedule("late", 0), patience=20_000)
    out = {site: torch.zeros(20, N_TOKENS, WIDTH) for site in SITES}
    for rows in out.values():
        device.pin(rows)
    copy, left = device.copy, [n_copies]

    def interrupted(*args: Any, **options: Any) -> None:
        copy(*args, **options)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(device, "copy", interrupted)
    budgets = {"staging_bytes": 1 << 13, "pinned_bytes": 1 << 13}  # several copies of a chunk
    with running_on(device), pytest.raises(KeyboardInterrupt):
        extract(out=out, **budgets)
    before = {site: rows.clone() for site, rows in out.items()}
    with running_on(device):
        extract(**budgets)
    assert differences(before, out) == []
    assert device.judge.violations == []


def test_rows_that_nobody_may_share_may_lie_side_by_side() -> None:
    whole = torch.zeros(2, *SHAPE)
    assert list(check_out({"a": whole[0], "b": whole[1]}, ["a", "b"], 11)) == ["a", "b"]
