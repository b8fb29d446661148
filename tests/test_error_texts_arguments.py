"""What is said about an argument that is out of range or of the wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fastcap import ActivationStore, stream
from fastcap import extract_representations as extract
from fastcap.errors import ArgumentError, ArgumentTypeError
from tests.support.datasets import make_samples
from tests.support.errors import message_of
from tests.support.models import LanguageModel

SAMPLES = make_samples(7)


def refused(error: type[Exception], **options: Any) -> str:
    """What `extract_representations` says to these options, before it runs anything."""
    model = LanguageModel()
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    message = message_of(error, lambda: extract(model, SAMPLES, ["norm"], "cpu", **options))
    assert passes == []
    return message


@pytest.mark.parametrize("name", ["max_samples", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, -32])
def test_counts_of_samples_start_at_one(name: str, value: int) -> None:
    assert refused(ArgumentError, **{name: value}) == f"{name} must be at least 1; got {value}."


@pytest.mark.parametrize("name", ["max_samples", "batch_size", "num_workers"])
@pytest.mark.parametrize("value", [2.0, 2.5, True, False, "2", [2], torch.tensor(2.0)], ids=repr)
def test_counts_are_ints(name: str, value: Any) -> None:
    assert refused(ArgumentTypeError, **{name: value}) == f"{name} must be an int; got {value!r}."


@pytest.mark.parametrize("value", [np.int64(3), torch.tensor(3)], ids=["numpy", "torch"])
def test_a_count_may_come_from_another_library(value: Any) -> None:
    model = LanguageModel()

    found = extract(model, SAMPLES, ["norm"], "cpu", batch_size=value, max_samples=value)
    assert len(found["norm"]) == 3


def test_the_number_of_workers_may_be_none_and_not_less() -> None:
    assert refused(ArgumentError, num_workers=-1) == "num_workers must be at least 0; got -1."


@pytest.mark.parametrize("name", ["staging_bytes", "pinned_bytes"])
def test_budgets_are_whole_bytes_and_hold_one_record_at_least(name: str) -> None:
    for n_bytes in (0, -1, 255):
        expected = f"{name} must be at least 256; got {n_bytes}."
        assert refused(ArgumentError, **{name: n_bytes}) == expected
    for value in (1e9, "1 GiB", True):
        expected = f"{name} must be an int; got {value!r}."
        assert refused(ArgumentTypeError, **{name: value}) == expected


@pytest.mark.parametrize("name", ["staging_bytes", "pinned_bytes"])
def test_a_store_and_a_stream_check_budgets_too(name: str) -> None:
    model, budget = LanguageModel(), {name: 1}

    for call in (
        lambda: ActivationStore(model, ["norm"], **budget),  # type: ignore[arg-type]
        lambda: stream(model, [], ["norm"], **budget),  # type: ignore[arg-type]
    ):
        assert message_of(ArgumentError, call) == f"{name} must be at least 256; got 1."


@pytest.mark.parametrize("value", [-1, 1.5, None, True])
def test_lookahead_is_a_count_of_passes(value: Any) -> None:
    error = ArgumentError if value == -1 else ArgumentTypeError
    rule = "at least 0" if value == -1 else "an int"

    assert (
        message_of(error, lambda: stream(LanguageModel(), [], ["norm"], prefetch=value))
        == f"prefetch must be {rule}; got {value!r}."
    )


NO_POSITIONS: dict[str, tuple[Any, str]] = {
    "a float": (1.5, "1.5"),
    "a bool": (True, "True"),
    "a list of floats": ([0, 1.5], "1.5"),
    "a list of bools": ([True, False, True, True, True], "True"),
    "a list of lists of lists": ([[[0, 1]]], "[0, 1]"),
    "a list of words": ([["last"]], "'last'"),
    "a slice of floats": (slice(0.5, None), "0.5"),
    "a float array": (np.array([1.0]), repr(np.float64(1.0))),
    "a bool array": (np.array([True, False]), repr(np.True_)),
    "a bool tensor": (torch.tensor([True, False]), "tensor(True)"),
    "one bool tensor": (torch.tensor(True), "tensor(True)"),
}


@pytest.mark.parametrize("kind", NO_POSITIONS)
def test_positions_of_another_type_are_refused(kind: str) -> None:
    positions, shown = NO_POSITIONS[kind]

    assert refused(ArgumentTypeError, positions=positions) == (
        "positions must be None, an int, a slice, a list of ints, a list of such lists (one per "
        f"sample), 'last' or 'unpadded'; got {shown}."
    )


@pytest.mark.parametrize("step", [0, -1, -2])
def test_a_slice_that_does_not_go_forward_is_refused_with_another_way(step: int) -> None:
    assert refused(ArgumentError, positions=slice(None, None, step)) == (
        f"positions=slice(None, None, {step}): a slice needs a step of 1 or more; to reverse, give "
        "the positions as a list."
    )


@pytest.mark.parametrize("value", [1.0, "1", False, [1]])
def test_seq_dim_is_an_int(value: Any) -> None:
    assert refused(ArgumentTypeError, positions=0, seq_dim=value) == (
        f"seq_dim must be an int; got {value!r}."
    )


@pytest.mark.parametrize("value", ["float16", float, np.float16, torch.tensor(1.0)], ids=repr)
def test_dtype_is_a_torch_dtype(value: Any) -> None:
    assert refused(ArgumentTypeError, dtype=value) == (
        f"dtype must be a torch.dtype such as torch.float16; got {value!r}."
    )


def test_reduce_is_callable_or_a_known_word() -> None:
    assert refused(ArgumentTypeError, reduce="max") == (
        "reduce must be 'mean', or a callable on the selected tensor, such as "
        "lambda acts: acts.mean(dim=1); got 'max'."
    )


@pytest.mark.parametrize("value", [1, 0, "yes", [print]], ids=["1", "0", "text", "list"])
def test_progress_is_a_bool_or_callable(value: Any) -> None:
    assert refused(ArgumentTypeError, progress=value) == (
        f"progress must be True, False or a callable given the samples done and expected; "
        f"got {value!r}."
    )


@pytest.mark.parametrize(
    "options",
    [{"positions": 1.5}, {"dtype": "float16"}, {"reduce": 1}, {"positions": 0, "seq_dim": "1"}],
    ids=["positions", "dtype", "reduce", "seq_dim"],
)
def test_a_store_and_a_stream_check_selections_when_they_are_made(options: Any) -> None:
    model = LanguageModel()

    first = message_of(ArgumentTypeError, lambda: ActivationStore(model, ["norm"], **options))
    second = message_of(ArgumentTypeError, lambda: stream(model, [], ["norm"], **options))
    assert first == second == refused(ArgumentTypeError, **options)
