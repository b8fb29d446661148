"""The rehearsal's own parts, which need no CUDA build of torch: mutants, reports, the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rehearsal import PAGE, PytestRun, Rehearsal, read_report, seen_elsewhere
from tests.support.soak import MUTANTS, all_mutants


@pytest.mark.parametrize("name", all_mutants())
def test_every_mutant_changes_the_engine(name: str) -> None:
    with all_mutants()[name].applied():
        pass


def test_the_table_says_of_every_mutant_what_the_simulated_device_sees() -> None:
    judges = seen_elsewhere(PAGE.read_text())
    unknown = [name for name, mutant in all_mutants().items() if mutant.drops not in judges]
    assert not unknown
    assert judges[MUTANTS["hold"].drops].startswith("simulated device: order")
    assert judges[MUTANTS["landing"].drops].startswith("survives: ")


def test_a_report_is_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase classname="tests.a" name="good"/>'
        '<testcase classname="tests.a" name="skipped"><skipped message="no"/></testcase>'
        '<testcase classname="tests.a" name="bad"><failure message="one&#10;two"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_report(report, 1.0) == PytestRun(1, 1, {"tests.a::bad": "one"}, 1.0)


def test_a_mutant_that_nobody_sees_fails_the_rehearsal() -> None:
    fine = PytestRun(1, 0, {}, 1.0)
    soaks = [{"programs": 5, "wrong": {}}]
    seen = {"name": "a", "drops": "a", "seen_by": "value"}
    unseen = {"name": "b", "drops": "b", "seen_by": "", "elsewhere": "simulated device: order 1"}
    assert Rehearsal(fine, fine, soaks, [seen, unseen]).is_good
    rehearsal = Rehearsal(fine, fine, soaks, [seen, unseen | {"elsewhere": ""}])
    assert rehearsal.unexplained == ["b"]
    assert not rehearsal.is_good
    assert "NOBODY" in rehearsal.table()
