"""What came out: a table per question, the bars, and the files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.memory import Peak
from benchmarks.peers.judge import Verdict
from benchmarks.peers.questions import Question, Shape, as_fields
from benchmarks.peers.ways import FASTCAP, HOOKLESS, PEERS
from benchmarks.programs import Origin
from fastcap.bench.floors import Floors
from fastcap.bench.report import INTERVAL
from fastcap.bench.timing import Ratio, paired_ratio
from fastcap.formatting import format_bytes

TIME_BAR = 1.03
"""The most that the upper end of the interval of fastcap's time over a peer's may be."""

NOTES = (
    """Each peer shares a process with fastcap and the passes without capture; within a round they
    take turns before every forward pass, in another order each round, and only their own turns
    count. fastcap beside hookless is of all these processes. Compare the ratios: seconds of
    different rows may be of different minutes.""",
    f"{INTERVAL}.",
    """rows: the caller copies each batch into a result allocated before, which is the best a caller
    can do, and what times are compared with. lists: one list per site and `torch.cat` at the end,
    which is what examples do. fastcap makes its result itself.""",
    """Peak added: the most that was resident during a run over what was before it, less the same
    of hookless; in a fresh process, freed memory being returned at once.""",
    """Values: how many differ in bits from those of the oracle, fastcap/reference.py, on the same
    model with its default attention.""",
    """transformer-lens is TransformerBridge with raw weights: nothing is folded or centred. It sets
    the model's attention to eager, and runs attention in code of its own.""",
    """sae-lens writes Arrow files with the token ids beside the activations; fastcap writes one
    safetensors file, and waits until it is on the disk.""",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """Everything that is known before the first measurement of a way."""

    shape: Shape
    origin: Origin
    n_rounds: int
    floors: Floors
    versions: Mapping[str, str]


Comparison = dict[str, list[float]]
"""Seconds of every round by way, of the ways that took turns in one process."""


def ways_of(comparisons: Iterable[Comparison]) -> list[str]:
    """In the order of tables."""
    return list(dict.fromkeys(way for comparison in comparisons for way in comparison))


def secs_of(comparisons: Iterable[Comparison], way: str) -> list[float]:
    """Of every round of every process that ran this way."""
    return [secs for comparison in comparisons for secs in comparison.get(way, ())]


@dataclass
class Answer:
    """What was measured of one question.

    Attributes:
        question: Which.
        comparisons: One per process.
        verdicts: How values compare with the oracle's, by way; of all rounds the worst.
        eager_verdicts: How they compare with the oracle on a model with eager attention.
        peaks: Peak memory by way, then by how batches are collected.
        why_not: Why a way has no figures here, by way.
    """

    question: Question
    comparisons: list[Comparison] = field(default_factory=list)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    eager_verdicts: dict[str, Verdict] = field(default_factory=dict)
    peaks: dict[str, dict[str, Peak]] = field(default_factory=dict)
    why_not: dict[str, str] = field(default_factory=dict)

    def note(self, way: str, verdicts: Sequence[Verdict]) -> None:
        """Keep what a round's values showed beside each oracle, if it is the worst so far."""
        kept_of = (self.verdicts, self.eager_verdicts)
        for kept, verdict in zip(kept_of, verdicts, strict=True):
            if way not in kept or verdict.n_different > kept[way].n_different:
                kept[way] = verdict

    @property
    def ways(self) -> list[str]:
        return ways_of(self.comparisons)

    @property
    def peers(self) -> list[str]:
        return [way for way in PEERS if way in self.ways]

    def secs(self, way: str) -> list[float]:
        return secs_of(self.comparisons, way)

    def ratio(self, way: str, base: str) -> Ratio:
        """Over the rounds of every process that ran both."""
        both = [each for each in self.comparisons if way in each and base in each]
        return paired_ratio(secs_of(both, way), secs_of(both, base))

    def added_bytes(self, way: str, collector: str) -> int:
        """What capturing adds to the peak of the same run without."""
        base = self.peaks[HOOKLESS]["rows"]
        peak = self.peaks[way][collector]
        return peak.host_bytes - peak.before_bytes - (base.host_bytes - base.before_bytes)


