"""`extract_representations` as the documented one: arguments, keys, model state, memory."""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import FastcapWarning, extract_representations
from fastcap.reference import differences
from tests.support.datasets import Tokens, expected, make_samples, storage_bytes
from tests.support.models import (
    CountsTrainCalls,
    FailsAt,
    FrozenPart,
    LanguageModel,
    PositionTable,
    SharedWeights,
    TupleBlock,
    WithOddModule,
    WritesInPlace,
    hooks_on,
    training_flags,
)

SAMPLES = make_samples(7)


def problems(
    model: nn.Module, sites: Sequence[str], batch_size: int = 3, max_samples: int | None = None
) -> list[str]:
    """How an extraction differs from the oracle's."""
    found = extract_representations(model, SAMPLES, sites, "cpu", batch_size, max_samples)
    return differences(expected(model, SAMPLES, sites, batch_size, max_samples), found)


# Arguments


def test_the_documented_signature_is_kept() -> None:
    parameters = inspect.signature(extract_representations).parameters
    documented = ["model", "dataset", "layers", "device", "batch_size", "max_samples"]

    assert list(parameters)[:6] == documented
    assert [parameters[name].default for name in documented[4:]] == [32, None]
    assert {parameters[name].kind for name in list(parameters)[6:]} == {
        inspect.Parameter.KEYWORD_ONLY
    }


def test_arguments_are_taken_by_position_and_by_name() -> None:
    model = LanguageModel()
    by_position = extract_representations(model, SAMPLES, ["norm"], "cpu", 3, 5)
    by_name = extract_representations(
        model=model,
        dataset=SAMPLES,
        layers=["norm"],
        device=torch.device("cpu"),
        batch_size=3,
        max_samples=5,
    )

    assert differences(by_position, by_name) == []


def test_layers_may_be_called_sites_as_everywhere_else() -> None:
    model = LanguageModel()
    by_layers = extract_representations(model, SAMPLES, ["norm"], "cpu", 3)
    by_sites = extract_representations(model, SAMPLES, sites=["norm"], batch_size=3)

    assert differences(by_layers, by_sites) == []
    with pytest.raises(ValueError, match=r"layers=\['norm'\] and sites='norm': .* Pass one"):
        extract_representations(model, SAMPLES, ["norm"], "cpu", sites="norm")
    with pytest.raises(ValueError, match="sites is empty"):
        extract_representations(model, SAMPLES)


def test_no_layers_are_an_error_and_not_an_empty_result() -> None:
    with pytest.raises(ValueError, match="sites is empty"):
        extract_representations(LanguageModel(), SAMPLES, [], "cpu")


def test_a_string_is_one_layer() -> None:
    found = extract_representations(LanguageModel(), SAMPLES, "norm", "cpu")

    assert list(found) == ["norm"]


