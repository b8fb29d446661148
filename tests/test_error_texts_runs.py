"""What reaches the caller when a run fails or looks wrong, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest
import torch

from fastcap import ActivationStore, stream
from fastcap import extract_representations as extract
from fastcap.devices import substitute
from fastcap.devices.simulated import SimulatedDevice
from fastcap.errors import (
    DeviceError,
    DeviceMemoryError,
    HostMemoryError,
    ResultTooLargeError,
)
from fastcap.reference import differences
from tests.support.datasets import TokenStream, expected, make_ids, make_samples
from tests.support.errors import message_of
from tests.support.models import (
    CountsTrainCalls,
    FailsAt,
    LanguageModel,
    hooks_on,
    training_flags,
)

SAMPLES = make_samples(7)


# The caller's own errors


@pytest.mark.parametrize("at_pass", [0, 1, 2])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shape"),
        KeyError("absent"),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
    ids=repr,
)
def test_whatever_a_pass_raises_arrives_as_the_same_object_and_the_model_is_as_before(
    error: BaseException, at_pass: int
) -> None:
    model = FailsAt(error, at_pass)
    model.after.eval()
    before = training_flags(model)

    with pytest.raises(type(error)) as caught:
        extract(model, SAMPLES, ["before", "after"], "cpu", 3, positions=-1)

    assert caught.value is error
    assert hooks_on(model) == 0
    assert training_flags(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("at_pass", [0, 1, 2])
@pytest.mark.parametrize("run", ["extract", "stream"])
def test_a_stop_iteration_in_a_pass_does_not_pass_for_the_end_of_the_data(
    run: str, at_pass: int
) -> None:
    model = FailsAt(StopIteration("from the model"), at_pass)
    batches = [make_ids(2, seed=seed) for seed in range(3)]
    calls: dict[str, Callable[[], object]] = {
        "extract": lambda: extract(
            model, SAMPLES, ["before"], "cpu", 3, stop_after_last_site=False
        ),
        "stream": lambda: list(stream(model, batches, ["before"], stop_after_last_site=False)),
    }

    # An iterator cannot raise it as it is; what a generator does instead is a RuntimeError.
    with pytest.raises((StopIteration, RuntimeError)) as caught:
        calls[run]()

    assert model.error in (caught.value, caught.value.__cause__)
    assert (hooks_on(model), model.training) == (0, True)


def test_an_interrupt_lets_overridden_train_methods_run() -> None:
    model = CountsTrainCalls()
    model.train_calls.clear()

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    model.norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract(model, SAMPLES, ["layers.0"], "cpu", 3)

    assert model.train_calls == [False, True]
    assert not model.is_merged


def test_the_next_run_after_an_interrupt_is_exact() -> None:
    model = FailsAt(KeyboardInterrupt(), at_pass=1)
    with pytest.raises(KeyboardInterrupt):
        extract(model, SAMPLES, ["before", "after"], "cpu", 3)

    found = extract(model, SAMPLES, ["before", "after"], "cpu", 3)
    assert differences(expected(model, SAMPLES, ["before", "after"], 3), found) == []


# Memory


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 bytes are available, and a row of seven needs 320."""
    monkeypatch.setattr("fastcap.consumers.memory.available_bytes", lambda: 1000)


