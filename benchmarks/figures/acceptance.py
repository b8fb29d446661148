"""One large result from a CPU model: the documented hook beside fastcap."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from benchmarks.figures.results import Result
from benchmarks.figures.text import comparison, interval, paragraphs, table
from benchmarks.ways import FASTCAP, HOOKLESS, INCUMBENT
from fastcap.formatting import format_bytes

HOOK = "documented hook (`.detach().cpu()`, then `cat`)"


def block(result: Result) -> str:
    """Times, floor and memory, with what was run."""
    return paragraphs(
        _workload(result),
        table(
            (
                "way",
                "median, s",
                "time, hookless = 1",
                "time, documented hook = 1",
                "peak memory added",
                "the same, result = 1",
            ),
            _rows(result),
        ),
        _reading(result),
    )


def readme_block(result: Result) -> str:
    """The same in three columns."""
    header = (
        "",
        "time, hookless = 1",
        "time, documented hook = 1",
        "peak memory added, result = 1",
    )
    hookless, share = result.content["ratios_to_hookless"], result.content["peak_over_result"]
    rows = [
        (HOOK, interval(hookless[INCUMBENT]), "1", _share(share, INCUMBENT)),
        (
            "fastcap",
            interval(hookless[FASTCAP]),
            interval(result.content["fastcap_to_incumbent"]),
            _share(share, FASTCAP),
        ),
        ("either, on a GPU", *["not yet measured"] * 3),
    ]
    return paragraphs(_workload(result), table(header, rows), _reading(result))


def brief(result: Result) -> str:
    """For the summary."""
    content = result.content
    share = content["peak_over_result"]
    times = (
        f"fastcap takes {interval(content['ratios_to_hookless'][FASTCAP])} times as long as the "
        f"same passes without capture, and {interval(content['fastcap_to_incumbent'])} times as "
        f"long as the documented hook ({comparison(content['fastcap_to_incumbent'], *NAMES)})."
    )
    if not share:
        return times
    return (
        f"{times} It adds {share[FASTCAP]:.2f} results to the peak of memory, the hook "
        f"{share[INCUMBENT]:.2f}."
    )


EQUAL = "Every value equalled the oracle's."
NAMES = ("fastcap", "the documented hook")


def _workload(result: Result) -> str:
    workload, shape = result.content["workload"], result.content["workload"]["shape"]
    modules = ", ".join(f"`{site}`" for site in workload["sites"])
    return (
        f"A random-weight decoder of {shape['n_layers']} layers and width {shape['width']}, "
        f"{workload['n_samples']} samples of {workload['n_tokens']} tokens, "
        f"{workload['batch_size']} per pass; the outputs of {modules} in {workload['dtype']}: "
        f"{format_bytes(result.content['result_bytes'])}. {result.machine.n_cores} CPU cores, "
        f"{len(result.content['secs'][HOOKLESS])} rounds in which the ways alternate batch by "
        "batch; ratios are the geometric mean of the rounds', with its 95 % interval:"
    )


def _rows(result: Result) -> Iterator[tuple[str, ...]]:
    content = result.content
    secs = {way: statistics.median(of) for way, of in content["secs"].items()}
    floor = content["prediction"]
    added = _added_bytes(result)
    yield ("hookless", f"{secs[HOOKLESS]:.2f}", "1", "", "", "")
    yield (
        f"floor: {floor['what']}",
        f"{floor['secs']:.2f}",
        f"{floor['secs'] / secs[HOOKLESS]:.3f}",
        "",
        "",
        "",
    )
    for way, name in ((INCUMBENT, HOOK), (FASTCAP, "fastcap")):
        yield (
            name,
            f"{secs[way]:.2f}",
            interval(content["ratios_to_hookless"][way]),
            "1" if way == INCUMBENT else interval(content["fastcap_to_incumbent"]),
            format_bytes(added[way]) if way in added else "not measured",
            _share(content["peak_over_result"], way),
        )


def _added_bytes(result: Result) -> dict[str, float]:
    n_bytes = result.content["result_bytes"]
    return {way: share * n_bytes for way, share in result.content["peak_over_result"].items()}


def _share(shares: dict[str, float], way: str) -> str:
    return f"{shares[way]:.2f}" if way in shares else "not measured"


def _reading(result: Result) -> str:
    content = result.content
    floor = content["prediction"]
    share = statistics.median(content["secs"][FASTCAP]) / floor["secs"]
    differing = [way for way, found in content["problems"].items() if found]
    values = f"Values of {', '.join(differing)} DIFFER from the oracle's."
    said = comparison(content["fastcap_to_incumbent"], *NAMES)
    return (
        f"{said[0].upper()}{said[1:]}. fastcap takes {share:.3f} times the floor "
        f"({floor['what']}). "
        f"{values if differing else EQUAL}"
    )
