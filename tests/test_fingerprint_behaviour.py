"""What a model does beside what its modules and weights say is part of a run."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.fingerprint import describe_run, differences
from fastcap.spec import make_selection
from tests.support.datasets import make_samples
from tests.support.models import LanguageModel


class Adapted(nn.Module):
    """A layer with adapters, as peft's have them."""

    def __init__(self) -> None:
        super().__init__()
        self._active = ["default"]
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.scaling = {"default": 2.0}

    @property
    def active_adapters(self) -> list[str]:
        return self._active

    @property
    def disable_adapters(self) -> bool:
        return self._disable_adapters

    def forward(self, acts: Tensor) -> Tensor:
        return acts


class Model(LanguageModel):
    def __init__(self) -> None:
        super().__init__()
        self.adapted = Adapted()
        self.scale = 1.0
        self.is_causal = True
        self.mode = "plain"
        self.n_passes = 0
        self.seen: list[int] = []
        self.name_or_path = "/models/a"
        self.register_buffer("gate", torch.ones(2), persistent=False)


def run(model: nn.Module) -> dict[str, Any]:
    selection = make_selection(None, None, None, None)
    samples = make_samples(3)
    return describe_run(model, samples, ["norm"], selection, batch_size=2, n_samples=3)


def steer(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output + 1


def silence(module: nn.Module, args: Any) -> None:
    args[0].zero_()


class Steering:
    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * 2

    def add(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output + 2


def ablated(self: nn.Module, acts: Tensor) -> Tensor:
    return acts * 0


def replace(model: Any, forward: Any) -> None:
    model.norm.forward = forward


CHANGES: dict[str, Callable[[Any], object]] = {
    "float": lambda model: setattr(model, "scale", 2.0),
    "switch": lambda model: setattr(model.get_submodule("layers.0"), "is_causal", False),
    "text": lambda model: setattr(model, "mode", "other"),
    "texts": lambda model: setattr(model, "stages", ["a"]),
    "buffer": lambda model: model.gate.mul_(2),
    "adapters off": lambda model: setattr(model.adapted, "_disable_adapters", True),
    "other adapter": lambda model: setattr(model.adapted, "_active", ["other"]),
    "merged": lambda model: model.adapted.merged_adapters.append("default"),
    "scaling": lambda model: model.adapted.scaling.update(default=3.0),
    "forward": lambda model: replace(model, lambda acts: acts * 0),
    "method": lambda model: replace(model, ablated.__get__(model.norm)),
    "partial": lambda model: replace(model, functools.partial(steer, model.norm, None)),
    "hook": lambda model: model.norm.register_forward_hook(steer),
    "pre-hook": lambda model: model.norm.register_forward_pre_hook(silence),
    "hook that is an object": lambda model: model.norm.register_forward_hook(Steering()),
    "hook that is a method": lambda model: model.norm.register_forward_hook(Steering().add),
}


@pytest.mark.parametrize("name", CHANGES)
def test_it_is_another_run_and_the_difference_is_named(name: str) -> None:
    model = Model()
    before = run(model)
    CHANGES[name](model)
    after = run(model)
    assert after == run(copy.deepcopy(model)) == json.loads(json.dumps(after))
    assert " at 0x" not in json.dumps(after)
    lines = differences(after, before)
    assert lines
    assert all(line.startswith("model: ") for line in lines)


def test_no_two_of_the_changes_are_the_same() -> None:
    found = []
    for change in CHANGES.values():
        model = Model()
        change(model)
        found.append(json.dumps(run(model)))
    assert len(set(found)) == len(found)


def test_autocast_is_another_run() -> None:
    model = Model()
    before = run(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = differences(run(model), before)
    assert found == ["model: autocast: asked 'bfloat16', the archive has None"]


def with_forward_moved_by_accelerate(model: Any) -> None:
    norm = model.norm
    norm._old_forward, norm._hf_hook = norm.forward, object()
    norm.forward = functools.partial(ablated, norm)


def with_forward_compiled(model: Any) -> None:
    model.norm.forward = torch.compile(model.norm.forward, backend="eager")


STEADY: dict[str, Callable[[Any], object]] = {
    "counts": lambda model: setattr(model, "n_passes", 5),
    "collects": lambda model: model.seen.extend([3, 3]),
    "place": lambda model: setattr(model, "name_or_path", "/models/b"),
    "mode": lambda model: model.train(),
    "store": lambda model: fastcap.ActivationStore(model, ["norm"]).enable(),
    "moved": with_forward_moved_by_accelerate,
    "compiled": with_forward_compiled,
    "own forward": lambda model: replace(model, model.norm.forward),
}


@pytest.mark.parametrize("name", STEADY)
def test_what_values_do_not_depend_on_is_no_part_of_it(name: str) -> None:
    model = Model()
    before = run(model)
    kept = STEADY[name](model)
    assert differences(run(model), before) == []
    del kept


def test_wrappers_do_not_matter() -> None:
    model = Model()
    before = run(model)
    compiled: Any = torch.compile(model, backend="eager")
    assert run(compiled) == before
    assert run(nn.DataParallel(model)) == before


def test_what_a_hook_collects_is_no_part_of_it() -> None:
    model, seen = Model(), []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(len(seen)))
    before = run(model)
    model(make_samples(1)[0]["input_ids"][None])
    assert seen
    assert run(model) == before


def test_adapters_of_peft_that_are_switched_off_make_another_run() -> None:
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False),
    )
    before = run(adapted)
    assert run(adapted) == before
    with adapted.disable_adapter():
        [line] = differences(run(adapted), before)
    assert "disable_adapters: asked True, the archive has False" in line
    adapted.add_adapter("other", peft.LoraConfig(r=2, target_modules=["0"]))
    with_two = run(adapted)
    adapted.set_adapter("other")
    assert any("active_adapters" in line for line in differences(run(adapted), with_two))
