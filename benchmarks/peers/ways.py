"""The libraries, and the two loops that turn captured batches into one result.

A way is loaded once in its process. For each run it is first prepared, which is not timed, and then
called. Only fastcap makes the result itself; with the others the caller does, in one of two ways:

rows    into tensors of the final size, allocated before the first batch. Nobody's documentation
        does this; it is the best a careful caller can do, and what times are compared with.
lists   one list per site, concatenated at the end: what examples do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor, nn

from benchmarks.peers.questions import Question

Values = dict[str, Tensor]


class Collector(Protocol):
    """Where the values of each batch go."""

    def add(self, site: str, rows: slice, value: Tensor) -> None: ...

    def result(self) -> Values: ...


class Rows:
    """Copies each batch into its rows of a result that exists already."""

    def __init__(self, n_samples: int) -> None:
        self._n_samples = n_samples
        self._values: Values = {}

    def add(self, site: str, rows: slice, value: Tensor) -> None:
        if site not in self._values:
            shape = (self._n_samples, *value.shape[1:])
            self._values[site] = torch.empty(shape, dtype=value.dtype)
        self._values[site][rows] = value

    def result(self) -> Values:
        return self._values


class Lists:
    """Keeps every batch, and concatenates at the end."""

    def __init__(self, n_samples: int) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, site: str, rows: slice, value: Tensor) -> None:
        self._parts.setdefault(site, []).append(value)

    def result(self) -> Values:
        return {site: torch.cat(parts) for site, parts in self._parts.items()}


COLLECTORS: Mapping[str, Callable[[int], Collector]] = MappingProxyType(
    {"rows": Rows, "lists": Lists}
)


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is ready to start.

    Attributes:
        capture: Does the work that is timed.
        values: Turns what `capture` returned into tensors by site, where that is a folder.
        model: The Hugging Face model whose forward passes `capture` makes.
    """

    capture: Callable[[], Values | Path]
    model: nn.Module
    values: Callable[[Path], Values] | None = None


Prepare = Callable[[Question, Tensor, Callable[[int], Collector], Path], Run]
"""`(question, token ids, collector, empty folder) -> run`"""

BASELINE, ORACLE, EAGER_ORACLE, FASTCAP = "baseline", "oracle", "eager oracle", "fastcap"
NNSIGHT, TRANSFORMER_LENS, SAE_LENS = "nnsight", "transformer-lens", "sae-lens"
PEERS = (NNSIGHT, TRANSFORMER_LENS, SAE_LENS)


def why_not(way: str, question: Question) -> str | None:
    """Why a way has no answer to a question, for the report; `None` where it has one."""
    if question.to_disk and way in (NNSIGHT, TRANSFORMER_LENS):
        return f"{way} writes no files: what to do with a tensor on disk is the caller's."
    if question.stop and way == SAE_LENS:
        return (
            "sae-lens ends passes early for the hook names of HookedTransformer only; those of "
            "a Hugging Face model run whole."
        )
    return None
