"""The keyword-only options of `extract_representations`, each against the oracle."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastcap import FastcapWarning, extract_representations, reference, stream
from fastcap.errors import MissingExtraError
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.datasets import Sample, TokenStream, expected, make_samples, stack
from tests.support.models import LanguageModel, Patches, WithOddModule

SAMPLES = make_samples(7, n_tokens=6)
SITES = ["layers.0", "norm", "layers.1.attention"]


def problems(model: nn.Module, sites: Sequence[str], **options: Any) -> list[str]:
    """How an extraction with a selection differs from the oracle's."""
    found = extract_representations(model, SAMPLES, sites, "cpu", 3, **options)
    selection = make_selection(**options)
    return differences(expected(model, SAMPLES, sites, 3, None, selection), found)


# Selections


@pytest.mark.parametrize(
    "positions",
    [
        0,
        -1,
        5,
        -6,
        slice(None),
        slice(2, None),
        slice(-2, None),
        slice(None, 100),
        slice(1, 6, 2),
        slice(4, 2),
        [0, -1],
        [3],
        [5, 0, 5, -2],
        [],
        (1, 2),
        range(0, 6, 3),
        torch.tensor([4, -4]),
        torch.tensor(2),
    ],
    ids=str,
)
def test_positions_are_taken_as_by_indexing(positions: Any) -> None:
    assert problems(LanguageModel(), SITES, positions=positions) == []


def test_one_position_drops_the_dimension_and_a_list_of_one_keeps_it() -> None:
    model = LanguageModel()

    one = extract_representations(model, SAMPLES, ["norm"], "cpu", positions=-1)["norm"]
    listed = extract_representations(model, SAMPLES, ["norm"], "cpu", positions=[-1])["norm"]

    assert (one.shape, listed.shape) == ((7, 16), (7, 1, 16))
    assert torch.equal(one, listed[:, 0])


def test_what_is_not_selected_is_not_copied() -> None:
    model = LanguageModel()
    run = stream(model, stack(SAMPLES, 7), ["norm"], positions=-1)
    with run:
        next(run)

    assert run.statistics().copied_bytes == 7 * 16 * 4


@pytest.mark.parametrize("seq_dim", [2, -1])
def test_positions_count_along_seq_dim(seq_dim: int) -> None:
    model = WithOddModule(lambda acts: acts.transpose(1, 2))
    found = extract_representations(model, SAMPLES, ["odd"], "cpu", positions=1, seq_dim=seq_dim)

    assert found["odd"].shape == (7, 16)
    assert problems(model, ["odd"], positions=1, seq_dim=seq_dim) == []


def test_positions_along_the_batch_leave_nothing_to_match_samples_with() -> None:
    with pytest.raises(RuntimeError, match="first dimension is not the batch"):
        problems(LanguageModel(), ["norm"], positions=1, seq_dim=0)


@pytest.mark.parametrize(
    "reduce",
    [
        lambda acts: acts.mean(dim=1),
        lambda acts: acts.amax(dim=1),
        lambda acts: acts.norm(dim=-1),
        lambda acts: acts.argmax(dim=-1),
        lambda acts: acts[:, ::2].transpose(1, 2),
        lambda acts: acts,
    ],
    ids=["mean", "max", "norm", "argmax", "strided", "identity"],
)
def test_reduce_is_applied_to_the_selected_values(reduce: Callable[[Tensor], Tensor]) -> None:
    assert problems(LanguageModel(), SITES, reduce=reduce) == []
    assert problems(LanguageModel(), SITES, reduce=reduce, positions=slice(1, 5)) == []


def test_reduce_is_given_the_selected_values_without_gradients() -> None:
    seen: list[tuple[tuple[int, ...], bool, bool]] = []

    def mean(acts: Tensor) -> Tensor:
        seen.append((tuple(acts.shape), acts.requires_grad, torch.is_grad_enabled()))
        return acts.mean(dim=1)

    model = LanguageModel()
    extract_representations(
        model, SAMPLES, ["norm"], "cpu", 7, positions=slice(2, None), reduce=mean
    )

    assert seen == [((7, 4, 16), False, False)]


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn],
    ids=str,
)
@pytest.mark.parametrize("produced", [torch.float32, torch.bfloat16], ids=str)
def test_dtype_narrows_and_widens_as_a_cast_does(produced: torch.dtype, dtype: torch.dtype) -> None:
    assert problems(LanguageModel().to(produced), SITES, dtype=dtype) == []


def test_integers_can_be_delivered_as_floats() -> None:
    model = WithOddModule(lambda acts: (acts * 100).to(torch.int32))

    assert problems(model, ["odd"], dtype=torch.float64) == []


def test_positions_reduce_and_dtype_apply_in_this_order() -> None:
    model = LanguageModel()
    options: dict[str, Any] = {
        "positions": [0, 2, -1],
        "reduce": lambda acts: acts.sum(dim=1),
        "dtype": torch.bfloat16,
    }
    assert problems(model, SITES, **options) == []

    full = extract_representations(model, SAMPLES, ["norm"], "cpu", 3)["norm"]
    by_hand = full[:, [0, 2, -1]].sum(dim=1).to(torch.bfloat16)
    found = extract_representations(model, SAMPLES, ["norm"], "cpu", 3, **options)
    assert differences({"norm": by_hand}, found) == []


