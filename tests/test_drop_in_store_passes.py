"""`ActivationStore` when it is changed, or the pass is cut short, in the middle of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import pytest
import torch
from torch import Tensor, nn

from fastcap import ActivationStore, FastcapWarning
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.datasets import make_ids
from tests.support.models import FeedForward, LanguageModel, hooks_on

IDS = make_ids(3)
NAMES = ["layers.0", "layers.1", "norm"]


def between_blocks(model: LanguageModel, act: Callable[[], object]) -> None:
    """Do something once, when the first block has run and the second has not."""

    def hook(*_: object) -> None:
        handle.remove()
        act()

    handle = model.layers["1"].register_forward_pre_hook(hook)
    model(IDS)


def interrupt(model: LanguageModel) -> None:
    def act() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        between_blocks(model, act)


def test_disabling_inside_a_pass_keeps_what_was_captured_and_stops() -> None:
    model = LanguageModel()
    store = ActivationStore(model, NAMES)
    store.enable()
    with ReferenceStore(model, ["layers.0"]) as oracle:
        between_blocks(model, store.disable)

    assert hooks_on(model) == 0
    assert differences(oracle.activations, store.activations) == []


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_enabling_inside_a_pass_captures_the_rest_of_it() -> None:
    model = LanguageModel()
    store = ActivationStore(model, NAMES)
    with ReferenceStore(model, ["layers.1", "norm"]) as oracle:
        between_blocks(model, store.enable)
    store.disable()

    assert differences(oracle.activations, store.activations) == []


def test_clearing_inside_a_pass_forgets_what_came_before() -> None:
    model = LanguageModel()
    with ReferenceStore(model, NAMES) as oracle, ActivationStore(model, NAMES) as store:

        def clear_both() -> None:
            oracle.clear()
            store.clear()

        between_blocks(model, clear_both)

    assert list(store.activations) == ["layers.1", "norm"]
    assert differences(oracle.activations, store.activations) == []


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_another_pass_of_the_same_model_inside_a_pass_is_captured_as_the_oracle_does() -> None:
    model = LanguageModel()
    with ReferenceStore(model, NAMES) as oracle, ActivationStore(model, NAMES) as store:
        between_blocks(model, lambda: model(make_ids(2, 4, seed=1)))

    assert differences(oracle.activations, store.activations) == []


@pytest.mark.parametrize("n_tokens", [2, 5, 9])
def test_after_an_interrupted_pass_a_selection_fits_a_submodule_called_alone(
    n_tokens: int,
) -> None:
    model = LanguageModel()
    acts = torch.randn(2, n_tokens, 16)
    with (
        ReferenceStore(model, ["norm"], make_selection(positions=-1)) as oracle,
        ActivationStore(model, ["norm"], positions=-1) as store,
    ):
        interrupt(model)
        model.norm(acts)

    assert differences(oracle.activations, store.activations) == []


def test_after_an_interrupted_pass_the_next_pass_is_exact() -> None:
    model = LanguageModel()
    selection = make_selection(positions=[0, -1])
    with (
        ReferenceStore(model, NAMES, selection) as oracle,
        ActivationStore(model, NAMES, positions=[0, -1]) as store,
    ):
        interrupt(model)
        assert list(store.activations) == ["layers.0"]
        model(make_ids(4, 8, seed=1))

    assert differences(oracle.activations, store.activations) == []


def test_a_module_replaced_after_enable_is_not_captured_and_its_hook_still_goes() -> None:
    model = LanguageModel()
    replaced = model.layers["0"].mlp
    with ActivationStore(model, ["layers.0.mlp", "norm"]) as store:
        model.layers["0"].mlp = FeedForward(16)
        with pytest.warns(FastcapWarning, match="'layers.0.mlp': the module with this name was"):
            model(IDS)
        assert list(store.activations) == ["norm"]

    assert hooks_on(model) == hooks_on(replaced) == 0


class Twice(nn.Module):
    """Calls itself once with half of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, acts: Tensor) -> Tensor:
        if len(acts) > 1:
            self(acts[: len(acts) // 2])
        output: Tensor = self.linear(acts)
        return output


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_a_module_that_calls_itself_keeps_its_last_and_outermost_call() -> None:
    model = Twice()
    acts = torch.randn(4, 4)
    with ReferenceStore(model, ["", "linear"]) as oracle:
        with ActivationStore(model, ["", "linear"]) as store:
            output = model(acts)
        assert differences(oracle.activations, store.activations) == []

    assert torch.equal(output, store.activations[""])
