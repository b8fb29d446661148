"""Which sites a name, a pattern or a module stands for, and under which keys."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap import ActivationStore, FastcapWarning
from fastcap.errors import ArgumentError, ArgumentTypeError, SiteNotFoundError
from fastcap.model.patterns import read_pattern
from fastcap.model.sites import as_site_names, bind_sites
from fastcap.reference import ReferenceStore, differences
from tests.support.datasets import expected, make_ids, make_samples
from tests.support.errors import message_of
from tests.support.models import Block, LanguageModel, SharedWeights, TupleBlock, hooks_on


def keys(model: nn.Module, *names: str | nn.Module) -> list[str]:
    return [bound.site.name for bound in bind_sites(model, as_site_names(names, model))]


MODEL = LanguageModel(n_layers=12)
PATTERNS: dict[str, list[str]] = {
    "layers.*.mlp": [f"layers.{i}.mlp" for i in range(12)],
    "layers.1*": ["layers.1", "layers.10", "layers.11"],
    "layers.*": [f"layers.{i}" for i in range(12)],
    "*": ["token_embedding", "norm", "output_head"],
    "*.0": ["layers.0"],
    "layers.0.*_norm": ["layers.0.attention_norm", "layers.0.mlp_norm"],
    "layers.{0,5,11}.mlp": [f"layers.{i}.mlp" for i in (0, 5, 11)],
    "layers.{11,0}": ["layers.0", "layers.11"],
    "layers.{0..11}": [f"layers.{i}" for i in range(12)],
    "layers.{9..10}.mlp": ["layers.9.mlp", "layers.10.mlp"],
    "layers.{3..3}": ["layers.3"],
    "layers.{0,2..3}": ["layers.0", "layers.2", "layers.3"],
    "layers.1{0..1}": ["layers.10", "layers.11"],
    "layers.{0,1}.{mlp,attention}": [
        *("layers.0.attention", "layers.0.mlp"),
        *("layers.1.attention", "layers.1.mlp"),
    ],
    "{layers.0.mlp,norm}": ["layers.0.mlp", "norm"],
    "**.mlp": [f"layers.{i}.mlp" for i in range(12)],
    "**.norm": ["norm"],
    "layers.2.**": [
        name for name, _ in MODEL.named_modules() if re.match(r"layers\.2(\.|$)", name)
    ],
    "layers.**.qkv": [f"layers.{i}.attention.qkv" for i in range(12)],
    "layers.0.**.mlp.**": [f"layers.0.mlp{end}" for end in ("", ".gate", ".up", ".down")],
    "**.**.output_head": ["output_head"],
    "**": [name for name, _ in MODEL.named_modules() if name != "layers"],
    r"re:^layers\.\d$": [f"layers.{i}" for i in range(10)],
    "re:0.mlp$": ["layers.0.mlp", "layers.10.mlp"],
    r"re:^layers\.(?:1|2)$": ["layers.1", "layers.2"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_stands_for_what_it_matches_in_model_order(pattern: str) -> None:
    assert keys(MODEL, pattern) == PATTERNS[pattern]


PARTS = {
    "layers.{0..1}:output[1]": ["layers.0:output[1]", "layers.1:output[1]"],
    "layers.{0..1}:output": ["layers.0", "layers.1"],
    "layers.{0..1}:input.acts": ["layers.0:input.acts", "layers.1:input.acts"],
    "layers.{0..1}:output[1][0].x": ["layers.0:output[1][0].x", "layers.1:output[1][0].x"],
    r"re:^layers\.[01]$:output[1]": ["layers.0:output[1]", "layers.1:output[1]"],
    r"re:^layers\.(?:0|1)$:input[0]": ["layers.0:input[0]", "layers.1:input[0]"],
    "re:^layers.(?:0|output)$:input": ["layers.0:input"],
}


@pytest.mark.parametrize("pattern", PARTS)
def test_a_part_behind_a_pattern_is_behind_every_name(pattern: str) -> None:
    assert keys(MODEL, pattern) == PARTS[pattern]


def test_a_regular_expression_may_have_colons_and_what_looks_like_a_part() -> None:
    model = nn.ModuleDict({"input": nn.Linear(1, 1), "a:output": nn.Linear(1, 1)})

    assert keys(model, "re:^(?:input)$") == ["input"]
    assert keys(model, "re:^(?:input[st]?)$:output[0]") == ["input:output[0]"]
    assert keys(model, r"re:^a\:output(?:)$") == ["a:output"]


def test_a_pattern_expands_in_place_and_a_module_matched_twice_is_one_site() -> None:
    assert keys(MODEL, "norm", "layers.{1..3}", "token_embedding", "layers.{2..4}", "*") == [
        *("norm", "layers.1", "layers.2", "layers.3", "token_embedding", "layers.4"),
        "output_head",
    ]
    assert keys(MODEL, "layers.1", "layers.{0,1}:output") == ["layers.1", "layers.0"]
    assert keys(MODEL, "layers.{0,1}", "layers.1") == ["layers.0", "layers.1"]


def test_another_part_of_the_same_module_is_another_site() -> None:
    assert keys(MODEL, "norm", "*:input") == [
        *("norm", "token_embedding:input", "norm:input", "output_head:input")
    ]


ODD_NAMES = ["*", "a*b", "{0,1}", "{", "**", "re:x", "a:output", "a:b", "a:input[0]"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_name_that_exists_wins_over_what_it_would_mean(name: str) -> None:
    model = nn.ModuleDict({each: nn.Linear(1, 1) for each in [*ODD_NAMES, "0", "1", "x"]})

    assert [(b.site.name, b.module) for b in bind_sites(model, [name])] == [(name, model[name])]
    assert keys(model, f"{name}:output[1]") == [f"{name}:output[1]"]
    assert keys(model, model[name]) == [name]


def test_the_root_has_an_empty_name_and_may_have_parts() -> None:
    assert keys(MODEL, "", ":output[0]", ":input") == ["", ":output[0]", ":input"]
    assert keys(MODEL, MODEL) == [""]
    assert bind_sites(MODEL, [":input"])[0].module is MODEL


def test_a_string_is_one_site_and_so_is_a_module() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())

    assert as_site_names("**", model) == ["**"]
    assert as_site_names(model, model) == [""]  # though a Sequential can be iterated
    assert as_site_names(model[1], model) == ["1"]
    assert as_site_names([model[1], "0"], model) == ["1", "0"]


def test_module_objects_are_captured_under_their_paths() -> None:
    model = LanguageModel()
    modules = [model.layers["1"].mlp, model.norm]
    names = ["layers.1.mlp", "norm"]
    store = ActivationStore(model, modules)
    with store, ReferenceStore(model, names) as oracle:
        model(make_ids(2))

    assert store.layer_names == names
    assert differences(oracle.activations, store.activations) == []


def test_a_module_of_another_model_is_refused() -> None:
    model, other = LanguageModel(), LanguageModel()

    assert message_of(SiteNotFoundError, lambda: ActivationStore(model, [other.norm])) == (
        "Module object of type RMSNorm not found in model: it is not part of this LanguageModel. "
        "Take it from the model itself, such as model.layers[3].mlp, or give its name."
    )


# Aliases


def test_a_pattern_takes_a_shared_module_once_under_its_first_matching_path() -> None:
    model = SharedWeights()

    assert keys(model, "*") == ["embedding", "first"]
    assert keys(model, "s*") == ["second"]
    assert keys(model, "{first,second}") == ["first"]
    assert keys(model, model.second) == ["first"]


def test_an_alias_asked_by_name_is_a_site_of_its_own_and_patterns_do_not_repeat_it() -> None:
    model = SharedWeights()

    assert keys(model, "second", "first") == ["second", "first"]
    assert keys(model, "second", "*") == ["second", "embedding"]
    assert keys(model, "*", "second") == ["embedding", "first", "second"]


# Wrappers


class Wrapping(nn.Module):
    """Holds a module under the name that some wrapper uses."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)
        self.inner_name = name

    def forward(self, *args: Any) -> Any:
        return self.get_submodule(self.inner_name)(*args)


