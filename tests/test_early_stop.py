"""Passes that end once every wanted site has fired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import FastcapWarning, reference
from fastcap.errors import ArgumentError, ArgumentTypeError
from tests.support.errors import message_of
from tests.support.runs import call_model, must_equal

N_LAYERS = 12
MIDDLE = f"layers.{N_LAYERS // 2 - 1}"


class Deep(nn.Module):
    """Layers in a row, which count how often they run."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(N_LAYERS))
        self.n_calls = [0] * N_LAYERS

    def forward(self, input_ids: Tensor) -> Tensor:
        acts: Tensor = self.embedding(input_ids)
        for number, layer in enumerate(self.layers):
            self.n_calls[number] += 1
            acts = layer(acts)
        return acts


def batches(n_batches: int = 5) -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.tensor([[i, i + 1], [i + 2, 3]])} for i in range(n_batches)]


def run(model: nn.Module, sites: list[str], **options: Any) -> list[dict[str, Tensor]]:
    """Stream, and compare with passes that run to their end."""
    expected = list(reference.stream(model, batches(), sites, call_model))
    if isinstance(model, Deep):
        model.n_calls = [0] * N_LAYERS
    found = [dict(records) for records in fastcap.stream(model, batches(), sites, **options)]
    for want, got in zip(expected, found, strict=True):
        must_equal(want, got)
    return found


def test_passes_end_after_the_last_site_once_one_ran_whole() -> None:
    model = Deep()
    run(model, ["layers.1", MIDDLE], stop_after_last_site=True)
    assert model.n_calls == [5] * 6 + [1] * 6


def test_the_first_pass_ends_too_where_every_site_is_said_to_fire_once() -> None:
    model = Deep()
    run(model, [MIDDLE, "layers.1"], stop_after_last_site="once")
    assert model.n_calls == [5] * 6 + [0] * 6


def test_a_site_that_fires_twice_is_an_error_where_it_was_said_to_fire_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Identity())
    assert message_of(
        ArgumentError,
        lambda: list(
            fastcap.stream(model, [torch.ones(1, 4)], ["0", "3"], stop_after_last_site="once")
        ),
    ).startswith("stop_after_last_site='once': site '0' has fired twice in a pass. Pass ")


def test_a_pass_in_which_a_site_never_fires_runs_whole_where_each_is_said_to_fire_once() -> None:
    model = Deep()
    model.register_module("spare", nn.Linear(4, 4))
    stream = fastcap.stream(model, batches(), [MIDDLE, "spare"], stop_after_last_site="once")
    with pytest.warns(FastcapWarning, match="spare"):
        found = [dict(records) for records in stream]
    assert model.n_calls == [5] * N_LAYERS
    assert [list(values) for values in found] == [[MIDDLE]] * 5


def test_passes_run_whole_by_default() -> None:
    model = Deep()
    run(model, [MIDDLE])
    assert model.n_calls == [5] * N_LAYERS


def test_a_pass_ends_before_a_module_whose_input_was_wanted() -> None:
    model = Deep()
    run(model, ["layers.1", f"{MIDDLE}:input"], stop_after_last_site=True)
    assert model.n_calls == [5] * 6 + [1] * 6


def test_extraction_stops_too() -> None:
    model = Deep()
    dataset = [{"input_ids": torch.tensor([i, 2, 3])} for i in range(8)]
    whole = fastcap.extract_representations(
        model, dataset, [MIDDLE], "cpu", 2, stop_after_last_site=False
    )
    model.n_calls = [0] * N_LAYERS
    acts = fastcap.extract_representations(
        model, dataset, [MIDDLE], "cpu", 2, stop_after_last_site=True
    )
    must_equal(whole, acts)
    assert model.n_calls == [4] * 6 + [1] * 6


# Where something could be missed


def test_a_pass_that_goes_another_way_runs_whole() -> None:
    class Turns(Deep):
        """Runs its layers backwards from the fourth pass on."""

        n_passes = 0

        def forward(self, input_ids: Tensor) -> Tensor:
            self.n_passes += 1
            acts: Tensor = self.embedding(input_ids)
            for layer in list(self.layers)[:: 1 if self.n_passes < 4 else -1]:
                acts = layer(acts)
            return acts

    def make() -> Turns:
        torch.manual_seed(0)
        return Turns()

    sites = ["layers.2", "layers.4"]
    expected = list(reference.stream(make(), batches(), sites, call_model))
    found = fastcap.stream(make(), batches(), sites, stop_after_last_site=True)
    for want, got in zip(expected, found, strict=True):
        must_equal(want, dict(got))


