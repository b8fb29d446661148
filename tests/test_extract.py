"""`fastcap.extract` writes what the oracle captures, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcap
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import differences
from tests.support.datasets import Tokens, TokenStream, make_samples
from tests.support.extracting import SITES, check, extract, groups_of, masked_samples, samples_for
from tests.support.models import LanguageModel, SharedWeights, TupleBlock, WritesInPlace, hooks_on
from tests.support.runs import running_on

SAMPLES = masked_samples(8)
MASKED = {"model_inputs": ["attention_mask"]}
SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "int": {"positions": -1},
    "slice": {"positions": slice(1, 4)},
    "list": {"positions": [0, -2]},
    "last": {"positions": "last"},
    "unpadded": {"positions": "unpadded"},
    "key": {"positions": "where"},
    "mean": {"reduce": "mean"},
    "mean in float32": {"reduce": "mean", "dtype": torch.float32},
    "callable": {"reduce": lambda acts: acts.amax(dim=1)},
    "wire_dtype_for": {"dtype": torch.bfloat16},
    "half": {"positions": -1, "dtype": torch.float16},
    "wider": {"dtype": torch.float64},
    "unpadded, wider": {"positions": "unpadded", "dtype": torch.float64},
    "unpadded, reduced": {"positions": "unpadded", "reduce": lambda acts: acts.abs()},
    "seq_dim": {"positions": 0, "seq_dim": 2},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SELECTIONS)
def test_every_selection_equals_the_oracle(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = LanguageModel().to(dtype)
    samples = samples_for(SELECTIONS[name], SAMPLES)
    archive = extract(model, samples, tmp_path / "acts", **MASKED, **SELECTIONS[name])
    check(archive, model, samples, 3, **SELECTIONS[name])
    assert hooks_on(model) == 0


@pytest.mark.parametrize("place", [*EXTREMES, "random"])
@pytest.mark.parametrize("name", ["all", "unpadded", "wider", "wire_dtype_for", "mean"])
@pytest.mark.parametrize("budget", [(256, 256), (700, 1000), (1 << 20, 1 << 20)], ids=range(3))
def test_accelerators_of_any_timing_and_memory_of_any_size(
    place: str, name: str, budget: tuple[int, int], tmp_path: Path
) -> None:
    """Small budgets cut records into pieces, wrap slots round, and make runs wait."""
    model = LanguageModel()
    options = {**SELECTIONS[name], **MASKED}
    with running_on(SimulatedDevice(Schedule(place, seed=7))):
        archive = extract(
            model,
            SAMPLES,
            tmp_path / "acts",
            staging_bytes=budget[0],
            pinned_bytes=budget[1],
            group_bytes=2500,
            **options,
        )
    check(archive, model, SAMPLES, 3, **SELECTIONS[name])


@pytest.mark.parametrize("seed", range(12))
def test_random_schedules_and_groups(seed: int, tmp_path: Path) -> None:
    model = LanguageModel(n_layers=3)
    sites = ["layers.0", "layers.1.mlp", "layers.2.attention", "norm"]
    samples = make_samples(11, seed=seed)
    with running_on(SimulatedDevice(Schedule("random", seed=seed))):
        archive = extract(
            model,
            samples,
            tmp_path / "acts",
            sites=sites,
            batch_size=seed % 4 + 1,
            staging_bytes=256 * (seed + 1),
            pinned_bytes=256 * (seed + 1),
            group_bytes=1000 * (seed % 5 + 1),
        )
    check(archive, model, samples, seed % 4 + 1)
    assert archive.sites == sites


@pytest.mark.parametrize("max_samples", [1, 2, 3, 4, 7, 8, 100])
@pytest.mark.parametrize("kind", ["list", "map", "stream"])
def test_samples_are_cropped_behind_whole_batches(
    kind: str, max_samples: int, tmp_path: Path
) -> None:
    samples = make_samples(8)
    dataset: Any = {"list": samples, "map": Tokens(8), "stream": TokenStream(8)}[kind]
    model = LanguageModel()
    archive = extract(model, dataset, tmp_path / "acts", max_samples=max_samples)
    check(archive, model, samples, 3, max_samples)
    assert archive.n_samples == min(8, max_samples)
    assert archive.meta.n_samples == (None if kind == "stream" else archive.n_samples)


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_loading_in_another_process(kind: str, tmp_path: Path) -> None:
    dataset: Any = Tokens(8) if kind == "map" else TokenStream(8)
    model = LanguageModel()
    archive = extract(model, dataset, tmp_path / "acts", num_workers=1)
    check(archive, model, make_samples(8), 3)


def test_tuple_batches(tmp_path: Path) -> None:
    samples = make_samples(5)
    model = LanguageModel()
    archive = extract(model, [(sample["input_ids"],) for sample in samples], tmp_path / "acts")
    check(archive, model, samples, 3)
    assert archive.streams == SITES


def test_the_result_is_what_extract_representations_returns(tmp_path: Path) -> None:
    model = LanguageModel()
    samples = make_samples(8)
    for options in ({}, {"positions": -1, "dtype": torch.float16}, {"max_samples": 7}):
        wanted = fastcap.extract_representations(
            model, samples, SITES, "cpu", batch_size=3, **options
        )
        archive = extract(model, samples, tmp_path / str(len(str(options))), **options)
        assert differences(wanted, {site: archive[site][:] for site in archive.sites}) == []


@pytest.mark.filterwarnings("ignore:A pass calls these")
@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (SharedWeights(), ["first", "embedding"]),
        (WritesInPlace(), ["linear", "embedding"]),
        (LanguageModel(block=TupleBlock), ["layers.0", "layers.1:output[1]", "norm:input"]),
        (LanguageModel(), ["", "layers.1", "output_head"]),
        (nn.Sequential(nn.Embedding(32, 4), nn.Flatten(), nn.Linear(20, 1), nn.Flatten(0)), ["3"]),
    ],
    ids=["fires twice", "in place", "parts", "root", "numbers"],
)
def test_odd_models(model: nn.Module, sites: list[str], tmp_path: Path) -> None:
    samples = make_samples(8)
    for place in ("cpu", "late", "random"):
        device = None if place == "cpu" else SimulatedDevice(Schedule(place, seed=1))
        with running_on(device):
            archive = extract(
                model, samples, tmp_path / place, sites=sites, pinned_bytes=500, staging_bytes=500
            )
        assert archive.sites == sites
        check(archive, model, samples, 3)


def test_ids_masks_and_labels_are_stored_beside(tmp_path: Path) -> None:
    archive = extract(
        LanguageModel(),
        SAMPLES,
        tmp_path / "acts",
        columns=["y", "row", "text", "y"],
        max_samples=7,
        **MASKED,
    )
    assert archive.streams == [
        *SITES,
        "batch:input_ids",
        "batch:attention_mask",
        "label:y",
        "label:row",
        "label:text",
    ]
    for index, sample in enumerate(SAMPLES[:7]):
        assert torch.equal(archive["batch:input_ids"][index], sample["input_ids"])
        assert torch.equal(archive["batch:attention_mask"][index], sample["attention_mask"])
        assert archive["label:y"][index].item() is sample["y"]
        assert torch.equal(archive["label:row"][index], sample["row"])
        assert archive["label:text"][index] == sample["text"]
    assert archive["label:y"].dtype == torch.bool


def test_batches_of_different_lengths(tmp_path: Path) -> None:
    lengths = [5, 5, 5, 9, 9, 9, 2, 2]
    samples = [make_samples(1, n, seed=i)[0] for i, n in enumerate(lengths)]
    model = LanguageModel()
    archive = extract(model, samples, tmp_path / "acts", positions=-1)
    check(archive, model, samples, 3, positions=-1)
    assert [len(ids) for ids in archive["batch:input_ids"]] == lengths


@pytest.mark.parametrize(
    ("group_bytes", "expected"),
    [(1, [[(0, 3)], [(3, 6)], [(6, 8)]]), (3000, [[(0, 6)], [(6, 8)]]), (None, [[(0, 8)]])],
    ids=range(3),
)
def test_groups_hold_whole_batches(
    group_bytes: int | None, expected: list[Any], tmp_path: Path
) -> None:
    commits: list[Any] = []
    archive = extract(
        LanguageModel(),
        make_samples(8),
        tmp_path / "acts",
        group_bytes=group_bytes,
        on_commit=commits.append,
    )
    assert groups_of(archive) == expected
    assert [list(commit.samples) for commit in commits] == expected
    assert all(path.exists() for commit in commits for path in commit.paths)


def test_progress_counts_samples(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    options = {"progress": lambda done, expected: seen.append((done, expected))}
    extract(LanguageModel(), make_samples(8), tmp_path / "acts", **options)
    assert seen[-1] == (8, 8)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_one_list_of_positions_per_sample(tmp_path: Path) -> None:
    model = LanguageModel()
    positions = [[0, -1], [2, 2], [-5, 4]]
    samples = make_samples(6)
    archive = extract(model, samples, tmp_path / "acts", positions=positions)
    check(archive, model, samples, 3, positions=positions)


def test_small_budgets_cut_records_into_pieces_and_wrap_slots_round(tmp_path: Path) -> None:
    """What the tests above rely on: such runs copy more often than there is memory for."""
    n_copies = []
    for n_bytes in (256, 1 << 20):
        device = SimulatedDevice(Schedule("late", seed=7))
        with running_on(device):
            extract(
                LanguageModel(),
                SAMPLES,
                tmp_path / str(n_bytes),
                staging_bytes=n_bytes,
                pinned_bytes=n_bytes,
                **MASKED,
            )
        n_copies.append(device.counters.copies)
    assert n_copies[0] > 5 * n_copies[1]


def test_a_relative_folder_is_where_it_was_when_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaves(LanguageModel):
        def forward(self, input_ids: Tensor, attention_mask: Any = None) -> Tensor:
            os.chdir(elsewhere)
            return super().forward(input_ids, attention_mask)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    archive = fastcap.extract(Leaves(), make_samples(5), ["norm"], "acts", batch_size=2)
    assert len(archive["norm"][:]) == 5
    assert list(elsewhere.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    again = fastcap.open_archive("acts")
    monkeypatch.chdir(elsewhere)
    assert len(again["norm"][:]) == 5
