"""Where captured values go: one function each, from a question to what was delivered.

A destination returns one tensor per site, or is a generator of one such mapping per batch, as a
loop over a stream is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import fastcap
from benchmarks.gpu.figures import UnavailableError
from benchmarks.gpu.floors import ARCHIVE, FRESH
from benchmarks.gpu.toolbox import Gpu, MiB
from fastcap.bench import Case
from fastcap.bench.case import Values
from fastcap.bench.ways import Way, archived_in, baseline, in_memory
from fastcap.formatting import format_bytes

SCRIBBLE = 0xAB
SMALLEST_CHUNK, LARGEST_CHUNK = 8 * MiB, 64 * MiB


@dataclass(frozen=True, slots=True)
class Question:
    """What is captured, and what destinations need beside it.

    Attributes:
        case: Model, batches, sites and selection.
        scratch: Where archives are written.
        expected: What is to be delivered, one tensor of shape `(n_samples, ...)` per site.
        rows: Pinned memory of the same shapes, once it was needed; every run is given the same.
        counted: What the engine counted in the last run, where the destination gives it.
    """

    case: Case
    scratch: Path
    expected: Values
    rows: dict[str, Tensor] = field(default_factory=dict)
    counted: dict[str, Any] = field(default_factory=dict)

    @property
    def result_bytes(self) -> int:
        return sum(value.nbytes for value in self.expected.values())

    @property
    def pass_bytes(self) -> int:
        return self.result_bytes // len(self.case.batches)

    def first(self, n_passes: int) -> Question:
        """The same with fewer passes."""
        if n_passes >= len(self.case.batches):
            return self
        n_samples = sum(self.case.sizes[:n_passes])
        expected = {site: value[:n_samples] for site, value in self.expected.items()}
        case = replace(self.case, batches=self.case.batches[:n_passes])
        return Question(case, self.scratch, expected)


Destination = Callable[[Question], Values | Iterator[Values]]


def of_way(way: Way) -> Destination:
    """A way of `fastcap.bench` as a destination."""
    return lambda question: way(question.case)


def slot_budget(pass_bytes: int, n_sites: int) -> dict[str, int]:
    """Slots for the pass that is held and the one that is under way, and chunks that records fill.

    A slot is lent only for a record that fills half of it or more.
    """
    record_bytes = max(1, pass_bytes // n_sites)
    chunk_bytes = min(max(1 << (record_bytes - 1).bit_length(), SMALLEST_CHUNK), LARGEST_CHUNK)
    if record_bytes > chunk_bytes:
        n_per_pass = n_sites * -(-record_bytes // chunk_bytes)
    else:
        n_per_pass = -(-n_sites // (chunk_bytes // record_bytes))
    return {"staging_bytes": 4 * chunk_bytes, "pinned_bytes": (2 * n_per_pass + 6) * chunk_bytes}


def slots(question: Question) -> Iterator[Values]:
    """`stream(zero_copy=True)` with slots for two passes.

    Each batch is dropped before the next is asked for: what is lent goes back before the next pass
    needs it. `for` and `enumerate` would keep it.
    """
    budget = slot_budget(question.pass_bytes, len(question.case.sites))
    with _open_stream(question.case, budget) as run:
        while (records := next(run, None)) is not None:
            yield dict(records)
            del records
        question.counted.update(asdict(run.statistics()))


def slots_in_a_loop(question: Question) -> Iterator[Values]:
    """The same as most would write it: fastcap's own budgets, and a loop whose variable holds a
    batch until it is given the next.
    """
    with _open_stream(question.case, {}) as run:
        for records in run:
            yield dict(records)
        question.counted.update(asdict(run.statistics()))


def _open_stream(case: Case, budget: dict[str, int]) -> fastcap.Stream:
    options: dict[str, Any] = {**case.calling, **case.options, **budget}
    return fastcap.stream(
        case.model, case.batches, case.sites, device=case.device, zero_copy=True, **options
    )


def pinned(question: Question) -> Values:
    """`extract_representations(out=)`, into the question's rows."""
    in_memory(question.case, out=question.rows)
    return question.rows


def prepare(destination: Destination, question: Question, gpu: Gpu) -> float | None:
    """What comes before a run and is no part of it; returns the seconds that pinning took, if any.

    Rows are scribbled over, so that none is right because an earlier run wrote it.
    """
    if destination is not pinned:
        return None
    secs = None
    if not question.rows:
        started = time.perf_counter()
        for site, value in question.expected.items():
            question.rows[site] = gpu.pinned(value.nbytes, value.dtype).view(value.shape)
        secs = time.perf_counter() - started
    for row in question.rows.values():
        row.reshape(-1).view(torch.uint8).fill_(SCRIBBLE)
    return secs


def archive(question: Question) -> Values:
    """`fastcap.extract` into a new directory, which goes with its values."""
    needs_room(question.scratch, question.result_bytes)
    outcome = archived_in(question.scratch)(question.case)
    assert isinstance(outcome, Mapping)
    return outcome


def needs_room(folder: Path, n_bytes: int) -> None:
    """Raises:
    UnavailableError: An archive of `n_bytes` cannot be written there, or not read.
    """
    if find_spec("safetensors") is None:
        raise UnavailableError("safetensors is not installed, and archives are read with it")
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < 1.2 * n_bytes:
        raise UnavailableError(
            f"{folder} has {format_bytes(free_bytes)} free, and the archive takes "
            f"{format_bytes(n_bytes)}"
        )


BASELINE, SLOTS, PINNED = "baseline", "slots", "pinned result"
LOOP = "slots, plain loop"
HOOK = "hook, .cpu()"

nowhere = of_way(baseline)

DESTINATIONS: Mapping[str, Destination] = MappingProxyType(
    {SLOTS: slots, FRESH: of_way(in_memory), PINNED: pinned, ARCHIVE: archive}
)
"""Those of the grid."""

WITH_LOOP: Mapping[str, Destination] = MappingProxyType({**DESTINATIONS, LOOP: slots_in_a_loop})
IN_MEMORY: Mapping[str, Destination] = MappingProxyType(
    {name: each for name, each in DESTINATIONS.items() if name != ARCHIVE}
)
