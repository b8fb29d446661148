"""What a report says, and the files it is written to."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import report
from benchmarks.checkout import Checkout
from benchmarks.memory import Peak
from benchmarks.programs import Origin
from benchmarks.workloads import WORKLOADS
from fastcap.bench.floors import Floors
from fastcap.bench.hardware import Machine

SETTING = report.Setting(
    workload=WORKLOADS["tiny"],
    origin=Origin(
        Machine("A Processor (R) 3", 2, 8_000_000_000, "madvise"),
        Checkout("c0ffee"),
        "2026-11-23T10:00:00+00:00",
        0.5,
        2,
    ),
    model_bytes=1000,
    floors=Floors(8.0, 4.0, 2.0, 1.0),
)
RESULT_BYTES = WORKLOADS["tiny"].result_bytes
OUTCOME = report.Outcome(
    secs={"hookless": [1, 1], "incumbent": [2, 2], "oracle": [3, 3], "fastcap": [1.5, 1.5]},
    problems={"hookless": [], "incumbent": [], "oracle": [], "fastcap": []},
    peaks={
        "hookless": Peak(1000, 900),
        "incumbent": Peak(1000 + 2 * RESULT_BYTES, 900),
        "oracle": Peak(1000 + 3 * RESULT_BYTES, 900),
        "fastcap": Peak(1000 + RESULT_BYTES, 900),
    },
)


def test_the_headline_holds_ratios_memory_and_equality() -> None:
    headline = report.headline(SETTING, OUTCOME)
    assert headline["fastcap_to_hookless"] == [1.5, 1.5, 1.5]
    assert headline["fastcap_to_incumbent"] == [0.75, 0.75, 0.75]
    assert headline["peak_over_result"] == {"incumbent": 2.0, "oracle": 3.0, "fastcap": 1.0}
    assert headline["equal"] is True


def test_a_difference_shows_in_every_form_of_the_report() -> None:
    problems = {**OUTCOME.problems, "fastcap": ["norm: 3 bytes differ"]}
    outcome = report.Outcome(OUTCOME.secs, problems, OUTCOME.peaks)
    assert report.headline(SETTING, outcome)["equal"] is False
    assert "fastcap DIFFERS: norm: 3 bytes differ" in report.markdown(SETTING, outcome)
    assert report.document(SETTING, outcome)["equal"]["fastcap"] is False
    assert re.search(r"\| fastcap .*\| no +\|", report.table(SETTING, outcome))


def test_both_files_are_named_after_date_workload_and_machine(tmp_path: Path) -> None:
    path = report.write(tmp_path / "results", SETTING, OUTCOME)
    stem = "2026-11-23-tiny-a-processor-r-3-2-cores"
    assert sorted(p.name for p in path.parent.iterdir()) == [f"{stem}.json", f"{stem}.md"]
    written = json.loads(path.read_text())
    assert written["secs"]["fastcap"] == [1.5, 1.5]
    assert written["workload"]["dtype"] == "float32"
    assert written["commit"] == "c0ffee"


def test_memory_on_the_gpu_and_pinned_memory_are_remarked_on() -> None:
    peaks = {**OUTCOME.peaks, "fastcap": Peak(1000, 900, 13_000_000_000, 512_000_000)}
    outcome = report.Outcome(OUTCOME.secs, OUTCOME.problems, peaks)
    remarks = report.remarks(SETTING, outcome)
    assert "fastcap: 13 GB on the GPU at most, 512 MB pinned." in remarks
    assert not any("hookless:" in remark for remark in remarks)


def test_a_run_without_memory_figures_says_why() -> None:
    outcome = report.Outcome(OUTCOME.secs, OUTCOME.problems, {}, "no /proc here")
    assert "Peak memory was not measured: no /proc here" in report.markdown(SETTING, outcome)
    assert report.headline(SETTING, outcome)["peak_over_result"] == {}


def test_the_rows_of_the_table_are_aligned() -> None:
    lines = report.table(SETTING, OUTCOME).splitlines()
    assert len(lines) == 2 + 4
    assert len({len(line) for line in lines}) == 1
