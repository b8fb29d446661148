"""`ActivationStore` as the documented one: names, hooks, and how long they stay."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import fastcap
from fastcap import ActivationStore
from fastcap.reference import ReferenceStore, differences
from tests.support.datasets import make_ids
from tests.support.models import N_ROOT_HOOKS, Block, LanguageModel, SharedWeights, hooks_on

IDS = make_ids(3)


def test_the_documented_signature_is_kept() -> None:
    parameters = inspect.signature(ActivationStore).parameters

    assert list(parameters)[:2] == ["model", "layers"]
    assert parameters["layers"].default is None
    assert {parameters[name].kind for name in list(parameters)[2:]} == {
        inspect.Parameter.KEYWORD_ONLY
    }


def test_layers_may_be_called_sites_as_everywhere_else() -> None:
    model = LanguageModel()

    assert ActivationStore(model, sites="norm").layer_names == ["norm"]
    with pytest.raises(ValueError, match=r"layers=\['norm'\] and sites='norm': .* Pass one"):
        ActivationStore(model, ["norm"], sites="norm")


@pytest.mark.parametrize("as_keywords", [False, True])
def test_arguments_are_taken_by_position_and_by_name(as_keywords: bool) -> None:
    model = LanguageModel()
    store = (
        ActivationStore(model=model, layers=["norm"])
        if as_keywords
        else ActivationStore(model, ["norm"])
    )

    with store:
        model(IDS)

    assert store.get("norm") is not None


def test_names_are_checked_when_the_store_is_enabled_and_not_before() -> None:
    store = ActivationStore(LanguageModel(), ["layers.7.mlp"])

    assert store.layer_names == ["layers.7.mlp"]
    with pytest.raises(ValueError, match=r"^Module 'layers\.7\.mlp' not found in model\. "):
        store.enable()


def test_the_error_for_a_wrong_name_lists_the_first_twenty_names() -> None:
    model = LanguageModel(n_layers=4)
    first_names = sorted(name for name, _ in model.named_modules())[:20]

    with pytest.raises(ValueError, match="not found in model") as caught:
        ActivationStore(model, ["layers.0.atention"]).enable()

    assert f"Available: {first_names}..." in str(caught.value)
    assert "Did you mean 'layers.0.attention'" in str(caught.value)


def test_a_failing_enable_leaves_no_hook_behind() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm", "layers.0.mlp", "nowhere"])

    with pytest.raises(fastcap.FastcapError, match="'nowhere'"):
        store.enable()

    assert hooks_on(model) == 0
    assert store._hooks == []
    assert not store.enabled


def test_enabling_twice_is_enabling_once() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm"])

    store.enable()
    store.enable()
    assert (store.enabled, hooks_on(model), len(store._hooks)) == (True, 1 + N_ROOT_HOOKS, 1)

    store.disable()
    store.disable()
    assert (store.enabled, hooks_on(model), store._hooks) == (False, 0, [])


def test_values_stay_readable_after_disable_and_after_enabling_again() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm"])
    with store:
        model(IDS)
    value = store.get("norm")
    assert value is not None

    store.enable()
    assert store.get("norm") is value
    store.disable()
    assert store.get("norm") is value


def test_a_disabled_store_captures_nothing() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        model(IDS)
    before = store.get("norm")

    model(make_ids(3, seed=1))

    assert store.get("norm") is before


@pytest.mark.parametrize("layers", [None, [], ()])
def test_no_layers_enable_without_an_error(layers: list[str] | None) -> None:
    model = LanguageModel()
    with ActivationStore(model, layers) as store:
        assert store.enabled
        model(IDS)

    assert store.activations == {}
    assert store.layer_names == []


def test_a_string_is_one_layer() -> None:
    model = LanguageModel()
    with ActivationStore(model, "norm") as store:
        model(IDS)

    assert store.layer_names == ["norm"]
    assert list(store.activations) == ["norm"]


def _yield_names() -> Iterator[str]:
    yield from ("norm", "layers.0.mlp")


@pytest.mark.parametrize("layers", [("norm", "layers.0.mlp"), _yield_names()])
def test_layers_can_be_any_iterable(layers: Iterator[str] | tuple[str, ...]) -> None:
    model = LanguageModel()
    with ActivationStore(model, layers) as store:
        model(IDS)

    assert store.layer_names == ["norm", "layers.0.mlp"]
    assert all(store.get(name) is not None for name in store.layer_names)


def test_a_layer_given_twice_has_one_hook_and_keeps_its_place_in_layer_names() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm", "norm"]) as store:
        assert hooks_on(model) == 1 + N_ROOT_HOOKS
        model(IDS)

    assert store.layer_names == ["norm", "norm"]
    assert list(store.activations) == ["norm"]


def test_layer_names_is_a_new_list_before_and_after_enable() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm", "layers.1"])

    store.layer_names.clear()
    assert store.layer_names == ["norm", "layers.1"]
    with store:
        store.layer_names.append("layers.0")
        assert store.layer_names == ["norm", "layers.1"]


def test_activations_is_a_new_dict_in_firing_order_of_the_tensors_that_get_returns() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm", "layers.1", "layers.0.mlp"]) as store:
        model(IDS)

        assert list(store.activations) == ["layers.0.mlp", "layers.1", "norm"]
        assert all(store.activations[name] is store.get(name) for name in store.layer_names)
        store.activations.clear()
        assert list(store.activations) == ["layers.0.mlp", "layers.1", "norm"]


def test_a_site_that_fires_again_keeps_its_place_in_activations() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["layers.0", "norm"]) as store:
        model.norm(torch.ones(1, 16))
        model(IDS)
        assert list(store.activations) == ["norm", "layers.0"]

        store.clear()
        model(IDS)
        assert list(store.activations) == ["layers.0", "norm"]


def test_the_root_is_captured_under_the_empty_name() -> None:
    model = LanguageModel()
    with ReferenceStore(model, [""]) as oracle, ActivationStore(model, [""]) as store:
        logits = model(IDS)

    assert differences(oracle.activations, store.activations) == []
    assert torch.equal(logits, store.activations[""])


def test_the_default_part_does_not_appear_in_a_key() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm:output"]) as store:
        model(IDS)

    assert list(store.activations) == ["norm"]


def test_every_name_in_layer_names_can_be_read_as_it_was_given() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm:output", "layers.0"]) as store:
        model(IDS)

    assert all(store.get(name) is not None for name in store.layer_names)


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_every_alias_of_a_shared_module_is_a_name_and_the_key_is_the_one_asked() -> None:
    model = SharedWeights()
    assert "second" not in dict(model.named_modules())
    aliases = ["second", "first"]

    with ReferenceStore(model, aliases) as oracle, ActivationStore(model, aliases) as store:
        model(IDS)

    assert differences(oracle.activations, store.activations) == []
    assert store.layer_names == aliases


@pytest.mark.parametrize("layers_as", [nn.ModuleDict, nn.ModuleList])
def test_layers_have_the_same_names_in_a_module_dict_and_a_module_list(
    layers_as: type[nn.ModuleDict | nn.ModuleList],
) -> None:
    model = LanguageModel(layers_as=layers_as)
    names = ["layers.0.attention", "layers.1.mlp", "layers.0.attention_norm", "token_embedding"]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        model(IDS)

    assert differences(oracle.activations, store.activations) == []


class Wrapper(nn.Module):
    """Holds a model as data-parallel wrappers do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.module(input_ids)
        return output


