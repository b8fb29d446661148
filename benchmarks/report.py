"""What one run of the benchmark says: a card before it, and a table, JSON and Markdown after it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Peak, over_hookless
from benchmarks.programs import Origin
from benchmarks.ways import FASTCAP, HOOKLESS, INCUMBENT
from benchmarks.workloads import Workload
from fastcap.bench.floors import Floors, Prediction, predict
from fastcap.bench.report import INTERVAL, floor_text
from fastcap.bench.timing import Ratio, paired_ratio
from fastcap.formatting import format_bytes, markdown_table

PEAK = "Peak added: the high-water mark over that of hookless, freed memory being returned at once."

SLICES = "Within a round the ways alternate batch by batch, each over its own copy of the model."


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that is known before the first measurement of a way."""

    workload: Workload
    origin: Origin
    model_bytes: int
    floors: Floors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured.

    Attributes:
        secs: Seconds of every timed run, by way.
        problems: What differed from the oracle, by way; empty lists when nothing did.
        peaks: Peak memory by way; empty when it was not measured.
        no_peaks_because: Why not.
    """

    secs: Mapping[str, Sequence[float]]
    problems: Mapping[str, Sequence[str]]
    peaks: Mapping[str, Peak]
    no_peaks_because: str | None = None

    @property
    def is_equal(self) -> bool:
        return not any(self.problems.values())

    def to_hookless(self) -> dict[str, Ratio]:
        base = self.secs[HOOKLESS]
        return {way: paired_ratio(s, base) for way, s in self.secs.items() if way != HOOKLESS}

    def to_incumbent(self) -> Ratio:
        return paired_ratio(self.secs[FASTCAP], self.secs[INCUMBENT])

    def prediction(self, setting: Setting) -> Prediction:
        hookless_secs = statistics.median(self.secs[HOOKLESS])
        return predict(setting.workload.result_bytes, setting.floors, hookless_secs)

    def peak_over_result(self, setting: Setting) -> dict[str, float]:
        """What capturing adds to the peak, in results; empty when it was not measured."""
        if not self.peaks:
            return {}
        added = over_hookless(self.peaks)
        return {way: n_bytes / setting.workload.result_bytes for way, n_bytes in added.items()}


# Before


def card(setting: Setting) -> str:
    """What will run, how many bytes it makes, and what this machine can do at best."""
    return "\n".join(f"{name:<14}{text}" for name, text in _card_rows(setting))


def _card_rows(setting: Setting) -> Iterable[tuple[str, str]]:
    workload, shape, place = setting.workload, setting.workload.shape, setting.workload.device
    dtype, weights = _dtype_name(workload.dtype), format_bytes(setting.model_bytes)
    per_pass = workload.result_bytes * workload.batch_size // workload.n_samples
    n_sites, batch = len(workload.sites), workload.batch_size
    tokens = _token_text(workload)
    yield "workload", workload.name
    yield "model", f"{shape.n_layers} layers of width {shape.width}, {dtype}, {weights} on {place}"
    yield "data", f"{workload.n_samples} samples of {workload.n_tokens} tokens, {batch} per pass"
    yield "capture", f"{n_sites} sites, {tokens}"
    yield "result", f"{format_bytes(workload.result_bytes)}, {format_bytes(per_pass)} per pass"
    yield from setting.origin.card_rows()
    yield "floors", floor_text(setting.floors)


def _token_text(workload: Workload) -> str:
    if isinstance(workload.positions, slice):
        return f"tokens {workload.positions.start} to {workload.positions.stop}"
    return "all tokens" if workload.positions is None else f"token {workload.positions} only"


# After


def table(setting: Setting, outcome: Outcome) -> str:
    """One row per way, as an markdown_table Markdown table."""
    header = ("way", "median s", "x hookless", "x incumbent", "peak added", "x result", "equal")
    ratios, shares = outcome.to_hookless(), outcome.peak_over_result(setting)
    added = over_hookless(outcome.peaks) if outcome.peaks else {}
    rows = [
        (
            way,
            f"{statistics.median(secs):.3f}",
            str(ratios.get(way, "1")),
            str(outcome.to_incumbent()) if way == FASTCAP else "",
            format_bytes(added[way]) if way in added else "",
            f"{shares[way]:.2f}" if way in shares else "",
            "no" if outcome.problems[way] else "yes",
        )
        for way, secs in outcome.secs.items()
    ]
    return markdown_table([header, *rows])


def remarks(setting: Setting, outcome: Outcome) -> list[str]:
    """What the table leaves open: what was predicted, how the interval is made, what is missing."""
    predicted = outcome.prediction(setting)
    share = statistics.median(outcome.secs[FASTCAP]) / predicted.secs
    notes = [
        f"The floors predict {predicted.secs:.3f} s ({predicted.what}).",
        f"fastcap takes {share:.3f} times what the floors predict.",
        f"{INTERVAL}, {len(outcome.secs[HOOKLESS])} rounds.",
        *([SLICES] if torch.device(setting.workload.device).type == "cpu" else []),
        PEAK,
    ]
    notes += [_off_heap(way, peak) for way, peak in outcome.peaks.items() if peak.device_bytes]
    if outcome.no_peaks_because is not None:
        notes.append(f"Peak memory was not measured: {outcome.no_peaks_because}")
    differing = {way: found for way, found in outcome.problems.items() if found}
    return notes + [f"{way} DIFFERS: {'; '.join(found)}" for way, found in differing.items()]


def _off_heap(way: str, peak: Peak) -> str:
    pinned = "unknown" if peak.pinned_bytes is None else format_bytes(peak.pinned_bytes)
    return f"{way}: {format_bytes(peak.device_bytes or 0)} on the GPU at most, {pinned} pinned."


def headline(setting: Setting, outcome: Outcome) -> dict[str, Any]:
    """The figures to quote, small enough for one line."""
    return {
        "workload": setting.workload.name,
        "machine": setting.origin.machine.tag,
        "commit": setting.origin.checkout.commit,
        "fastcap_to_hookless": _brief(outcome.to_hookless()[FASTCAP]),
        "fastcap_to_incumbent": _brief(outcome.to_incumbent()),
        "fastcap_to_prediction": round(
            statistics.median(outcome.secs[FASTCAP]) / outcome.prediction(setting).secs, 4
        ),
        "peak_over_result": {
            way: round(share, 3) for way, share in outcome.peak_over_result(setting).items()
        },
        "equal": outcome.is_equal,
    }


def _brief(ratio: Ratio) -> list[float]:
    return [round(ratio.mean, 4), round(ratio.low, 4), round(ratio.high, 4)]


def document(setting: Setting, outcome: Outcome) -> dict[str, Any]:
    """Everything, raw times included, for the JSON file."""
    return {
        "format": 1,
        "headline": headline(setting, outcome),
        **setting.origin.fields(),
        "workload": _workload_fields(setting.workload),
        "model_bytes": setting.model_bytes,
        "result_bytes": setting.workload.result_bytes,
        "floors": asdict(setting.floors),
        "prediction": asdict(outcome.prediction(setting)),
        "secs": {way: list(secs) for way, secs in outcome.secs.items()},
        "interval": INTERVAL,
        "ratios_to_hookless": {w: asdict(ratio) for w, ratio in outcome.to_hookless().items()},
        "fastcap_to_incumbent": asdict(outcome.to_incumbent()),
        "peaks": {way: asdict(peak) for way, peak in outcome.peaks.items()},
        "peak_over_result": outcome.peak_over_result(setting),
        "no_peaks_because": outcome.no_peaks_because,
        "equal": {way: not found for way, found in outcome.problems.items()},
        "problems": {way: list(found) for way, found in outcome.problems.items()},
    }


def _workload_fields(workload: Workload) -> dict[str, Any]:
    fields = asdict(workload)
    return {**fields, "dtype": _dtype_name(workload.dtype), "positions": _token_text(workload)}


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def markdown(setting: Setting, outcome: Outcome) -> str:
    """The page beside the JSON."""
    notes = "\n".join(f"* {note}" for note in remarks(setting, outcome))
    title = f"# {setting.workload.name} on {setting.origin.machine.tag}, {setting.origin.day}"
    return f"{title}\n\n```\n{card(setting)}\n```\n\n{table(setting, outcome)}\n\n{notes}\n"


def write(folder: Path, setting: Setting, outcome: Outcome) -> Path:
    """Write both files; returns the path of the JSON."""
    stem = f"{setting.origin.day}-{setting.workload.name}-{setting.origin.machine.tag}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(document(setting, outcome), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(setting, outcome))
    return path
