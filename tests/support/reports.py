"""A report without a measurement: every figure made up, so that what is said of it is known."""

from __future__ import annotations

from typing import Any

from fastcap.bench import Floors, Machine, Overhead, Span, Timeline
from fastcap.bench.report import Report
from fastcap.records import Statistics

SITES = tuple(f"layers.{i}.mlp" for i in range(16))


def made_overhead(
    n_sites: int, hook: float = 1.5, fastcap: float = 1.05, **changes: Any
) -> Overhead:
    """Three rounds; baseline takes 1, 1.1 and 1.2 s."""
    rounds = (1.0, 1.1, 1.2)
    fields: dict[str, Any] = {
        "secs": {
            "baseline": rounds,
            "hook": tuple(
                hook * secs * wobble for secs, wobble in zip(rounds, (1, 1.02, 0.99), strict=True)
            ),
            "fastcap": tuple(fastcap * secs for secs in rounds),
        },
        "n_mismatches": {"hook": 0, "fastcap": 0},
        "problems": {"hook": (), "fastcap": ()},
        "captured_bytes": n_sites * 10_000_000,
        "n_passes": 10,
        "n_samples": 80,
        "sites": SITES[:n_sites],
    }
    return Overhead(**{**fields, **changes})


def made_timeline(n_layers: int = 16) -> Timeline:
    """One pass whose packs are copied at its end, and delivered by two workers."""
    spans = []
    for layer in range(n_layers):
        start = layer * 2e-3
        spans.append(Span(start, start + 1.8e-3, "compute stream", "forward"))
        spans.append(Span(start + 1.8e-3, start + 2e-3, "compute stream", "pack", 1 << 20))
        delivered = n_layers * 2e-3 + layer * 1e-3
        worker = f"worker {layer % 2}"
        spans.append(Span(delivered, delivered + 5e-4, worker, "deliver", 1 << 20))
    end = n_layers * 2e-3
    spans.append(Span(end / 2, end, "copy stream", "copy", n_layers << 19))
    spans.append(Span(end, end + 4e-3, "copy stream", "copy", n_layers << 19))
    spans.append(Span(end, end + 4e-3, "host", "wait"))
    return Timeline(tuple(sorted(spans)), "this machine")


def made_report(**changes: Any) -> Report:
    """Of a model on an accelerator."""
    fields: dict[str, Any] = {
        "model": "some.module:make_model",
        "settings": {
            "sites": list(SITES),
            "selection": {"positions": "-1"},
            "device": "cuda:0",
            "compiled": False,
            "passes_per_run": 10,
            "samples_per_run": 80,
            "rounds": 3,
        },
        "date": "2026-11-23T10:00:00+00:00",
        "versions": {"fastcap": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": Machine("A Processor", 16, 128_000_000_000, "madvise", "An Accelerator", 10**11),
        "load": 0.5,
        "n_threads": 16,
        "points": (made_overhead(1), made_overhead(4, 1.9), made_overhead(16, 3.2)),
        "floors": Floors(8.0, 4.0, 2.0, None, 50.0, 1.5),
        "timeline": made_timeline(),
        "statistics": Statistics(captures=64, copies=8, copied_bytes=64 << 20),
    }
    return Report(**{**fields, **changes})
