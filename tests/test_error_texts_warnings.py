"""What is warned about: outputs that are not tensors, missing sites, padding that is not passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastcap import ActivationStore, FastcapWarning
from fastcap import extract_representations as extract
from fastcap.reference import differences
from tests.support.datasets import Sample, expected, make_ids, make_samples
from tests.support.models import HiddenOutput, HiddenPair, LanguageModel, WithOddModule, hooks_on

SAMPLES = make_samples(7)


def texts(said: pytest.WarningsRecorder) -> list[str]:
    return [str(warning.message) for warning in said]


class KeyedOutput(dict[str, torch.Tensor]):
    """A dict whose keys are attributes too, as model outputs often are."""

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error

    @classmethod
    def of(cls, acts: torch.Tensor) -> KeyedOutput:
        return cls(last_hidden_state=acts)


SUGGESTED: dict[str, tuple[Callable[[torch.Tensor], Any], str, str]] = {
    "a dict": (lambda acts: {"hidden": acts}, "a dict", "odd:output[hidden]"),
    "a dataclass": (HiddenOutput, "a HiddenOutput", "odd:output.last_hidden_state"),
    "a list": (lambda acts: [acts], "a list of 1 (Tensor)", "odd:output[0]"),
    "a tuple in a tuple": (
        lambda acts: ((acts, acts + 1), None),
        "a tuple of 2 (tuple, NoneType)",
        "odd:output[0][0]",
    ),
    "a tuple led by None": (
        lambda acts: (None, acts),
        "a tuple of 2 (NoneType, Tensor)",
        "odd:output[1]",
    ),
    "a dict with a method's name for a key": (
        lambda acts: {"values": acts},
        "a dict",
        "odd:output[values]",
    ),
    "a dict with a digit for a key": (lambda acts: {"0": acts}, "a dict", "odd:output[0]"),
    "a dict with attributes": (
        KeyedOutput.of,
        "a KeyedOutput",
        "odd:output.last_hidden_state",
    ),
    "a dict of named tuples": (
        lambda acts: {"pair": HiddenPair(acts, "label")},
        "a dict",
        "odd:output[pair][0]",
    ),
}


@pytest.mark.parametrize("kind", SUGGESTED)
def test_an_output_that_is_no_tensor_is_reported_with_a_part_that_then_works(kind: str) -> None:
    make, found, part = SUGGESTED[kind]
    model = WithOddModule(make)
    with pytest.warns(FastcapWarning) as said:
        assert list(extract(model, SAMPLES, ["odd", "head"], "cpu", 2)) == ["head"]

    text = str(said[0].message)
    assert text.startswith(
        f"Nothing is captured at site 'odd': its forward returned {found}, not a tensor. "
        f"Ask for a part: {part!r}"
    )
    assert text.endswith(".")
    assert len(said) == 1
    captured = extract(model, SAMPLES, [part], "cpu", 2)
    assert differences(expected(model, SAMPLES, [part], 2), captured) == []


def test_an_output_without_any_tensor_is_reported_with_another_way() -> None:
    model = WithOddModule(lambda acts: None)
    with ActivationStore(model, ["odd"]), pytest.warns(FastcapWarning) as said:
        model(make_ids(3))

    assert texts(said) == [
        (
            "Nothing is captured at site 'odd': its forward returned None, not a tensor. Capture a "
            "submodule."
        )
    ]


def test_a_part_that_an_output_does_not_have_is_reported_with_those_it_has() -> None:
    model = WithOddModule(lambda acts: {"hidden": acts})
    with ActivationStore(model, ["odd:output[hiden]"]), pytest.warns(FastcapWarning) as said:
        model(make_ids(3))

    assert texts(said) == [
        (
            "Nothing is captured at site 'odd:output[hiden]': its forward returned a dict, which "
            "has no tensor at 'output[hiden]'. Ask for a part: 'odd:output[hidden]'."
        )
    ]


def test_a_site_without_rows_is_left_out_and_named() -> None:
    with pytest.warns(FastcapWarning) as said:
        assert extract(LanguageModel(), [], ["norm"], "cpu") == {}

    assert texts(said) == [
        ("Nothing was captured at 'norm': the dataset gave no sample. The result is empty.")
    ]


def _masked(n_masked: int) -> list[Sample]:
    mask = torch.ones(5, dtype=torch.int64)
    mask[:n_masked] = 0
    return [{**sample, "attention_mask": mask} for sample in SAMPLES]


def test_padding_that_is_not_passed_is_warned_about_once_with_the_fix() -> None:
    with pytest.warns(FastcapWarning) as said:
        extract(LanguageModel(), _masked(2), ["norm"], "cpu", 2)

    assert texts(said) == [
        (
            "The batches have an attention_mask with zeros (padding), and it is not passed to the "
            "model, which will attend to the padding. Pass it with model_inputs=['attention_mask']."
        )
    ]


def test_padding_that_is_passed_or_not_there_is_not_warned_about() -> None:
    model = LanguageModel()

    extract(model, _masked(2), ["norm"], "cpu", 2, model_inputs=["attention_mask"])
    extract(model, _masked(0), ["norm"], "cpu", 2)


@pytest.mark.filterwarnings("error")
def test_a_warning_turned_into_an_error_leaves_the_model_as_before() -> None:
    model = LanguageModel()

    with pytest.raises(FastcapWarning, match="attention_mask"):
        extract(model, _masked(2), ["norm"], "cpu", 2)

    assert (hooks_on(model), model.training) == (0, True)


def test_warnings_about_a_result_point_at_the_line_that_asked_for_it() -> None:
    with pytest.warns(FastcapWarning) as said:
        extract(LanguageModel(), [], ["norm"], "cpu")

    assert [warning.filename for warning in said] == [__file__]
