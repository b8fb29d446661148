"""Inputs: what a module receives, before its forward runs, equal to the oracle's."""

from __future__ import annotations

import copy
import gc
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import ActivationStore, FastcapWarning
from fastcap.devices.base import AnyDevice
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.datasets import expected, make_ids, make_samples
from tests.support.models import HiddenOutput, LanguageModel, TupleBlock, hooks_on
from tests.support.runs import running_on

IDS = make_ids(3)


class Takes(nn.Module):
    """Takes arguments in every way, and returns the first."""

    def forward(self, acts: Any, /, mask: Any = None, *rest: Any, scale: Any = None) -> Any:
        return mask if acts is None else acts


class Calls(nn.Module):
    """Calls `takes` as it is told, with tensors made of its own input."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.takes = Takes()
        self.call = call

    def forward(self, acts: Tensor) -> Any:
        return self.call(self.takes, acts)


ACTS = torch.arange(24.0).view(2, 3, 4)
CAPTURED: dict[str, tuple[Callable[[nn.Module, Tensor], Any], dict[str, float]]] = {
    "by position": (
        lambda takes, x: takes(x, x + 1, x + 2, scale=x + 3),
        {
            "takes:input": 0,
            "takes:input[0]": 0,
            "takes:input.acts": 0,
            "takes:input[1]": 1,
            "takes:input.mask": 1,
            "takes:input[mask]": 1,
            "takes:input[2]": 2,
            "takes:input.scale": 3,
        },
    ),
    "by keyword": (
        lambda takes, x: takes(x, mask=x + 1),
        {"takes:input": 0, "takes:input.mask": 1},
    ),
    "nested": (
        lambda takes, x: takes((x, [x + 1]), {"a": x + 2, "0": x + 3}, scale=HiddenOutput(x + 4)),
        {
            "takes:input[0][0]": 0,
            "takes:input.acts[1][0]": 1,
            "takes:input[1][a]": 2,
            "takes:input.mask[0]": 3,
            "takes:input.scale.last_hidden_state": 4,
        },
    ),
}


@pytest.mark.parametrize("way", CAPTURED)
def test_an_argument_is_found_by_position_and_by_name(way: str) -> None:
    call, plus = CAPTURED[way]
    model = Calls(call)
    with ActivationStore(model, plus) as store, ReferenceStore(model, plus) as oracle:
        model(ACTS)

    assert list(store.activations) == list(plus)
    assert all(torch.equal(store.activations[site], ACTS + plus[site]) for site in plus)
    assert differences(oracle.activations, store.activations) == []


class OnlyKeywords(nn.Module):
    """Takes keywords, the first of which is not a tensor."""

    def forward(self, **kwargs: Any) -> Any:
        return kwargs["second"]


def test_without_positional_arguments_the_input_is_the_first_tensor_keyword() -> None:
    model = OnlyKeywords()
    sites = [":input", ":input.second", ":input.third"]
    with ActivationStore(model, sites) as store, ReferenceStore(model, sites) as oracle:
        model(first="words", second=ACTS, third=ACTS + 1)

    assert torch.equal(store.activations[":input"], ACTS)
    assert differences(oracle.activations, store.activations) == []


class ChangesItsInput(nn.Module):
    """Overwrites what it was given."""

    def forward(self, acts: Tensor) -> Tensor:
        return acts.mul_(0)


def test_what_the_module_does_to_its_input_in_place_does_not_show() -> None:
    model = nn.Sequential(nn.Identity(), ChangesItsInput())
    sites = ["1:input", "1"]
    with ActivationStore(model, sites) as store, ReferenceStore(model, sites) as oracle:
        model(ACTS.clone())

    assert torch.equal(store.activations["1:input"], ACTS)
    assert differences(oracle.activations, store.activations) == []


def devices() -> list[Any]:
    kinds = [*EXTREMES, "random"]
    return [None, *(pytest.param(Schedule(kind, seed=3), id=kind) for kind in kinds)]


@pytest.mark.parametrize("schedule", devices())
def test_inputs_equal_the_oracle_under_every_schedule(schedule: Schedule | None) -> None:
    device: AnyDevice | None = None if schedule is None else SimulatedDevice(schedule)
    model = nn.Sequential(nn.Embedding(32, 8), nn.Linear(8, 8), ChangesItsInput(), nn.ReLU())
    sites = ["*:input", "*", ":input", "re:^[123]$:input[0]"]
    names = [
        *(f"{i}:input" for i in range(4)),
        *map(str, range(4)),
        ":input",
        *(f"{i}:input[0]" for i in (1, 2, 3)),
    ]
    with (
        running_on(device),
        torch.no_grad(),
        ActivationStore(model, sites, pinned_bytes=4096) as store,
        ReferenceStore(model, names) as oracle,
    ):
        for seed in range(4):
            model(make_ids(5, seed=seed))
        assert differences(oracle.activations, store.activations) == []


@pytest.mark.parametrize("kind", [None, "early", "late", "random"])
@pytest.mark.parametrize(
    "selection", [{"positions": -1}, {"positions": [0, 2], "dtype": torch.float16}]
)
def test_streams_and_selections_of_inputs_equal_the_oracle(
    kind: str | None, selection: dict[str, Any]
) -> None:
    model, samples = LanguageModel(), make_samples(7)
    names = ["layers.0:input", "layers.1:input", "layers.1.mlp:input.acts", "norm:input"]
    want = expected(model, samples, names, 3, selection=make_selection(**selection))
    device = None if kind is None else SimulatedDevice(Schedule(kind, seed=4))
    with running_on(device):
        found = fastcap.extract_representations(
            model, samples, ["layers.*:input", *names[2:]], "cpu", 3, **selection
        )
    assert differences(want, found) == []


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_the_last_call_of_a_shared_module_wins() -> None:
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, nn.ReLU(), linear)
    with ActivationStore(model, ["0:input"]) as store, ReferenceStore(model, ["1"]) as oracle:
        model(ACTS)

    assert differences({"0:input": oracle.activations["1"]}, store.activations) == []


def test_what_earlier_hooks_made_of_the_input_is_what_is_captured() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    with ActivationStore(model, ["0:input"]) as store, ReferenceStore(model, ["0:input"]) as oracle:
        model(ACTS)

    assert torch.equal(store.activations["0:input"], ACTS + 1)
    assert differences(oracle.activations, store.activations) == []


def test_an_input_is_kept_when_the_module_then_fails() -> None:
    class Fails(nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            raise RuntimeError("planned")

    model = Fails()
    with ActivationStore(model, [":input", ""]) as store, pytest.raises(RuntimeError):
        model(ACTS)
    assert list(store.activations) == [":input"]


def test_only_sites_of_inputs_have_hooks_before_the_forward_and_all_leave() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm", "layers.*:input.acts"]):
        before = {
            name for name, module in model.named_modules() if name and module._forward_pre_hooks
        }
        after = {name for name, module in model.named_modules() if name and module._forward_hooks}
        copied = copy.deepcopy(model)
        store = ActivationStore(copied, ["norm:input"])
    assert (before, after) == ({"layers.0", "layers.1"}, {"norm"})
    assert hooks_on(model) == 0
    store.enable()
    del store
    gc.collect()
    assert not copied.norm._forward_pre_hooks


def test_random_models_give_equal_inputs() -> None:
    for seed in range(8):
        draw = random.Random(seed)
        model = LanguageModel(n_layers=draw.randint(1, 3), block=TupleBlock, seed=seed)
        inner = [name for name, module in model.named_modules() if name != "layers"]
        names = [f"{name}:input" for name in draw.sample(inner, 5)]
        with ActivationStore(model, names) as store, ReferenceStore(model, names) as oracle:
            model(make_ids(draw.randint(1, 4), seed=seed))
        assert differences(oracle.activations, store.activations) == []


def test_inputs_of_compiled_models_are_captured_through_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled: Any = torch.compile(model, backend="eager")
    compiled(ACTS)
    [records] = fastcap.stream(compiled, [ACTS], ["*:input"])
    with ReferenceStore(model, ["0:input", "1:input"]) as oracle, torch.no_grad():
        model(ACTS)
    assert differences(oracle.activations, dict(records)) == []


# What is said


def said_by(call: Callable[[nn.Module, Tensor], Any], site: str) -> str:
    model = nn.Sequential(shared := Calls(call), shared)  # said once, though called twice
    with ActivationStore(model, [f"0.{site}"]) as store, pytest.warns(FastcapWarning) as said:
        model(ACTS)
    assert store.activations == {}
    [warning] = said
    return str(warning.message).replace("'0.", "'")


def test_a_first_argument_that_is_no_tensor_is_reported_with_those_that_are() -> None:
    assert said_by(lambda takes, x: takes(None, (x, 1), scale=x)[0], "takes:input") == (
        "Nothing is captured at site 'takes:input': its forward was called with (NoneType, tuple, "
        "scale=Tensor), its first argument is not a tensor. Ask for a part: "
        "'takes:input[1][0]', 'takes:input.scale'."
    )


@pytest.mark.parametrize("part", ["input.masc", "input[7]", "input.mask", "input[0][1][2][3][9]"])
def test_an_argument_that_was_not_given_is_reported_with_those_that_were(part: str) -> None:
    assert said_by(lambda takes, x: takes(x, scale=x), f"takes:{part}") == (
        f"Nothing is captured at site 'takes:{part}': its forward was called with (Tensor, "
        f"scale=Tensor), which has no tensor at {part!r}. Ask for a part: 'takes:input[0]', "
        "'takes:input.scale'."
    )


def test_a_call_without_tensors_is_reported_with_another_way() -> None:
    assert said_by(lambda takes, x: takes(1) and x, "takes:input") == (
        "Nothing is captured at site 'takes:input': its forward was called with (int), its first "
        "argument is not a tensor. Capture a submodule."
    )
