"""What ran beside what, as torch's profiler saw it on the GPU: copies beside the model's kernels.

    python -m benchmarks.gpu.timeline [--traces FOLDER]
    python -m benchmarks.gpu.timeline --dry-run

fastcap's passes in the steady state, and as many of the baseline, of plain hooks and of
`extract_representations` from its beginning. Copies to the host should run beside the model's
kernels, on a stream that runs no kernels, into pinned memory; in the steady state nothing is
allocated, pinned or created. With --traces the traces are kept, for https://ui.perfetto.dev.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fastcap
from benchmarks.gpu import command
from benchmarks.gpu.command import Program
from benchmarks.gpu.grid import slot_budget
from benchmarks.gpu.report import NONE, Figure, Range, UnavailableError
from benchmarks.gpu.subjects import LLAMA, build, tiny
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case
from fastcap.bench.ways import (
    Way,
    baseline,
    in_memory,
    non_blocking_hook,
    pinned_hook,
    synchronous_hook,
)

LIMIT_SECS = 70.0
LIKELY_SECS = 8.0
N_PASSES = 3

Span = tuple[float, float]
"""A beginning and an end, in microseconds."""

CALLS = {
    "pinned": ("cudaHostAlloc", "cudaHostRegister", "cudaMallocHost", "cuMemHostAlloc"),
    "allocated": ("cudaMalloc", "cuMemAlloc", "cuMemCreate"),
    "event made": ("cudaEventCreate", "cuEventCreate"),
    "stream waited for": ("cudaStreamSynchronize",),
}
"""Calls to CUDA by what they do, and how their names begin; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a trace shows.

    Attributes:
        window_ms: From the first kernel or copy to the host to the end of the last.
        busy: How much of that some kernel of the model ran.
        copied_ms: Copies to the host.
        copied_bytes: How much they moved.
        beside: How much of the copies' time some kernel ran, too.
        copy_kinds: From where to where they went, in CUDA's words.
        copy_streams: On which streams.
        kernel_streams: Which ran kernels.
        calls: How often the host called what `CALLS` has.
    """

    window_ms: float
    busy: float
    copied_ms: float
    copied_bytes: int
    beside: float
    copy_kinds: tuple[str, ...]
    copy_streams: tuple[int, ...]
    kernel_streams: tuple[int, ...]
    calls: Mapping[str, int]


def read_trace(events: Iterable[Mapping[str, Any]]) -> Reading:
    """Read the `traceEvents` of a Chrome trace that torch's profiler wrote.

    Packs count neither as kernels of the model nor as copies to the host: they are copies within
    the device, or kernels that only copy.

    Raises:
        UnavailableError: The profiler saw no copy to the host, so it would see nothing else.
    """
    found = [event for event in events if event.get("ph") == "X"]
    kernels = [e for e in found if e.get("cat") == "kernel" and "copy_kernel" not in e["name"]]
    copies = [e for e in found if e.get("cat") == "gpu_memcpy" and "DtoH" in e["name"]]
    if not copies and not kernels:
        raise UnavailableError("the profiler saw neither a kernel nor a copy to the host")
    spans = [_span(event) for event in (*kernels, *copies)]
    window_us = max(end for _, end in spans) - min(begin for begin, _ in spans)
    busy = union(map(_span, kernels))
    copied_us = sum(event["dur"] for event in copies)
    return Reading(
        window_ms=window_us / 1e3,
        busy=sum(end - begin for begin, end in busy) / max(window_us, 1e-9),
        copied_ms=copied_us / 1e3,
        copied_bytes=sum(event["args"].get("bytes", 0) for event in copies),
        beside=overlap_of(map(_span, copies), busy) / max(copied_us, 1e-9),
        copy_kinds=tuple(sorted({event["name"] for event in copies})),
        copy_streams=tuple(sorted({event["args"]["stream"] for event in copies})),
        kernel_streams=tuple(sorted({event["args"]["stream"] for event in kernels})),
        calls=_count_calls(found),
    )


def _span(event: Mapping[str, Any]) -> Span:
    return event["ts"], event["ts"] + event["dur"]


def union(spans: Iterable[Span]) -> list[Span]:
    """The same time in spans that do not touch, in order.

    Example:
        >>> union([(4, 6), (0, 2), (1, 3)])
        [(0, 3), (4, 6)]
    """
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def overlap_of(spans: Iterable[Span], others: Sequence[Span]) -> float:
    """How much of `spans`, each by itself, lies within others, which `union` gave."""
    total, first = 0.0, 0
    for begin, end in sorted(spans):
        while first < len(others) and others[first][1] <= begin:
            first += 1
        for other_begin, other_end in others[first:]:
            if other_begin >= end:
                break
            total += min(end, other_end) - max(begin, other_begin)
    return total


def _count_calls(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts = dict.fromkeys(CALLS, 0)
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            for what, beginnings in CALLS.items():
                if event["name"].startswith(beginnings):
                    counts[what] += 1
                    break
    return counts


def figures(reading: Reading, is_steady: bool) -> Iterator[Figure]:
    """What is said of a trace; of fastcap's steady state with what was promised."""
    aside = set(reading.copy_streams) - set(reading.kernel_streams)
    pinned = sum("Pinned" in kind for kind in reading.copy_kinds)

    def expected(of_steady: Range) -> Range | None:
        return of_steady if is_steady else None

    yield Figure("from first to last", reading.window_ms, "ms")
    yield Figure("some kernel of the model runs", 100 * reading.busy, "%")
    yield Figure("copied to the host", reading.copied_bytes / 1e9, "GB")
    if reading.copied_ms:
        rate = reading.copied_bytes / reading.copied_ms / 1e6
        yield Figure("rate of the copies", rate, "GB/s")
        yield Figure("copies beside kernels", 100 * reading.beside, "%", expected(Range(95, 100)))
        yield Figure("streams of copies", len(reading.copy_streams), "", expected(Range(1, 1)))
        yield Figure("of them without kernels", len(aside), "", expected(Range(1, 1)))
        other = len(reading.copy_kinds) - pinned
        yield Figure("kinds of copies to memory not pinned", other, "", expected(NONE))
    for what, count in reading.calls.items():
        yield Figure(what, count, "calls", expected(NONE))


