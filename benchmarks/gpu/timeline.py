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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.gpu import command, turns
from benchmarks.gpu.command import Program
from benchmarks.gpu.report import NONE, Figure, Range, UnavailableError
from benchmarks.gpu.subjects import LLAMA
from benchmarks.gpu.toolbox import Gpu
from fastcap.bench import Case, Span, Timeline
from fastcap.bench.timeline import COPY, FORWARD
from fastcap.bench.ways import (
    Way,
    baseline,
    in_memory,
    lent,
    non_blocking_hook,
    pinned_hook,
    synchronous_hook,
)

LIMIT_SECS = 70.0
LIKELY_SECS = 8.0
N_PASSES = 3
PINNED_HOOK = "hook, pinned, side stream"

WAITED = "stream waited for"
CALLS = {
    "pinned": ("cudaHostAlloc", "cudaHostRegister", "cudaMallocHost", "cuMemHostAlloc"),
    "allocated": ("cudaMalloc", "cuMemAlloc", "cuMemCreate"),
    "event made": ("cudaEventCreate", "cuEventCreate"),
    WAITED: ("cudaStreamSynchronize",),
}
"""Calls to CUDA by what they do, and how their names begin; the first that fits counts."""


def figures(events: Iterable[Mapping[str, Any]], is_steady: bool) -> Iterator[Figure]:
    """What the events show of a Chrome trace that torch's profiler wrote; of fastcap's steady state
    with what was predicted.

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
    spans = [_span(each, FORWARD) for each in kernels] + [_span(each, COPY) for each in copies]
    seen = Timeline(tuple(sorted(spans)), "the GPU's")
    window_secs = seen.end_secs - seen.spans[0].start_secs
    copied_bytes = sum(span.n_bytes for span in seen.spans)

    def expected(of_steady: Range) -> Range | None:
        return of_steady if is_steady else None

    yield Figure("from first to last", 1e3 * window_secs, "ms")
    busy_share = seen.busy_secs(FORWARD) / max(window_secs, 1e-9)
    yield Figure("kernels of the model run", 100 * busy_share, "%")
    yield Figure("copied to the host", copied_bytes / 1e9, "GB")
    hidden_share = seen.hidden_share()
    if hidden_share is not None:
        streams = {span.stream for span in seen.spans if span.kind == COPY}
        aside = streams - {span.stream for span in seen.spans if span.kind == FORWARD}
        pageable = {each["name"] for each in copies if "Pinned" not in each["name"]}
        yield Figure("rate of the copies", copied_bytes / seen.busy_secs(COPY) / 1e9, "GB/s")
        yield Figure("copies beside kernels", 100 * hidden_share, "%", expected(Range(95, 100)))
        yield Figure("streams of copies", len(streams), "")  # a model may copy something, too
        yield Figure("of them without kernels", len(aside), "", expected(Range(1, 1)))
        kinds = "kinds of copies to memory not pinned"
        yield Figure(kinds, len(pageable), "", expected(NONE))
    for what, count in _count_calls(found).items():
        is_ours = what != WAITED  # a model waits where it asks whether a mask is all ones
        yield Figure(what, count, "calls", expected(NONE) if is_ours else None)


def _span(event: Mapping[str, Any], kind: str) -> Span:
    start, end = event["ts"], event["ts"] + event["dur"]
    args = event["args"]
    return Span(start / 1e6, end / 1e6, str(args["stream"]), kind, args.get("bytes", 0))


def _count_calls(events: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    counts = dict.fromkeys(CALLS, 0)
    for event in events:
        if event.get("cat") in ("cuda_runtime", "cuda_driver"):
            for what, beginnings in CALLS.items():
                if event["name"].startswith(beginnings):
                    counts[what] += 1
                    break
    return counts


# What is traced


def traced(gpu: Gpu, run: Callable[[], object], path: Path, is_steady: bool) -> Iterator[Figure]:
    gpu.synchronise()
    gpu.trace(run, path)
    with gzip.open(path, "rt") as file:
        events = json.load(file)["traceEvents"]
    yield from figures(events, is_steady)


def steady_state(gpu: Gpu, case: Case, path: Path) -> Iterator[Figure]:
    """`stream(zero_copy=True)` after its first passes, and before its last."""
    with closing(lent(replace(case, batches=[*case.batches] * 4))) as records:

        def some_passes() -> None:
            for _ in case.batches:
                next(records)

        some_passes()
        some_passes()
        yield from traced(gpu, some_passes, path, is_steady=True)


def one_way(way: Way, gpu: Gpu, case: Case, path: Path) -> Iterator[Figure]:
    """A whole run, after one that does not count."""
    way(case)
    yield from traced(gpu, partial(way, case), path, is_steady=False)


RUNS: Mapping[str, Callable[[Gpu, Case, Path], Iterator[Figure]]] = {
    "fastcap's steady state": steady_state,
    "baseline": partial(one_way, baseline),
    "extract_representations, a whole run": partial(one_way, in_memory),
    "hook, .cpu()": partial(one_way, synchronous_hook),
    "hook, non_blocking": partial(one_way, non_blocking_hook),
    PINNED_HOOK: partial(one_way, pinned_hook),
}


def everything(program: Program, traces: Path | None) -> None:
    """The steady state first."""
    runs = {name: run for name, run in RUNS.items() if not (program.is_dry and name == PINNED_HOOK)}
    for name in runs:
        program.ask(name)
    folder = program.scratch if traces is None else traces
    folder.mkdir(parents=True, exist_ok=True)
    llama = turns.subject_of(program, LLAMA)
    subject = replace(llama, n_samples=N_PASSES * llama.batch_size)
    with turns.opened(program, subject) as model:
        case = cache(lambda: subject.build(model()))
        for number, (name, run) in enumerate(runs.items()):
            path = folder / f"{number}.json.gz"
            play = partial(lambda run, path: run(program.gpu, case(), path), run, path)
            program.measure(name, play, LIKELY_SECS)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser_of("benchmarks.gpu.timeline", __doc__, LIMIT_SECS)
    parser.add_argument("--traces", type=Path, help="folder in which the traces are kept")
    options = parser.parse_args(arguments)
    return command.run("timeline", options, partial(everything, traces=options.traces))


if __name__ == "__main__":
    sys.exit(main())
