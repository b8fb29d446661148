"""The tree of errors, and what is said about sites and batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

import fastcap
from fastcap import ActivationStore, FastcapError, FastcapWarning, errors
from fastcap import extract_representations as extract
from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    BatchError,
    DeviceError,
    MissingInputError,
    SiteNotFoundError,
)
from tests.support.datasets import make_ids, make_samples
from tests.support.errors import message_of
from tests.support.models import LanguageModel, hooks_on

SAMPLES = make_samples(7)
BUILT_IN = {
    "ArgumentError": ValueError,
    "ArgumentTypeError": TypeError,
    "SiteNotFoundError": ValueError,
    "SelectionError": ValueError,
    "PositionError": IndexError,
    "CastError": TypeError,
    "UnsupportedTensorError": TypeError,
    "UnsupportedModuleError": RuntimeError,
    "BatchError": TypeError,
    "MissingInputError": KeyError,
    "CollationError": RuntimeError,
    "ResultError": RuntimeError,
    "DeviceError": RuntimeError,
    "DeviceMemoryError": RuntimeError,
    "HostMemoryError": MemoryError,
    "ResultTooLargeError": MemoryError,
    "LoadError": OSError,
    "SaveError": OSError,
    "ArchiveError": OSError,
    "ArchiveWriteError": OSError,
    "ArchiveFormatError": ValueError,
    "ArchiveConfigError": ValueError,
    "MissingSampleError": IndexError,
    "NotCapturedError": KeyError,
    "MissingExtraError": ImportError,
}


def test_every_error_also_is_the_built_in_class_that_callers_may_catch() -> None:
    found = {
        name: error
        for name, error in inspect.getmembers(errors, inspect.isclass)
        if issubclass(error, FastcapError) and error is not FastcapError
    }

    assert found.keys() == BUILT_IN.keys()
    assert all(issubclass(found[name], BUILT_IN[name]) for name in found)
    assert issubclass(FastcapWarning, UserWarning)
    assert fastcap.FastcapError is errors.FastcapError


def test_the_tree_in_the_module_shows_every_class_and_its_built_in_class() -> None:
    drawn = [line.lstrip(" │├└─") for line in str(errors.__doc__).splitlines()]

    for name, error in inspect.getmembers(errors, inspect.isclass):
        [line] = [line for line in drawn if line.split(" ")[0] == name]
        for base in error.__bases__:
            assert issubclass(base, FastcapError) or base is Exception or base.__name__ in line


# Sites


def test_a_wrong_name_is_answered_with_close_matches_and_the_first_names() -> None:
    model = LanguageModel(n_layers=1)
    names = sorted(name for name, _ in model.named_modules())

    def run() -> None:
        extract(model, SAMPLES, ["norm", "layers.0.atention"], "cpu")

    assert message_of(SiteNotFoundError, run) == (
        "Module 'layers.0.atention' not found in model. Did you mean 'layers.0.attention' or "
        f"'layers.0.attention.qkv' or 'layers.0.attention.out'? Available: {names} All names: "
        "for name, _ in model.named_modules(): print(name)"
    )
    assert hooks_on(model) == 0
    assert model.training


def test_a_name_that_resembles_nothing_gets_the_first_twenty_names() -> None:
    model = LanguageModel(n_layers=4)
    names = sorted(name for name, _ in model.named_modules())

    message = message_of(SiteNotFoundError, ActivationStore(model, ["zzz"]).enable)

    assert message == (
        f"Module 'zzz' not found in model. Available: {names[:20]}... All names: "
        "for name, _ in model.named_modules(): print(name)"
    )


def test_a_wrong_name_with_a_part_is_named_without_the_part() -> None:
    store = ActivationStore(LanguageModel(), ["layers.9:output[1]"])

    assert message_of(SiteNotFoundError, store.enable).startswith(
        "Module 'layers.9' not found in model. Did you mean 'layers.1' or 'layers.0'"
    )


@pytest.mark.parametrize("site", ["norm:outputs", "norm:weight", "norm:", "norm:1"])
def test_an_unknown_part_is_refused_with_the_parts_that_exist(site: str) -> None:
    assert message_of(ArgumentError, ActivationStore(LanguageModel(), [site]).enable) == (
        f"Site {site!r}: what follows the colon is not a part that can be captured. Parts start "
        "with ':output' or ':input' and go on with '[1]', '[key]' or '.name', such as "
        "'layers.0.attention:output[1]'."
    )


@pytest.mark.parametrize(
    ("site", "rest"), [("norm:output[1", "[1"), ("norm:output[1].", "."), ("norm:output[]", "[]")]
)
def test_a_part_that_cannot_be_read_is_refused_from_where_it_goes_wrong(
    site: str, rest: str
) -> None:
    assert message_of(ArgumentError, ActivationStore(LanguageModel(), [site]).enable) == (
        f"Site {site!r}: cannot read {rest!r}. After ':output' come any number of '[1]', '[key]' "
        "or '.name'."
    )


@pytest.mark.parametrize(
    ("layers", "shown"), [([0], "0"), (["norm", None], "None"), (3, "3"), ([b"norm"], "b'norm'")]
)
def test_layers_that_are_no_strings_are_refused(layers: Any, shown: str) -> None:
    assert message_of(ArgumentTypeError, lambda: ActivationStore(LanguageModel(), layers)) == (
        f"sites must be module names (strings) or modules of the model; got {shown}. Print the "
        "names with: for name, _ in model.named_modules(): print(name)"
    )


def test_no_sites_are_refused_where_there_is_nothing_to_return() -> None:
    model = LanguageModel()

    assert message_of(ArgumentError, lambda: extract(model, SAMPLES, [], "cpu")) == (
        "sites is empty: name at least one module, such as ['layers.0.mlp']."
    )
    assert message_of(ArgumentError, lambda: fastcap.stream(model, [], [])) == (
        "sites is empty: name at least one module, such as ['layers.0.mlp']."
    )


class RefusesHooks(nn.Identity):
    """A module that takes no forward hook."""

    def register_forward_hook(self, *_: object, **__: object) -> NoReturn:
        raise RuntimeError("no hooks here")


def test_a_module_that_takes_no_hook_leaves_none_on_the_others() -> None:
    model = LanguageModel()
    model.add_module("refuses", RefusesHooks())
    store = ActivationStore(model, ["norm", "refuses"])

    with pytest.raises(RuntimeError, match="no hooks here"):
        store.enable()

    assert (hooks_on(model), store._hooks, store.enabled) == (0, [], False)


# Batches


def test_a_sample_without_input_ids_is_refused_with_what_it_has() -> None:
    samples = [{"tokens": ids["input_ids"], "label": 1} for ids in SAMPLES]

    def run() -> None:
        extract(LanguageModel(), samples, ["norm"], "cpu")

    assert message_of(MissingInputError, run) == (
        "The batch has no 'input_ids'; it has ['label', 'tokens']. Let the dataset give a dict "
        "with 'input_ids', or say how to call the model with forward=lambda model, batch: ..."
    )


def test_an_input_that_no_batch_has_is_refused_by_name() -> None:
    def run() -> None:
        extract(LanguageModel(), SAMPLES, ["norm"], "cpu", model_inputs=["attention_mask"])

    assert message_of(MissingInputError, run).startswith(
        "The batch has no 'attention_mask'; it has ['input_ids']. "
    )


def test_input_ids_that_are_a_list_are_refused_with_two_ways_to_make_tensors() -> None:
    samples = [{"input_ids": sample["input_ids"].tolist()} for sample in SAMPLES]

    assert message_of(BatchError, lambda: extract(LanguageModel(), samples, ["norm"], "cpu")) == (
        "'input_ids' is a list in this batch, not a tensor. Let the dataset return tensors "
        "(dataset.set_format('torch')), or give a collate_fn= that makes one."
    )


@pytest.mark.parametrize(
    ("batch", "kind"), [("text", "str"), (3, "int"), ([1, 2], "list"), ((None,), "tuple")]
)
def test_a_batch_of_another_kind_is_refused_with_what_to_give(batch: Any, kind: str) -> None:
    model = LanguageModel()

    assert message_of(BatchError, lambda: next(fastcap.stream(model, [batch], ["norm"]))) == (
        f"Cannot call the model with a batch of type {kind}. Give dicts with 'input_ids', tensors "
        "or tuples of tensors, or say how with forward=lambda model, batch: ..."
    )
    assert hooks_on(model) == 0


def test_samples_of_different_lengths_in_one_batch_fail_as_they_do_in_a_data_loader() -> None:
    model = LanguageModel()
    samples = [{"input_ids": make_ids(1, n)[0]} for n in (4, 5)]

    with pytest.raises(RuntimeError, match="sample 1 has shape"):
        extract(model, samples, ["norm"], "cpu", positions=-1)
    assert hooks_on(model) == 0


@pytest.mark.parametrize(
    "model_inputs", [[1], [b"attention_mask"], [("a", "b")]], ids=["int", "bytes", "tuple"]
)
def test_model_inputs_that_are_not_keys_are_refused(model_inputs: Any) -> None:
    def run() -> None:
        extract(LanguageModel(), SAMPLES, ["norm"], "cpu", model_inputs=model_inputs)

    assert message_of(ArgumentTypeError, run) == (
        f"model_inputs must be keys of the batch, as strings; got {model_inputs[0]!r}."
    )


def test_a_forward_that_cannot_be_called_is_refused() -> None:
    not_callable: Any = "model(**batch)"

    def run() -> None:
        extract(LanguageModel(), SAMPLES, ["norm"], "cpu", forward=not_callable)

    assert message_of(ArgumentTypeError, run) == (
        "forward must be a callable such as lambda model, batch: model(**batch); "
        "got 'model(**batch)'."
    )


# Devices


@pytest.mark.parametrize("device", ["meta", "cuda", "cuda:1", torch.device("meta")], ids=repr)
@pytest.mark.parametrize("run", ["extract", "stream"])
def test_a_model_on_another_device_is_refused_with_both_devices(run: str, device: Any) -> None:
    model = LanguageModel()
    calls: dict[str, Callable[[], object]] = {
        "extract": lambda: extract(model, SAMPLES, ["norm"], device),
        "stream": lambda: fastcap.stream(model, [], ["norm"], device=device),
    }

    assert message_of(DeviceError, calls[run]) == (
        f"device={str(device)!r}, but the model's parameters are on cpu. Move the model "
        f"(model.to({str(device)!r})) or pass the device it is on."
    )
    assert hooks_on(model) == 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_without_weights_is_refused(device: str) -> None:
    model = LanguageModel().to("meta")

    assert message_of(DeviceError, lambda: extract(model, SAMPLES, ["norm"], device)) == (
        "The model's parameters are on the meta device, without data. Load its weights first."
    )