def broken_bars(answers: Iterable[Answer]) -> list[str]:
    """Where fastcap is not ahead, in words."""
    broken = []
    for answer in answers:
        broken += [f"{answer.question.name}: {problem}" for problem in _broken(answer)]
    return broken


def _broken(answer: Answer) -> Iterable[str]:
    mine = answer.verdicts[FASTCAP]
    if not mine.is_equal:
        yield f"fastcap's values are not the oracle's: {mine}"
    for way in answer.peers:
        ratio = answer.ratio(FASTCAP, way)
        if ratio.high > TIME_BAR:
            yield f"fastcap takes {ratio} times {way}'s time; the bar is {TIME_BAR} at most"
    if not answer.peaks:
        return
    own = answer.added_bytes(FASTCAP, "rows")
    for way in answer.peers:
        for collector in answer.peaks[way]:
            theirs = answer.added_bytes(way, collector)
            if own >= theirs:
                yield (
                    f"fastcap adds {_signed(own)} at its peak, {way} ({collector}) "
                    f"{_signed(theirs)}"
                )


def card(setting: Setting) -> str:
    """What is measured, on what."""
    return "\n".join(f"{name:<14}{text}" for name, text in _card_rows(setting))


def _card_rows(setting: Setting) -> Iterable[tuple[str, str]]:
    shape = setting.shape
    size = f"{shape.n_layers} layers of width {shape.width}, vocabulary {shape.vocab_size}"
    yield "model", f"GPT-2 with random weights, {size}, float32 on the CPU"
    yield from setting.origin.card_rows()
    yield "rounds", str(setting.n_rounds)
    yield "versions", ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    floors = setting.floors
    yield (
        "floors",
        (
            f"copy into warm memory {floors.warm_gb_per_sec:.2f} GB/s, into rested memory "
            f"{floors.into_result_gb_per_sec:.2f} GB/s"
        ),
    )


