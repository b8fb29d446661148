"""Runs of `fastcap.extract`, and the oracle's values of what they wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastcap
from fastcap import reference
from fastcap.archive.files import LocalFiles
from fastcap.archive.reader import Archive
from fastcap.reference import differences
from fastcap.spec import make_selection
from tests.support.datasets import make_ids

SITES = ["layers.0.mlp", "norm"]
Sample = dict[str, Any]


def samples_for(selection: dict[str, Any], samples: list[Sample]) -> list[Sample]:
    """The samples, without padding where single positions are selected, which may not be it."""
    if not isinstance(selection.get("positions"), int | list):
        return samples
    return [
        {**sample, "attention_mask": torch.ones_like(sample["attention_mask"])}
        for sample in samples
    ]


def masked_samples(n_samples: int, n_tokens: int = 6) -> list[Sample]:
    """Samples with padding on either side, an index that `positions` may name, and labels."""
    generator = torch.Generator().manual_seed(5)
    samples = []
    for index, ids in enumerate(make_ids(n_samples, n_tokens)):
        length = int(torch.randint(1, n_tokens + 1, (), generator=generator))
        mask = torch.zeros(n_tokens, dtype=torch.int64)
        mask[slice(length) if index % 2 else slice(n_tokens - length, None)] = 1
        samples.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "where": torch.tensor([index % n_tokens, -1]),
                "y": index % 3 == 0,
                "row": torch.arange(3) + index,
                "text": ["", "naïve 😀", "plain"][index % 3],
            }
        )
    return samples


def collate(samples: Sequence[Sample]) -> Sample:
    batch: Sample = torch.utils.data.default_collate(list(samples))
    return batch


def with_mask(model: nn.Module, batch: Mapping[str, Any]) -> Any:
    if "attention_mask" not in batch:
        return model(batch["input_ids"])
    return model(batch["input_ids"], batch["attention_mask"])


def check(
    archive: Archive,
    model: nn.Module,
    samples: Sequence[Sample],
    batch_size: int,
    max_samples: int | None = None,
    call: Any = with_mask,
    **options: Any,
) -> None:
    """Every value in the archive equals the oracle's, bit for bit; all are there, and verified.

    Args:
        archive: What was extracted; opened again by this.
        model: In the state it was run in; put into eval mode.
        samples: The data.
        batch_size: Of the run.
        max_samples: Of the run.
        call: How the oracle makes a pass of a batch.
        **options: The selection.
    """
    archive = Archive(archive.path, LocalFiles())
    n_samples = min(len(samples), max_samples or len(samples))
    assert archive.ids == [(0, n_samples)]
    assert archive.is_complete
    assert archive.verify() == []
    model.eval()
    starts = range(0, n_samples, batch_size)
    batches = [collate(samples[start : start + batch_size]) for start in starts]
    selection = make_selection(**options)
    found = reference.stream(model, batches, archive.sites, call, selection)
    for start, batch, wanted in zip(starts, batches, found, strict=True):
        stop = min(start + len(batch["input_ids"]), n_samples)
        for site in archive.sites:
            value = wanted[site]
            if options.get("positions") == "unpadded":
                rows = torch.split(value, batch["attention_mask"].sum(dim=1).tolist())
                pairs = zip(rows, archive[site][start:stop], strict=False)
                assert [p for a, b in pairs for p in differences({site: a}, {site: b})] == []
            else:
                expected, got = value[: stop - start], archive[site][start:stop]
                assert differences({site: expected}, {site: got}) == []


def extract(model: nn.Module, samples: Any, out: Path, **options: Any) -> Archive:
    """`fastcap.extract` of `SITES`, in batches of 3."""
    sites = options.pop("sites", SITES)
    return fastcap.extract(model, samples, sites, out, **{"batch_size": 3, **options})


def groups_of(archive: Archive) -> list[list[tuple[int, int]]]:
    """The ids of each committed group."""
    found = Archive(archive.path, LocalFiles())
    return [list(group.samples) for writer in found.writers for group in writer.groups]
