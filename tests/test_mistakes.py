"""Every mistake of the table, made again: what happens is what the page says, and is right."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from fastcap import FastcapWarning
from fastcap.errors import ArgumentError
from fastcap.warn import warn
from tests.mistakes import rows_on_page
from tests.support.mistakes import CASES, GROUPS
from tests.support.mistakes.case import Case, Outcome, faults, happens, row
from tests.support.requires import needs_command_line

ROWS = rows_on_page()
N_LEAST = 120


def name_of(group: str, case: Case) -> str:
    return re.sub(r"\W+", "-", f"{group} {case.mistake}").strip("-").lower()


@pytest.mark.parametrize(
    ("group", "case"),
    [
        pytest.param(
            group,
            case,
            id=name_of(group, case),
            marks=needs_command_line if case.needs == "typer" else (),
        )
        for group, case in CASES
    ],
)
def test_what_happens_is_right_and_what_the_page_says(group: str, case: Case) -> None:
    if not case.is_here:
        pytest.skip(f"needs {case.needs}")
    outcome = happens(case)
    assert faults(case, outcome) == []
    assert row(case, outcome) in ROWS[group], "run: python -m tests.mistakes --write"


def test_the_page_has_a_row_for_each_case_and_no_other() -> None:
    starts = {group: [f"| {case.mistake} |" for case in cases] for group, cases in GROUPS.items()}
    shown = {group: [f"|{row.split('|')[1]}|" for row in rows] for group, rows in ROWS.items()}
    assert shown == starts, "run: python -m tests.mistakes --write"
    assert len(CASES) >= N_LEAST
    assert [name for name, n in Counter(name_of(*each) for each in CASES).items() if n > 1] == []


def test_rows_are_the_same_on_every_machine() -> None:
    text = "\n".join(line for rows in ROWS.values() for line in rows)
    assert re.findall(r"0x[0-9a-f]{6,}|/tmp/|/home/|site-packages", text) == []
    assert str(Path(__file__).parent.parent) not in text


# What the judge refuses


def raising(error: BaseException) -> Case:
    def do(_: Path) -> None:
        raise error

    return Case("a", do)


def judged(case: Case) -> list[str]:
    return faults(case, happens(case))


def test_a_raw_error_is_a_fault_and_one_of_fastcap_is_not() -> None:
    assert judged(raising(IndexError("index out of range"))) == [
        "a raw error: IndexError('index out of range')"
    ]
    assert judged(raising(ArgumentError("said"))) == []


def test_an_error_of_the_user_has_to_be_the_very_same() -> None:
    own = ValueError("mine")
    case = raising(ValueError("mine"))
    assert judged(Case("a", case.do, own=own)) != []
    assert judged(Case("a", raising(own).do, own=own)) == []
    assert judged(Case("a", case.do, bare=lambda: int("x"))) != []


def test_a_wrong_value_is_a_fault_and_so_is_one_that_nothing_is_known_of() -> None:
    ones = Case("a", lambda _: {"a": torch.ones(2)})
    assert judged(ones)[0].startswith("a value, and nothing says which is right")
    assert judged(Case("a", ones.do, lambda: {"a": torch.zeros(2)}))[0].startswith("a wrong value")
    assert judged(Case("a", ones.do, lambda: {"a": torch.ones(2)})) == []
    assert judged(Case("a", ones.do, lambda: {"a": torch.ones(2), "b": torch.ones(1)})) != []


def test_a_warning_of_another_library_is_a_fault_and_one_of_fastcap_is_in_the_row() -> None:
    def say(_: Path) -> None:
        warn("look")

    case = Case("a", say, lambda: None, "None")
    assert row(case, happens(case)) == "| a | a warning | None. Says: `look` |"
    assert faults(case, Outcome(foreign=["odd"])) == ["a warning of another library: odd"]
    assert issubclass(FastcapWarning, UserWarning)