def wrapped() -> tuple[nn.Module, LanguageModel]:
    """Data-parallel around compiled, with checkpointed attention; and the model inside."""
    model = LanguageModel()
    for block in model.layers.values():
        block.attention = Wrapping(block.attention, "_checkpoint_wrapped_module")
    return Wrapping(Wrapping(model, "_orig_mod"), "module"), model


@pytest.mark.parametrize(
    "pattern", ["layers.*.mlp", "module.layers.*.mlp", "module._orig_mod.layers.{0,1}.mlp"]
)
def test_segments_of_wrappers_are_optional_and_in_no_key(pattern: str) -> None:
    model, inner = wrapped()

    assert keys(model, pattern) == ["layers.0.mlp", "layers.1.mlp"]
    assert [bound.module for bound in bind_sites(model, [pattern])] == [
        inner.layers["0"].mlp,
        inner.layers["1"].mlp,
    ]


def test_stars_do_not_stand_for_segments_of_wrappers() -> None:
    model, inner = wrapped()

    assert keys(model, "*") == ["token_embedding", "norm", "output_head"]
    assert keys(model, r"re:^layers\.1\.attention(\.|$)") == [
        *("layers.1.attention", "layers.1.attention.qkv", "layers.1.attention.out")
    ]
    assert "module" not in " ".join(keys(model, "**"))
    assert keys(model, inner.layers["0"].mlp) == ["layers.0.mlp"]


