"""`list_sites`: every module once, what it produced in one pass, and a model left as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import ActivationStore, FastcapWarning, list_sites
from fastcap.errors import ArgumentTypeError, BatchError, DeviceError, SiteNotFoundError
from fastcap.model.site_tree import PartInfo, SiteInfo
from tests.support.datasets import make_ids
from tests.support.errors import message_of
from tests.support.models import (
    CountsTrainCalls,
    FailsAt,
    FrozenPart,
    HiddenOutput,
    LanguageModel,
    PositionTable,
    SharedWeights,
    TupleBlock,
    WithOddModule,
    hooks_on,
    training_flags,
)

IDS = make_ids(2, 7)


def parts_of(site: SiteInfo) -> dict[str, tuple[int, ...]]:
    return {part.part: part.shape for part in site.parts}


def test_sites_are_the_modules_in_model_order_with_their_types() -> None:
    model = LanguageModel(n_layers=1)

    listed = list_sites(model)
    assert listed[:4] == (
        SiteInfo("", "LanguageModel"),
        SiteInfo("token_embedding", "Embedding"),
        SiteInfo("layers.0", "Block"),
        SiteInfo("layers.0.attention_norm", "RMSNorm"),
    )
    assert [site.name for site in listed] == [
        name for name, _ in model.named_modules() if name != "layers"
    ]


def test_every_listed_name_is_a_site_that_a_store_takes() -> None:
    model = nn.Sequential(nn.ModuleDict({"a*{": nn.Linear(1, 1)})["a*{"], nn.ReLU())
    with ActivationStore(model, [site.name for site in list_sites(model)]) as store:
        model(torch.ones(1, 1))
    assert list(store.activations) == ["0", "1", ""]


def test_an_example_gives_calls_shapes_dtypes_and_bytes() -> None:
    model = LanguageModel(n_layers=1, block=TupleBlock)
    sites = {site.name: site for site in list_sites(model, {"input_ids": IDS})}

    assert sites["layers.0"] == SiteInfo(
        name="layers.0",
        type="TupleBlock",
        n_calls=1,
        parts=(
            PartInfo(":output", (2, 7, 16), torch.float32, 7 * 16 * 4),
            PartInfo(":output[1]", (2, 7), torch.float32, 7 * 4),
            PartInfo(":input", (2, 7, 16), torch.float32, 7 * 16 * 4),
        ),
    )
    assert sites[""].parts[-1] == PartInfo(":input", (2, 7), torch.int64, 7 * 8)


ODD: dict[str, tuple[Any, dict[str, tuple[int, ...]]]] = {
    "dataclass": (HiddenOutput, {":output.last_hidden_state": (2, 7, 16)}),
    "dict": (lambda acts: {"h": acts, "n": 1}, {":output[h]": (2, 7, 16)}),
    "list": (lambda acts: [acts, acts[0]], {":output[0]": (2, 7, 16), ":output[1]": (7, 16)}),
    "nested": (
        lambda acts: ((acts, acts[0]), None, acts[:, 0]),
        {":output[0][0]": (2, 7, 16), ":output[0][1]": (7, 16), ":output[2]": (2, 16)},
    ),
    "nothing": (lambda acts: None, {}),
    "sparse": (lambda acts: (acts.to_sparse(), acts), {":output[1]": (2, 7, 16)}),
}


@pytest.mark.parametrize("kind", ODD)
def test_every_listed_part_can_be_captured(kind: str) -> None:
    make, outputs = ODD[kind]
    model = WithOddModule(make)
    [odd] = list_sites(model, IDS, sites="odd")

    assert parts_of(odd) == {**outputs, ":input": (2, 7, 16)}
    with ActivationStore(model, [odd.name + part for part in parts_of(odd)]) as store:
        model(IDS)
    assert [tuple(value.shape) for value in store.activations.values()] == [
        *([(2, 7, 16)]),
        *outputs.values(),
    ]


def test_arguments_by_keyword_are_listed_by_name() -> None:
    class Masked(nn.Module):
        def forward(self, acts: Tensor, mask: Tensor | None = None) -> Tensor:
            return acts

    [site] = list_sites(Masked(), torch.ones(2, 3), forward=lambda m, x: m(x, mask=x[0]))
    assert parts_of(site) == {":output": (2, 3), ":input": (2, 3), ":input.mask": (3,)}


def test_a_shared_module_is_listed_once_with_all_its_calls() -> None:
    sites = {site.name: site.n_calls for site in list_sites(SharedWeights(), IDS)}
    assert sites == {"": 1, "embedding": 1, "first": 2}


def test_what_the_pass_does_not_reach_has_no_calls() -> None:
    class Unused(nn.Sequential):
        def forward(self, acts: Tensor) -> Tensor:
            return self[0](acts)  # type: ignore[no-any-return]

    _, first, second = list_sites(Unused(nn.ReLU(), nn.Linear(1, 1)), torch.ones(2, 3))
    assert (first.n_calls, second.n_calls, second.parts) == (1, 0, ())


def test_a_value_whose_first_dimension_is_not_the_batch_has_no_bytes_per_sample() -> None:
    [wpe] = list_sites(PositionTable(), make_ids(2, 7), sites="wpe")
    assert [(part.shape, part.bytes_per_sample) for part in wpe.parts] == [
        ((1, 7, 16), None),
        ((1, 7), None),
    ]


def test_sites_may_be_chosen_by_name_pattern_and_module() -> None:
    model = LanguageModel()

    names = [s.name for s in list_sites(model, IDS, sites=["norm", "**.mlp", model.layers["0"]])]
    assert names == ["norm", "layers.0.mlp", "layers.1.mlp", "layers.0"]
    [layer] = list_sites(model, sites=["layers.0:output[1]", "layers.0"])
    assert layer.name == "layers.0"


# The model stays as it was


class Counts(nn.Module):
    """Counts its calls in a buffer and draws random numbers, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.n: Tensor
        self.register_buffer("n", torch.zeros(1))
        self.linear = nn.Linear(3, 3)

    def forward(self, acts: Tensor) -> Tensor:
        self.n += 1
        output: Tensor = self.linear(acts) + torch.rand(3)
        return output