def test_the_prefix_of_a_wrapper_may_be_left_out() -> None:
    model = Wrapper(LanguageModel())
    with ActivationStore(model, ["layers.0.mlp"]) as store:
        model(IDS)

    assert list(store.activations) == ["layers.0.mlp"]


# The model stays a model


def test_the_state_dict_does_not_change_while_enabled() -> None:
    model = LanguageModel()
    before = list(model.state_dict())

    with ActivationStore(model, ["norm", ""]):
        assert list(model.state_dict()) == before


def test_a_deep_copy_of_an_enabled_model_works_and_does_not_capture() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        model(IDS)
        value = store.get("norm")
        twin = copy.deepcopy(model)

        assert torch.equal(twin(make_ids(2)), model.forward(make_ids(2)))
        value_of_the_model = store.get("norm")
        twin(IDS)

    assert value_of_the_model is not value  # model.forward above was captured
    assert store.get("norm") is value_of_the_model


def test_a_store_on_a_deep_copy_sees_the_copy() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]):
        twin = copy.deepcopy(model)

    with ReferenceStore(twin, ["norm"]) as oracle, ActivationStore(twin, ["norm"]) as store:
        twin(IDS)

    assert differences(oracle.activations, store.activations) == []


def test_outputs_and_random_numbers_are_the_same_with_and_without_capture() -> None:
    model = nn.Sequential(nn.Embedding(32, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = [model(IDS), torch.rand(3)]
        torch.manual_seed(0)
        with ActivationStore(model, ["0", "1", "2", ""]):
            watched = [model(IDS), torch.rand(3)]

    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))


def test_gradients_flow_as_without_a_store() -> None:
    model = LanguageModel()
    model(IDS).sum().backward()
    plain = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()

    with ActivationStore(model, ["layers.0", "norm"]) as store:
        model(IDS).sum().backward()

    watched = [parameter.grad for parameter in model.parameters()]
    assert all(
        a is not None and b is not None and torch.equal(a, b)
        for a, b in zip(plain, watched, strict=True)
    )
    assert not any(value.requires_grad for value in store.activations.values())


# How long hooks stay


def test_dropping_the_store_removes_its_hooks() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm"])
    store.enable()
    model(IDS)

    del store

    assert hooks_on(model) == 0


def test_a_value_outlives_its_store() -> None:
    model = LanguageModel()
    with ReferenceStore(model, ["norm"]) as oracle, ActivationStore(model, ["norm"]) as store:
        model(IDS)
    values = store.activations

    del store

    assert differences(oracle.activations, values) == []


def test_leaving_the_context_with_an_error_removes_the_hooks() -> None:
    model = LanguageModel()
    problem = RuntimeError("mine")

    with pytest.raises(RuntimeError) as caught, ActivationStore(model, ["norm"]):
        raise problem

    assert caught.value is problem
    assert hooks_on(model) == 0


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_two_stores_on_one_model_do_not_see_each_other() -> None:
    model = LanguageModel()
    names = ["layers.0", "norm"]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as first:
        with ActivationStore(model, ["norm"]) as second:
            model(IDS)
        assert hooks_on(model) == 2 * len(names) + N_ROOT_HOOKS  # the oracle's too
    expected = oracle.activations

    assert differences(expected, first.activations) == []
    assert differences({"norm": expected["norm"]}, second.activations) == []
    assert second.get("norm") is not first.get("norm")


def test_hooks_of_the_user_stay_in_place() -> None:
    model = LanguageModel()
    seen: list[str] = []
    block = model.layers["0"]
    assert isinstance(block, Block)
    block.register_forward_hook(lambda *_: seen.append("mine"))

    with ActivationStore(model, ["layers.0"]):
        model(IDS)
    model(IDS)

    assert seen == ["mine", "mine"]
