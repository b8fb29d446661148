"""What makes two runs the same run: equal descriptions of equal things, in every process."""

from __future__ import annotations

import copy
import enum
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from fastcap.fingerprint import (
    describe_creator,
    describe_dataset,
    describe_run,
    differences,
    hash_of,
)
from fastcap.fingerprint.models import describe_model
from fastcap.fingerprint.values import describe
from fastcap.huggingface import Collator
from fastcap.spec import make_selection
from tests.support.datasets import Tokens, make_samples
from tests.support.huggingface import make_gpt2, make_tokenizer
from tests.support.models import LanguageModel


def run(**changes: Any) -> dict[str, Any]:
    """The description of a run that differs from a plain one in `changes`."""
    names = ("positions", "reduce", "dtype", "seq_dim")
    selection = make_selection(*(changes.pop(name, None) for name in names))
    torch.manual_seed(0)
    given: dict[str, Any] = {
        "model": LanguageModel(),
        "dataset": make_samples(7),
        "sites": ["norm"],
        "selection": selection,
        "batch_size": 3,
        "n_samples": 7,
    }
    return describe_run(**(given | changes))


def first_half(acts: Tensor) -> Tensor:
    return acts[:, : acts.shape[1] // 2]


def forward(model: nn.Module, batch: Any) -> Any:
    return model(batch["input_ids"])


def other_forward(model: nn.Module, batch: Any) -> Any:
    return model(batch["input_ids"] + 1)


def with_weight_changed(index: int = 0) -> nn.Module:
    torch.manual_seed(0)
    model = LanguageModel()
    with torch.no_grad():
        list(model.parameters())[index].add_(1)
    return model


CHANGES: dict[str, dict[str, Any]] = {
    "sites": {"sites": ["layers.0"]},
    "positions": {"positions": -1},
    "slice": {"positions": slice(0, 2)},
    "reduce": {"reduce": first_half},
    "mean": {"reduce": "mean"},
    "dtype": {"dtype": torch.float16},
    "seq_dim": {"positions": -1, "seq_dim": 2},
    "mask": {"mask": lambda batch: batch["input_ids"] != 0},
    "calls": {"calls": "all"},
    "model_inputs": {"model_inputs": ["attention_mask"]},
    "forward": {"forward": forward},
    "other_forward": {"forward": other_forward},
    "collate_fn": {"collate_fn": torch.stack},
    "columns": {"columns": ["label"]},
    "batch_size": {"batch_size": 4},
    "n_samples": {"n_samples": 6},
    "data": {"dataset": make_samples(7, seed=1)},
    "more data": {"dataset": make_samples(8)},
    "other data class": {"dataset": Tokens(7)},
    "weights": {"model": with_weight_changed()},
    "last weights": {"model": with_weight_changed(-1)},
    "layers": {"model": LanguageModel(n_layers=1)},
}


def test_the_same_run_has_the_same_description_and_json_keeps_it() -> None:
    config = run()
    assert config == run() == json.loads(json.dumps(config))
    assert hash_of(config) == hash_of(run())
    assert differences(config, run()) == []


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_values_depend_on_makes_another_run(change: str) -> None:
    plain, changed = run(), run(**dict(CHANGES[change]))
    assert hash_of(plain) != hash_of(changed)
    assert differences(plain, changed)


def test_no_two_of_the_changed_runs_are_the_same() -> None:
    hashes = [hash_of(run(**dict(change))) for change in CHANGES.values()]
    assert len(set(hashes)) == len(hashes)


def test_differences_say_what_was_asked_and_what_was_found() -> None:
    found = run(sites=["a"], positions=slice(0, 2), forward=forward, n_samples=None)
    lines = differences(run(sites=["b"]), found)
    assert lines[:2] == [
        "sites: asked ['b'], the archive has ['a']",
        "selection: positions: asked None, the archive has 'slice(0, 2, None)'",
    ]
    assert lines[2].startswith(f"forward: asked None, the archive has {{'function': '{__name__}.")
    assert lines[3:] == ["n_samples: asked 7, the archive has None"]


def test_of_many_parameters_a_few_are_named() -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    n_tensors = len(list(model.parameters()))
    lines = differences(run(model=model.half()), run())
    assert len(lines) == 6
    assert lines[0].startswith("model: tensors: ")
    assert "asked 'float16 " in lines[0]
    assert "the archive has 'float32 " in lines[0]
    assert lines[5] == f"model: tensors: {n_tensors - 5} more differ"


def test_long_values_are_cut_and_missing_ones_are_said() -> None:
    assert differences({"a": "x" * 500}, {}, "found") == [
        f"a: asked '{'x' * 196}..., found 'nothing'"
    ]
    assert differences({}, {"b": None}) == ["b: asked 'nothing', the archive has None"]


PROGRAM = """
import json, torch
from tests.test_fingerprint import run, first_half, forward
from functools import partial
k = {"a", "b", "c"}
config = run(reduce=lambda acts: acts[:, 0] if "a" in {"b", "c", "d", "e"} else acts.mean(1),
             forward=forward, mask=partial(lambda batch, keys: batch, keys=k),
             dataset=[{"input_ids": torch.arange(3), "key": frozenset(k)}] * 7)
print(json.dumps(config))
"""


def test_descriptions_are_the_same_in_every_process() -> None:
    found = set()
    for seed in "123":
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    assert " at 0x" not in found.pop()


# Models


def test_wrappers_training_and_copies_do_not_matter() -> None:
    model = LanguageModel()
    plain = describe_model(model)
    assert describe_model(copy.deepcopy(model).eval()) == plain
    assert describe_model(nn.DataParallel(model)) == plain
    compiled: Any = torch.compile(model, backend="eager")
    assert describe_model(compiled) == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_layout_in_memory_does_not_matter_but_values_do(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 5, 7, 7).to(dtype)
    models = []
    for values in (weight, weight.to(memory_format=torch.channels_last), weight * 2):
        model = nn.Conv2d(5, 3, 7, bias=False)
        model.weight = nn.Parameter(values)
        models.append(describe_model(model))
    assert models[0] == models[1]
    assert models[0]["tensors"] != models[2]["tensors"]


def test_settings_without_weights_matter() -> None:
    first = describe_model(nn.Sequential(nn.Linear(2, 2), nn.GELU()))
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(4, eps=1e-5), nn.GELU())
    for other in (nn.ReLU(), nn.GELU("tanh")):
        assert describe_model(nn.Sequential(model[0], other)) != describe_model(model)
    assert describe_model(nn.Sequential(nn.LayerNorm(4, eps=1e-6), nn.GELU())) != first
    config = describe_model(make_gpt2())["config"]
    assert config["n_layer"] == make_gpt2().config.n_layer
    assert "_name_or_path" not in config