def test_buffers_and_random_numbers_are_as_before() -> None:
    model = Counts()
    buffer, state = model.n, torch.get_rng_state()
    list_sites(model, torch.ones(2, 3))

    assert model.n is buffer
    assert model.n.item() == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_hooks_are_as_before_also_on_an_error(fails: bool) -> None:
    model: nn.Module = FailsAt(ZeroDivisionError("planned")) if fails else FrozenPart()
    flags = training_flags(model)
    if fails:
        with pytest.raises(ZeroDivisionError, match=r"^planned$"):
            list_sites(model, IDS)
    else:
        list_sites(model, IDS)
    assert training_flags(model) == flags
    assert hooks_on(model) == 0


def test_the_pass_is_in_eval_mode_and_without_gradients() -> None:
    model = CountsTrainCalls()
    seen: list[bool] = []
    handle = model.norm.register_forward_hook(
        lambda *_: seen.append(torch.is_grad_enabled() or model.training)
    )
    list_sites(model, IDS)
    handle.remove()
    assert seen == [False]
    assert model.train_calls == [False, True]


def test_a_compiled_model_is_listed_by_the_names_of_its_modules() -> None:
    model: Any = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), backend="eager")
    model(torch.ones(1, 4))
    assert [(s.name, s.n_calls) for s in list_sites(model, torch.ones(2, 4))] == [
        *[("", 1), ("0", 1), ("1", 1)]
    ]


def test_a_model_without_data_is_listed_without_an_example() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4))
    assert [site.name for site in list_sites(model)] == ["", "0"]
    assert message_of(DeviceError, lambda: list_sites(model, torch.ones(1, 4))).startswith(
        "The model's parameters are on the meta device"
    )


# Errors


def test_errors_are_those_of_sites_and_batches() -> None:
    model = LanguageModel()
    wrong: Any = "no model"

    assert message_of(SiteNotFoundError, lambda: list_sites(model, sites="nrom")).startswith(
        "Module 'nrom' not found in model. Did you mean 'norm'"
    )
    assert message_of(BatchError, lambda: list_sites(model, 3)).startswith(
        "Cannot call the model with a batch of type int."
    )
    assert message_of(ArgumentTypeError, lambda: list_sites(wrong)) == (
        "model must be a torch.nn.Module; got 'no model'."
    )


def test_a_mask_that_is_not_passed_is_warned_about_as_in_a_stream() -> None:
    batch = {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}
    with pytest.warns(FastcapWarning, match=r"Pass it with model_inputs=\['attention_mask'\]"):
        list_sites(LanguageModel(), batch)
    [root, *_] = list_sites(LanguageModel(), batch, model_inputs="attention_mask")
    assert ":input.attention_mask" in parts_of(root)
