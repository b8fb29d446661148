"""Sites that produced nothing: each is named once, with the reason, on models that really do it."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import FastcapWarning
from fastcap.errors import UnsupportedModuleError
from fastcap.reference import ReferenceStore, differences
from tests.support.errors import message_of
from tests.support.huggingface import make_llama

ACTS = torch.ones(2, 3, 4)


def said_in_passes(model: nn.Module, sites: list[str], n_passes: int = 2) -> list[str]:
    """What is said while a store sees some passes."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with fastcap.ActivationStore(model, sites) as store, torch.no_grad():
            for _ in range(n_passes):
                model(ACTS)
            assert [store.get(site) for site in sites] == [None] * len(sites)
    return [str(warning.message) for warning in said if warning.category is FastcapWarning]


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.taken, self.not_taken = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = self.taken(acts)
        return result


def test_a_module_that_is_never_reached() -> None:
    assert said_in_passes(Branching(), ["not_taken"]) == [
        (
            "Nothing is captured at site 'not_taken': the forward pass never called the module. A "
            "branch not taken, an expert that got no token, a weight that is used without its "
            "module, or its forward() called directly, which runs no hooks; capture a module "
            "around it."
        )
    ]


def test_a_container_of_modules() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(4, 4)])

        def forward(self, acts: Tensor) -> Tensor:
            result: Tensor = self.layers[0](acts)
            return result

    assert said_in_passes(Layers(), ["layers"]) == [
        (
            "Nothing is captured at site 'layers': a ModuleList holds modules and is not called "
            "itself. Name what it holds, such as 'layers.0'."
        )
    ]


def test_the_parts_of_torchs_attention() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 1).eval()
    assert said_in_passes(model, ["layers.0.self_attn.out_proj"]) == [
        (
            "Nothing is captured at site 'layers.0.self_attn.out_proj': 'layers.0.self_attn' is an "
            "nn.MultiheadAttention, which uses the weights of its NonDynamicallyQuantizableLinear "
            "without calling it. Capture 'layers.0.self_attn'."
        )
    ]


class FastLayer(nn.TransformerEncoderLayer):
    """Takes the fast path although there are hooks, as torch did before it looked for them."""

    def forward(self, src: Tensor, *args: object, **options: object) -> Tensor:
        attention = self.self_attn
        return torch._transformer_encoder_layer_fwd(
            src,
            attention.embed_dim,
            attention.num_heads,
            attention.in_proj_weight,
            attention.in_proj_bias,
            attention.out_proj.weight,
            attention.out_proj.bias,
            False,
            False,
            self.norm1.eps,
            self.norm1.weight,
            self.norm1.bias,
            self.norm2.weight,
            self.norm2.bias,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
            None,
            None,
        )


def test_the_fast_path_of_torchs_encoder_layer() -> None:
    model = nn.Sequential(FastLayer(4, 2, 8, batch_first=True)).eval()
    assert said_in_passes(model, ["0.linear1"]) == [
        (
            "Nothing is captured at site '0.linear1': '0' is an FastLayer in eval mode, whose "
            "fast path computes the whole layer without calling its modules. Capture '0', or turn "
            "the fast path off: torch.backends.mha.set_fastpath_enabled(False)."
        )
    ]


def test_torchs_own_fast_path_gives_way_to_hooks() -> None:
    """If it did not, the values would be missing, and the reason above would be given."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    sites = ["layers.0.linear1", "layers.1.norm2", "layers.1"]
    with fastcap.ActivationStore(model, sites) as store, ReferenceStore(model, sites) as oracle:
        with torch.no_grad():
            model(ACTS)
        assert not differences(oracle.activations, store.activations)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_is_refused() -> None:
    model = nn.Sequential(torch.jit.script(nn.Sequential(nn.Linear(4, 4))))
    message = message_of(
        UnsupportedModuleError, lambda: fastcap.ActivationStore(model, ["0.0"]).enable()
    )
    assert message == (
        "Cannot capture site '0.0': the module is TorchScript, which runs no Python hooks. Load "
        "the model as Python, or capture a Python module around it."
    )
    with pytest.raises(UnsupportedModuleError):
        fastcap.stream(model, [ACTS], ["0.0"], positions="last")
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_an_output_that_is_no_tensor_is_reported_by_its_type_and_not_again() -> None:
    class Odd(nn.Module):
        def forward(self, acts: Tensor) -> int:
            return 3

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd()

        def forward(self, acts: Tensor) -> Tensor:
            return acts * int(self.odd(acts))

    assert said_in_passes(Model(), ["odd"]) == [
        (
            "Nothing is captured at site 'odd': its forward returned an int, not a tensor. Capture "
            "a submodule."
        )
    ]


@pytest.mark.filterwarnings("ignore:The model is compiled")
def test_a_module_replaced_after_enable() -> None:
    model = Branching()
    with fastcap.ActivationStore(model, ["taken"]) as store:
        model.taken = nn.Linear(4, 4)
        with pytest.warns(FastcapWarning) as said:
            model(ACTS)
        model(ACTS)
        assert store.get("taken") is None
    assert [str(warning.message) for warning in said] == [
        (
            "Nothing is captured at site 'taken': the module with this name was replaced after the "
            "hooks were put on. Replace modules first, then enable or start the run."
        )
    ]


@pytest.mark.parametrize("part", ["", ":input"])
def test_a_hook_that_somebody_removed(part: str) -> None:
    model = Branching()
    with fastcap.ActivationStore(model, [f"taken{part}"]):
        model.taken._forward_hooks.clear()
        model.taken._forward_pre_hooks.clear()
        with pytest.warns(FastcapWarning) as said:
            model(ACTS)
    assert [str(warning.message) for warning in said] == [
        (
            f"Nothing is captured at site 'taken{part}': something removed its hook. Disable and "
            "enable again."
        )
    ]


def test_functions_compiled_before_the_hooks_are_compiled_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    function = torch.compile(lambda acts: model(acts), backend="eager")
    function(ACTS)
    store = fastcap.ActivationStore(model, ["0"])
    with pytest.warns(FastcapWarning, match="or a function was that may call it"):
        store.enable()
    function(ACTS)
    assert torch.equal(store.activations["0"], model[0](ACTS))
    store.disable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing that lacks hooks was compiled since
        fastcap.ActivationStore(nn.Sequential(nn.ReLU()), ["0"])
    torch.compiler.reset()


class PartlyCompiled(nn.Module):
    """Calls its layer from a compiled function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.fast = torch.compile(self.slow, backend="eager")

    def slow(self, acts: Tensor) -> Tensor:
        result: Tensor = self.layer(acts)
        return result

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = self.fast(acts)
        return result


