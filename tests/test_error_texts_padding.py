"""Error texts: selections that look at each sample's own tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcap
from fastcap import ActivationStore, extract_representations, stream
from fastcap.errors import (
    ArgumentError,
    ArgumentTypeError,
    BatchError,
    MissingInputError,
    PositionError,
    SelectionError,
)
from tests.support.datasets import make_ids, make_samples
from tests.support.errors import message_of
from tests.support.models import LanguageModel, PositionTable, Returning, hooks_on

IDS = make_ids(3)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
LAST: dict[str, Any] = {"positions": "last"}
MEAN: dict[str, Any] = {"reduce": "mean"}
HOW = (
    "Pass attention_mask to the model (model_inputs=['attention_mask'] where fastcap makes the "
    "call), let the batches have that key, or give a mask with mask=."
)


class IgnoresMask(LanguageModel):
    """Takes any mask, and does not look at it."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Tensor:
        return super().forward(input_ids)


def said_of_mask(mask: Any, **options: Any) -> str:
    """What a pass with this mask says, whether the call or the batch has it."""
    model = IgnoresMask()
    with ActivationStore(model, ["token_embedding"], **(options or LAST)):
        message = message_of(SelectionError, lambda: model(IDS, mask))
    if isinstance(mask, Tensor) and not options:
        batches = [{"input_ids": IDS, "attention_mask": mask}]
        run = stream(model, batches, ["token_embedding"], model_inputs=["attention_mask"], **LAST)
        assert message_of(SelectionError, lambda: next(run)) == message
        assert hooks_on(model) == 0
    return message


# No mask


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        (LAST, "positions='last'"),
        ({"positions": "unpadded"}, "positions='unpadded'"),
        (MEAN, "reduce='mean'"),
    ],
)
def test_a_pass_without_a_mask_is_refused_with_three_ways_to_give_one(
    options: dict[str, Any], asked: str
) -> None:
    model = LanguageModel()
    text = f"Site 'norm': {asked} needs an attention mask, and the model's call has none. {HOW}"

    with ActivationStore(model, ["norm"], **options):
        assert message_of(SelectionError, lambda: model(IDS)) == text
    run = stream(model, [IDS], ["norm"], **options)
    assert message_of(SelectionError, lambda: next(run)) == text
    if options != {"positions": "unpadded"}:
        samples = make_samples(3)
        assert text == message_of(
            SelectionError,
            lambda: extract_representations(model, samples, ["norm"], "cpu", **options),
        )


def test_a_module_called_on_its_own_has_no_mask() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"], **LAST):
        model(IDS, MASK)
        assert message_of(SelectionError, lambda: model.norm(torch.ones(3, 5, 16))) == (
            "Site 'norm': positions='last' needs an attention mask, and its module was called on "
            f"its own, outside a call of the whole model. {HOW}"
        )


# No such mask


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (torch.zeros(3, 1, 5, 5), "a 4-dimensional tensor of shape (3, 1, 5, 5)"),
        (MASK.to(torch.complex64), "a torch.complex64 tensor of shape (3, 5)"),
        ({"full_attention": MASK}, "a dict"),
    ],
    ids=["4-D", "complex", "dict"],
)
def test_a_mask_of_another_kind_is_refused_with_what_it_is(mask: Any, what: str) -> None:
    text = (
        f"The attention mask is {what}; which tokens are real is read from a (batch, sequence) "
        "tensor of zeros and ones. Give one with mask=."
    )
    assert said_of_mask(mask) == text
    if isinstance(mask, Tensor):
        model = LanguageModel()
        assert text == message_of(
            SelectionError, lambda: ActivationStore(model, ["norm"], mask=mask, **LAST)
        )


@pytest.mark.parametrize("value", [2, -1, 0.5, float("-inf"), float("nan")])
def test_a_mask_with_other_values_is_refused(value: float) -> None:
    mask = MASK.to(torch.tensor(value).dtype, copy=True)
    mask[1, 1] = value
    assert said_of_mask(mask) == (
        "The attention mask has values other than 0 and 1. Which tokens are real is read from a "
        "(batch, sequence) tensor of zeros and ones. Give one with mask=."
    )


@pytest.mark.parametrize("options", [LAST, {"positions": "unpadded"}, MEAN])
def test_a_sample_without_a_real_token_is_refused_with_its_number(options: dict[str, Any]) -> None:
    mask = MASK.clone()
    mask[1] = 0
    assert said_of_mask(mask, **options) == (
        "Sample 1 of the attention mask has no real token (its row is all zeros), so nothing of it "
        "can be selected. Leave such samples out."
    )


@pytest.mark.parametrize("options", [LAST, MEAN])
def test_a_mask_of_another_shape_is_refused_with_both_shapes(options: dict[str, Any]) -> None:
    assert said_of_mask(MASK[:, :4], **options) == (
        "Site 'token_embedding' produced shape (3, 5, 16), which has 3 samples (dimension 0) and 5 "
        "positions (dimension 1), but the attention mask has shape (3, 4). Name the dimension of "
        "samples with batch_dim= and that of positions with seq_dim=, give a mask of that shape "
        "with mask=, or leave this site out."
    )