def test_some_wrappers_may_be_named_and_others_left_out() -> None:
    model, inner = wrapped()
    names = ["module.layers.0", "_orig_mod.layers.0.mlp", "layers.0._checkpoint_wrapped_module"]

    assert keys(model, "module.layers.0", "_orig_mod.layers.0.mlp") == names[:2]
    assert [bound.module for bound in bind_sites(model, names[:2])] == [
        inner.layers["0"],
        inner.layers["0"].mlp,
    ]


def test_an_expanded_name_finds_the_same_module_again() -> None:
    model, _ = wrapped()
    found = bind_sites(model, ["**"])

    again = bind_sites(model, [bound.site.name for bound in found])
    assert [bound.module for bound in again] == [bound.module for bound in found]


def test_a_submodule_that_is_called_module_and_is_no_wrapper_can_be_named() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(1, 1)
            self.other = nn.Linear(1, 1)

    model = Pair()
    assert bind_sites(model, ["module"])[0].module is model.module
    assert keys(model, "module") == ["module"]
    assert keys(model, model.module) == ["module"]


# Through the public calls


@pytest.mark.parametrize("block", [Block, TupleBlock])
def test_patterns_give_the_values_of_the_names_they_stand_for(block: type[Block]) -> None:
    model, samples = LanguageModel(n_layers=3, block=block), make_samples(7)
    names = ["norm", "layers.0.mlp", "layers.1.mlp", "layers.2.mlp", "layers.0"]

    found = fastcap.extract_representations(
        model, samples, ["norm", "**.mlp", model.layers["0"]], "cpu", 3
    )
    assert differences(expected(model, samples, names, 3), found) == []

    [records] = fastcap.stream(model, [make_ids(2)], "layers.{1..2}.mlp")
    assert list(records) == ["layers.1.mlp", "layers.2.mlp"]


# Errors


def refused(error: type[Exception], pattern: str, model: nn.Module | None = None) -> str:
    """What is said about a pattern; no hook is left behind."""
    model = model or LanguageModel(n_layers=4)
    text = message_of(error, ActivationStore(model, ["norm", pattern]).enable)
    assert hooks_on(model) == 0
    return text