def test_a_function_inside_the_model_that_was_compiled_before_the_hooks() -> None:
    model = PartlyCompiled()
    with torch.no_grad():
        model(ACTS)
        store = fastcap.ActivationStore(model, ["layer"])
        with pytest.warns(FastcapWarning, match="graphs compiled before a hook exists skip it"):
            store.enable()
        model(ACTS)
        store.disable()
        assert torch.equal(store.activations["layer"], model.layer(ACTS))
        [records] = fastcap.stream(model, [ACTS], ["layer"])  # which runs it as plain Python
        assert torch.equal(records["layer"], model.layer(ACTS))
    torch.compiler.reset()


def test_every_site_is_reported_once_and_a_stream_says_it_after_its_first_pass() -> None:
    model = Branching()
    records = fastcap.stream(model, [ACTS, ACTS, ACTS], ["taken", "not_taken"], prefetch=0)
    with pytest.warns(FastcapWarning, match="'not_taken': the forward pass") as said:
        next(records)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [list(each) for each in records] == [["taken"], ["taken"]]


def test_nothing_is_said_of_sites_that_fired_or_of_a_store_without_a_pass() -> None:
    model = Branching()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fastcap.ActivationStore(model, ["taken"]):
            pass
        with fastcap.ActivationStore(model, ["taken"]) as store:
            model(ACTS)
            store.clear()
            model(ACTS)
        with fastcap.ActivationStore(model, ["not_taken"]):
            model.taken(ACTS)  # a module alone is not a pass


def test_a_store_that_is_gone_says_nothing() -> None:
    model = Branching()
    store = fastcap.ActivationStore(model, ["not_taken"])
    store.enable()
    del store
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(ACTS)


class Direct(nn.Module):
    """Calls the forward of its child, past the child's hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(4, 4)

    def forward(self, acts: Tensor) -> Tensor:
        found: Tensor = self.child.forward(acts)
        return found


def test_a_forward_that_is_called_directly_is_among_the_reasons() -> None:
    model = Direct()
    with (
        pytest.warns(FastcapWarning, match=r"or its forward\(\) called directly"),
        fastcap.ActivationStore(model, ["child"]) as store,
    ):
        model(ACTS)
    assert store.activations == {}


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_weights_that_sdpa_does_not_have_are_named(implementation: str) -> None:
    model = make_llama(attn_implementation=implementation)
    store = fastcap.ActivationStore(model, ["layers.0.self_attn:output[1]"])
    if implementation == "eager":
        with store:
            model(torch.ones(2, 3, dtype=torch.int64))
        assert store["layers.0.self_attn:output[1]"].shape == (2, 2, 3, 3)
        return
    said = "load the model with attn_implementation='eager'"
    with pytest.warns(FastcapWarning, match=said), store:
        model(torch.ones(2, 3, dtype=torch.int64))


def test_a_multihead_attention_without_its_weights_says_how_to_have_them() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, acts: Tensor) -> Tensor:
            found: Tensor = self.attention(acts, acts, acts, need_weights=False)[0]
            return found

    model = Attends().eval()
    with (
        pytest.warns(FastcapWarning, match="nn.MultiheadAttention with need_weights=True"),
        fastcap.ActivationStore(model, ["attention:output[1]"]),
    ):
        model(torch.ones(2, 3, 4))
