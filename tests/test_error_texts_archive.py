"""What `fastcap.extract` says when something does not fit, word by word."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

import fastcap
from fastcap.errors import (
    ArchiveConfigError,
    ArchiveError,
    ArchiveWriteError,
    ArgumentError,
    ArgumentTypeError,
    FastcapWarning,
    MissingInputError,
    ResultError,
    SiteNotFoundError,
)
from tests.support.datasets import TokenStream, make_ids, make_samples
from tests.support.errors import message_of
from tests.support.extracting import extract, masked_samples
from tests.support.models import LanguageModel, PositionTable, WithOddModule, hooks_on

SAMPLES = make_samples(7)


def why_not(
    error: type[Exception],
    out: Path,
    model: nn.Module | None = None,
    data: Any = None,
    **options: Any,
) -> str:
    """What an extraction that must fail says; it leaves no hook and no unfinished file."""
    model = model or LanguageModel()
    dataset = SAMPLES if data is None else data
    message = message_of(error, lambda: extract(model, dataset, out, **options))
    assert hooks_on(model) == 0
    assert list(out.rglob("*.tmp")) == []
    return message


# Arguments


def test_wrong_names(tmp_path: Path) -> None:
    message = why_not(SiteNotFoundError, tmp_path / "acts", sites=["layers.0.mpl"])
    assert message.startswith(
        "Module 'layers.0.mpl' not found in model. Did you mean 'layers.0.mlp'"
    )
    assert not (tmp_path / "acts").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"sites": []},
            ArgumentError,
            "sites is empty: name at least one module, such as ['layers.0.mlp'].",
        ),
        ({"data": []}, ArgumentError, "The dataset is empty: there is nothing to extract."),
        (
            {"rank": 2, "world_size": 2},
            ArgumentError,
            "rank=2, but there are world_size=2 processes, counted from 0.",
        ),
        ({"rank": -1}, ArgumentError, "rank must be at least 0; got -1."),
        ({"world_size": 0}, ArgumentError, "world_size must be at least 1; got 0."),
        ({"batch_size": 0}, ArgumentError, "batch_size must be at least 1; got 0."),
        ({"group_bytes": 0}, ArgumentError, "group_bytes must be at least 1; got 0."),
        (
            {"group_secs": 0},
            ArgumentError,
            "group_secs must be a number of seconds above 0; got 0.",
        ),
        (
            {"group_secs": "1"},
            ArgumentError,
            "group_secs must be a number of seconds above 0; got '1'.",
        ),
        (
            {"group_secs": float("nan")},
            ArgumentError,
            "group_secs must be a number of seconds above 0; got nan.",
        ),
        (
            {"columns": "text"},
            ArgumentTypeError,
            "columns must be a list of keys of the batch; got 'text'.",
        ),
        (
            {"columns": [3]},
            ArgumentTypeError,
            "columns must be a list of keys of the batch; got [3].",
        ),
    ],
    ids=range(12),
)
def test_arguments_out_of_range(
    options: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    assert why_not(error, tmp_path / "acts", **options) == message
    assert not (tmp_path / "acts").exists()


# Columns


def labelled(*labels: Any) -> list[dict[str, Any]]:
    return [
        {"input_ids": ids, "y": label}
        for ids, label in zip(make_ids(len(labels)), labels, strict=True)
    ]


def keep(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stacks the ids, and leaves labels as they are."""
    return {
        "input_ids": torch.stack([sample["input_ids"] for sample in samples]),
        "y": [sample["y"] for sample in samples],
    }


class Plain:
    """Nothing that can be stored."""


COMPLEX = (
    "'{}' has dtype torch.complex64, which safetensors files cannot hold. Convert it: "
    "dtype=torch.float32, or for complex values reduce=torch.view_as_real."
)
NOT_UNICODE = (
    "Column 'y' has a text that is not valid Unicode: 'half a pair: \\ud800'. Repair it, such as "
    "with text.encode(errors='replace').decode()."
)


