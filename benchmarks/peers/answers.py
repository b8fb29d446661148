"""What was measured of each question, and the result file that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.memory import Peak
from benchmarks.peers.questions import Question, Shape
from benchmarks.peers.ways import BASELINE, FASTCAP, PEERS
from fastcap.bench.equality import Difference
from fastcap.bench.timing import Ratio, paired_ratio


@dataclass
class Answer:
    """What was measured of one question.

    Attributes:
        question: Which.
        comparisons: Seconds of every round by way, of the ways of one process; one per process.
        values: How values compare with the oracle's, by way; of all rounds the worst.
        values_to_eager: How they compare with the oracle on a model with eager attention.
        peaks: Peak memory by way, then by how batches are collected.
        why_not: Why a way has no figures here, by way.
    """

    question: Question
    comparisons: list[dict[str, list[float]]] = field(default_factory=list)
    values: dict[str, Difference] = field(default_factory=dict)
    values_to_eager: dict[str, Difference] = field(default_factory=dict)
    peaks: dict[str, dict[str, Peak]] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)

    def note(self, way: str, found: Sequence[Difference]) -> None:
        """Keep what a round's values showed beside each oracle, if it is the worst so far."""
        for kept, each in zip((self.values, self.values_to_eager), found, strict=True):
            if way not in kept or each.n_different > kept[way].n_different:
                kept[way] = each

    @property
    def ways(self) -> list[str]:
        return list(dict.fromkeys(way for each in self.comparisons for way in each))

    @property
    def peers(self) -> list[str]:
        return [way for way in PEERS if way in self.ways]

    def ratio(self, way: str, base: str) -> Ratio:
        """Over the rounds of every process that ran both."""
        both = [each for each in self.comparisons if way in each and base in each]
        secs, base_secs = ([s for each in both for s in each[of]] for of in (way, base))
        return paired_ratio(secs, base_secs)

    def added_bytes(self, way: str, collector: str) -> int:
        """What capturing adds to the peak of the same run without."""
        base, peak = self.peaks[BASELINE]["rows"], self.peaks[way][collector]
        return peak.host_bytes - peak.before_bytes - (base.host_bytes - base.before_bytes)

    def fields(self, shape: Shape) -> dict[str, Any]:
        """For the result file."""
        question, peaks = self.question, self.peaks
        to_baseline = {w: asdict(self.ratio(w, BASELINE)) for w in self.ways if w != BASELINE}
        return {
            **asdict(question),
            "result_bytes": question.result_bytes(shape, question.n_samples),
            "memory_result_bytes": question.result_bytes(shape, question.n_memory_samples or 0),
            "comparisons": self.comparisons,
            "ratios_to_baseline": to_baseline,
            "fastcap_to_peer": {way: asdict(self.ratio(FASTCAP, way)) for way in self.peers},
            "peaks": {way: {c: asdict(p) for c, p in of.items()} for way, of in peaks.items()},
            "peak_added_bytes": {
                way: {collector: self.added_bytes(way, collector) for collector in of}
                for way, of in peaks.items()
            },
            "values": {way: asdict(found) for way, found in self.values.items()},
            "values_to_eager": {way: asdict(found) for way, found in self.values_to_eager.items()},
            "not_measured": self.why_not,
        }