class CountsPasses(LanguageModel):
    """Counts its passes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_passes = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> torch.Tensor:
        self.n_passes += 1
        return super().forward(input_ids, attention_mask)


@pytest.mark.usefixtures("little_memory")
def test_a_result_that_cannot_fit_is_refused_after_one_pass_with_figures_and_ways_out() -> None:
    model = CountsPasses()

    message = message_of(
        ResultTooLargeError, lambda: extract(model, SAMPLES, ["norm", "layers.0"], "cpu", 1)
    )

    assert message == (
        "The result needs 4.48 kB (samples: 7, sites: 2), and 1 kB of memory is available. Select "
        "less (positions=, reduce=), narrow it (dtype=torch.float16), ask for fewer sites or "
        "max_samples=1, or receive it batch by batch with fastcap.stream(). To try anyway: "
        "check_memory=False."
    )
    assert model.n_passes == 1
    assert (hooks_on(model), model.training) == (0, True)


@pytest.mark.usefixtures("little_memory")
def test_every_way_out_of_a_result_that_cannot_fit_works() -> None:
    model = LanguageModel()
    with pytest.raises(MemoryError, match="max_samples=3,"):
        extract(model, SAMPLES, ["norm"], "cpu", 1)

    ways: list[dict[str, Any]] = [
        {"positions": -1},
        {"reduce": lambda acts: acts.mean(dim=1)},
        {"max_samples": 3},
        {"check_memory": False},
    ]
    for options in ways:
        assert "norm" in extract(model, SAMPLES, ["norm"], "cpu", 1, **options)
    narrow = extract(model, SAMPLES[:6], ["norm"], "cpu", 1, dtype=torch.float16)
    assert narrow["norm"].nbytes == 960
    assert len(list(stream(model, [SAMPLES[0]["input_ids"][None]] * 9, ["norm"]))) == 9


@pytest.mark.usefixtures("little_memory")
def test_a_data_set_without_a_length_is_refused_when_its_rows_no_longer_fit() -> None:
    model = CountsPasses()

    message = message_of(
        ResultTooLargeError, lambda: extract(model, TokenStream(7), ["norm"], "cpu", 1)
    )

    assert message.startswith("The result needs ")
    assert "1 kB of memory is available" in message
    assert model.n_passes == 3  # three rows fit
    assert hooks_on(model) == 0


def test_memory_that_the_system_refuses_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr("fastcap.host_memory.np.empty", refuse)

    assert message_of(
        HostMemoryError, lambda: extract(LanguageModel(), SAMPLES, ["norm"], "cpu")
    ) == (
        "Cannot allocate 2.24 kB of host memory. Select fewer positions or sites, narrow with "
        "dtype=, or lower max_samples."
    )


@pytest.fixture
def tiny_device() -> Iterator[SimulatedDevice]:
    """An accelerator with one kilobyte left."""
    device = SimulatedDevice(device_capacity_bytes=1000)
    with substitute(lambda torch_device: device):
        yield device


def test_staging_that_does_not_fit_is_said_at_get_and_not_in_the_forward(
    tiny_device: SimulatedDevice,
) -> None:
    model = LanguageModel()
    plain = model(make_ids(3))
    with ActivationStore(model, ["norm"], staging_bytes=1 << 20) as store:
        assert torch.equal(model(make_ids(3)), plain)

        message = message_of(DeviceMemoryError, lambda: store.get("norm"))

    assert message == (
        "Staging does not fit on cpu, not even 524 kB of it. Free some memory there, use smaller "
        "batches, or pass a smaller staging_bytes=."
    )
    assert tiny_device.counters.staging_bytes == 0


def test_staging_that_does_not_fit_fails_an_extraction_and_cleans_up(
    tiny_device: SimulatedDevice,
) -> None:
    model = LanguageModel()

    message = message_of(
        DeviceMemoryError, lambda: extract(model, SAMPLES, ["norm"], "cpu", staging_bytes=1 << 20)
    )

    assert message.startswith("Staging does not fit on cpu")
    assert (hooks_on(model), model.training) == (0, True)
    assert tiny_device.counters.staging_bytes == 0


def test_capturing_while_a_graph_is_recorded_is_refused() -> None:
    device = SimulatedDevice()
    device.capturing = True
    model = LanguageModel()
    with substitute(lambda torch_device: device), ActivationStore(model, ["norm"]):
        message = message_of(DeviceError, lambda: model(make_ids(3)))

    assert message == (
        "A CUDA graph is being captured, and fastcap cannot capture activations inside one: a "
        "replay runs no hooks. Disable the store around the graph's capture."
    )
