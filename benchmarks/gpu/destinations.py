"""Where captured values go: one function each, from a question to what was delivered."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import fastcap
from benchmarks.gpu.figures import UnavailableError
from benchmarks.gpu.floors import ARCHIVE, FRESH
from benchmarks.gpu.subjects import Built
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case
from fastcap.bench.case import Values
from fastcap.bench.ways import hookless, in_memory, non_blocking_hook, synchronous_hook
from fastcap.host_memory import format_bytes

MiB = 1 << 20
SCRIBBLE = 0xAB
SMALLEST_CHUNK, LARGEST_CHUNK = 8 * MiB, 64 * MiB

OnBatch = Callable[[Values, int], None]
"""Told what was delivered, and the first sample of it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is captured, and what destinations need beside it.

    Attributes:
        case: Model, batches, sites and selection.
        built: The same model, with its samples.
        pass_bytes: What one pass captures.
        scratch: Where archives are written.
        expected: What is to be delivered, one tensor of shape `(n_samples, ...)` per site.
        rows: Pinned memory of the same shapes, once it was needed; every run is given the same.
    """

    case: Case
    built: Built
    pass_bytes: int
    scratch: Path
    expected: Values
    rows: dict[str, Tensor] = field(default_factory=dict)

    @property
    def result_bytes(self) -> int:
        return self.pass_bytes * len(self.case.batches)


@dataclass(slots=True)
class Outcome:
    """What a run delivered.

    Attributes:
        parts: Values with the first sample of each; looked at outside the timing.
        statistics: What the engine counted, where the destination gives it.
        arrivals: When a loop was given each batch, in seconds.
        close: Gives up what the run left behind.
    """

    parts: Iterator[tuple[Values, int]]
    statistics: dict[str, Any] = field(default_factory=dict)
    arrivals: list[float] = field(default_factory=list)
    close: Callable[[], object] = lambda: None

    @property
    def cadence_secs(self) -> float | None:
        """Between two batches, from the second on; `None` for fewer than three, or no loop."""
        if len(self.arrivals) < 3:
            return None
        return (self.arrivals[-1] - self.arrivals[1]) / (len(self.arrivals) - 2)


Destination = Callable[[Question, OnBatch | None], Outcome]
"""Run the passes. A destination that keeps only the last batch tells `on_batch` of each."""


def _whole(values: Values) -> Outcome:
    return Outcome(iter([(values, 0)]))


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
    return {"device_bytes": 4 * chunk_bytes, "host_bytes": (2 * n_per_pass + 6) * chunk_bytes}


def slots(question: Question, on_batch: OnBatch | None) -> Outcome:
    """`stream(zero_copy=True)` with slots for two passes.

    Each batch is dropped before the next is asked for: what is lent goes back before the next pass
    needs it. `enumerate` would keep it.
    """
    case, last, first = question.case, dict[str, Tensor](), 0
    n_left = len(case.batches)
    arrivals = []
    with _open_stream(case, slot_budget(question.pass_bytes, len(case.sites))) as run:
        while (records := next(run, None)) is not None:
            arrivals.append(time.perf_counter())
            n_left -= 1
            values = dict(records)
            if on_batch is not None:
                on_batch(values, first)
            if n_left == 0:
                last = values
            else:
                first += question.built.subject.batch_size
            del values, records
        counted = asdict(run.statistics())
    return Outcome(iter([(last, first)]), counted, arrivals)


def slots_in_a_loop(question: Question, on_batch: OnBatch | None) -> Outcome:
    """The same as most would write it: fastcap's own budgets, and a loop whose variable holds a
    batch until it is given the next.
    """
    case, size = question.case, question.built.subject.batch_size
    values, first, arrivals = dict[str, Tensor](), -size, []
    with _open_stream(case, {}) as run:
        for records in run:
            arrivals.append(time.perf_counter())
            values = dict(records)
            first += size
            if on_batch is not None:
                on_batch(values, first)
        counted = asdict(run.statistics())
    return Outcome(iter([(values, first)]), counted, arrivals)


def _open_stream(case: Case, budget: dict[str, int]) -> fastcap.Stream:
    options: dict[str, Any] = {**case.options, **budget}
    return fastcap.stream(
        case.model, case.batches, case.sites, device=case.device, zero_copy=True, **options
    )


def fresh(question: Question, on_batch: OnBatch | None) -> Outcome:
    """`extract_representations`."""
    return _whole(in_memory(question.case))


def pinned(question: Question, on_batch: OnBatch | None) -> Outcome:
    """`extract_representations(out=)`, into the question's rows."""
    in_memory(question.case, out=question.rows)
    return _whole(question.rows)


def prepare(destination: str, question: Question, gpu: Gpu) -> float | None:
    """What comes before a run and is no part of it; returns the seconds that pinning took, if any.

    Rows are scribbled over, so that none is right because an earlier run wrote it.
    """
    if destination != PINNED:
        return None
    secs = None
    if not question.rows:
        started = time.perf_counter()
        rows = {
            site: gpu.pinned(value.nbytes, value.dtype).view(value.shape)
            for site, value in question.expected.items()
        }
        secs = time.perf_counter() - started
        question.rows.update(rows)
    for row in question.rows.values():
        row.reshape(-1).view(torch.uint8).fill_(SCRIBBLE)
    return secs


def archive(question: Question, on_batch: OnBatch | None) -> Outcome:
    """`fastcap.extract` into a new directory."""
    if find_spec("safetensors") is None:
        raise UnavailableError("safetensors is not installed, and archives are read with it")
    free_bytes = shutil.disk_usage(question.scratch).free
    if free_bytes < 1.2 * question.result_bytes:
        raise UnavailableError(
            f"{question.scratch} has {format_bytes(free_bytes)} free, and the archive takes "
            f"{format_bytes(question.result_bytes)}"
        )
    case, folder = question.case, Path(tempfile.mkdtemp(prefix="archive-", dir=question.scratch))

    def remove() -> None:
        shutil.rmtree(folder)

    try:
        found = fastcap.extract(
            case.model,
            question.built.dataset,
            case.sites,
            folder / "acts",
            device=case.device,
            batch_size=question.built.subject.batch_size,
            **case.options,
        )
    except BaseException:
        remove()
        raise

    def parts() -> Iterator[tuple[Values, int]]:
        size = question.built.subject.batch_size
        for first in range(0, len(found), size):
            yield {site: found[site][first : first + size] for site in found.sites}, first

    return Outcome(parts(), close=remove)


def plain_hook(question: Question, on_batch: OnBatch | None) -> Outcome:
    return _whole(synchronous_hook(question.case))


def async_hook(question: Question, on_batch: OnBatch | None) -> Outcome:
    return _whole(non_blocking_hook(question.case))


def nowhere(question: Question, on_batch: OnBatch | None) -> Outcome:
    return _whole(hookless(question.case))


HOOKLESS, SLOTS, PINNED = "hookless", "slots", "pinned result"
LOOP = "slots, plain loop"
HOOK, ASYNC_HOOK = "hook, .cpu()", "hook, non_blocking"

DESTINATIONS: Mapping[str, Destination] = MappingProxyType(
    {SLOTS: slots, FRESH: fresh, PINNED: pinned, ARCHIVE: archive}
)
"""Those of the grid."""

COMPARED: Mapping[str, Destination] = MappingProxyType(
    {LOOP: slots_in_a_loop, HOOK: plain_hook, ASYNC_HOOK: async_hook}
)
"""What the grid's are compared with, where all positions are captured."""