def test_only_input_ids_is_passed_and_only_by_position() -> None:
    calls: list[tuple[Any, Any]] = []

    class Recorder(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            calls.append((args, kwargs))
            return torch.as_tensor(args[0], dtype=torch.float32)

    samples = [{**sample, "labels": torch.ones(2), "text": "words"} for sample in SAMPLES]
    extract_representations(Recorder(), samples, [""], "cpu", batch_size=7)

    [(args, kwargs)] = calls
    assert kwargs == {}
    assert torch.equal(args[0], torch.stack([sample["input_ids"] for sample in SAMPLES]))


# Values and keys


@pytest.mark.parametrize(
    "model",
    [
        LanguageModel(layers_as=nn.ModuleDict),
        LanguageModel(layers_as=nn.ModuleList),
        LanguageModel(block=TupleBlock),
        LanguageModel().bfloat16(),
        LanguageModel().double(),
    ],
    ids=["module dict", "module list", "tuples", "bfloat16", "float64"],
)
def test_every_site_equals_the_oracle(model: nn.Module) -> None:
    sites = ["layers.0.attention", "layers.1.mlp", "layers.0", "norm", "token_embedding", ""]

    assert problems(model, sites) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("max_samples", [None, 1, 3, 4, 7, 50])
def test_every_batch_size_and_cut_equals_the_oracle(
    batch_size: int, max_samples: int | None
) -> None:
    model = LanguageModel()

    assert problems(model, ["layers.0.mlp", "norm"], batch_size, max_samples) == []


def test_values_are_those_of_the_moment_the_hook_fired() -> None:
    assert problems(WritesInPlace(), ["linear", "embedding", ""]) == []


@pytest.mark.filterwarnings("ignore:A pass calls these")
def test_the_last_call_of_a_shared_module_is_kept_under_each_name_asked() -> None:
    assert problems(SharedWeights(), ["second", "first"]) == []


def test_keys_come_in_the_order_asked_and_not_in_the_order_of_the_model() -> None:
    sites = ["norm", "layers.1", "token_embedding", "layers.0.mlp"]

    assert list(extract_representations(LanguageModel(), SAMPLES, sites, "cpu")) == sites


@pytest.mark.parametrize("again", ["norm", "norm:output"])
def test_a_layer_given_twice_gives_its_rows_once(again: str) -> None:
    model = LanguageModel()
    found = extract_representations(model, SAMPLES, ["norm", "layers.0", again], "cpu")

    assert found["norm"].shape == (7, 5, 16)
    assert list(found) == ["norm", "layers.0"]


def test_the_root_may_be_asked_for_and_the_default_part_is_not_in_the_key() -> None:
    model = LanguageModel()
    found = extract_representations(model, SAMPLES, ["", "norm:output"], "cpu", 3)

    assert differences(expected(model, SAMPLES, ["", "norm"], 3), found) == []


def test_a_site_that_never_fires_is_left_out_with_a_warning() -> None:
    model = WithOddModule(lambda acts: None)
    with pytest.warns(FastcapWarning) as said:
        found = extract_representations(model, SAMPLES, ["odd", "head"], "cpu", 3)

    assert differences(expected(model, SAMPLES, ["head"], 3), found) == []
    assert [str(warning.message).split(":")[0] for warning in said] == [
        "Nothing is captured at site 'odd'",
    ]


def test_results_are_ordinary_tensors_of_their_own_that_can_be_trained_on() -> None:
    found = extract_representations(LanguageModel(), SAMPLES, ["norm", ""], "cpu", 3, 5)

    for value in found.values():
        assert storage_bytes(value) == value.nbytes
        assert not value.is_inference()
    weight = torch.ones(16, requires_grad=True)
    loss = (found["norm"].add_(1.0) * weight).sum()
    assert torch.autograd.grad(loss, weight)[0].shape == (16,)


def test_extracting_inside_inference_mode_gives_the_same_ordinary_tensors() -> None:
    model = LanguageModel()
    outside = extract_representations(model, SAMPLES, ["norm", ""], "cpu", 3, 5)
    with torch.inference_mode():
        inside = extract_representations(model, SAMPLES, ["norm", ""], "cpu", 3, 5)

    assert differences(outside, inside) == []


def test_extracting_under_autocast_gives_the_dtypes_that_modules_then_produce() -> None:
    model = LanguageModel()
    sites = ["layers.0.mlp.down", "norm"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = extract_representations(model, SAMPLES, sites, "cpu", 3)
        wanted = expected(model, SAMPLES, sites, 3)

    assert found["layers.0.mlp.down"].dtype is torch.bfloat16
    assert differences(wanted, found) == []


def test_two_extractions_do_not_share_memory() -> None:
    model = LanguageModel()
    first = extract_representations(model, SAMPLES, ["norm"], "cpu", 3)
    before = first["norm"].clone()

    extract_representations(model, SAMPLES, ["norm"], "cpu", 3)["norm"].zero_()

    assert torch.equal(first["norm"], before)


# How the model is run, and how it is left


class Witness(nn.Module):
    """Notes under which conditions it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[tuple[bool, bool, bool]] = []
        self.n_rows: list[int] = []

    def forward(self, ids: Tensor) -> Tensor:
        self.seen.append(
            (self.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        )
        self.n_rows.append(len(ids))
        return ids * self.weight


def test_passes_run_in_eval_mode_without_gradients_and_not_in_inference_mode() -> None:
    model = Witness()
    extract_representations(model, SAMPLES, [""], "cpu", 3)

    assert set(model.seen) == {(False, False, False)}
    assert model.training
    assert torch.is_grad_enabled()


def test_batches_are_consecutive_and_the_last_one_is_run_whole() -> None:
    model = Witness()
    extract_representations(model, SAMPLES, [""], "cpu", 3)
    assert model.n_rows == [3, 3, 1]

    model.n_rows.clear()
    extract_representations(model, SAMPLES, [""], "cpu", 3, max_samples=4)
    assert model.n_rows == [3, 3]

    model.n_rows.clear()
    extract_representations(model, SAMPLES, [""], "cpu", 3, max_samples=3)
    assert model.n_rows == [3]


@pytest.mark.parametrize("root_flag", [True, False])
def test_every_module_gets_its_own_flag_back(root_flag: bool) -> None:
    model = FrozenPart().train(root_flag)
    model.backbone.eval()
    model.head[1].train()
    before = training_flags(model)

    assert problems(model, ["backbone", "head"]) == []

    assert training_flags(model) == before


def test_flags_come_back_through_train_so_that_overridden_train_methods_run() -> None:
    model = CountsTrainCalls()
    model.train()
    model.train_calls.clear()

    extract_representations(model, SAMPLES, ["norm"], "cpu", 3)

    assert model.train_calls == [False, True]
    assert not model.is_merged


def test_flags_and_hooks_are_restored_when_the_model_raises() -> None:
    model = FailsAt(RuntimeError("in the middle"), at_pass=1)
    model.before.eval()
    before = training_flags(model)

    with pytest.raises(RuntimeError) as caught:
        extract_representations(model, SAMPLES, ["before", "after"], "cpu", 3)

    assert caught.value is model.error
    assert hooks_on(model) == 0
    assert training_flags(model) == before


def test_no_hook_is_left_after_success_or_after_a_wrong_name() -> None:
    model = LanguageModel()
    extract_representations(model, SAMPLES, ["norm"], "cpu", positions=-1)
    assert hooks_on(model) == 0

    with pytest.raises(ValueError, match="not found"):
        extract_representations(model, SAMPLES, ["norm", "nowhere"], "cpu", positions=-1)
    assert hooks_on(model) == 0


def test_the_same_extraction_can_be_repeated_after_a_failure() -> None:
    model = FailsAt(RuntimeError("in the middle"), at_pass=1)
    sites = ["before", "after"]
    with pytest.raises(RuntimeError):
        extract_representations(model, SAMPLES, sites, "cpu", 3)

    assert problems(model, sites) == []


# Refused where the documented call gave wrong rows


@pytest.mark.parametrize("max_samples", [0, -1])
def test_max_samples_below_one_is_refused(max_samples: int) -> None:
    with pytest.raises(ValueError, match=f"max_samples must be at least 1; got {max_samples}"):
        extract_representations(LanguageModel(), SAMPLES, ["norm"], "cpu", max_samples=max_samples)


def test_a_site_without_a_batch_dimension_is_refused_with_its_shape() -> None:
    with pytest.raises(RuntimeError, match=re.escape("'wpe' produced shape (1, 5, 16)")):
        extract_representations(PositionTable(), SAMPLES, ["wte", "wpe"], "cpu", 3)


def test_a_site_that_flattens_samples_and_tokens_is_refused_with_its_shape() -> None:
    model = WithOddModule(lambda acts: acts.flatten(0, 1))
    with pytest.raises(RuntimeError, match=re.escape("'odd' produced shape (15, 16)")):
        extract_representations(model, SAMPLES, ["odd"], "cpu", 3)


# Memory


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _peak_growth_bytes(run: Callable[[], object]) -> int:
    """How far the process's resident memory rises above where it stood, while `run` runs."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # else memory that earlier tests freed hides growth
        Path("/proc/self/clear_refs").write_text("5")  # 5 resets the peak
        before = _status_bytes("VmRSS")
    except (OSError, KeyError, AttributeError) as error:
        pytest.skip(f"this system does not report peak memory of a process: {error!r}")
    run()
    return _status_bytes("VmHWM") - before


def test_peak_memory_is_the_result_and_little_more() -> None:
    batch_size, sample_bytes = 8, 128 * 128 * 4
    model = nn.Embedding(32, 128)
    dataset = Tokens(1024, n_tokens=128)

    def extract(n_samples: int) -> object:
        return extract_representations(model, dataset, [""], "cpu", batch_size, n_samples)

    extract(2 * batch_size)
    growth_bytes = _peak_growth_bytes(lambda: extract(1024))

    assert growth_bytes < 1.1 * 1024 * sample_bytes + 4 * batch_size * sample_bytes