def test_a_value_without_samples_is_refused() -> None:
    model = PositionTable()
    with ActivationStore(model, ["wpe"], mask=MASK, **LAST):
        assert message_of(SelectionError, lambda: model(IDS)).startswith(
            "Site 'wpe' produced shape (1, 5, 16), which has 1 samples (dimension 0)"
        )


@pytest.mark.parametrize("seq_dim", [0, -3])
def test_samples_are_the_first_dimension(seq_dim: int) -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"], seq_dim=seq_dim, **LAST):
        assert message_of(SelectionError, lambda: model(IDS, MASK)) == (
            f"Site 'norm' produced shape (3, 5, 16): seq_dim={seq_dim} is its first dimension, "
            "which has to count samples where each of them is selected from on its own. Name the "
            "dimension that counts samples with batch_dim=; seq_dim= counts with that one first."
        )


@pytest.mark.parametrize(("options", "argument"), [(LAST, "positions"), (MEAN, "reduce")])
def test_a_value_without_positions_is_refused(options: dict[str, Any], argument: str) -> None:
    model = Returning(lambda acts: acts.sum(dim=1))
    asked = f"{argument}={options[argument]!r}"
    with ActivationStore(model, [""], mask=MASK, **options):
        assert message_of(PositionError, lambda: model(torch.ones(3, 5))) == (
            f"Site '' produced shape (3,), which has no dimension 1 to take {asked} from. Leave "
            f"{argument}= out for this site, or name the dimension with seq_dim=."
        )


# mask=


def test_a_store_says_what_mask_takes() -> None:
    mask: Any = [1]
    assert message_of(
        ArgumentTypeError, lambda: ActivationStore(LanguageModel(), ["norm"], mask=mask, **LAST)
    ) == (
        "mask must be a (batch, sequence) tensor of zeros and ones, or a callable on the arguments "
        "of the model's call that returns one, such as lambda ids: ids != 0; got a list."
    )


def test_runs_over_batches_say_what_mask_takes() -> None:
    mask: Any = MASK
    text = (
        "mask must be a callable on the batch that returns its (batch, sequence) mask, such as "
        "lambda batch: batch['input_ids'] != 0; got a Tensor."
    )
    model = LanguageModel()
    assert text == message_of(
        ArgumentTypeError, lambda: stream(model, [], ["norm"], mask=mask, **LAST)
    )
    assert text == message_of(
        ArgumentTypeError,
        lambda: extract_representations(model, [], ["norm"], "cpu", mask=mask, **LAST),
    )


@pytest.mark.parametrize("options", [{}, {"positions": -1}, {"positions": [[0]]}])
def test_a_mask_that_nothing_uses_is_refused(options: dict[str, Any]) -> None:
    text = (
        "mask= is used by positions='last', positions='unpadded' and reduce='mean', and none of "
        "them was asked for. Ask for one, or leave mask= out."
    )
    model = LanguageModel()
    assert text == message_of(
        ArgumentError, lambda: ActivationStore(model, ["norm"], mask=MASK, **options)
    )
    assert text == message_of(
        ArgumentError, lambda: stream(model, [], ["norm"], mask=lambda batch: MASK, **options)
    )


# Means