def no_label(kind: str) -> str:
    return (
        f"Column 'y' is a list with a {kind} in a batch. Columns are numbers or texts, one per "
        "sample: give a tensor, or a list of strings."
    )


def changed(now: str, before: str) -> str:
    return (
        f"'label:y' is {now} in this batch, and was {before} in the first. An archive needs one "
        "kind, shape and dtype for all samples."
    )


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (
            [None] * 4,
            ArgumentTypeError,
            no_label("NoneType"),
        ),
        (
            [Plain()] * 4,
            ArgumentTypeError,
            no_label("Plain"),
        ),
        (
            [[1], [1, 2], [1], [1]],
            ArgumentTypeError,
            no_label("list"),
        ),
        (
            ["a", "b", "c", 1],
            ResultError,
            changed("I64 of shape [] per sample", "text"),
        ),
        (
            [1, 2, 3, 4.5],
            ResultError,
            changed("F32 of shape [] per sample", "I64 of shape [] per sample"),
        ),
        (
            [[1, 2]] * 3 + [[1]],
            ResultError,
            changed("I64 of shape [1] per sample", "I64 of shape [2] per sample"),
        ),
        (
            [1j, 2j, 3j],
            ArchiveError,
            COMPLEX.format("label:y"),
        ),
        (
            ["half a pair: \ud800", "b", "c"],
            ArgumentTypeError,
            NOT_UNICODE,
        ),
    ],
    ids=range(8),
)
def test_labels_that_do_not_fit(
    labels: list[Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    data = labelled(*labels)
    options: dict[str, Any] = {"columns": ["y"], "collate_fn": keep}
    assert why_not(error, tmp_path / "acts", data=data, **options) == message
    if len(labels) == 4 and error is ResultError:  # what was complete before is committed
        assert fastcap.open_archive(tmp_path / "acts").ids == [(0, 3)]


def test_labels_that_are_missing_or_too_few(tmp_path: Path) -> None:
    assert why_not(MissingInputError, tmp_path / "acts", columns=["text"]) == (
        "The batch has no column 'text'; it has ['input_ids']. Let the dataset give it, or leave "
        "it out of columns=."
    )
    ids = [(sample["input_ids"],) for sample in SAMPLES]
    assert why_not(MissingInputError, tmp_path / "acts", data=ids, columns=["text"]) == (
        "The batch has no column 'text'; it has no keys. Let the dataset give it, or leave it out "
        "of columns=."
    )
    for value, shape in ((torch.tensor(1), "()"), (torch.tensor([1, 2]), "(2,)")):
        collate = lambda samples, v=value: {**keep(samples), "y": v}  # noqa: E731
        assert why_not(
            ResultError,
            tmp_path / "acts",
            data=labelled(1, 2, 3),
            columns=["y"],
            collate_fn=collate,
        ) == (
            f"Column 'y' has shape {shape} in a batch of 3 samples: it needs one value, or one "
            "row, per sample."
        )


# Values


SHORT = (
    "{}, and is not the last: the ids of what follows cannot be told. collate_fn must keep every "
    "sample, as one row. An IterableDataset that shares its samples out among workers ends with a "
    "short batch for each: use num_workers=1."
)


def drop_first(samples: list[Any]) -> dict[str, Tensor]:
    return {"input_ids": torch.stack([sample["input_ids"] for sample in samples[1:] or samples])}


def test_a_collate_fn_that_drops_samples(tmp_path: Path) -> None:
    assert why_not(ResultError, tmp_path / "acts", collate_fn=drop_first) == (
        "Samples 0 to 2 became a batch of 2, so its rows cannot be matched to them. collate_fn "
        "must keep every sample, as one row."
    )


def test_a_collate_fn_that_drops_samples_of_a_stream(tmp_path: Path) -> None:
    for n_samples in (7, 4):
        message = why_not(
            ResultError, tmp_path / "acts", data=TokenStream(n_samples), collate_fn=drop_first
        )
        assert message == SHORT.format("Batch 0 has 2 samples instead of 3")
        assert not (tmp_path / "acts").exists()  # ids are not known, so nothing is written


def test_a_collate_fn_that_makes_more_rows_than_samples(tmp_path: Path) -> None:
    def double(samples: list[Any]) -> dict[str, Tensor]:
        return {"input_ids": torch.stack([sample["input_ids"] for sample in samples * 2])}

    assert why_not(ResultError, tmp_path / "acts", data=TokenStream(2), collate_fn=double) == (
        SHORT.format("Batch 0 has 4 samples instead of 3")
    )


class SharedOut(TokenStream):
    """Every worker gives samples of its own, and says that their order is one for all."""

    has_fixed_order = True

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        return iter(self.samples[worker.id :: worker.num_workers] if worker else self.samples)


def test_workers_that_each_end_with_a_short_batch(tmp_path: Path) -> None:
    data = SharedOut(8)  # 3, 3, 1 and 1 samples
    message = why_not(ResultError, tmp_path / "acts", data=data, num_workers=2)
    assert message == SHORT.format("Batch 2 has 1 samples instead of 3")
    assert fastcap.open_archive(tmp_path / "acts").ids == [(0, 6)]
    assert len(extract(LanguageModel(), SharedOut(12), tmp_path / "even", num_workers=2)) == 12


def test_a_site_whose_first_dimension_is_not_the_batch(tmp_path: Path) -> None:
    assert why_not(ResultError, tmp_path / "acts", PositionTable(), sites=["wte", "wpe"]) == (
        "Site 'wpe' produced shape (1, 5, 16) for a batch of 3 samples: its first dimension is not "
        "the batch, so its rows cannot be matched to samples. Name the dimension that counts "
        "samples with batch_dim=, capture another module, or receive it batch by batch with "
        "fastcap.stream()."
    )


ADVICE = (
    "Samples of an archive need one shape and dtype: pad all to one length, select what has one "
    "shape (positions='last', reduce='mean'), keep the real tokens of each "
    "(positions='unpadded'), or ask for a dtype=."
)


def test_shapes_that_change_between_batches(tmp_path: Path) -> None:
    data = [*make_samples(3, 5), *make_samples(3, 4)]
    assert why_not(ResultError, tmp_path / "acts", data=data, sites=["norm"]) == (
        "Site 'norm' produced rows of shape (4, 16) and dtype F32 in batch 1, and (5, 16) and F32 "
        f"before. {ADVICE}"
    )
    assert fastcap.open_archive(tmp_path / "acts").ids == [(0, 3)]


class Changing(nn.Module):
    """Returns what `makes` say, batch by batch; only the first counts as its configuration."""

    def __init__(self, *makes: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.odd = WithOddModule(self._make)
        self.makes = makes
        self.n_passes = 0

    def _make(self, acts: Tensor) -> Any:
        return self.makes[min(self.n_passes, len(self.makes) - 1)](acts)

    def forward(self, input_ids: Tensor) -> Any:
        output = self.odd(input_ids)
        self.n_passes += 1
        return output


def same(acts: Tensor) -> Tensor:
    return acts + 1


def test_dtypes_that_change_between_batches(tmp_path: Path) -> None:
    model = Changing(same, lambda acts: acts.double())
    assert why_not(ResultError, tmp_path / "acts", model, sites=["odd.odd"]) == (
        "Site 'odd.odd' produced rows of shape (5, 16) and dtype F64 in batch 1, and (5, 16) and "
        f"F32 before. {ADVICE}"
    )


def test_sites_that_fall_silent(tmp_path: Path) -> None:
    model = Changing(same, lambda acts: None)
    with pytest.warns(FastcapWarning, match="'odd.odd'"):
        message = why_not(ResultError, tmp_path / "acts", model, sites=["odd.odd", "odd.head"])
    assert message == (
        "Site 'odd.odd' captured nothing in batch 1, other than in the first: its rows would not "
        "match the samples. Leave this site out, or receive it with fastcap.stream()."
    )


def test_sites_that_begin_to_speak(tmp_path: Path) -> None:
    model = Changing(lambda acts: None, same)
    with pytest.warns(FastcapWarning, match="'odd.odd'"):
        message = why_not(ResultError, tmp_path / "acts", model, sites=["odd.odd", "odd.head"])
    assert message == (
        "Site 'odd.odd' captured something in batch 1, other than in the first: its rows would not "
        "match the samples. Leave this site out, or receive it with fastcap.stream()."
    )


def test_nothing_is_captured_at_all(tmp_path: Path) -> None:
    model = WithOddModule(lambda acts: None)
    with pytest.warns(FastcapWarning, match="'odd'"):
        message = why_not(ResultError, tmp_path / "acts", model, sites=["odd"])
    assert message == (
        "None of ['odd'] captured anything in the first batch, so there is nothing to archive. The "
        "warnings say why."
    )
    assert not (tmp_path / "acts").exists()


def test_dtypes_that_cannot_be_stored(tmp_path: Path) -> None:
    model = WithOddModule(lambda acts: torch.complex(acts, acts))
    assert why_not(ArchiveError, tmp_path / "acts", model, sites=["odd"]) == COMPLEX.format("odd")
    archive = extract(model, SAMPLES, tmp_path / "acts", sites=["odd"], reduce=torch.view_as_real)
    assert archive["odd"].shape == (5, 16, 2)


# Directories


def test_out_is_a_file(tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_text("")
    for path in (out, out / "below"):
        assert message_of(ArchiveError, lambda p=path: extract(LanguageModel(), SAMPLES, p)) == (  # type: ignore[misc]
            f"Cannot use {path} for an archive: Not a directory."
        )


def test_out_has_something_else_in_it(tmp_path: Path) -> None:
    (tmp_path / "acts").mkdir()
    (tmp_path / "acts" / "notes.txt").write_text("")
    assert why_not(ArchiveError, tmp_path / "acts") == (
        f"{tmp_path / 'acts'} is not an archive, and it is not empty: it has notes.txt. Choose a "
        "directory of its own."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_out_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    message = message_of(
        ArchiveWriteError, lambda: extract(LanguageModel(), SAMPLES, tmp_path / "acts")
    )
    assert message.startswith(f"Making {tmp_path / 'acts'} failed: Permission denied")


def test_out_is_below_something_that_takes_no_directories() -> None:
    message = message_of(
        ArchiveWriteError, lambda: extract(LanguageModel(), SAMPLES, Path("/proc/acts"))
    )
    assert message.startswith("Making /proc/acts failed: No such file or directory")
    assert message.endswith(
        "Everything committed before is intact (samples of this run: 0). Once the cause is gone, "
        "run the same extraction again: it goes on from there."
    )


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    out = tmp_path / "acts"
    extract(LanguageModel(), SAMPLES, out, positions=-1)
    message = why_not(ArchiveConfigError, out, positions=-2, dtype=torch.float16)
    assert message == (
        f"{out} holds another run, whose samples must not be mixed with these:\n"
        "  selection: positions: asked -2, the archive has -1\n"
        "  selection: dtype: asked 'float16', the archive has None\n"
        "Ask for the same as then, choose another directory, or replace it with overwrite=True."
    )
    message = why_not(ArchiveConfigError, out, positions=-1, batch_size=2, sites=["norm"])
    assert message == (
        f"{out} holds another run, whose samples must not be mixed with these:\n"
        "  sites: asked ['norm'], the archive has ['layers.0.mlp', 'norm']\n"
        "  batch_size: asked 2, the archive has 3\n"
        "Ask for the same as then, choose another directory, or replace it with overwrite=True."
    )


def test_a_masked_selection_without_a_mask(tmp_path: Path) -> None:
    data = masked_samples(4)
    with pytest.raises(fastcap.FastcapError, match="mask"):
        extract(LanguageModel(), SAMPLES, tmp_path / "acts", positions="last")
    archive = extract(
        LanguageModel(), data, tmp_path / "acts", positions="last", model_inputs=["attention_mask"]
    )
    assert archive["norm"].shape == (16,)
