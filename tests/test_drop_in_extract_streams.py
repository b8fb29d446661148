"""`stream`: records batch by batch, what it leaves behind, and in which order errors arrive."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fastcap import BatchRecords, FastcapWarning, Record, Stream, reference, stream
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.datasets import Sample, Tokens, call_with_ids, make_ids, make_samples, stack
from tests.support.models import (
    CountsTrainCalls,
    FailsAt,
    LanguageModel,
    PositionTable,
    WithOddModule,
    hooks_on,
    training_flags,
)

BATCHES = stack(make_samples(8), 3)
SITES = ["norm", "layers.0.mlp"]


def problems(
    model: nn.Module, batches: list[Sample], sites: list[str], **options: Any
) -> list[str]:
    """How a stream's records differ from the oracle's, batch by batch."""
    selection = make_selection(**options)
    with stream(model, batches, sites, **options) as run:
        found = list(run)
    model.eval()
    wanted = list(reference.stream(model, batches, sites, call_with_ids, selection))
    assert len(found) == len(wanted)
    return [
        problem
        for one, other in zip(wanted, found, strict=True)
        for problem in differences(one, other)
    ]


@pytest.mark.parametrize("prefetch", [0, 1, 2, 10])
def test_records_equal_the_oracle_at_every_lookahead(prefetch: int) -> None:
    model = LanguageModel().eval()
    found = list(stream(model, BATCHES, SITES, prefetch=prefetch))
    wanted = reference.stream(model, BATCHES, SITES, call_with_ids)

    assert [differences(a, b) for a, b in zip(wanted, found, strict=True)] == [[], [], []]


@pytest.mark.parametrize(
    "options",
    [
        {"positions": -1},
        {"positions": slice(1, 4)},
        {"positions": [0, -2]},
        {"reduce": lambda acts: acts.mean(dim=1)},
        {"dtype": torch.bfloat16},
        {"dtype": torch.float64},
        {"positions": 0, "seq_dim": 2},
    ],
    ids=["int", "slice", "list", "reduce", "wire_dtype_for", "wider", "seq_dim"],
)
def test_selections_equal_the_oracle(options: dict[str, Any]) -> None:
    assert problems(LanguageModel(), BATCHES, SITES, **options) == []


def test_batches_may_differ_in_length_and_in_size() -> None:
    batches = [{"input_ids": make_ids(n, t)} for n, t in [(3, 5), (1, 9), (4, 2)]]

    assert problems(LanguageModel(), batches, SITES) == []


def test_a_site_without_a_batch_dimension_is_received_batch_by_batch() -> None:
    assert problems(PositionTable(), BATCHES, ["wpe", "wte"]) == []


def test_records_say_where_they_come_from() -> None:
    run = stream(LanguageModel(), BATCHES, SITES)
    assert isinstance(run, Stream)
    found = list(run)

    assert all(isinstance(records, BatchRecords) for records in found)
    assert [records.batch for records in found] == BATCHES
    assert [records.pass_index for records in found] == [0, 1, 2]
    assert [records.samples for records in found] == [range(3), range(3, 6), range(6, 8)]
    record = found[1].records[0]
    assert isinstance(record, Record)
    assert (record.site, record.pass_index, record.call_index, record.samples) == (
        "norm",
        1,
        0,
        range(3, 6),
    )
    assert record.tensor is found[1]["norm"]
    assert list(found[1]) == SITES


@pytest.mark.parametrize(
    "batches",
    [
        [batch["input_ids"] for batch in BATCHES],
        [(batch["input_ids"],) for batch in BATCHES],
        [[batch["input_ids"]] for batch in BATCHES],
        DataLoader(Tokens(8), batch_size=3),
        iter(BATCHES),
        (batch for batch in BATCHES),
    ],
    ids=["tensors", "tuples", "lists", "loader", "iterator", "generator"],
)
def test_batches_can_be_anything_that_yields_them(batches: Any) -> None:
    model = LanguageModel().eval()
    found = list(stream(model, batches, SITES))
    wanted = reference.stream(model, BATCHES, SITES, call_with_ids)

    assert [differences(a, b) for a, b in zip(wanted, found, strict=True)] == [[], [], []]


def test_no_batches_give_no_records() -> None:
    model = LanguageModel()

    assert list(stream(model, [], SITES)) == []
    assert hooks_on(model) == 0


def test_a_part_and_an_odd_module_are_as_in_a_store() -> None:
    model = WithOddModule(lambda acts: {"hidden": acts + 1})

    assert problems(model, BATCHES, ["odd:output[hidden]", "head"]) == []
    with pytest.warns(FastcapWarning, match="'odd'") as said:
        found = list(stream(model, BATCHES, ["odd", "head"]))
    assert len(said) == 1
    assert [list(records) for records in found] == [["head"]] * 3


# Several streams at once


def test_two_streams_on_one_model_do_not_mix() -> None:
    model = LanguageModel().eval()
    others = stack(make_samples(8, seed=1), 3)
    with stream(model, BATCHES, ["norm"]) as first, stream(model, others, ["norm"]) as second:
        pairs = list(zip(first, second, strict=True))

    wanted = zip(
        reference.stream(model, BATCHES, ["norm"], call_with_ids),
        reference.stream(model, others, ["norm"], call_with_ids),
        strict=True,
    )
    for (one, other), (found_one, found_other) in zip(wanted, pairs, strict=True):
        assert differences(one, found_one) == []
        assert differences(other, found_other) == []
    assert hooks_on(model) == 0


def test_two_streams_on_two_models_can_be_zipped() -> None:
    first, second = LanguageModel(seed=1), LanguageModel(seed=2)
    pairs = zip(stream(first, BATCHES, SITES), stream(second, BATCHES, SITES), strict=True)
    compared = [torch.equal(a["norm"], b["norm"]) for a, b in pairs]

    assert compared == [False] * 3
    assert hooks_on(first) == hooks_on(second) == 0
    assert first.training
    assert second.training


def test_passes_of_the_loop_body_are_not_captured() -> None:
    model = LanguageModel().eval()
    wanted = reference.stream(model, BATCHES, SITES, call_with_ids)
    with stream(model, BATCHES, SITES) as run:
        for one in run:
            model(make_ids(2, seed=9))
            assert differences(next(wanted), one) == []


def test_the_loop_body_sees_the_model_as_the_caller_left_it() -> None:
    model = CountsTrainCalls()
    model.layers["0"].eval()
    before = training_flags(model)

    for _ in stream(model, BATCHES, SITES):
        assert training_flags(model) == before
        assert torch.is_grad_enabled()
        assert not model.is_merged


def test_without_lookahead_the_loop_body_may_change_the_model() -> None:
    model = LanguageModel().eval()
    twin = LanguageModel().eval()
    for batch, records in zip(BATCHES, stream(model, BATCHES, ["norm"], prefetch=0), strict=True):
        [wanted] = reference.stream(twin, [batch], ["norm"], call_with_ids)
        assert differences(wanted, records) == []
        for one in (model, twin):
            torch.nn.init.constant_(one.norm.weight, records["norm"].mean().item())


# Ending


def test_breaking_out_of_the_loop_removes_the_hooks() -> None:
    model = LanguageModel()
    for _ in stream(model, BATCHES, SITES):
        assert hooks_on(model) == len(SITES)
        break

    assert hooks_on(model) == 0


def test_leaving_the_context_removes_the_hooks_and_ends_the_stream() -> None:
    model = LanguageModel()
    with stream(model, BATCHES, SITES) as run:
        kept = next(run)
        value = kept["norm"].clone()

    assert hooks_on(model) == 0
    assert list(run) == []
    assert torch.equal(kept["norm"], value)


def test_a_stream_that_has_ended_stays_ended() -> None:
    model = LanguageModel()
    run = stream(model, BATCHES, SITES)
    assert len(list(run)) == 3

    assert list(run) == []
    assert hooks_on(model) == 0
    run.close()


def test_no_more_batches_are_read_than_lookahead_allows() -> None:
    read: list[int] = []

    def batches() -> Iterator[Sample]:
        for index in range(10):
            read.append(index)
            yield {"input_ids": make_ids(2, seed=index)}

    run = stream(LanguageModel(), batches(), SITES, prefetch=2)
    assert read == []
    next(run)
    assert read == [0, 1, 2]
    next(run)
    assert read == [0, 1, 2, 3]


# Errors


@pytest.mark.parametrize("prefetch", [0, 1, 2, 5])
@pytest.mark.parametrize("at_pass", [0, 1, 2])
def test_batches_before_a_failing_one_are_delivered_before_its_error(
    at_pass: int, prefetch: int
) -> None:
    model = FailsAt(RuntimeError("in the middle"), at_pass)
    found = []
    with pytest.raises(RuntimeError) as caught:  # noqa: PT012 - the loop is what raises
        for records in stream(model, BATCHES, ["before", "after"], prefetch=prefetch):
            found.append(records)  # noqa: PERF402 - what came before the error is kept

    assert caught.value is model.error
    assert len(found) == at_pass
    assert (hooks_on(model), model.training) == (0, True)
    wanted = reference.stream(model, BATCHES[:at_pass], ["before", "after"], call_with_ids)
    assert [differences(a, b) for a, b in zip(wanted, found, strict=True)] == [[]] * at_pass


def test_an_error_of_the_batches_arrives_unchanged_and_in_its_place() -> None:
    problem = OSError("the file went away")

    def batches() -> Iterator[Sample]:
        yield from BATCHES[:2]
        raise problem

    model = LanguageModel()
    run = stream(model, batches(), SITES)
    assert [next(run).pass_index, next(run).pass_index] == [0, 1]
    with pytest.raises(OSError, match="the file went away") as caught:
        next(run)

    assert caught.value is problem
    assert hooks_on(model) == 0


def test_after_an_error_the_stream_has_ended() -> None:
    model = FailsAt(RuntimeError("in the middle"), at_pass=0)
    run = stream(model, BATCHES, ["before"])
    with pytest.raises(RuntimeError):
        next(run)

    assert list(run) == []


def test_an_interrupt_ends_the_stream_at_once() -> None:
    model = FailsAt(KeyboardInterrupt(), at_pass=1)
    run = stream(model, BATCHES, ["before", "after"])
    with pytest.raises(KeyboardInterrupt) as caught:
        next(run)

    assert caught.value is model.error
    assert (hooks_on(model), model.training) == (0, True)
