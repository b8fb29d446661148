"""Small kinds: hooks, copies, scaling, archives, passes that end early, importing, virtual runs.

Of each a block, which says all, and a brief, which is its line in the summary.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.figures.results import Result
from benchmarks.figures.text import folded, paragraphs, power_of_two, table
from fastcap.bench import Ratio
from fastcap.bench.ways import BASELINE, HOOK
from fastcap.formatting import format_bytes

GB = 1e9
SCALING_PICTURE = "scaling.svg"

# Hooks

EMPTY, CLONE = "empty hook", "hook with .detach().clone()"
STORE, DECODING = "store", "store, last position"
HOOK_NAMES = {
    EMPTY: "empty Python hook",
    "hook with .detach().cpu()": "hook with `.detach().cpu()`",
    CLONE: "hook with `.detach().clone()`",
}


def hooks(result: Result) -> str:
    """Microseconds per site and per pass."""
    header = (
        "way",
        "µs per site, over the baseline",
        "quartiles",
        "over an empty hook",
        "tenth percentile, over the baseline's",
        "µs per pass",
    )
    rows = [
        (
            HOOK_NAMES.get(way, way),
            f"{cost['over_baseline']:.2f}",
            f"{cost['quartiles'][0]:.2f} to {cost['quartiles'][1]:.2f}",
            "" if way == EMPTY else f"{cost['over_empty']:.2f}",
            f"{cost['least']:.2f}",
            f"{cost['over_baseline'] * result.content['sites']:.0f}",
        )
        for way, cost in result.content["micros_per_site"].items()
        if way != BASELINE
    ]
    return paragraphs(hooks_brief(result), table(header, rows))


def hooks_brief(result: Result) -> str:
    n_sites, costs = result.content["sites"], result.content["micros_per_site"]
    micros = {way: cost["over_baseline"] for way, cost in costs.items()}
    said = f"An empty Python hook costs {micros[EMPTY]:.2f} µs per site"
    if CLONE in micros:
        said += f", one that clones the value {micros[CLONE]:.2f} µs"
    return (
        f"{said}, a site of a store {micros[STORE]:.2f} µs, and a step of decoding with the last "
        f"token of {n_sites} sites {micros[DECODING] * n_sites:.0f} µs ({micros[DECODING]:.2f} µs "
        f"per site): medians of {result.content['rounds']} rounds, over the pass without hooks."
    )


# Copies

COPY_NAMES = {
    "copy_": "memcpy: `copy_` into memory written before",
    "numpy": "memcpy: NumPy's copy into the same",
    "copy_, new numpy memory": "first touch: new memory from NumPy (huge pages)",
    "copy_, new torch memory": "first touch: new memory from `torch.empty`",
    "copy_, transposed value": "memcpy of a transposed value",
    "copy_, every other column": "memcpy of every other column",
    "copy_, bfloat16 to float32": "cast: bfloat16 to float32",
    "copy_, float32 to bfloat16": "cast: float32 to bfloat16",
}
FLOORS = {
    "warm_gb_per_sec": "memory written before (memcpy)",
    "fresh_numpy_gb_per_sec": "fresh memory from NumPy, huge pages (first touch)",
    "fresh_torch_gb_per_sec": "fresh memory from `torch.empty` (first touch)",
    "cold_gb_per_sec": "memory given back some seconds before (first touch, also in the host)",
    "disk_gb_per_sec": "a new file, with its fsync",
}


def floors(result: Result) -> str:
    """The rates that predictions are made of."""
    rates = {name: result.content["floors"].get(field) for field, name in FLOORS.items()}
    rows = [(name, f"{rate:.2f}", f"{1e3 / rate:.0f}") for name, rate in rates.items() if rate]
    return table(("256 MiB into", "GB/s", "ms per GB"), rows)


def copies(result: Result) -> str:
    """GB/s by size; a table for each number of threads."""
    parts = [f"GB/s, counting the bytes written; medians of {result.content['rounds']} rounds."]
    for n_threads, by_size in result.content["gb_per_sec_by_threads_and_bytes"].items():
        header = (f"threads: {n_threads}", *(power_of_two(int(size)) for size in by_size))
        rows = [
            (COPY_NAMES.get(way, way), *(f"{of_size[way]:.2f}" for of_size in by_size.values()))
            for way in next(iter(by_size.values()))
        ]
        parts.append(table(header, rows))
    return paragraphs(*parts)


def copies_brief(result: Result) -> str:
    by_threads = result.content["gb_per_sec_by_threads_and_bytes"]
    n_threads, by_size = list(by_threads.items())[-1]
    size, rates = list(by_size.items())[-1]
    return (
        f"A copy of {power_of_two(int(size))} (threads: {n_threads}) runs at {rates['copy_']:.2f} "
        f"GB/s into memory written before, {rates['copy_, new numpy memory']:.2f} GB/s into new "
        f"memory from NumPy and {rates['copy_, new torch memory']:.2f} GB/s into new memory from "
        "torch."
    )


# Scaling

AXES = {
    "sites": "sites captured (of 8 blocks)",
    "samples": "samples (batches of 16, 64 tokens)",
    "width": "width (elements, float32)",
}


def scaling(result: Result) -> str:
    """A picture, and its points as a table."""
    header = (
        "varied",
        "",
        "fastcap's time, baseline = 1",
        "fastcap's time, synchronous hook = 1",
    )
    rows = [
        (AXES[series], size, str(Ratio(**ratios[BASELINE])), str(Ratio(**ratios[HOOK])))
        for series, points in result.content["ratios"].items()
        for size, ratios in points.items()
    ]
    return paragraphs(
        f"![fastcap's time by sites, samples and width](images/{SCALING_PICTURE})",
        scaling_brief(result),
        folded("The points as a table", table(header, rows)),
    )


def scaling_brief(result: Result) -> str:
    points = [ratios for sizes in result.content["ratios"].values() for ratios in sizes.values()]
    said = []
    for base, name in ((BASELINE, "the same passes without capture"), (HOOK, "the hook")):
        means = [ratios[base]["mean"] for ratios in points]
        said.append(f"{min(means):.3f} to {max(means):.3f} times as long as {name}")
    return (
        f"Over sites, samples and width, fastcap takes {said[0]}, and {said[1]}: means of "
        f"{result.content['rounds']} rounds at each point."
    )


# Archives

PLAIN, SAVEZ, ARCHIVE = "plain write", "np.savez", "archive"
ARCHIVE_NAMES = {
    PLAIN: "floor: a plain loop of `write`, same files and syncs",
    ARCHIVE: "`fastcap.extract`",
    SAVEZ: "lists, `cat` and `np.savez`, no sync",
}


def archive(result: Result) -> str:
    """Time to write, and memory by size."""
    content = result.content
    rows = []
    for way, name in ARCHIVE_NAMES.items():
        secs = statistics.median(content["secs"][way])
        ratio = "1" if way == PLAIN else _to_plain(content, way)
        rows.append((name, f"{secs:.2f}", f"{content['bytes'] / secs / GB:.2f}", ratio))
    memory = [
        tuple(format_bytes(of[field]) for field in ("bytes", "growth_bytes", "slot_bytes"))
        for of in content["memory"]
    ]
    return paragraphs(
        f"{format_bytes(content['bytes'])} of float32 in {content['files']} files, from a model "
        f"that has nothing to compute; {content['rounds']} rounds.",
        table(("way", "median, s", "GB/s", "time, plain write = 1"), rows),
        table(("archive", "peak memory added", "of which slots, at most"), memory)
        if memory
        else "Memory was not measured: `python -m benchmarks.archive --memory 4 20`.",
    )


def _to_plain(content: Mapping[str, Any], way: str) -> str:
    return str(Ratio(**content[f"{way} to {PLAIN}"]))


def archive_brief(result: Result) -> str:
    content = result.content
    ratios = [_to_plain(content, way) for way in (ARCHIVE, SAVEZ)]
    said = (
        f"An archive takes {ratios[0]} times as long as a plain loop of `write` of the same bytes, "
        f"`np.savez` {ratios[1]}."
    )
    if not content["memory"]:
        return said
    largest = max(content["memory"], key=lambda of: of["bytes"])
    return (
        f"{said} {format_bytes(largest['bytes'])} were written with "
        f"{format_bytes(largest['growth_bytes'])} of memory."
    )


# One sentence each


def early_stop(result: Result) -> str:
    content, shape = result.content, result.content["shape"]
    samples, tokens = content["batch_shape"]
    return (
        f"{early_stop_brief(result)} Site `{content['site']}` of {shape['n_layers']} layers of "
        f"width {shape['width']}, {content['batches']} passes of {samples} samples of {tokens} "
        f"tokens, {content['rounds']} rounds."
    )


def early_stop_brief(result: Result) -> str:
    content = result.content
    return (
        f"Passes that end after their last site take {Ratio(**content['ratio'])} of the time of "
        "whole ones; the floor, the share of multiplications before the site, is "
        f"{content['floor']:.3f}."
    )


def imports(result: Result) -> str:
    content = result.content
    return (
        f"`import fastcap` takes {content['added_ms']:.1f} ms after `import torch`, which takes "
        f"{content['torch_ms']:.0f} ms: medians of {content['rounds']} fresh processes."
    )


# The virtual clock


def virtual(result: Result) -> str:
    """Ratios by destination, host rate and number of passes. Simulated, not measured."""
    assumed = result.content["assumed"]
    said = (
        f"**Simulated, not measured.** Assumed: link {assumed['link_bytes_per_sec'] / GB:g} GB/s, "
        f"device memory {assumed['memory_bytes_per_sec'] / GB:g} GB/s, {assumed['n_workers']} host "
        f"workers, {1e6 * assumed['hook_secs']:g} µs per hook, and that pinning takes no time. "
        "The floor is the cost model's: packing, and delivering what landed last."
    )
    header = (
        "into",
        "host copy, per worker",
        "passes",
        "time / without capture",
        "floor",
        "slots, at most",
        "spilled",
    )
    found: list[dict[str, Any]] = result.content["rows"]
    rows = [
        (
            row["destination"],
            f"{row['host_bytes_per_sec'] / GB:g} GB/s",
            str(row["n_passes"]),
            f"{row['ratio']:.3f}",
            f"{row['floor']:.3f}",
            format_bytes(row["slot_bytes"]),
            format_bytes(row["spilled_bytes"]),
        )
        for row in sorted(found, key=lambda row: str(row["destination"]))
    ]
    return paragraphs(said, table(header, rows))
