"""What `plan` refuses, and what it advises: each text once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import TimedDevice
from fastcap.errors import (
    ArchiveError,
    ArgumentError,
    ArgumentTypeError,
    BatchError,
    DeviceError,
    FastcapError,
    ResultError,
    SaveError,
    SelectionError,
    SiteNotFoundError,
)
from fastcap.planning import Machine
from fastcap.planning.measure import disk_rate
from tests.support.models import LanguageModel
from tests.support.runs import running_on

MODEL, BATCH = nn.Linear(4, 4), torch.ones(2, 3, 4)


def refusal(kind: type[FastcapError], **options: Any) -> str:
    given: dict[str, Any] = {"model": MODEL, "example": BATCH, "sites": "", "n_samples": 4}
    with pytest.raises(kind) as caught:
        fastcap.plan(**{**given, **options})
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"sites": []},
            "sites is empty: name at least one module, such as ['layers.0.mlp'].",
        ),
        ({"n_samples": 0}, "n_samples must be at least 1; got 0."),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0."),
        ({"n_tokens": 0}, "n_tokens must be at least 1; got 0."),
        ({"staging_bytes": 1}, "staging_bytes must be at least 256; got 1."),
        (
            {"calls": "all"},
            (
                "calls='all' is for a loop over fastcap.stream(); results in memory and archives "
                "have the last call. Plan it with into='loop'."
            ),
        ),
        (
            {"zero_copy": True},
            "zero_copy=True lends slots to a loop; it needs into='loop'.",
        ),
        (
            {"positions": "unpadded"},
            (
                "positions='unpadded' gives a row for each real token, and rows of a result in "
                "memory are samples. Plan it with into='loop', or select one row per sample "
                "(positions='last', reduce='mean')."
            ),
        ),
        (
            {"example": {"input_ids": torch.zeros(0, 3)}, "batch_size": 2},
            (
                "The example cannot be repeated to batch_size=2: it has no sample. Give one with "
                "at least one."
            ),
        ),
        ({"forward_secs": -1.0}, "forward_secs must be a positive number; got -1.0."),
        (
            {"example": None},
            (
                "Nothing says what the model is called with. Give an example batch, or, for a "
                "model of token ids, the tokens of each sample (n_tokens=, --tokens)."
            ),
        ),
        (
            {"n_tokens": 9},
            (
                "The example cannot be repeated to n_tokens=9: it has no (batch, sequence) token "
                "ids. Give one of the length wanted, and leave n_tokens= out."
            ),
        ),
        (
            {"example": {"scale": 2}, "batch_size": 3, "forward": lambda model, batch: None},
            (
                "The example cannot be repeated to batch_size=3: nothing in it says how many "
                "samples it has. Give one of 3 samples, and leave batch_size= out."
            ),
        ),
        (
            {"example": {"scale": 2}, "forward": lambda model, batch: model(BATCH)},
            (
                "Cannot tell how many samples the example has: it holds no tensor and no list, or "
                "an empty one. Give a dict, tensor or list with at least one sample."
            ),
        ),
        (
            {"into": "disk"},
            "into must be 'memory', 'loop' or 'archive'; got 'disk'.",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    assert refusal(ArgumentError, **options) == text


def test_a_machine_is_a_machine() -> None:
    assert refusal(ArgumentTypeError, machine={"link_bytes_per_sec": 1}) == (
        "machine must be a fastcap.planning.Machine; got a dict."
    )


def test_a_folder_is_a_path() -> None:
    assert refusal(ArgumentTypeError, folder=3) == "folder must be a path; got 3."


def test_a_model_is_a_module() -> None:
    assert refusal(ArgumentTypeError, model=3) == "model must be a torch.nn.Module; got 3."


def test_a_plan_is_compared_with_a_run() -> None:
    found = fastcap.plan(MODEL, BATCH, "", n_samples=4)
    run: Any = [BATCH]
    with pytest.raises(ArgumentTypeError) as caught:
        found.compare(run)
    assert str(caught.value) == (
        "compare takes the statistics of a stream or store, a result (a dict of tensors) or an "
        "archive; got a list."
    )


def test_lists_of_positions_that_do_not_fit_the_last_pass_are_refused() -> None:
    options: dict[str, Any] = {"positions": [[0], [1]], "into": "loop"}
    assert refusal(SelectionError, n_samples=5, **options) == (
        "positions= has lists for 2 samples, and the last pass of 5 samples has 1, where the run "
        "would fail. Let the batches hold the positions (positions='key'), or plan a number of "
        "samples that 2 divides."
    )
    with (
        pytest.raises(SelectionError),
        fastcap.stream(MODEL, [BATCH, BATCH[:1]], "", positions=[[0], [1]]) as stream,
    ):
        list(stream)


def test_what_files_cannot_hold_is_refused_as_in_a_run(tmp_path: Path) -> None:
    text = refusal(ArchiveError, dtype=torch.complex64, into="archive")
    assert text.startswith("'' has dtype torch.complex64, which safetensors files cannot hold.")
    with pytest.raises(ArchiveError) as caught:
        fastcap.extract(
            MODEL,
            [{"input_ids": BATCH[0]}],
            "",
            tmp_path / "acts",
            dtype=torch.complex64,
        )
    assert str(caught.value) == text


def test_every_site_is_checked_for_rows_that_are_no_samples() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.ReLU(), nn.ReLU()

        def forward(self, acts: Tensor) -> Tensor:
            self.first(acts.flatten(0, 1))
            found: Tensor = self.second(self.first(acts).flatten(0, 1))
            return found

    text = refusal(ResultError, model=Both(), sites=["first", "second"])
    assert text.startswith("Site 'second' produced shape (6, 4) for a batch of 2 samples")


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan"), True, "55"])
def test_a_rate_is_a_positive_number(rate: Any) -> None:
    with pytest.raises(ArgumentError) as caught:
        Machine(hook_secs=rate)
    assert str(caught.value) == (
        f"hook_secs must be a positive number, or None where it is not known; got {rate!r}."
    )


def test_a_site_that_is_not_there_is_refused_as_in_a_run() -> None:
    assert refusal(SiteNotFoundError, sites="mlp").startswith("Module 'mlp' not found in model.")


def test_a_selection_that_does_not_fit_is_refused_as_in_a_run() -> None:
    text = refusal(SelectionError, positions=7)
    assert text.startswith("Site '' produced shape (2, 3, 4): position 7 is out of range")


class Flattens(nn.Module):
    def forward(self, acts: Tensor) -> Tensor:
        return acts.flatten(0, 1)


@pytest.mark.parametrize("into", ["memory", "archive"])
def test_rows_that_are_no_samples_cannot_become_a_result(into: str) -> None:
    assert refusal(ResultError, model=Flattens(), into=into) == (
        "Site '' produced shape (6, 4) for a batch of 2 samples: its first dimension is not the "
        "batch, so its rows cannot be matched to samples. Name the dimension that counts "
        "samples with batch_dim=, leave this site out, or plan to receive it batch by batch with "
        "into='loop'."
    )


def test_rows_that_are_no_samples_are_planned_for_a_loop_and_scaled() -> None:
    found = fastcap.plan(Flattens(), BATCH, "", n_samples=5, into="loop")
    assert (found.total_bytes, found.is_exact) == (5 * 3 * 4 * 4, False)
    assert fastcap.plan(Flattens(), BATCH, "", n_samples=4, into="loop").is_exact


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, device="meta")

    def forward(self, acts: Tensor) -> Tensor:
        return acts if bool(acts.any()) else -acts


def test_a_model_without_data_that_looks_at_values_is_told_apart() -> None:
    text = refusal(DeviceError, model=LooksAtValues(), n_samples=2)
    assert text.startswith(
        "The model is on the meta device, without data, and cannot run the example there: "
    )
    assert text.endswith(
        "Load its weights, or give an example whose pass looks at no values (leave attention_mask "
        "out of model_inputs=)."
    )


def test_an_error_of_a_model_with_data_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        fastcap.plan(MODEL, torch.ones(2, 5), "", n_samples=2)


def test_a_device_that_torch_does_not_know_is_refused() -> None:
    assert refusal(DeviceError, model=nn.Linear(4, 4, device="meta"), device="gpu") == (
        "device='gpu' is not a valid torch device. Give one such as 'cuda' or 'cpu'."
    )


def test_a_device_that_torch_does_not_know_is_refused_for_a_model_that_is_here() -> None:
    text = "device='gpu' is not a valid torch device. Give one such as 'cuda' or 'cpu'."
    assert refusal(DeviceError, device="gpu") == text
    with pytest.raises(DeviceError) as caught:
        fastcap.stream(MODEL, [BATCH], "", device="gpu")
    assert str(caught.value) == text


def test_a_run_cannot_be_where_there_is_no_data() -> None:
    assert refusal(DeviceError, model=nn.Linear(4, 4, device="meta"), device="meta") == (
        "device='meta' holds no data, so no run can be there. Name the place of the run, such as "
        "'cuda' or 'cpu'."
    )


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")
def test_a_device_without_a_link_that_is_not_here_cannot_be_measured_either() -> None:
    text = refusal(DeviceError, model=nn.Linear(4, 4, device="meta"), device="mps", measure=True)
    assert text.startswith("device='mps' cannot be measured on this machine: ")


def test_a_sample_that_may_be_meant_for_a_batch_is_said_to_be() -> None:
    model, ids = nn.Embedding(10, 4), torch.zeros(32, dtype=torch.int64)
    [doubt] = fastcap.plan(model, ids, "", n_samples=200).assumed
    assert doubt == (
        "The example's token ids have one dimension: they are taken for 32 samples. If they "
        "are one, give them as a batch: input_ids[None]."
    )
    with pytest.raises(BatchError, match=r"for one sample, ids\[None\]"):
        fastcap.plan(model, {"input_ids": ids}, "", n_samples=200)
    found = fastcap.plan(model, {"input_ids": ids[None]}, "", n_samples=200)
    assert (found.assumed, found.total_bytes) == ((), 200 * 32 * 4 * 4)


def test_more_tokens_than_positions_are_a_doubt_where_there_is_no_data() -> None:
    model: Any = nn.Linear(4, 4, device="meta")
    model.config = SimpleNamespace(max_position_embeddings=8)
    options: dict[str, Any] = {
        "n_samples": 2,
        "forward": lambda model, batch: model(BATCH.to("meta")),
    }
    [_, doubt] = fastcap.plan(model, None, "", n_tokens=9, **options).assumed
    assert doubt == (
        "The model's configuration has 8 positions, and samples have 9 tokens: a pass with data "
        "may fail."
    )
    assert len(fastcap.plan(model, None, "", n_tokens=8, **options).assumed) == 1


def test_a_device_that_is_not_here_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.device) -> None:
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr("fastcap.planning.machine.open_device", fail)
    model = nn.Linear(4, 4, device="meta")
    assert refusal(DeviceError, model=model, device="xpu", measure=True) == (
        "device='xpu' cannot be measured on this machine: no such thing. Measure there, or leave "
        "measure= out."
    )
    found = fastcap.plan(model, BATCH, "", n_samples=2, device="xpu")
    assert found.memory.staging_bytes > 0


def test_a_model_without_data_can_be_planned_for_the_cpu() -> None:
    model = nn.Linear(4, 4, device="meta")
    found = fastcap.plan(model, BATCH, "", n_samples=2, device="cpu")
    assert (found.memory.staging_bytes, found.memory.slot_bytes) == (0, 0)
    assert [term.name for term in found.costs.terms] == ["compute", "consumer", "hooks"]
    assert found.assumed == ("The model has no data, so its forward pass is not measured.",)


def test_a_disk_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("fastcap.archive.files.LocalFiles.create", create)
    with pytest.raises(SaveError) as caught:
        disk_rate(tmp_path / "not" / "there")
    assert str(caught.value) == (
        f"The disk at {str(tmp_path)!r} cannot be measured: Read-only file system. Give a folder "
        "that can be written, or leave the measurement out."
    )
    assert caught.value.errno == 30


# Advice


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> Any:
    def advise(pinned_bytes: int, disk_bytes: int | None = None, **options: Any) -> tuple[str, ...]:
        monkeypatch.setattr("fastcap.planning.assemble.available_bytes", lambda: pinned_bytes)
        monkeypatch.setattr("fastcap.archive.files.LocalFiles.free_bytes", lambda *_: disk_bytes)
        ids = {"input_ids": torch.zeros(2, 8, dtype=torch.int64)}
        found = fastcap.plan(LanguageModel(), ids, "layers.*", n_samples=100, **options)
        assert found.fits is (None if not found.advice and disk_bytes is None else False)
        return found.advice

    return advise


def test_what_does_not_fit_into_memory_can_be_sliced_cast_or_put_elsewhere(advised: Any) -> None:
    assert advised(60_000) == (
        "Does not fit: 102 kB of host memory, and there is 60 kB.",
        "slice: one position ('last', or -1 without padding) takes 12.8 kB, fits",
        "cast: dtype=torch.bfloat16 takes 51.2 kB, fits",
        "fewer: 58 of 100 samples fit",
        "archive: 102 kB on disk instead (fastcap.extract), free space not known",
        "stream: 6.14 kB at a time instead (fastcap.stream), fits",
    )


def test_what_is_sliced_and_narrow_already_is_not_advised_again(advised: Any) -> None:
    assert advised(1000, 500, positions=-1, dtype=torch.float16) == (
        "Does not fit: 6.4 kB of host memory, and there is 1 kB.",
        "fewer: 15 of 100 samples fit",
        "archive: 6.4 kB on disk instead (fastcap.extract), still does not fit",
        "stream: 384 B at a time instead (fastcap.stream), fits",
    )


def test_a_disk_that_is_too_small_gets_advice_too(advised: Any) -> None:
    assert advised(10**9, 60_000, into="archive") == (
        "Does not fit: 110 kB on disk, and there is 60 kB.",
        "slice: one position ('last', or -1 without padding) takes 12.8 kB, fits",
        "cast: dtype=torch.bfloat16 takes 51.2 kB, fits",
        "fewer: 54 of 100 samples fit",
    )


def test_a_loop_that_does_not_fit_needs_smaller_batches(advised: Any) -> None:
    assert advised(1000, 10**9, into="loop") == (
        "Does not fit: 6.14 kB of host memory, and there is 1 kB.",
        "smaller: smaller batches, or pinned_bytes=",
    )


def test_staging_that_does_not_fit_needs_a_smaller_budget() -> None:
    class Full(TimedDevice):
        def free_bytes(self) -> int:
            return 1000

    with running_on(Full()):
        found = fastcap.plan(nn.ReLU(), BATCH, "", n_samples=2, staging_bytes=1 << 20)
    assert found.advice == (
        "Does not fit: 1.05 MB of staging, and there is 1 kB.",
        "smaller: staging_bytes=, or smaller batches",
    )
