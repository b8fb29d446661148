"""Every way of capturing small workloads: a benchmark with `--benchmark-enable`, else a test."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.models import ModelShape, build_model, model_bytes
from benchmarks.ways import CAPTURING, HOOKLESS, ORACLE, ROOT, WAYS, Verifier
from benchmarks.workloads import WORKLOADS, Case, Workload, blocks, build_case
from fastcap import reference
from fastcap.bench.equality import same_bytes

TINY = WORKLOADS["tiny"]
SMALL_WORKLOADS = (
    TINY,
    replace(TINY, name="tiny-bf16", dtype=torch.bfloat16),
    # The last batch is short: rows of the result that no whole batch fills.
    replace(TINY, name="tiny-uneven", n_samples=10),
    replace(TINY, name="tiny-last-token", sites=blocks(2), positions=-1),
)


@cache
def case_of(workload: Workload) -> Case:
    return build_case(workload)


@pytest.mark.parametrize("workload", SMALL_WORKLOADS, ids=lambda workload: workload.name)
@pytest.mark.parametrize("way", CAPTURING)
def test_every_way_equals_the_oracle(
    way: str, workload: Workload, benchmark: BenchmarkFixture
) -> None:
    case = case_of(workload)
    benchmark.group = workload.name
    values = benchmark(WAYS[way], case)
    assert reference.differences(WAYS[ORACLE](case), values) == []


@pytest.mark.parametrize("workload", SMALL_WORKLOADS, ids=lambda workload: workload.name)
def test_the_loop_without_capture_runs_every_batch(
    workload: Workload, benchmark: BenchmarkFixture
) -> None:
    case = case_of(workload)
    benchmark.group = workload.name
    values = benchmark(WAYS[HOOKLESS], case)
    *_, last = case.batches()
    with torch.no_grad():
        expected = case.model(last["input_ids"])
    assert reference.differences({ROOT: expected}, values) == []


@pytest.mark.parametrize("workload", SMALL_WORKLOADS, ids=lambda workload: workload.name)
def test_the_bytes_of_the_card_are_those_of_the_result(workload: Workload) -> None:
    values = WAYS[ORACLE](case_of(workload))
    assert sum(value.nbytes for value in values.values()) == workload.result_bytes


def test_every_site_of_every_workload_is_a_module_of_its_model() -> None:
    for workload in WORKLOADS.values():
        shape = replace(workload.shape, width=8, n_heads=2, hidden=8, vocab_size=8)
        names = dict(build_model(shape, torch.float32, "cpu").named_modules())
        assert set(workload.sites) <= set(names), workload.name


def test_the_same_seed_builds_the_same_model_and_another_another() -> None:
    shape = ModelShape(n_layers=1, width=16, n_heads=2, hidden=24, vocab_size=10)
    first, again, other = (
        build_model(shape, torch.float32, "cpu", seed).state_dict() for seed in (0, 0, 1)
    )
    assert same_bytes(first, again)
    assert not same_bytes(first, other)


def test_the_model_has_the_parameters_of_its_shape() -> None:
    shape = ModelShape(n_layers=2, width=16, n_heads=2, hidden=24, vocab_size=10)
    block = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    model = build_model(shape, torch.bfloat16, "cpu")
    assert model_bytes(model) == 2 * (2 * block + 2 * 10 * 16 + 16)


def test_a_token_does_not_see_those_after_it() -> None:
    model = case_of(TINY).model
    ids = torch.arange(8).view(1, 8)
    changed = ids.clone()
    changed[0, 7] = 99
    with torch.no_grad():
        one, other = model(ids), model(changed)
    assert torch.equal(one[:, :7], other[:, :7])
    assert not torch.equal(one[:, 7], other[:, 7])


def test_the_order_of_tokens_matters_to_later_ones() -> None:
    model = case_of(TINY).model
    with torch.no_grad():
        one, other = model(torch.tensor([[1, 2, 3, 4]])), model(torch.tensor([[2, 1, 3, 4]]))
    assert not torch.allclose(one[:, 3], other[:, 3], atol=1e-4)


def test_the_verifier_names_the_way_whose_values_differ() -> None:
    verifier = Verifier()
    right, wrong = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([1.0, -2.0])}
    verifier.check(ORACLE, right)
    verifier.check("good", {"a": right["a"].clone()})
    verifier.check("bad", wrong)
    assert not verifier.problems["good"]
    assert verifier.problems["bad"] == ["a: 1 bytes differ"]


def test_the_verifier_sees_a_difference_in_a_later_run() -> None:
    verifier = Verifier()
    verifier.check(ORACLE, {"a": torch.zeros(3)})
    verifier.check("late", {"a": torch.zeros(3)})
    verifier.check("late", {"a": torch.tensor([0.0, -0.0, 0.0])})
    assert verifier.problems["late"] == ["a: 1 bytes differ"]


def test_equal_bytes_include_nan_and_odd_sizes() -> None:
    values = {"a": torch.tensor([float("nan"), 1.0, 2.0], dtype=torch.float16)}
    assert same_bytes(values, {"a": values["a"].clone()})
    assert not same_bytes(values, {"b": values["a"]})
    assert not same_bytes(values, {"a": values["a"].view(torch.bfloat16)})
