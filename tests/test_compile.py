"""Compiled models: hooks fire whatever was compiled before, and nothing is stale without a word."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.reference import differences

SITES = ["layers.0", "layers.3"]


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))

    def forward(self, acts: Tensor) -> Tensor:
        for layer in self.layers:
            acts = torch.tanh(layer(acts))
        return acts


@pytest.fixture
def model() -> Iterator[Stack]:
    torch.manual_seed(0)
    yield Stack()
    torch.compiler.reset()


def compile_whole(model: Stack) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


def compile_blocks(model: Stack) -> nn.Module:
    for layer in model.layers:
        layer.compile(backend="eager")
    return model


def expected(model: Stack, acts: Tensor) -> dict[str, Tensor]:
    found = {}
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            acts = layer(acts)
            found[f"layers.{number}"] = acts.clone()
            acts = torch.tanh(acts)
    return {site: found[site] for site in SITES}


@pytest.mark.parametrize("compiled", [compile_whole, compile_blocks])
def test_a_store_sees_every_pass_of_a_model_compiled_and_run_before(
    model: Stack, compiled: Callable[[Stack], nn.Module]
) -> None:
    run = compiled(model)
    run(torch.ones(2, 4))
    store = fastcap.ActivationStore(run, SITES)
    with pytest.warns(fastcap.FastcapWarning, match="compiles again"):
        store.enable()
    for batch in (2, 2, 3, 5):  # other shapes, for which no graph exists yet
        acts = torch.randn(batch, 4)
        run(acts)
        assert not differences(expected(model, acts), store.activations)
    store.disable()
    store.clear()
    run(torch.ones(2, 4))
    assert not store.activations


def test_a_store_enabled_before_compilation_sees_every_pass(model: Stack) -> None:
    with fastcap.ActivationStore(model, SITES) as store:
        run = compile_whole(model)
        for batch in (2, 3):
            acts = torch.randn(batch, 4)
            run(acts)
            assert not differences(expected(model, acts), store.activations)


LATE_COMPILER = """
import sys, torch, fastcap
model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(12)])
store = fastcap.ActivationStore(model, [str(i) for i in range(12)])
store.enable()
assert "torch._dynamo" not in sys.modules
run = torch.compile(model, backend="eager")
for batch in (2, 3, 4, 2):
    with torch.no_grad():
        output = run(torch.randn(batch, 4))
    assert len(store.activations) == 12
    assert store.get("11").equal(output)
"""


def test_a_store_enabled_before_the_compiler_is_even_imported_sees_every_pass() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE_COMPILER], check=True, capture_output=True, text=True
    )
    assert "recompile_limit" not in done.stderr


def test_extraction_runs_a_compiled_model_as_plain_python(model: Stack) -> None:
    run = compile_whole(model)
    run(torch.ones(2, 4))
    dataset = [{"input_ids": torch.randn(4)} for _ in range(5)]
    found = fastcap.extract_representations(run, dataset, SITES, "cpu", batch_size=2)
    rows = torch.stack([sample["input_ids"] for sample in dataset])
    batches = [expected(model, part) for part in torch.split(rows, 2)]
    assert not differences({s: torch.cat([b[s] for b in batches]) for s in SITES}, found)


def test_site_names_need_no_wrapper_prefix(model: Stack) -> None:
    run = compile_whole(model)
    store = fastcap.ActivationStore(run, SITES)
    with pytest.warns(fastcap.FastcapWarning):
        store.enable()
    run(torch.ones(1, 4))
    assert list(store.activations) == SITES
    store.disable()