@pytest.mark.parametrize("positions", [-1, slice(2), "last"])
def test_mean_takes_no_positions(positions: Any) -> None:
    assert message_of(
        ArgumentError,
        lambda: ActivationStore(LanguageModel(), ["norm"], positions=positions, **MEAN),
    ) == (
        f"reduce='mean' is the mean over all real tokens and takes no positions=; got "
        f"positions={positions!r}. For the mean of some positions give a callable, such as "
        "reduce=lambda acts: acts.mean(dim=1)."
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_the_mean_of_integers_is_refused_with_how_to_convert(dtype: torch.dtype) -> None:
    model = Returning(lambda acts: acts.to(dtype))
    with ActivationStore(model, [""], mask=MASK, **MEAN):
        assert message_of(SelectionError, lambda: model(torch.ones(3, 5, 2))) == (
            f"Site '' produced {dtype}, and reduce='mean' takes floating-point or complex values. "
            "Say how with a callable, such as reduce=lambda acts: acts.float().mean(dim=1)."
        )


# Positions of each sample


def test_lists_of_several_lengths_are_refused_with_their_lengths() -> None:
    assert message_of(
        ArgumentError,
        lambda: ActivationStore(LanguageModel(), ["norm"], positions=[[0], [1, 2], [3]]),
    ) == (
        "positions= has one list per sample, of lengths 1, 2, 1: every sample needs the same "
        "number of positions, since they go into one tensor. Repeat a position to fill up, or take "
        "all real tokens with positions='unpadded'."
    )


def test_lists_for_another_number_of_samples_are_refused() -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"], positions=[[0], [1]]):
        assert message_of(SelectionError, lambda: model(IDS)) == (
            "Site 'norm' produced shape (3, 5, 16), which has 3 samples (dimension 0), but "
            "positions= has lists for 2. If another dimension counts samples, name it with "
            "batch_dim=."
        )


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_of_a_sample_out_of_range_is_refused(position: int) -> None:
    model = LanguageModel()
    with ActivationStore(model, ["norm"], positions=[[0], [position], [1]]):
        assert message_of(PositionError, lambda: model(IDS)) == (
            f"Site 'norm' produced shape (3, 5, 16): position {position} is out of range for the 5 "
            "of dimension 1."
        )


def test_a_store_has_no_batches_and_so_no_keys() -> None:
    assert message_of(
        ArgumentError, lambda: ActivationStore(LanguageModel(), ["norm"], positions="lsat")
    ) == (
        "positions='lsat': the words a store knows are 'last' and 'unpadded'. A key of the batch "
        "is for stream() and extract_representations(); here, give one list of positions per "
        "sample."
    )


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"input_ids": IDS, "answer": IDS}, "it has ['answer', 'input_ids']"),
        (IDS, "it is a Tensor"),
    ],
    ids=["dict", "tensor"],
)
def test_a_key_that_the_batch_lacks_is_refused_with_those_it_has(batch: Any, found: str) -> None:
    run = stream(LanguageModel(), [batch], ["norm"], positions="lsat")
    assert message_of(MissingInputError, lambda: next(run)) == (
        f"positions='lsat' is the key of positions in the batch, and the batch has none: {found}. "
        "positions= takes such a key, 'last', 'unpadded', an int, a slice or a list."
    )


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ([0, 1, 2], "a list"),
        (torch.ones(3), "a torch.float32 tensor of shape (3,)"),
        (torch.ones(3, dtype=torch.bool), "a torch.bool tensor of shape (3,)"),
        (torch.ones(3, 1, 1, dtype=torch.int64), "a torch.int64 tensor of shape (3, 1, 1)"),
    ],
    ids=["list", "float", "bool", "3-D"],
)
def test_a_key_that_holds_no_positions_is_refused_with_what_it_holds(value: Any, what: str) -> None:
    run = stream(LanguageModel(), [{"input_ids": IDS, "at": value}], ["norm"], positions="at")
    assert message_of(BatchError, lambda: next(run)) == (
        f"positions='at': the batch has {what} there. It needs a tensor of ints, (batch,) for one "
        "position per sample or (batch, n_positions)."
    )


# Positions that are padding in a sample


@pytest.mark.parametrize(("positions", "found"), [(-1, -1), (3, 3), ([0, 4], 4)], ids=str)
@pytest.mark.parametrize("kind", ["stream", "extract_representations", "extract"])
def test_a_position_that_is_padding_in_a_sample_is_refused(
    tmp_path: Path, kind: str, positions: Any, found: int
) -> None:
    model = LanguageModel()
    rows = [{"input_ids": ids, "attention_mask": real} for ids, real in zip(IDS, MASK, strict=True)]
    options: dict[str, Any] = {"positions": positions, "model_inputs": ["attention_mask"]}

    def run() -> object:
        if kind == "stream":
            batch = {"input_ids": IDS, "attention_mask": MASK}
            return list(stream(model, [batch], ["norm"], **options))
        if kind == "extract":
            return fastcap.extract(model, rows, ["norm"], tmp_path / "acts", **options)
        return fastcap.extract_representations(model, rows, ["norm"], "cpu", **options)

    assert message_of(SelectionError, run) == (
        f"positions={tuple(positions) if isinstance(positions, list) else positions}: position "
        f"{found} is padding in sample {int(MASK[:, found].argmin())} of the batch (its "
        "attention_mask is 0 there). positions='last' takes each sample's last real token, and a "
        "slice takes padding as it is."
    )
    assert hooks_on(model) == 0


@pytest.mark.parametrize("positions", [0, slice(-2, None), [0]], ids=str)
def test_positions_that_are_real_in_every_sample_and_slices_are_taken(positions: Any) -> None:
    model, batch = LanguageModel(), {"input_ids": IDS, "attention_mask": MASK}
    options: dict[str, Any] = {"positions": positions, "model_inputs": ["attention_mask"]}
    [records] = stream(model, [batch], ["norm"], **options)
    [whole] = stream(model, [batch], ["norm"], model_inputs=["attention_mask"])
    assert torch.equal(records["norm"], whole["norm"][:, positions])


def test_the_last_position_of_texts_that_are_padded_on_the_left_is_taken() -> None:
    model, batch = LanguageModel(), {"input_ids": IDS, "attention_mask": MASK.flip(1)}
    options: dict[str, Any] = {"model_inputs": ["attention_mask"]}
    [records] = stream(model, [batch], ["norm"], positions=-1, **options)
    [last] = stream(model, [batch], ["norm"], positions="last", **options)
    assert torch.equal(records["norm"], last["norm"])


# Rows that are not samples


def test_extraction_refuses_unpadded_and_names_stream() -> None:
    assert message_of(
        ArgumentError,
        lambda: extract_representations(
            LanguageModel(), make_samples(3), ["norm"], "cpu", positions="unpadded"
        ),
    ) == (
        "positions='unpadded' gives a row for each real token, and rows of a result are samples. "
        "Receive it batch by batch with fastcap.stream(), or select one row per sample "
        "(positions='last', reduce='mean')."
    )