class Shared(nn.Module):
    """One layer, called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = (
            nn.Embedding(10, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )
        self.n_heads_run = 0

    def forward(self, input_ids: Tensor) -> Tensor:
        acts: Tensor = self.embedding(input_ids)
        for _ in range(3):
            acts = self.layer(acts)
        self.n_heads_run += 1
        result: Tensor = self.head(acts)
        return result


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_a_site_that_fires_several_times_stops_the_pass_at_the_last() -> None:
    model = Shared()
    expected = list(reference.stream(model, batches(), ["layer"], call_model))
    model.n_heads_run = 0
    found = fastcap.stream(model, batches(), ["layer"], stop_after_last_site=True)
    for want, got in zip(expected, found, strict=True):
        must_equal(want, dict(got))
    assert model.n_heads_run == 1


def test_hooks_of_others_before_the_stop_see_what_they_saw_before() -> None:
    model = Deep()
    whole: list[Tensor] = []
    seen: list[Tensor] = []
    for into, stop in ((whole, False), (seen, True)):
        handles = [
            layer.register_forward_hook(lambda _, args, out, into=into: into.append(out.clone()))
            for layer in model.layers[:6]
        ]
        list(fastcap.stream(model, batches(), [MIDDLE], stop_after_last_site=stop))
        for handle in handles:
            handle.remove()
    assert len(seen) == len(whole) == 30
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))


def test_hooks_that_are_always_called_stay_balanced() -> None:
    model, depth = Deep(), []
    model.register_forward_pre_hook(lambda *_: depth.append("in"))
    model.register_forward_hook(lambda *_: depth.append("out"), always_call=True)
    list(fastcap.stream(model, batches(), [MIDDLE], stop_after_last_site=True))
    assert depth == ["in", "out"] * 5


def test_a_site_that_never_fires_keeps_passes_whole() -> None:
    model = Deep()
    model.add_module("unused", nn.Linear(2, 2))
    with pytest.warns(FastcapWarning, match="'unused'"):
        list(fastcap.stream(model, batches(), [MIDDLE, "unused"], stop_after_last_site=True))
    assert model.n_calls == [5] * N_LAYERS


# Models that handle exceptions


class Catches(Deep):
    """Catches what its layers raise."""

    def __init__(self, handle: Callable[[Exception], None]) -> None:
        super().__init__()
        self.handle = handle

    def forward(self, input_ids: Tensor) -> Tensor:
        try:
            return super().forward(input_ids)
        except Exception as error:  # noqa: BLE001 - as some models do
            self.handle(error)
            return torch.zeros(1)


def test_a_swallowed_stop_is_noticed_and_said() -> None:
    model = Catches(lambda error: None)
    with pytest.warns(FastcapWarning, match="caught the exception") as said:
        run(model, [MIDDLE], stop_after_last_site=True)
    assert said[0].filename == __file__
    assert len(said) == 1
    assert model.n_calls == [5] * 6 + [4] * 6


def wrap(error: Exception) -> None:
    raise RuntimeError("inside the model") from error


def wrap_another(error: Exception) -> None:
    raise RuntimeError("inside the model") from ValueError("of its own")


def wrap_itself(error: Exception) -> None:
    wrapped = RuntimeError("inside the model")
    raise wrapped from wrapped


@pytest.mark.parametrize("handle", [wrap, wrap_another, wrap_itself])
def test_a_stop_that_the_model_raises_as_something_else_is_a_stop(
    handle: Callable[[Exception], None],
) -> None:
    run(Catches(handle), [MIDDLE], stop_after_last_site=True)


class FallsBack(nn.Module):
    """Runs its layer again, on something else, when anything raises."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.last = (
            nn.Embedding(10, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        acts = self.embedding(input_ids)
        try:
            result: Tensor = self.last(self.first(acts))
        except Exception:  # noqa: BLE001 - as some models do
            result = self.last(self.first(acts * 0))
        return result


@pytest.mark.parametrize("calls", ["last", "all"])
def test_what_a_model_does_after_it_swallowed_the_stop_is_of_no_pass(calls: str) -> None:
    model = FallsBack()
    expected = list(reference.stream(model, batches(), ["first"], call_model))
    with pytest.warns(FastcapWarning, match="caught the exception"):
        found = list(
            fastcap.stream(model, batches(), ["first"], calls=calls, stop_after_last_site=True)
        )
    for want, got in zip(expected, found, strict=True):
        must_equal(want, dict(got))
        assert len(got.calls("first")) == 1


def test_an_error_of_the_model_is_raised_unchanged() -> None:
    model = Deep()
    planned = ValueError("from a layer")

    def fail(*_: object) -> None:
        if model.n_calls[0] > 3:
            raise planned

    model.layers[2].register_forward_hook(fail)
    with pytest.raises(ValueError, match="from a layer") as caught:
        list(fastcap.stream(model, batches(), [MIDDLE], stop_after_last_site=True))
    assert caught.value is planned


# Models that must run to their end


class FullyShardedDataParallel(nn.Sequential):
    """Named as the wrapper is, and nothing else."""


def sharded() -> nn.Module:
    return nn.Sequential(FullyShardedDataParallel(nn.Linear(4, 4)))


def offloaded() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0]._hf_hook = object()  # type: ignore[assignment]
    return model


def compiled() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    model.compile(backend="eager")
    return model


REFUSED = {
    "FSDP": (sharded, "module '0' is sharded by FSDP, which has to finish what it gathered."),
    "accelerate": (
        offloaded,
        "module '0' has hooks of accelerate, which move weights after each call.",
    ),
    "compile": (compiled, "the model is compiled, and compiled graphs cannot be left half-way."),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_must_run_to_its_end_is_refused_with_the_reason(kind: str) -> None:
    make, reason = REFUSED[kind]
    message = message_of(
        ArgumentError,
        lambda: fastcap.stream(make(), [torch.ones(1, 4)], ["0"], stop_after_last_site=True),
    )
    assert message == f"stop_after_last_site=True: {reason} Leave stop_after_last_site out."
    [records] = fastcap.stream(make(), [torch.ones(1, 4)], ["0"])
    assert records["0"].shape == (1, 4)


def test_anything_but_true_and_false_is_refused() -> None:
    assert message_of(
        ArgumentTypeError,
        lambda: fastcap.stream(Deep(), batches(), [MIDDLE], stop_after_last_site="yes"),  # type: ignore[arg-type]
    ) == ("stop_after_last_site must be True, False or 'once'; got 'yes'.")