def section(answer: Answer, setting: Setting) -> str:
    """One question's heading, table and remarks."""
    question = answer.question
    result = format_bytes(question.result_bytes(setting.shape, question.n_samples))
    size = f"{question.n_samples} samples of {question.n_tokens} tokens"
    lines = [
        f"## {question.name}: {question.what}",
        "",
        f"{size}, {question.batch_size} per pass: {result}.{_memory_run(question, setting.shape)}",
        "",
        *_table(answer, setting),
        "",
        *(f"* {remark}" for remark in _remarks(answer, setting)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _memory_run(question: Question, shape: Shape) -> str:
    n_samples = question.n_memory_samples
    if n_samples is None:
        return ""
    n_bytes = question.result_bytes(shape, n_samples)
    return f" Memory is of {n_samples} samples: {format_bytes(n_bytes)}."


def _table(answer: Answer, setting: Setting) -> list[str]:
    header = ("way", "median s", "x hookless", "fastcap / way", "peak added", "x result", "values")
    rows = [header, ("---",) * len(header)]
    rows += [tuple(_row(way, answer, setting)) for way in answer.ways]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "| "
        + " | ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]


def _row(way: str, answer: Answer, setting: Setting) -> Iterable[str]:
    yield way
    yield f"{statistics.median(answer.secs(way)):.3f}"
    yield "1" if way == HOOKLESS else str(answer.ratio(way, HOOKLESS))
    yield str(answer.ratio(FASTCAP, way)) if way in answer.peers else ""
    yield _peak_cell(way, answer, lambda n_bytes: _signed(n_bytes))
    result = answer.question.result_bytes(setting.shape, answer.question.n_memory_samples or 1)
    yield _peak_cell(way, answer, lambda n_bytes: f"{n_bytes / result:.2f}")
    yield str(answer.verdicts[way]) if way in answer.verdicts else ""


def _peak_cell(way: str, answer: Answer, show: Any) -> str:
    if way == HOOKLESS or way not in answer.peaks:
        return ""
    cells = {name: show(answer.added_bytes(way, name)) for name in answer.peaks[way]}
    if way == FASTCAP or len(cells) == 1:
        return str(next(iter(cells.values())))
    return ", ".join(f"{name} {cell}" for name, cell in cells.items())


def _signed(n_bytes: int) -> str:
    return format_bytes(n_bytes) if n_bytes >= 0 else f"-{format_bytes(-n_bytes)}"


def _remarks(answer: Answer, setting: Setting) -> list[str]:
    remarks = []
    question = answer.question
    if not question.to_disk and not question.stop:
        gigabytes = question.result_bytes(setting.shape, question.n_samples) / 1e9
        forward = statistics.median(answer.secs(HOOKLESS))
        floor = forward + gigabytes / setting.floors.into_result_gb_per_sec
        share = statistics.median(answer.secs(FASTCAP)) / floor
        remarks.append(
            f"The floor, forward and one copy into rested memory, is {floor:.3f} s; fastcap takes "
            f"{share:.3f} times that."
        )
    remarks += [f"{way}: not measured. {why}" for way, why in answer.why_not.items()]
    for way, verdict in answer.verdicts.items():
        if not verdict.is_equal:
            beside = answer.eager_verdicts[way]
            remarks.append(f"{way}, against the oracle with eager attention: {beside}.")
    return remarks


def headline(answers: Sequence[Answer], setting: Setting) -> dict[str, Any]:
    """The figures to quote, small enough for one line."""
    return {
        "machine": setting.origin.machine.tag,
        "commit": setting.origin.checkout.commit,
        "fastcap_to_peer": {
            a.question.name: {way: _brief(a.ratio(FASTCAP, way)) for way in a.peers}
            for a in answers
        },
        "broken_bars": broken_bars(answers),
    }


def _brief(ratio: Ratio) -> list[float]:
    return [round(ratio.mean, 4), round(ratio.low, 4), round(ratio.high, 4)]


def document(answers: Sequence[Answer], setting: Setting) -> dict[str, Any]:
    """Everything, raw times included, for the JSON file."""
    return {
        "format": 2,
        "headline": headline(answers, setting),
        **setting.origin.fields(),
        "versions": dict(setting.versions),
        "model": asdict(setting.shape),
        "floors": asdict(setting.floors),
        "interval": INTERVAL,
        "questions": [_fields(answer, setting) for answer in answers],
    }


def _fields(answer: Answer, setting: Setting) -> dict[str, Any]:
    peaks = answer.peaks
    return {
        **as_fields(answer.question, setting.shape),
        "comparisons": answer.comparisons,
        "ratios_to_hookless": {
            way: asdict(answer.ratio(way, HOOKLESS)) for way in answer.ways if way != HOOKLESS
        },
        "fastcap_to_peer": {way: asdict(answer.ratio(FASTCAP, way)) for way in answer.peers},
        "peaks": {way: {c: asdict(p) for c, p in of.items()} for way, of in peaks.items()},
        "peak_added_bytes": {
            way: {collector: answer.added_bytes(way, collector) for collector in of}
            for way, of in peaks.items()
        },
        "values": {way: asdict(verdict) for way, verdict in answer.verdicts.items()},
        "values_to_eager": {way: asdict(v) for way, v in answer.eager_verdicts.items()},
        "not_measured": answer.why_not,
    }


def markdown(answers: Sequence[Answer], setting: Setting) -> str:
    """The page beside the JSON."""
    title = f"# fastcap and its peers on {setting.origin.machine.tag}, {setting.origin.day}"
    sections = "\n".join(section(answer, setting) for answer in answers)
    notes = "\n".join(f"* {note}" for note in _notes(answers))
    return f"{title}\n\n```\n{card(setting)}\n```\n\n{sections}\n{notes}\n\n{bars(answers)}\n"


def _notes(answers: Sequence[Answer]) -> list[str]:
    used = {way for answer in answers for way in (*answer.ways, *answer.why_not)}
    absent = [way for way in PEERS if way not in used]
    notes = [" ".join(note.split()) for note in NOTES]
    return [note for note in notes if not any(note.startswith(way) for way in absent)]


def bars(answers: Sequence[Answer]) -> str:
    """Whether fastcap is ahead, or where it is not."""
    broken = broken_bars(answers)
    if not broken:
        return f"Bars met: least memory, interval of the time ratio below {TIME_BAR}, every value."
    return "Bars missed:\n\n" + "\n".join(f"* {problem}" for problem in broken)


def write(folder: Path, answers: Sequence[Answer], setting: Setting) -> Path:
    """Write both files; returns the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"peers-{setting.origin.day}-{setting.origin.machine.tag}.json"
    path.write_text(json.dumps(document(answers, setting), indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(answers, setting))
    return path