ALL_NAMES = "All names: for name, _ in model.named_modules(): print(name)"


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("layers.*.mpl", "'layers.*.mlp' or 'layers.*.mlp.up' or 'layers.*'"),
        ("**.mpl", "'**.mlp' or '**.up' or '**.norm'"),
        ("layer.{0..3}.mlp.down", "'layers.*.mlp.down' or 'layers.*.mlp.up' or 'layers.*.mlp'"),
    ],
)
def test_a_pattern_that_matches_nothing_is_answered_with_patterns_that_do(
    pattern: str, meant: str
) -> None:
    names = sorted(name for name, _ in LanguageModel(n_layers=4).named_modules())
    assert refused(SiteNotFoundError, pattern) == (
        f"Pattern {pattern!r} not found in model. Did you mean {meant}? "
        f"Available: {names[:20]}... {ALL_NAMES}"
    )


def test_an_expression_that_is_found_nowhere_is_answered_with_the_names() -> None:
    model = nn.Sequential(nn.ReLU())
    assert message_of(SiteNotFoundError, lambda: bind_sites(model, ["re:^1$"])) == (
        f"Pattern 're:^1$' not found in model: it is found in no path. Available: ['', '0'] "
        f"{ALL_NAMES}"
    )


@pytest.mark.parametrize(("pattern", "advice"), [("lay*", "lay*.*"), ("re:^layers$", "**")])
def test_a_pattern_of_containers_is_refused_because_they_are_never_called(
    pattern: str, advice: str
) -> None:
    assert refused(SiteNotFoundError, pattern) == (
        f"Pattern {pattern!r} not found in model: all it matches is never called, such as 'layers' "
        f"(ModuleDict). Ask for the modules in it, for example with {advice!r}."
    )


@pytest.mark.parametrize(
    ("pattern", "missing", "found"),
    [
        ("layers.{0,15,31}.mlp", "'15' or '31'", "'layers.0.mlp'"),
        ("layers.{0..31}", "'31'", "'layers.0' to 'layers.3'"),
        ("layers.{2..9}.{mlp,moe}", "'9' or 'moe'", "'layers.2.mlp' to 'layers.3.mlp'"),
    ],
)
def test_everything_listed_in_braces_has_to_be_there(
    pattern: str, missing: str, found: str
) -> None:
    assert refused(SiteNotFoundError, pattern) == (
        f"Pattern {pattern!r} not found in model: nothing matches with {missing} in the braces, "
        "and everything listed there has to be in the model. The other items match "
        f"{found}. For whatever there is, write '*'."
    )


BRACES = "Braces hold names and ranges, separated by commas, such as '{0,15,31}' or '{0..31}'."
NO_RANGE = "is not a valid range. A range is two whole numbers, first and last, such as '{0..31}'."
STRAY = (
    "every '{' needs its '}', and braces hold no braces. Write a list as 'layers.{0,15,31}' and a "
    "range as 'layers.{0..31}'."
)
BACKWARDS = "the range '3..0' runs backwards. Write '{0..3}'; sites are in model order in any case."
TOO_LONG = (
    "the range '0..999999999999' has 1,000,000,000,000 numbers, and 10,000 are the most. For every "
    "number, write '*'."
)
STARS = (
    "'**' stands for whole segments, between dots, as in '**.mlp'. For a part of one segment "
    "write '*'."
)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("layers.{0,1", STRAY),
        ("layers.0}", STRAY),
        ("layers.{0,{1,2}}", STRAY),
        ("layers.{}", f"an item of the list is empty. {BRACES}"),
        ("layers.{0,,1}", f"an item of the list is empty. {BRACES}"),
        ("layers.{0,1*}", f"'1*' is not a plain name. {BRACES}"),
        ("layers.{0..}", f"'0..' {NO_RANGE}"),
        ("layers.{a..b}", f"'a..b' {NO_RANGE}"),
        ("layers.{-1..3}", f"'-1..3' {NO_RANGE}"),
        ("layers.{00..03}", f"'00..03' {NO_RANGE}"),
        ("layers.{0..31..2}", f"'0..31..2' {NO_RANGE}"),
        ("layers.{0..9999999999999999999}", f"'0..9999999999999999999' {NO_RANGE}"),
        ("layers.{3..0}", BACKWARDS),
        ("layers.{0..999999999999}", TOO_LONG),
        ("layers**", STARS),
        ("***", STARS),
        ("**mlp", STARS),
        ("re:", "no regular expression follows 're:'. For every module, write '**'."),
    ],
)
def test_a_pattern_that_cannot_be_read_is_refused_with_the_reason(
    pattern: str, reason: str
) -> None:
    assert refused(ArgumentError, pattern) == f"Pattern {pattern!r}: {reason}"


