"""Runs whose batches, labels, callbacks or signals do not fit: nothing wrong is ever committed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

import fastcap
from fastcap.archive.writer import Commit
from fastcap.consumers.archive import allow_open_files
from fastcap.errors import ArchiveConfigError, ArgumentError, ResultError


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(100, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.layer(ids)
        return found


def samples(n_samples: int) -> list[dict[str, Any]]:
    return [{"input_ids": torch.tensor([i, i + 1]), "label": str(i)} for i in range(n_samples)]


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    ids = torch.stack([item["input_ids"] for item in items])
    return {"input_ids": ids, "label": [item["label"] for item in items]}


class Iterated(IterableDataset[dict[str, Any]]):
    def __init__(self, n_samples: int) -> None:
        self.items = samples(n_samples)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.items)


class Sized(Iterated):
    def __len__(self) -> int:
        return len(self.items)


def test_labels_that_do_not_fit_spoil_no_sample_before_them(tmp_path: Path) -> None:
    def short(items: list[dict[str, Any]]) -> dict[str, Any]:
        batch = collate(items)
        return {**batch, "label": batch["label"][:-1]} if "4" in batch["label"] else batch

    model, options = Model(), {"batch_size": 2, "columns": ["label"]}
    with pytest.raises(ResultError, match="Column 'label' has shape"):
        fastcap.extract(model, samples(10), "layer", tmp_path, collate_fn=short, **options)  # type: ignore[arg-type]
    archive = fastcap.open_archive(tmp_path)
    assert (archive.ids, archive.verify()) == ([(0, 4)], [])
    assert archive["label:label"][:4] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("label", [torch.zeros(8), ["a"] * 8])
def test_labels_of_more_than_the_batch_are_refused(tmp_path: Path, label: Any) -> None:
    with pytest.raises(ResultError, match="in a batch of 4 samples"):
        fastcap.extract(
            Model(),
            samples(4),
            "layer",
            tmp_path,
            collate_fn=lambda items: {**collate(items), "label": label},
            columns=["label"],
        )


def test_how_many_are_wanted_is_part_of_a_run_whose_length_is_unknown(tmp_path: Path) -> None:
    model = Model()
    fastcap.extract(model, Iterated(9), "layer", tmp_path, max_samples=4, batch_size=2)
    with pytest.raises(ArchiveConfigError, match="max_samples"):
        fastcap.extract(model, Iterated(9), "layer", tmp_path, batch_size=2)


def test_a_run_stopped_in_its_last_pass_is_complete_the_next_time(tmp_path: Path) -> None:
    class Stopped(Model):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if ids[0, 0] == 8 and not tmp_path.joinpath("acts").joinpath("done").exists():
                signal.raise_signal(signal.SIGTERM)
            return super().forward(ids)

    model, out = Stopped(), tmp_path / "acts"
    with pytest.warns(fastcap.FastcapWarning, match="SIGTERM"), pytest.raises(SystemExit):
        fastcap.extract(model, Iterated(10), "layer", out, batch_size=4)
    assert not fastcap.open_archive(out).is_complete
    assert fastcap.extract(model, Iterated(10), "layer", out, batch_size=4).is_complete


def test_a_signal_in_the_last_pass_of_a_run_of_known_length_ends_nothing(tmp_path: Path) -> None:
    class Signalled(Model):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if ids[0, 0] == 8:
                signal.raise_signal(signal.SIGTERM)
            return super().forward(ids)

    assert fastcap.extract(Signalled(), samples(10), "layer", tmp_path, batch_size=4).is_complete


def test_what_can_be_read_once_is_not_matched_to_an_archive(tmp_path: Path) -> None:
    model, items = Model(), iter(samples(6))

    def stop(commit: Commit) -> None:
        raise OSError("no upload")

    with pytest.raises(OSError, match="no upload"):
        fastcap.extract(
            model, items, "layer", tmp_path, batch_size=2, on_commit=stop, group_bytes=1
        )
    with pytest.raises(ArgumentError, match="can be read once"):
        fastcap.extract(model, items, "layer", tmp_path, batch_size=2)


def test_a_call_over_more_samples_than_the_batch_is_no_ragged_value(tmp_path: Path) -> None:
    def twice(model: nn.Module, batch: dict[str, Tensor]) -> None:
        ids = batch["input_ids"].repeat_interleave(2, 0)
        model(ids, attention_mask=torch.ones_like(ids))

    with pytest.raises(ResultError, match="first dimension is not the batch"):
        fastcap.extract(Model(), samples(4), "layer", tmp_path, forward=twice, positions="unpadded")


def test_inputs_are_stored_as_they_were_before_the_pass(tmp_path: Path) -> None:
    class Writes(Model):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return super().forward(ids.add_(50))

    archive = fastcap.extract(Writes(), samples(5), "layer", tmp_path, batch_size=2)
    assert [int(ids[0]) for ids in archive["batch:input_ids"]] == list(range(5))


def test_an_iterable_dataset_may_know_its_length(tmp_path: Path) -> None:
    assert len(fastcap.extract(Model(), Sized(7), "layer", tmp_path, batch_size=3)) == 7


def test_a_mask_that_appears_later_is_told(tmp_path: Path) -> None:
    def some(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = collate(items)["input_ids"]
        return {"x": ids, **({"attention_mask": ids} if int(ids[0, 0]) else {})}

    with pytest.raises(ResultError, match="'batch:attention_mask' is I64"):
        fastcap.extract(
            Model(),
            samples(4),
            "layer",
            tmp_path,
            batch_size=2,
            collate_fn=some,
            forward=lambda model, batch: model(batch["x"]),
        )


def test_a_callback_that_fails_costs_no_sample_and_hides_no_error(tmp_path: Path) -> None:
    seen = []

    def upload(commit: Commit) -> None:
        seen.append(commit.samples)
        raise OSError("no upload")

    class Fails(Model):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            if ids[0, 0] == 4:
                raise RuntimeError("boom")
            return super().forward(ids)

    with pytest.raises(RuntimeError, match="boom") as caught:
        fastcap.extract(Fails(), samples(9), "layer", tmp_path, batch_size=2, on_commit=upload)
    assert "no upload" in str(caught.value.__notes__)
    assert fastcap.open_archive(tmp_path).ids == [(0, 4)]
    assert seen == [((0, 4),)]


def test_more_sites_than_open_files_are_refused_before_they_fail() -> None:
    with pytest.raises(ArgumentError, match="open files"):
        allow_open_files(10**9)