# What is traced


def traced(gpu: Gpu, run: Callable[[], object], path: Path, is_steady: bool) -> Iterator[Figure]:
    gpu.synchronise()
    gpu.trace(run, path)
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    yield from figures(read_trace(events), is_steady)


def steady_state(gpu: Gpu, case: Case, budget: dict[str, int], path: Path) -> Iterator[Figure]:
    """`stream(zero_copy=True)` after its first passes."""
    options = {**case.calling, **case.options, **budget}
    batches = [*case.batches, *case.batches, *case.batches]
    with fastcap.stream(
        case.model, batches, case.sites, device=case.device, zero_copy=True, **options
    ) as run:

        def some_passes() -> None:
            for _ in case.batches:
                next(run)

        some_passes()
        yield from traced(gpu, some_passes, path, is_steady=True)


def one_way(gpu: Gpu, case: Case, way: Way, path: Path) -> Iterator[Figure]:
    """A whole run, after one that does not count."""
    way(case)
    yield from traced(gpu, partial(way, case), path, is_steady=False)


WAYS: Mapping[str, Way] = {
    "baseline": baseline,
    "extract_representations, a whole run": in_memory,
    "hook, .cpu()": synchronous_hook,
    "hook, non_blocking": non_blocking_hook,
    "hook, pinned, side stream": pinned_hook,
}


def everything(program: Program, traces: Path | None) -> None:
    """The steady state first."""
    title = "fastcap's steady state"
    ways = {name: way for name, way in WAYS.items() if not (program.is_dry and way is pinned_hook)}
    for name in (title, *ways):
        program.ask(name)
    folder = program.scratch if traces is None else traces
    folder.mkdir(parents=True, exist_ok=True)
    subject = tiny(LLAMA) if program.is_dry else LLAMA
    program.say(f"model {subject.name}")
    built = build(subject, program.gpu)
    program.facts["models"] = {subject.name: built.origin}
    case = built.case(program.gpu, N_PASSES)
    budget = slot_budget(subject.site_bytes * len(case.sites), len(case.sites))
    steady = partial(steady_state, program.gpu, case, budget, folder / "steady.json.gz")
    program.measure(title, steady, LIKELY_SECS)
    for number, (name, way) in enumerate(ways.items()):
        run = partial(one_way, program.gpu, case, way, folder / f"way-{number}.json.gz")
        program.measure(name, run, LIKELY_SECS)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu.timeline", __doc__, LIMIT_SECS)
    parser.add_argument("--traces", type=Path, help="folder in which the traces are kept")
    options = parser.parse_args(arguments)
    return command.run("timeline", options, partial(everything, traces=options.traces))


if __name__ == "__main__":
    sys.exit(main())