def test_an_expression_that_is_none_is_refused_with_the_reason() -> None:
    assert refused(ArgumentError, "re:(") == (
        "Pattern 're:(' is not a valid regular expression: missing ), unterminated subpattern at "
        "position "
        r"0. After 're:' comes what Python's re.search takes, such as 're:^layers\.\d+$'."
    )


def test_a_wrong_part_behind_a_pattern_is_refused_as_behind_a_name() -> None:
    assert refused(ArgumentError, "layers.*:weight").startswith(
        "Site 'layers.*:weight': what follows the colon is not a part that can be captured."
    )


@pytest.mark.parametrize(
    "part", ["grad_output", "grad_input", "attention_weights", "query", "key", "value", "key[0]"]
)
@pytest.mark.parametrize("name", ["norm", "layers.*", "re:^norm$"])
def test_parts_to_come_are_refused_as_not_supported_yet(name: str, part: str) -> None:
    site, word = f"{name}:{part}", part.removesuffix("[0]")
    assert refused(ArgumentError, site) == (
        f"Site {site!r}: ':{word}' is not supported yet. What can be captured starts with "
        "':output' or ':input'."
    )


def test_an_input_part_that_cannot_be_read_is_refused_from_where_it_goes_wrong() -> None:
    assert refused(ArgumentError, "norm:input[0") == (
        "Site 'norm:input[0': cannot read '[0'. After ':input' come any number of '[1]', '[key]' "
        "or '.name'."
    )


def test_sites_of_the_wrong_type_are_refused() -> None:
    layers: Any = [MODEL.norm, 3]
    assert message_of(ArgumentTypeError, lambda: as_site_names(layers, MODEL)) == (
        "sites must be module names (strings) or modules of the model; got 3. Print the names "
        "with: for name, _ in model.named_modules(): print(name)"
    )


def test_reading_a_large_range_is_quick_and_long_paths_do_not_explode() -> None:
    expression = read_pattern("**.a.**.a.**.b{0..9999}.**.x").expression()
    assert not expression.search(".".join(["a"] * 60))
    assert expression.search("a.a.b9999.x")


def test_a_captured_tensor_is_of_the_module_that_was_meant() -> None:
    class Numbers(nn.Module):
        def forward(self, acts: Tensor) -> Tensor:
            return acts + 1

    model = nn.Sequential(*(Numbers() for _ in range(12)))
    with ActivationStore(model, "{2..10}") as store:
        model(torch.zeros(1))
    assert {int(name) + 1: int(value) for name, value in store.activations.items()} == {
        n: n for n in range(3, 12)
    }


class HasModule(nn.Module):
    """Its child `module` is not a wrapper's."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, acts: Tensor) -> Tensor:
        result: Tensor = self.norm(self.module(acts))
        return result


def test_a_child_called_module_beside_others_is_no_wrapper() -> None:
    model = HasModule()
    assert [site.name for site in fastcap.list_sites(model)] == ["", "module", "module.0", "norm"]
    with ActivationStore(model, ["*"]) as store:
        model(torch.ones(1, 4))
    assert list(store.activations) == ["module", "norm"]


def test_an_index_into_a_tensor_is_no_part() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with ActivationStore(model, ["0:output[0]"]) as store, pytest.warns(FastcapWarning) as said:
        model(torch.ones(2, 4))
    assert store.activations == {}
    assert "its forward returned a Tensor, which has no tensor at 'output[0]'" in str(
        said[0].message
    )
