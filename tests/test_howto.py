"""The workflows of the documented how-to page, and its troubleshooting cases, end to end."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from fastcap import ActivationStore, FastcapWarning, extract_representations, save_activations
from fastcap.reference import ReferenceStore, differences
from tests.support.datasets import Tokens, TokenStream, expected, make_ids, make_samples
from tests.support.models import (
    FailsAt,
    HiddenOutput,
    LanguageModel,
    TupleBlock,
    WithOddModule,
    hooks_on,
)

LAYERS = ["layers.0.mlp", "layers.1.mlp", "layers.3.mlp"]


def model_in_bfloat16() -> LanguageModel:
    return LanguageModel(n_layers=4).to(device=torch.device("cpu"), dtype=torch.bfloat16)


# From a data set to a file


def test_a_subset_of_a_data_set_becomes_one_npz_that_an_analysis_reads(tmp_path: Path) -> None:
    model = model_in_bfloat16()
    subset = Subset(Tokens(50), list(range(20)))

    acts = extract_representations(
        model=model,
        dataset=subset,
        layers=LAYERS,
        device=torch.device("cpu"),
        batch_size=8,
        max_samples=20,
    )
    assert {name: tuple(value.shape) for name, value in acts.items()} == dict.fromkeys(
        LAYERS, (20, 5, 16)
    )
    assert {value.dtype for value in acts.values()} == {torch.bfloat16}
    save_activations({k: v.float() for k, v in acts.items()}, str(tmp_path / "acts/7b_mlp.npz"))

    loaded = np.load(tmp_path / "acts/7b_mlp.npz")
    assert list(loaded.keys()) == LAYERS
    found = {name: torch.from_numpy(loaded[name]) for name in LAYERS}
    exact = expected(model, make_samples(50)[:20], LAYERS, 8)
    assert differences({name: value.float() for name, value in exact.items()}, found) == []


def test_rows_of_a_probe_are_the_tokens_in_order(tmp_path: Path) -> None:
    model = LanguageModel()
    acts = extract_representations(model, Tokens(6), ["norm"], "cpu", batch_size=4)
    loaded = np.load(save_activations(acts, tmp_path / "acts.npz"))["norm"]

    rows = loaded.reshape(-1, loaded.shape[-1])

    model.eval()
    with ReferenceStore(model, ["norm"]) as oracle, torch.no_grad():
        model(torch.stack([sample["input_ids"] for sample in make_samples(6)[:4]]))
    assert rows.shape == (30, 16)
    np.testing.assert_array_equal(rows[:20], oracle.activations["norm"].reshape(20, 16).numpy())


def test_a_streaming_data_set_takes_the_place_of_a_map_style_one() -> None:
    model = LanguageModel()
    mapped = extract_representations(model, Tokens(30), ["norm"], "cpu", 4, max_samples=10)
    streamed = extract_representations(model, TokenStream(30), ["norm"], "cpu", 4, max_samples=10)

    assert differences(mapped, streamed) == []


def test_max_samples_bounds_the_result_and_does_not_change_its_values() -> None:
    model = LanguageModel()
    every = extract_representations(model, Tokens(20), ["norm"], "cpu", 8)
    capped = extract_representations(model, Tokens(20), ["norm"], "cpu", 8, max_samples=11)

    assert differences({"norm": every["norm"][:11]}, capped) == []


def test_the_last_token_can_be_sliced_afterwards_or_selected_at_once() -> None:
    model = LanguageModel()
    sliced = extract_representations(model, Tokens(9), ["norm"], "cpu", 4)["norm"][:, -1]
    selected = extract_representations(model, Tokens(9), ["norm"], "cpu", 4, positions=-1)

    assert differences({"norm": sliced.contiguous()}, selected) == []


def test_values_can_be_narrowed_afterwards_or_at_once() -> None:
    model = LanguageModel()
    full = extract_representations(model, Tokens(9), ["norm"], "cpu", 4)
    narrow = extract_representations(model, Tokens(9), ["norm"], "cpu", 4, dtype=torch.float16)

    assert differences({name: value.half() for name, value in full.items()}, narrow) == []


def test_every_name_that_named_modules_prints_can_be_captured() -> None:
    model = LanguageModel()
    containers = {"layers"}
    names = [name for name, _ in model.named_modules() if name not in containers]

    found = extract_representations(model, Tokens(5), names, "cpu", 2)

    assert differences(expected(model, make_samples(5), names, 2), found) == []


# bfloat16


def test_bfloat16_can_be_saved_without_casting_first(tmp_path: Path) -> None:
    acts = extract_representations(model_in_bfloat16(), Tokens(4), ["norm"], "cpu")

    with pytest.warns(FastcapWarning, match="stored as float32"):
        path = save_activations(acts, tmp_path / "acts.npz")

    by_hand = save_activations({k: v.float() for k, v in acts.items()}, tmp_path / "cast.npz")
    assert path.read_bytes() == by_hand.read_bytes()


def test_bfloat16_is_kept_by_torch_save(tmp_path: Path) -> None:
    acts = extract_representations(model_in_bfloat16(), Tokens(9), ["norm"], "cpu", 2, 5)
    torch.save(acts, tmp_path / "acts.pt")

    assert differences(acts, torch.load(tmp_path / "acts.pt", weights_only=True)) == []
    n_bytes = sum(value.nbytes for value in acts.values())
    assert (tmp_path / "acts.pt").stat().st_size < n_bytes + 4096


# Driving the passes oneself


def test_two_prompts_are_told_apart_with_clear_and_clone() -> None:
    model = LanguageModel().eval()
    store = ActivationStore(model, layers=["layers.0.attention", "layers.1.mlp", "norm"])
    prompts = [make_ids(1, 6), make_ids(1, 3, seed=1)]
    found: list[dict[str, Tensor]] = []

    store.enable()
    with torch.no_grad():
        for prompt in prompts:
            model(prompt)
            values = {name: store.get(name) for name in store.layer_names}
            found.append({name: v.clone() for name, v in values.items() if v is not None})
            store.clear()
            assert [store.get(name) for name in store.layer_names] == [None] * 3
    store.disable()

    with ReferenceStore(model, store.layer_names) as oracle, torch.no_grad():
        for prompt, values_of_prompt in zip(prompts, found, strict=True):
            oracle.clear()
            model(prompt)
            assert differences(dict(oracle.activations), values_of_prompt) == []


def test_without_clone_a_value_survives_later_passes_too() -> None:
    model = LanguageModel().eval()
    with ActivationStore(model, ["norm"]) as store:
        model(make_ids(1))
        first = store.get("norm")
        assert first is not None
        copy = first.clone()
        model(make_ids(4, seed=1))

    assert torch.equal(first, copy)
    assert store.get("norm") is not first


def test_values_can_be_kept_by_prompt() -> None:
    model = LanguageModel().eval()
    kept: dict[str, Tensor] = {}
    with ActivationStore(model, ["norm"]) as store:
        for index in range(5):
            model(make_ids(1, n_tokens=index + 2, seed=index))
            value = store.get("norm")
            assert value is not None
            kept[f"prompt {index}"] = value

    assert [value.shape[1] for value in kept.values()] == [2, 3, 4, 5, 6]


def test_values_are_on_the_cpu_and_can_be_moved_to_a_device_and_back() -> None:
    model = LanguageModel()
    device = next(model.parameters()).device
    with ReferenceStore(model, ["norm"]) as oracle, ActivationStore(model, ["norm"]) as store:
        model(make_ids(2))
        value = store.get("norm")
        assert value is not None
        assert value.device == torch.device("cpu")
        moved = value.to(device, torch.float64) * 2
        back = (moved / 2).to("cpu", torch.float32)
        model(make_ids(2))  # the value above is not a view of anything the store still uses

        assert differences(dict(oracle.activations), {"norm": back}) == []


# Modules that do not return a tensor


def test_the_check_for_odd_modules_passes_on_tuples() -> None:
    model = LanguageModel(block=TupleBlock)
    with ActivationStore(model, ["layers.0", "layers.1", "norm"]) as store:
        model(make_ids(2))

    assert all(store.get(name) is not None for name in store.layer_names)


def test_the_check_for_odd_modules_fails_on_a_dataclass_whose_part_can_be_asked_for() -> None:
    model = WithOddModule(HiddenOutput)
    with ActivationStore(model, ["odd"]) as store:
        with pytest.warns(FastcapWarning, match="'odd:output.last_hidden_state'"):
            model(make_ids(2))
        assert not all(store.get(name) is not None for name in store.layer_names)

    with ActivationStore(model, ["odd:output.last_hidden_state"]) as store:
        model(make_ids(2))
    assert all(store.get(name) is not None for name in store.layer_names)


# Troubleshooting


@pytest.mark.parametrize("wrong", ["layers.0.Attention", "layers[0].attention", "layers.2"])
def test_a_wrong_name_is_a_value_error_that_shows_the_names(wrong: str) -> None:
    model = LanguageModel()

    with pytest.raises(ValueError, match="not found in model") as caught:
        ActivationStore(model, [wrong]).enable()

    assert str(caught.value).startswith(f"Module {wrong!r} not found in model.")
    for name in ("layers.0", "layers.0.attention"):
        assert repr(name) in str(caught.value)


def test_a_module_that_the_pass_does_not_reach_has_no_value() -> None:
    model = LanguageModel()
    model.add_module("unused", nn.Linear(2, 2))
    with (
        ActivationStore(model, ["unused", "norm"]) as store,
        pytest.warns(FastcapWarning, match="Nothing is captured at site 'unused'"),
    ):
        model(make_ids(2))
    assert store.get("unused") is None
    assert store.get("norm") is not None

    with pytest.warns(FastcapWarning, match="Nothing is captured at site 'unused'"):
        found = extract_representations(model, Tokens(4), ["unused", "norm"], "cpu")
    assert list(found) == ["norm"]


def test_try_finally_takes_the_hooks_off_after_an_error() -> None:
    model = FailsAt(RuntimeError("in the middle"))
    store = ActivationStore(model, ["before"])
    store.enable()
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the workflow is what is tested
        try:
            model(make_ids(2))
        finally:
            store.disable()

    assert caught.value is model.error
    assert hooks_on(model) == 0
    assert store.get("before") is not None


def test_a_store_that_was_forgotten_after_an_error_does_not_go_on_capturing() -> None:
    model = FailsAt(RuntimeError("in the middle"))

    def forgetful() -> None:
        store = ActivationStore(model, ["before"])
        store.enable()
        model(make_ids(2))

    with pytest.raises(RuntimeError):
        forgetful()
    model.error.__traceback__ = None  # an error that is kept keeps the store of its frames

    assert hooks_on(model) == 0


def test_repeated_extractions_leave_no_hook_and_no_reference_behind() -> None:
    model = LanguageModel()
    gone = weakref.ref(model)
    for _ in range(3):
        extract_representations(model, Tokens(4), ["norm", ""], "cpu", positions=-1)
        assert hooks_on(model) == 0
        assert model.training

    del model
    gc.collect()
    assert gone() is None


def test_an_extraction_beside_an_enabled_store_leaves_that_store_alone() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"]) as store:
        found = extract_representations(model, Tokens(6), ["norm"], "cpu", 4)
        assert store.enabled
        last_batch = store.get("norm")
        assert last_batch is not None
        assert differences({"norm": found["norm"][4:].contiguous()}, {"norm": last_batch}) == []
    assert hooks_on(model) == 0
