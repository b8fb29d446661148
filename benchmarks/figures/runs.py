"""Small kinds: archives, passes that end early, importing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.figures.results import Result
from benchmarks.figures.text import interval, paragraphs, table
from fastcap.formatting import format_bytes

PLAIN, SAVEZ, ARCHIVE = "plain write", "np.savez", "archive"
ARCHIVE_NAMES = {
    PLAIN: "plain `write` loop, same files and syncs",
    ARCHIVE: "`fastcap.extract`",
    SAVEZ: "lists, `cat` and `np.savez`, no sync",
}


def archive_block(result: Result) -> str:
    """Time to write, and memory by size."""
    content = result.content
    written = (
        f"{format_bytes(content['bytes'])} of float32 in {content['files']} files, from a model "
        f"that has nothing to compute; {content['rounds']} rounds."
    )
    header = ("way", "median, s", "GB/s", "time, plain write = 1")
    memory = [
        (
            format_bytes(of["bytes"]),
            format_bytes(of["growth_bytes"]),
            format_bytes(of["slot_bytes"]),
        )
        for of in content["memory"]
    ]
    return paragraphs(
        written,
        table(header, _archive_rows(result)),
        table(("archive", "peak memory added", "of which slots, at most"), memory)
        if memory
        else "Memory was not measured: `python -m benchmarks.archive --memory 4 20`.",
    )


def _archive_rows(result: Result) -> Iterator[tuple[str, ...]]:
    content = result.content
    for way in (PLAIN, ARCHIVE, SAVEZ):
        secs = statistics.median(content["secs"][way])
        ratio = "1" if way == PLAIN else interval(content[f"{way} to plain write"])
        yield (ARCHIVE_NAMES[way], f"{secs:.2f}", f"{content['bytes'] / secs / 1e9:.2f}", ratio)


def archive_brief(result: Result) -> str:
    """For the summary."""
    content = result.content
    said = (
        f"An archive takes {interval(content['archive to plain write'])} times as long as a plain "
        f"loop of `write` of the same bytes, `np.savez` {interval(content[SAVEZ_RATIO])}."
    )
    if content["memory"]:
        largest = max(content["memory"], key=lambda of: of["bytes"])
        said += (
            f" {format_bytes(largest['bytes'])} were written with "
            f"{format_bytes(largest['growth_bytes'])} of memory."
        )
    return said


SAVEZ_RATIO = "np.savez to plain write"


def early_stop_block(result: Result) -> str:
    """One ratio and its floor."""
    content, shape = result.content, result.content["shape"]
    samples, tokens = content["batch_shape"]
    return (
        f"{early_stop_brief(result)} Site `{content['site']}` of {shape['n_layers']} layers of "
        f"width {shape['width']}, {content['batches']} passes of {samples} samples of {tokens} "
        f"tokens, {content['rounds']} rounds."
    )


def early_stop_brief(result: Result) -> str:
    """For the summary."""
    content = result.content
    return (
        f"Passes that end after their last site take {interval(content['ratio'])} of the time of "
        f"whole ones; the floor, the share of multiplications before the site, is "
        f"{content['floor']:.3f}."
    )


def imports_block(result: Result) -> str:
    """What is added to `import torch`."""
    return imports_brief(result)


def imports_brief(result: Result) -> str:
    """For the summary."""
    content = result.content
    return (
        f"`import fastcap` takes {content['added_ms']:.1f} ms after `import torch`, which takes "
        f"{content['torch_ms']:.0f} ms: medians of {content['rounds']} fresh processes."
    )