class WithBuffers(nn.Module):
    def __init__(self, cache: float, kept: float) -> None:
        super().__init__()
        self.register_buffer("cache", torch.full((4,), cache), persistent=False)
        self.register_buffer("kept", torch.full((4,), kept))
        self.register_buffer("none", None)


def test_buffers_count_where_a_checkpoint_has_them() -> None:
    plain = describe_model(WithBuffers(0, 0))
    assert list(plain["tensors"]) == ["kept"]
    assert describe_model(WithBuffers(1, 0)) == plain
    assert describe_model(WithBuffers(0, 1)) != plain


class Odd(nn.Module):
    """Scalars, nothing at all, bools, complex numbers, and what has no plain bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scalar", torch.tensor(3.0))
        self.register_buffer("empty", torch.zeros(0, 5))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.register_buffer("complex", torch.randn(4, dtype=torch.complex64).conj())
        self.register_buffer("float8", torch.randn(4).to(torch.float8_e4m3fn))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("meta", torch.zeros(2, device="meta"))
        self.lazy = nn.LazyLinear(3)


def test_odd_tensors_are_described_as_far_as_they_can_be() -> None:
    tensors = describe_model(Odd())["tensors"]
    assert {name: text.split(" ", 2)[:2] for name, text in tensors.items()} == {
        "scalar": ["float32", "()"],
        "empty": ["float32", "0x5"],
        "flag": ["bool", "2"],
        "complex": ["complex64", "4"],
        "float8": ["float8_e4m3fn", "4"],
        "sparse": ["float32", "3x3"],
        "meta": ["float32", "2"],
        "lazy.weight": ["uninitialised"],
        "lazy.bias": ["uninitialised"],
    }
    assert tensors["meta"] == "float32 2"


class Packed(nn.Parameter):
    """Bytes of its own under another class, as quantised weights often are."""

    def __new__(cls, data: Tensor) -> Any:
        return torch.Tensor._make_subclass(cls, data, False)


def wrapped(data: Tensor) -> Any:
    """Two tensors behind one that has no bytes."""
    return TwoTensor(data, data * 2)  # type: ignore[no-untyped-call]


def nested(data: Tensor) -> Any:
    return TwoTensor(wrapped(data), wrapped(data + 1))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("make", [Packed, wrapped, nested])
def test_weights_inside_tensor_subclasses_are_told_apart(make: Callable[[Tensor], Any]) -> None:
    described, values = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = nn.Linear(4, 4, bias=False)
        made = make(model.weight.data)
        model.weight = made if make is Packed else nn.Parameter(made, requires_grad=False)
        described.append(describe_model(model)["tensors"]["weight"])
        values.append(describe(make(torch.randn(3))))
    assert described[0] == described[1] != described[2]
    assert values[0] == values[1] != values[2]


def test_of_a_tensor_that_is_spread_over_processes_no_bytes_are_compared() -> None:
    spread = wrapped(torch.ones(2))
    spread.device_mesh = "of two processes"
    assert describe(spread) == "float32 2"


# Datasets


class Printed(Tokens):
    def fingerprint(self) -> str:
        return "version 3"


class Iterated:
    def __iter__(self) -> Any:
        raise AssertionError("read")


def test_a_dataset_is_its_own_fingerprint_or_a_few_items() -> None:
    assert describe_dataset(Printed(5)) == {
        "class": f"{__name__}.Printed",
        "fingerprint": "version 3",
    }
    assert describe_dataset(Iterated()) == {"class": f"{__name__}.Iterated"}
    read = []

    class Counting(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            read.append(index)
            return super().__getitem__(index)

    described = describe_dataset(Counting(range(1000)))
    assert (described["n_items"], read[0], read[-1], len(read)) == (1000, 0, 999, 16)
    assert describe_dataset([])["n_items"] == 0
    assert describe_dataset([1])["n_items"] == 1


# Values and functions


class Colour(enum.StrEnum):
    RED = "red"


@dataclass
class Settings:
    width: int


class Adds:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, acts: Tensor) -> Tensor:
        return acts + self.n

    def method(self, acts: Tensor) -> Tensor:
        return acts - self.n


def closing_over(value: Any) -> Callable[[Any], Any]:
    return lambda acts: (acts, value)


TWO = [lambda acts: acts[0], lambda acts: acts[1]]
ONE_AGAIN = lambda acts: acts[0]  # noqa: E731


PAIRS: list[tuple[Any, Any]] = [
    (TWO[0], TWO[1]),
    (closing_over(1), closing_over(2)),
    (closing_over(torch.ones(2)), closing_over(torch.zeros(2))),
    (lambda a, k=1: a, lambda a, k=2: a),
    (lambda a, *, k=1: a, lambda a, *, k=2: a),
    (functools.partial(torch.mean, dim=1), functools.partial(torch.mean, dim=2)),
    (torch.mean, torch.sum),
    (Adds(1), Adds(2)),
    (Adds(1).method, Adds(2).method),
    (Adds(1), Adds(1).method),
    (nn.Linear(2, 2), nn.Linear(2, 2)),
    (nn.Linear(2, 2).forward, nn.Linear(2, 2).forward),
    (Settings(1), Settings(2)),
    ([1, 2], [2, 1]),
    (1, True),
    (1, 1.5),
    ("1", 1),
    (b"a", b"b"),
    (np.arange(3), np.arange(3.0)),
    (np.float32(1.5), np.float32(2.5)),
    (np.array([None, "a"]), np.array([None, "b"])),
    (torch.arange(4), torch.arange(4).reshape(2, 2)),
    (float("nan"), float("inf")),
    ({"a": 1}, {"a": 2}),
    ({1: "a"}, {2: "a"}),
]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=range(len(PAIRS)))
def test_different_values_have_different_descriptions(first: Any, second: Any) -> None:
    described = json.dumps(describe(first))
    assert described == json.dumps(describe(first))
    assert described != json.dumps(describe(second))
    assert " at 0x" not in described


def test_equal_values_have_equal_descriptions() -> None:
    assert describe(closing_over([1, 2])) == describe(closing_over([1, 2]))
    assert describe(TWO[0])["code"] == describe(ONE_AGAIN)["code"]
    assert describe(Colour.RED) == "red"
    assert type(describe(Colour.RED)) is str
    assert describe({"b", "a"}) == ["a", "b"]
    assert describe(np.int64(3)) == 3
    assert describe(object()) == "builtins.object"
    assert describe(Settings) == f"{__name__}.Settings"


def test_what_holds_itself_has_an_end() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert json.dumps(describe(endless)).count("[") == 7


FACTOR = 1.0
WEIGHTS = {"direction": torch.ones(3)}
SAE = nn.Linear(3, 3)
N_CALLS = 0
MANY = list(range(2000))
PROMPT = "a" * 2000
mean = 1.0


def helper(acts: Tensor) -> Tensor:
    return acts * FACTOR


def reads_a_number(acts: Tensor) -> Tensor:
    return acts * FACTOR


def reads_a_tensor(acts: Tensor) -> Tensor:
    return acts @ WEIGHTS["direction"]


def reads_a_module(acts: Tensor) -> Any:
    return SAE(acts)


def reads_by_a_helper(acts: Tensor) -> Tensor:
    return helper(acts)


def reads_in_a_comprehension(acts: Tensor) -> list[Any]:
    return [each * FACTOR for each in acts]


def counts(acts: Tensor) -> Tensor:
    global N_CALLS
    N_CALLS += 1
    return acts.mean(dim=MANY[1])


def even(n: int) -> bool:
    return n == 0 or odd(n - 1)


def odd(n: int) -> bool:
    return n != 0 and even(n - 1)


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        (reads_a_number, "FACTOR", 2.0),
        (reads_by_a_helper, "FACTOR", 2.0),
        (reads_by_a_helper, "helper", abs),
        (reads_in_a_comprehension, "FACTOR", 2.0),
        (lambda acts: acts * FACTOR, "FACTOR", 2.0),
        (lambda acts: (acts, PROMPT), "PROMPT", "b" * 2000),
        (functools.partial(reads_a_number), "FACTOR", 2.0),
        (reads_a_tensor, "WEIGHTS", {"direction": torch.zeros(3)}),
        (reads_a_module, "SAE", nn.Linear(3, 3, bias=False)),
    ],
)
def test_globals_that_a_function_reads_are_part_of_it(
    function: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = describe(function)
    assert before == describe(function) == json.loads(json.dumps(before))
    monkeypatch.setitem(globals(), name, value)
    assert describe(function) != before


def test_what_a_function_writes_and_what_only_shares_a_name_is_not_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = describe(counts)
    for name, value in (("N_CALLS", 5), ("mean", 2.0), ("MANY", list(range(3000)))):
        monkeypatch.setitem(globals(), name, value)
        assert describe(counts) == before


def test_functions_that_call_one_another_have_an_end() -> None:
    assert describe(even)["globals"]["odd"]["globals"] == {"even": f"{__name__}.even"}


def test_what_functions_of_libraries_and_of_fastcap_read_is_not_looked_at() -> None:
    for function in (json.loads, torch.nn.functional.softmax, describe):
        assert "globals" not in describe(function)


def test_a_function_made_by_exec_has_no_source_and_is_told_by_its_code() -> None:
    made: list[dict[str, Any]] = []
    for body in ("x + 1", "x + 2", "x + 1"):
        names: dict[str, Any] = {}
        exec(f"def f(x):\n    return {body}", names)
        made.append(describe(names["f"]))
    assert made[0] == made[2]
    assert made[0] != made[1]
    assert "code" in made[0]


def test_a_collator_is_told_by_its_settings_and_its_tokenizer() -> None:
    model, tokenizer = make_gpt2(), make_tokenizer()
    plain = describe(Collator(model, tokenizer))
    tokenizer(["a", "b"], truncation=True, max_length=1)  # which leaves traces
    assert describe(Collator(model, tokenizer)) == plain == json.loads(json.dumps(plain))
    changes: list[dict[str, Any]] = [{"max_tokens": 4}, {"add_generation_prompt": True}]
    for options in [*changes, {"padding_side": "left"}]:
        assert describe(Collator(model, tokenizer, **options)) != plain
    assert plain["fingerprint"]["n_tokens"] == len(tokenizer)


def test_the_creator_is_apart_from_what_is_compared() -> None:
    creator = describe_creator("NVIDIA H200")
    assert creator["torch"] == torch.__version__
    assert creator["device"] == "NVIDIA H200"
    assert not set(creator) & set(run())
