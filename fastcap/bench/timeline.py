"""What ran when: spans on streams, and the trace format that browsers show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcap.bench.files import write_text

FORWARD, PACK, COPY, DELIVER, WAIT = "forward", "pack", "copy", "deliver", "wait"
COMPUTE_STREAM, COPY_STREAM, HOST = "compute stream", "copy stream", "host"
MODEL_THREAD = "model's thread"  # of a CPU model: forward and copies in turn


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One piece of work.

    Attributes:
        start_secs: When it began, counted from the start of the timeline.
        end_secs: When it ended.
        stream: What ran it: one thing at a time.
        kind: `forward`, `pack`, `copy`, `deliver` or `wait`.
        n_bytes: Bytes moved; 0 where none were.
    """

    start_secs: float
    end_secs: float
    stream: str
    kind: str
    n_bytes: int = 0

    @property
    def secs(self) -> float:
        return self.end_secs - self.start_secs


@dataclass(frozen=True, slots=True)
class Timeline:
    """Spans in the order they began.

    Attributes:
        spans: The work.
        clock: What the seconds are of: the machine, or a virtual clock.
    """

    spans: tuple[Span, ...]
    clock: str

    @property
    def streams(self) -> list[str]:
        """From the model to the host."""
        known = (MODEL_THREAD, COMPUTE_STREAM, COPY_STREAM)
        found = {span.stream for span in self.spans}
        return [q for q in known if q in found] + sorted(found - set(known))

    @property
    def end_secs(self) -> float:
        return max((span.end_secs for span in self.spans), default=0.0)

    def busy_secs(self, kind: str) -> float:
        """Seconds that spans of a kind took together.

        Examples:
            >>> spans = (Span(0.0, 1.0, "compute stream", "forward"), Span(1.0, 1.5, "copy stream",
            ...     "copy", 100), Span(1.0, 2.0, "compute stream", "forward"))
            >>> Timeline(spans, "virtual").busy_secs("forward")
            2.0
        """
        return sum(span.secs for span in self.spans if span.kind == kind)

    def hidden_share(self) -> float | None:
        """How much of the copies' time passed while the model computed; `None` without copies.

        Examples:
            >>> spans = (Span(0.0, 2.0, "compute stream", "forward"), Span(1.0, 3.0, "copy stream",
            ...     "copy", 100))
            >>> Timeline(spans, "virtual").hidden_share()
            0.5
        """
        copies = [span for span in self.spans if span.kind == COPY]
        work = [span for span in self.spans if span.kind in (FORWARD, PACK)]
        total = sum(span.secs for span in copies)
        return sum(_overlap_secs(copy, work) for copy in copies) / total if total else None

    def trace(self) -> dict[str, Any]:
        """The Trace Event Format that chrome://tracing and ui.perfetto.dev open.

        Examples:
            >>> events = Timeline((Span(0.5, 0.75, "copy stream", "copy", 8),), "real").trace()
            >>> [(e["name"], e["ts"], e["dur"]) for e in events["traceEvents"] if e["ph"] == "X"]
            [('copy', 500000.0, 250000.0)]
        """
        numbers = {stream: number for number, stream in enumerate(self.streams, 1)}
        names: list[dict[str, Any]] = [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "fastcap"}}
        ]
        for stream, tid in numbers.items():
            of = {"ph": "M", "pid": 1, "tid": tid}
            names.append({**of, "name": "thread_name", "args": {"name": stream}})
            names.append({**of, "name": "thread_sort_index", "args": {"sort_index": tid}})
        events = [
            {
                "ph": "X",
                "name": span.kind,
                "cat": span.kind,
                "pid": 1,
                "tid": numbers[span.stream],
                "ts": _nanos(span.start_secs) / 1e3,  # microseconds, as the format has it
                "dur": (_nanos(span.end_secs) - _nanos(span.start_secs)) / 1e3,
                "args": {"bytes": span.n_bytes},
            }
            for span in self.spans
        ]
        return {"traceEvents": [*names, *events], "otherData": {"clock": self.clock}}

    def write_trace(self, path: Path) -> None:
        """Write `trace()` as JSON.

        Raises:
            SaveError: It cannot be written.
        """
        write_text(path, json.dumps(self.trace()) + "\n")


def _nanos(secs: float) -> int:
    """Whole, so that what ends when another begins does not overlap it once written."""
    return round(secs * 1e9)


def _overlap_secs(copy: Span, work: Iterable[Span]) -> float:
    return sum(
        max(0.0, min(copy.end_secs, span.end_secs) - max(copy.start_secs, span.start_secs))
        for span in work
    )


def between(whole: Span, cuts: Sequence[Span]) -> list[Span]:
    """What is left of a span without others that lie within it.

    Examples:
        >>> whole = Span(0.0, 3.0, "compute stream", "forward")
        >>> [(s.start_secs, s.end_secs) for s in between(whole, [Span(1.0, 2.0, "", "pack")])]
        [(0.0, 1.0), (2.0, 3.0)]
    """
    left, start = [], whole.start_secs
    inside = [c for c in cuts if c.end_secs > whole.start_secs and c.start_secs < whole.end_secs]
    for cut in sorted(inside):
        if cut.start_secs > start:
            left.append(Span(start, cut.start_secs, whole.stream, whole.kind))
        start = max(start, cut.end_secs)
    if whole.end_secs > start:
        left.append(Span(start, whole.end_secs, whole.stream, whole.kind))
    return left
