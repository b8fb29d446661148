"""Data sets of every kind that extraction accepts, and the oracle's own way of batching them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from fastcap import reference
from fastcap.spec import Selection
from tests.support.models import VOCABULARY

Sample = dict[str, Tensor]


def make_ids(n_samples: int, n_tokens: int = 5, seed: int = 0) -> Tensor:
    """Token ids `(n_samples, n_tokens)`, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (n_samples, n_tokens), generator=generator)


def make_samples(n_samples: int, n_tokens: int = 5, seed: int = 0) -> list[Sample]:
    """A list of dicts with `input_ids`."""
    return [{"input_ids": ids} for ids in make_ids(n_samples, n_tokens, seed)]


class Tokens(Dataset[Sample]):
    """A map-style data set of dicts with `input_ids`."""

    def __init__(self, n_samples: int, n_tokens: int = 5) -> None:
        self.samples = make_samples(n_samples, n_tokens)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class TokenStream(IterableDataset[Sample]):
    """An iterable data set without a length."""

    def __init__(self, n_samples: int, n_tokens: int = 5) -> None:
        self.samples = make_samples(n_samples, n_tokens)
        self.n_read = 0

    def __iter__(self) -> Iterator[Sample]:
        for sample in self.samples:
            self.n_read += 1
            yield sample


class LyingStream(TokenStream):
    """An iterable data set that reports another length than it has."""

    def __init__(self, n_samples: int, reported: int) -> None:
        super().__init__(n_samples)
        self.reported = reported

    def __len__(self) -> int:
        return self.reported


def stack(samples: Sequence[Sample], batch_size: int) -> list[Sample]:
    """Consecutive samples as batches; the last one may be short."""
    groups = [samples[i : i + batch_size] for i in range(0, len(samples), batch_size)]
    return [
        {key: torch.stack([sample[key] for sample in group]) for key in group[0]}
        for group in groups
    ]


def call_with_ids(model: nn.Module, batch: Sample) -> Any:
    """How a batch becomes a pass by default."""
    return model(batch["input_ids"])


def expected(
    model: nn.Module,
    samples: Sequence[Sample],
    sites: Sequence[str],
    batch_size: int = 32,
    max_samples: int | None = None,
    selection: Selection | None = None,
) -> dict[str, Tensor]:
    """What extraction must return, by the oracle, for a model in eval mode."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        batches = stack(samples, batch_size)
        return reference.extract(model, batches, sites, call_with_ids, max_samples, selection)
    finally:
        for module, flag in flags.items():
            module.training = flag


def storage_bytes(value: Tensor) -> int:
    """The memory that a tensor keeps alive; more than its own when it is a view."""
    return value.untyped_storage().nbytes()
