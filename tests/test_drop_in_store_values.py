"""`ActivationStore` as the documented one: which values it has, and when."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import ActivationStore, FastcapWarning
from fastcap.errors import UnsupportedTensorError
from fastcap.reference import ReferenceStore, differences
from fastcap.spec import make_selection
from tests.support.datasets import make_ids
from tests.support.models import (
    N_ROOT_HOOKS,
    FailsAt,
    HiddenOutput,
    HiddenPair,
    LanguageModel,
    Returning,
    SharedWeights,
    TupleBlock,
    WithOddModule,
    WritesInPlace,
    hooks_on,
)

IDS = make_ids(3)


def problems(model: nn.Module, names: Sequence[str], *calls: Callable[[], object]) -> list[str]:
    """How a store differs from the oracle when both watch the same calls."""
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        for call in calls:
            call()
        return differences(oracle.activations, store.activations)


def odd_output_problems(make: Callable[[Tensor], Any]) -> list[str]:
    model = WithOddModule(make)
    return problems(model, ["odd"], lambda: model(IDS))


def test_every_kind_of_module_of_a_language_model_is_captured_exactly() -> None:
    model = LanguageModel()
    names = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    names += ["layers.0", "layers.1.attention", "layers.1.mlp", ""]

    assert problems(model, names, lambda: model(IDS)) == []


# What counts as a call


def test_nothing_is_captured_before_the_first_call() -> None:
    with ActivationStore(LanguageModel(), ["norm"]) as store:
        assert store.get("norm") is None
        assert store.activations == {}


@pytest.mark.parametrize("name", ["layers.0", "nowhere", "norm:output[1]"])
def test_a_name_that_is_no_site_has_no_value_and_is_warned_about_once(name: str) -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        model(IDS)
        with pytest.warns(FastcapWarning, match="Nothing is captured at") as warned:
            assert [store.get(name), store.get(name)] == [None, None]
    assert store.get(name) is None
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_a_store_that_was_never_enabled_says_so_once() -> None:
    model = LanguageModel()
    store = ActivationStore(model, ["norm", "layers.0"])
    model(IDS)

    with pytest.warns(FastcapWarning, match="never enabled.* enable") as warned:
        assert [store.get("norm"), store.get("layers.0")] == [None, None]
    assert len(warned) == 1


def test_a_site_of_a_pattern_that_has_not_fired_is_no_mistake() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["layers.*"]) as store:
        assert store.get("layers.1") is None  # a warning would be an error here
    assert store.get("layers.1") is None


def test_asking_twice_gives_the_same_tensor() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        model(IDS)
        value = store.get("norm")
        assert value is not None
        assert store.get("norm") is value
    assert store.get("norm") is value


def test_a_submodule_called_alone_is_captured() -> None:
    model = LanguageModel()
    acts = torch.randn(2, 4, 16)

    assert problems(model, ["layers.0.mlp", "norm"], lambda: model.layers["0"].mlp(acts)) == []


def test_calling_forward_past_the_hooks_of_the_root_still_captures_its_submodules() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["", "norm"]) as store:
        model.forward(IDS)

    assert list(store.activations) == ["norm"]


def test_get_inside_a_pass_gives_the_new_value() -> None:
    model = LanguageModel()
    seen: list[Tensor | None] = []
    names = ["layers.0", "layers.1"]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        model(make_ids(3, seed=1))

        def look(*_: object) -> None:
            seen.append(store.get("layers.0"))

        model.norm.register_forward_pre_hook(look)
        model(IDS)
        expected = oracle.activations["layers.0"]

    assert seen[0] is not None
    assert differences({"layers.0": expected}, {"layers.0": seen[0]}) == []
    assert seen[0] is store.get("layers.0")


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_the_last_call_of_a_pass_wins() -> None:
    model = SharedWeights()

    assert problems(model, ["first"], lambda: model(IDS)) == []


def test_the_last_pass_wins_whatever_its_batch_size() -> None:
    model = LanguageModel()
    batches = [make_ids(4), make_ids(1, 7), make_ids(2, 3)]

    calls = [lambda ids=ids: model(ids) for ids in batches]
    assert problems(model, ["norm", "layers.0"], *calls) == []


def test_a_site_that_did_not_fire_keeps_the_value_of_an_earlier_pass() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm", "layers.0"]) as store:
        model(IDS)
        before = store.activations
        model.norm(torch.ones(2, 16))

    assert store.get("layers.0") is before["layers.0"]
    assert store.get("norm") is not before["norm"]


def test_clear_forgets_the_values_and_keeps_the_hooks() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        model(IDS)
        store.clear()
        assert (store.get("norm"), store.activations, hooks_on(model)) == (
            None,
            {},
            1 + N_ROOT_HOOKS,
        )

        model(IDS)
        assert store.get("norm") is not None


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_values_captured_before_an_error_are_readable_and_the_next_pass_is_exact() -> None:
    model = FailsAt(RuntimeError("in the middle"))
    names = ["before", "after"]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        with pytest.raises(RuntimeError, match="in the middle") as caught:
            model(IDS)
        assert caught.value is model.error
        assert list(store.activations) == ["before"]
        assert differences(oracle.activations, store.activations) == []
        assert hooks_on(model) == 2 * len(names) + N_ROOT_HOOKS  # the oracle's too

        model(make_ids(3, seed=1))
        assert differences(oracle.activations, store.activations) == []


def test_an_interrupt_in_the_middle_of_a_pass_loses_nothing_that_was_captured() -> None:
    model = FailsAt(KeyboardInterrupt())
    names = ["before", "after"]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        with pytest.raises(KeyboardInterrupt):
            model(IDS)
        assert differences(oracle.activations, store.activations) == []

        model(make_ids(3, seed=1))
        assert differences(oracle.activations, store.activations) == []


# What a module may return


def test_the_first_element_of_a_tuple_is_captured() -> None:
    model = LanguageModel(block=TupleBlock)

    assert problems(model, ["layers.0", "layers.1"], lambda: model(IDS)) == []


def test_the_first_field_of_a_named_tuple_is_captured() -> None:
    assert odd_output_problems(lambda acts: HiddenPair(acts + 1, "label")) == []


ODD_OUTPUTS: dict[str, Callable[[Tensor], Any]] = {
    "an empty tuple": lambda acts: (),
    "a tuple of 2 (str, Tensor)": lambda acts: ("label", acts),
    "a tuple of 2 (NoneType, Tensor)": lambda acts: (None, acts),
    "a tuple of 2 (tuple, Tensor)": lambda acts: ((acts, acts), acts),
    "a list of 1 (Tensor)": lambda acts: [acts],
    "an empty list": lambda acts: [],
    "a dict": lambda acts: {"hidden": acts},
    "a HiddenOutput": HiddenOutput,
    "None": lambda acts: None,
    "a float": lambda acts: 3.0,
}


@pytest.mark.parametrize("found", ODD_OUTPUTS)
def test_anything_else_captures_nothing_says_so_once_and_leaves_the_forward_alone(
    found: str,
) -> None:
    model = WithOddModule(ODD_OUTPUTS[found])
    message = re.escape(f"Nothing is captured at site 'odd': its forward returned {found}, not")
    with (
        ActivationStore(model, ["odd", "head"]) as store,
        pytest.warns(FastcapWarning, match=message) as said,
    ):
        first, second = model(IDS), model(IDS)

    assert len(said) == 1
    assert torch.equal(first, second)
    assert list(store.activations) == ["head"]


def test_a_site_that_returns_no_tensor_any_more_keeps_its_last_value() -> None:
    outputs: list[Any] = [torch.ones(2), None]
    model = Returning(lambda acts: outputs.pop(0))
    with ActivationStore(model, [""]) as store:
        model(IDS)
        value = store.get("")
        with pytest.warns(FastcapWarning, match="returned None"):
            model(IDS)

    assert value is not None
    assert store.get("") is value


# What kind of tensor comes back


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.complex64,
        torch.int64,
        torch.uint8,
        torch.bool,
    ],
)
def test_the_dtype_of_the_module_is_kept(dtype: torch.dtype) -> None:
    assert odd_output_problems(lambda acts: acts.to(dtype)) == []


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda acts: acts.transpose(0, 2),
    "strided": lambda acts: acts[:, ::2, 1:],
    "expanded": lambda acts: acts[:, :1].expand(-1, 9, -1),
    "channels last": lambda acts: acts[None].contiguous(memory_format=torch.channels_last),
    "one element": lambda acts: acts.flatten()[3:4],
    "no dimension": lambda acts: acts.sum(),
    "no element": lambda acts: acts[:0],
    "conjugate": lambda acts: acts.to(torch.complex64).conj(),
    "negative": lambda acts: acts.to(torch.complex64).conj().imag,
    "nan": lambda acts: acts * float("nan"),
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
def test_any_strides_come_back_contiguous_with_the_same_bytes(
    make: Callable[[Tensor], Any],
) -> None:
    assert odd_output_problems(make) == []


def test_a_parameter_comes_back_as_a_plain_detached_tensor() -> None:
    parameter = nn.Parameter(torch.randn(2, 3))

    assert odd_output_problems(lambda acts: parameter) == []


class Labelled(Tensor):
    """A subclass of tensor, such as data sets use to carry labels."""


def test_a_tensor_subclass_comes_back_as_a_plain_tensor() -> None:
    model = Returning(lambda acts: acts.as_subclass(Labelled))
    acts = torch.randn(2, 3)
    with ActivationStore(model, [""]) as store:
        assert type(model(acts)) is Labelled

    assert differences({"": acts}, store.activations) == []


def test_values_are_those_of_the_moment_the_hook_fired() -> None:
    model = WritesInPlace()

    assert problems(model, ["linear", "embedding", ""], lambda: model(IDS)) == []


def test_writing_into_the_output_after_the_pass_does_not_change_a_value() -> None:
    model = LanguageModel()
    with ReferenceStore(model, [""]) as oracle, ActivationStore(model, [""]) as store:
        model(IDS).detach().zero_()

    assert differences(oracle.activations, store.activations) == []


def test_writing_into_a_value_changes_neither_the_model_nor_later_values() -> None:
    model = LanguageModel()
    names = ["layers.0", ""]
    with ReferenceStore(model, names) as oracle, ActivationStore(model, names) as store:
        for value in [model(IDS), *store.activations.values()]:
            value.detach().zero_()
        logits = model(IDS)
        assert differences(oracle.activations, store.activations) == []

    assert torch.equal(logits, oracle.activations[""])


def test_values_of_an_earlier_pass_never_change() -> None:
    model = LanguageModel()
    with ReferenceStore(model, ["norm"]) as oracle, ActivationStore(model, ["norm"]) as store:
        kept = []
        for seed in range(3):
            model(make_ids(3, seed=seed))
            kept.append((oracle.activations.copy(), store.activations))

    assert [differences(expected, found) for expected, found in kept] == [[], [], []]


def test_a_pass_in_inference_mode_gives_ordinary_tensors() -> None:
    model = LanguageModel()
    with ReferenceStore(model, ["norm"]) as oracle, ActivationStore(model, ["norm"]) as store:
        with torch.inference_mode():
            model(IDS)
            inside = store.get("norm")
        assert differences(oracle.activations, store.activations) == []

    assert inside is not None
    weight = torch.ones(16, requires_grad=True)
    loss = (inside.add_(1.0) * weight).sum()  # an inference tensor allows neither
    assert torch.autograd.grad(loss, weight)[0].shape == (16,)


def test_a_sparse_value_is_refused_with_its_name() -> None:
    model = WithOddModule(lambda acts: acts[0].to_sparse())
    with ActivationStore(model, ["odd"]), pytest.raises(UnsupportedTensorError, match="'odd'"):
        model(IDS)


# Parts of an output, and selections


PARTS: dict[str, Callable[[Tensor], Any]] = {
    ":output[1]": lambda acts: (acts, acts.sum(-1)),
    ":output[1][0]": lambda acts: (acts, (acts.sum(-1), acts)),
    ":output[hidden]": lambda acts: {"hidden": acts + 1},
    ":output.last_hidden_state": lambda acts: HiddenOutput(acts + 1),
    ":output.hidden": lambda acts: HiddenPair(acts + 1, "label"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_output_can_be_asked_for(part: str) -> None:
    model = WithOddModule(PARTS[part])
    with ActivationStore(model, [f"odd{part}"]) as store:
        model(IDS)

    assert list(store.activations) == [f"odd{part}"]
    assert problems(model, [f"odd{part}", "head"], lambda: model(IDS)) == []


def test_a_selection_applies_to_a_store_as_to_the_oracle() -> None:
    model = LanguageModel()
    names = ["layers.0", "norm"]
    selection = make_selection(positions=-1, dtype=torch.bfloat16)
    with (
        ReferenceStore(model, names, selection) as oracle,
        ActivationStore(model, names, positions=-1, dtype=torch.bfloat16) as store,
    ):
        model(IDS)

    assert store.activations["norm"].shape == (3, 16)
    assert differences(oracle.activations, store.activations) == []
