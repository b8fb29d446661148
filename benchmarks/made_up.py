"""Result documents with made-up figures, in the form that the benchmarks write: for tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from benchmarks import suite
from benchmarks.checkout import Checkout
from benchmarks.grid import grid
from benchmarks.memory import Peak
from benchmarks.peers import report
from benchmarks.peers.judge import Verdict
from benchmarks.peers.questions import GPT2, QUESTIONS
from benchmarks.peers.ways import FASTCAP, HOOKLESS, PEERS, TRANSFORMER_LENS, why_not
from benchmarks.programs import Origin
from fastcap.bench.floors import Floors
from fastcap.bench.hardware import Machine
from fastcap.bench.overhead import Overhead
from fastcap.bench.ways import WAYS

MACHINE = Machine("A Processor", 2, 8_000_000_000, "madvise")
DATE = "2026-11-23T10:00:00+00:00"
FLOORS = Floors(8.0, 4.0, 2.0, 1.5, disk_gb_per_sec=0.9)
COMMIT = "c0ffee" * 6
ORIGIN = Origin(MACHINE, Checkout(COMMIT), DATE, load=0.2, n_threads=2)

ROUNDS = (1.0, 1.02, 0.99, 1.01, 0.98, 1.0)
SUITE_TIMES: Mapping[str, float] = {
    "hookless": 1.0,
    "hook": 1.06,
    "hook, non_blocking": 1.07,
    "fastcap": 1.05,
    "fastcap archive": 1.4,
    "fastcap store": 1.06,
    "fastcap stream": 1.08,
    "fastcap stream, lent": 1.05,
}


def spread(secs: float, shift: int = 0) -> tuple[float, ...]:
    """Times of some rounds around one."""
    return tuple(secs * ROUNDS[(index + shift) % len(ROUNDS)] for index in range(len(ROUNDS)))


def suite_document(**changes: float) -> dict[str, Any]:
    """The whole suite; `changes` are other times, with `_` for what separates words."""
    times = {**SUITE_TIMES, **{name.replace("_", " "): secs for name, secs in changes.items()}}
    assert set(times) <= set(WAYS)
    setting = suite.Setting(
        device="cpu",
        origin=ORIGIN,
        rounds=len(ROUNDS),
        floors=FLOORS,
    )
    outcomes = []
    for workload in grid("cpu", None):
        worse = 1.0 if workload.name.startswith("gpt2") else 4.0  # of fixed costs
        secs = {
            way: spread(1.0 + worse * (secs - 1.0), shift)
            for shift, (way, secs) in enumerate(times.items())
        }
        outcomes.append(
            suite.Outcome(
                workload.name,
                Overhead(
                    sites=workload.sites,
                    captured_bytes=workload.result_bytes,
                    n_passes=10,
                    n_samples=40,
                    secs=secs,
                    problems=dict.fromkeys(secs, ()),
                    n_mismatches=dict.fromkeys(list(secs)[1:], 0),
                ),
            )
        )
    return suite.document(setting, outcomes)


PEER_TIMES: Mapping[str, float] = {
    HOOKLESS: 1.0,
    FASTCAP: 1.02,
    **dict(zip(PEERS, (1.1, 1.6, 1.2), strict=True)),
}
PEER_BYTES: Mapping[str, int] = {
    FASTCAP: 100_000_000,
    **dict(zip(PEERS, (160_000_000, 240_000_000, 210_000_000), strict=True)),
}
EQUAL, DIFFERENT = Verdict(1000, 0, 0.0), Verdict(1000, 250, 1e-6)


def peers_document(
    fastcap_secs: float = PEER_TIMES[FASTCAP], fastcap_bytes: int = PEER_BYTES[FASTCAP]
) -> dict[str, Any]:
    """All questions and peers; whoever is not asked something says why."""
    setting = report.Setting(
        shape=GPT2,
        origin=ORIGIN,
        n_rounds=len(ROUNDS),
        floors=FLOORS,
        versions={"torch": "2.13.0", "transformers": "5.0", "nnsight": "0.8.1"},
    )
    times, n_bytes = {**PEER_TIMES, FASTCAP: fastcap_secs}, {**PEER_BYTES, FASTCAP: fastcap_bytes}
    answers = []
    for question in QUESTIONS:
        reasons = {way: why for way in PEERS if (why := why_not(way, question)) is not None}
        answer = report.Answer(question, why_not=reasons)
        for peer in [peer for peer in PEERS if peer not in reasons]:
            together = (HOOKLESS, FASTCAP, peer)
            answer.comparisons.append(
                {way: list(spread(times[way], shift)) for shift, way in enumerate(together)}
            )
        ways = answer.ways
        for way in ways[1:]:
            differs = way == TRANSFORMER_LENS
            close = replace(DIFFERENT, n_different=1)
            answer.note(way, [DIFFERENT, close] if differs else [EQUAL, DIFFERENT])
        if question.n_memory_samples is not None:
            answer.peaks = {way: _peaks(way, n_bytes, question.to_disk) for way in ways}
        answers.append(answer)
    return report.document(answers, setting)


def _peaks(way: str, n_bytes: Mapping[str, int], to_disk: bool) -> dict[str, Peak]:
    if way == HOOKLESS:
        return {"rows": Peak(500_000_000, 400_000_000)}
    rows = Peak(500_000_000 + n_bytes[way], 400_000_000)
    if way == FASTCAP or to_disk:
        return {"rows": rows}
    return {"rows": rows, "lists": replace(rows, host_bytes=rows.host_bytes + 75_000_000)}


def imports_document(added_ms: float = 20.5) -> dict[str, Any]:
    """What importing adds."""
    return {
        "date": DATE,
        "commit": COMMIT,
        "torch": "2.13.0",
        "machine": asdict(MACHINE),
        "rounds": 20,
        "torch_ms": 900.4,
        "added_ms": added_ms,
    }


def as_name(document: Mapping[str, Any], kind: str) -> str:
    """What the benchmarks call such a file."""
    date, tag = document["date"][:10], Machine(**document["machine"]).tag
    return f"{date}-{kind}-{tag}.json" if kind == "suite" else f"{kind}-{date}-{tag}.json"