# How the model is called


def _masked_samples() -> list[Sample]:
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    return [{**sample, "attention_mask": mask} for sample in SAMPLES]


@pytest.mark.parametrize(
    "model_inputs", ["attention_mask", ["attention_mask"], ["input_ids", "attention_mask"]]
)
def test_model_inputs_are_passed_by_name_beside_input_ids(model_inputs: Any) -> None:
    model = LanguageModel().eval()
    samples = _masked_samples()

    found = extract_representations(model, samples, SITES, "cpu", 3, model_inputs=model_inputs)

    def call(model: nn.Module, batch: Sample) -> Any:
        return model(batch["input_ids"], attention_mask=batch["attention_mask"])

    assert differences(reference.extract(model, stack(samples, 3), SITES, call), found) == []
    unmasked = expected(model, SAMPLES, SITES, 3)
    assert differences(unmasked, found) != []


def test_forward_replaces_the_call() -> None:
    model = LanguageModel().eval()
    samples = _masked_samples()

    def call(model: nn.Module, batch: Sample) -> Any:
        return model(batch["input_ids"].flip(1), batch["attention_mask"])

    found = extract_representations(model, samples, SITES, "cpu", 3, forward=call)

    assert differences(reference.extract(model, stack(samples, 3), SITES, call), found) == []


def test_a_vision_model_is_called_with_its_own_inputs() -> None:
    model = Patches().eval()
    samples = [{"pixel_values": torch.randn(3, 8, 8), "label": i} for i in range(7)]

    def call(model: nn.Module, batch: Any) -> Any:
        return model(pixel_values=batch["pixel_values"])

    found = extract_representations(model, samples, ["patches", "head"], "cpu", 3, forward=call)

    tensors = [{"pixel_values": sample["pixel_values"]} for sample in samples]
    batches = stack(tensors, 3)  # type: ignore[arg-type]
    assert differences(reference.extract(model, batches, ["patches", "head"], call), found) == []


def test_forward_is_given_whatever_collate_fn_makes() -> None:
    model = LanguageModel()
    seen: list[Any] = []

    def call(model: nn.Module, batch: Any) -> Any:
        seen.append(batch)
        return model(batch[0])

    def collate(samples: list[Sample]) -> tuple[Tensor, str]:
        return torch.stack([sample["input_ids"] for sample in samples]), "a label"

    found = extract_representations(
        model, SAMPLES, ["norm"], "cpu", 3, forward=call, collate_fn=collate
    )

    assert differences(expected(model, SAMPLES, ["norm"], 3), found) == []
    assert [(type(batch), batch[1]) for batch in seen] == [(tuple, "a label")] * 3


def test_passing_the_mask_or_a_forward_of_ones_own_is_not_warned_about() -> None:
    model, samples = LanguageModel(), _masked_samples()

    extract_representations(model, samples, ["norm"], "cpu", model_inputs=["attention_mask"])
    extract_representations(
        model, samples, ["norm"], "cpu", forward=lambda model, batch: model(batch["input_ids"])
    )
    with pytest.warns(FastcapWarning, match="attention_mask"):
        extract_representations(model, samples, ["norm"], "cpu")


# Progress


def test_progress_is_told_the_samples_done_and_expected() -> None:
    told: list[tuple[int, int | None]] = []

    def report(n_done: int, n_expected: int | None) -> None:
        told.append((n_done, n_expected))

    model = LanguageModel()
    extract_representations(model, SAMPLES, ["norm"], "cpu", 3, progress=report)
    assert told == [(3, 7), (6, 7), (7, 7)]

    told.clear()
    extract_representations(model, SAMPLES, ["norm"], "cpu", 3, max_samples=4, progress=report)
    assert told == [(3, 4), (4, 4)]

    told.clear()
    extract_representations(model, TokenStream(4), ["norm"], "cpu", 3, progress=report)
    assert told == [(3, None), (4, None)]


def test_an_error_in_progress_ends_the_run_and_cleans_up() -> None:
    def fail(n_done: int, n_expected: int | None) -> None:
        raise RuntimeError("no terminal")

    model = LanguageModel()
    with pytest.raises(RuntimeError, match="no terminal"):
        extract_representations(model, SAMPLES, ["norm"], "cpu", 3, progress=fail)

    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_progress_true_draws_a_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fastcap.progress._can_draw", lambda: True)
    extract_representations(LanguageModel(), SAMPLES, ["norm"], "cpu", 3, progress=True)

    printed = capsys.readouterr()
    assert "7/7" in printed.err
    assert printed.out == ""


def test_progress_true_without_tqdm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'torch-fastcap\[cli\]'") as caught:
        extract_representations(LanguageModel(), SAMPLES, ["norm"], "cpu", progress=True)

    assert isinstance(caught.value, ImportError)


# Budgets


@pytest.mark.parametrize("options", [{"staging_bytes": 1 << 20}, {"pinned_bytes": 256}])
def test_budgets_change_no_value(options: dict[str, int]) -> None:
    model = LanguageModel()
    found = extract_representations(model, SAMPLES, SITES, "cpu", 3, **options)  # type: ignore[arg-type]

    assert differences(expected(model, SAMPLES, SITES, 3), found) == []
