"""Random runs with padding: odd dtypes and layouts, tiny budgets, lent slots, hostile schedules."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcap
from fastcap import reference
from fastcap.devices.simulated import EXTREMES, Schedule, SimulatedDevice
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.programs import BUDGETS
from tests.support.runs import call_model, must_equal, running_on
from tests.support.scripted import LEAVES, TableModel

SELECTIONS: tuple[dict[str, Any], ...] = (
    {"positions": "last"},
    {"positions": "unpadded"},
    {"positions": "unpadded", "dtype": torch.complex128},
    {"positions": "at"},
    {"reduce": "mean", "dtype": torch.complex128},
)


def draw_batch(draw: random.Random) -> dict[str, Tensor]:
    n_samples, n_tokens = draw.randint(1, 4), draw.randint(1, 5)
    mask = [[draw.randint(0, 1) for _ in range(n_tokens)] for _ in range(n_samples)]
    for row in mask:
        row[draw.randrange(n_tokens)] = 1
    shape = (n_samples,) if draw.random() < 0.5 else (n_samples, 2)
    at = torch.empty(shape, dtype=torch.int64)
    at.apply_(lambda _: draw.randrange(-n_tokens, n_tokens))
    ids = torch.tensor([[draw.randrange(16) for _ in row] for row in mask])
    return {"input_ids": ids, "attention_mask": torch.tensor(mask), "at": at}


@pytest.mark.filterwarnings("ignore:A pass calls these")
@pytest.mark.parametrize("schedule", [*EXTREMES, "random"])
@pytest.mark.parametrize("seed", range(15))
def test_random_streams_with_padding_equal_the_oracle(schedule: str, seed: int) -> None:
    draw = random.Random(seed)
    model = TableModel(draw)
    options = dict(draw.choice(SELECTIONS), seq_dim=1)
    sites = draw.sample(LEAVES, draw.randint(1, len(LEAVES)))
    if "reduce" in options:
        sites = [site for site in sites if is_fractional(model, site)]
        if not sites:
            options, sites = {"positions": "last", "seq_dim": 1}, LEAVES[:1]
    batches = [draw_batch(draw) for _ in range(draw.randint(1, 5))]
    selection = make_selection(**options)
    expected = list(reference.stream(model, batches, sites, call_model, selection))
    device = SimulatedDevice(Schedule(schedule, seed=seed))
    with running_on(device):
        run = fastcap.stream(
            model,
            batches,
            sites,
            forward=call_model,
            zero_copy=draw.random() < 0.5,
            prefetch=draw.randint(0, 2),
            staging_bytes=draw.choice(BUDGETS),
            pinned_bytes=draw.choice(BUDGETS),
            **options,
        )
        held = []
        for want, records in zip(expected, run, strict=True):
            must_equal(want, dict(records))
            held.append((want, dict(records)))
            if options.get("positions") == "unpadded":
                batch: Any = records.batch
                lengths = tuple(batch["attention_mask"].sum(dim=1).tolist())
                assert {records.lengths(site) for site in sites} == {lengths}
        assert all(differences(want, got) == [] for want, got in held)


def is_fractional(model: TableModel, site: str) -> bool:
    dtype = model.leaves[int(site.rpartition(".")[2])].value.dtype
    return bool(dtype.is_floating_point or dtype.is_complex)
