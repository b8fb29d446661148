"""Figures of a running extraction, from counters and a clock that the tests turn."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from typing import Any

import pytest

from fastcap.errors import ArgumentTypeError
from fastcap.progress import LINE_SECS, open_report
from fastcap.rates import Bound, Counters, Figures, Rates, clock_time, find_bound
from tests.support.errors import message_of


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.secs = 0.0

    def __call__(self) -> float:
        return self.secs


def waiting(
    copies: float = 0, workers: float = 0, data: float = 0, commits: float = 0, **more: Any
) -> Counters:
    return Counters(
        waited_secs=copies + workers,
        joined_secs=workers,
        loading_secs=data,
        committing_secs=commits,
        **more,
    )


CASES: list[tuple[Counters, Bound]] = [
    (waiting(), "compute"),
    (waiting(workers=0.9, file_secs=9.0), "compute"),
    (waiting(copies=0.5, data=0.4), "compute"),
    (waiting(copies=0.5, data=0.6), "data"),
    (waiting(copies=2, workers=1, copied_bytes=60 * 10**9, file_secs=9.0), "link"),
    (waiting(copies=2, workers=1, copied_bytes=40 * 10**9, file_secs=9.0), "compute"),
    (waiting(copies=1, workers=2, delivery_secs=9.5, file_secs=9.0), "disk"),
    (waiting(copies=1, workers=2, delivery_secs=9.0, file_secs=4.0), "consumer"),
    (waiting(copies=1, workers=2, delivery_secs=4.0, file_secs=3.0), "compute"),
    (waiting(workers=2, delivery_secs=4.0, copied_bytes=60 * 10**9), "link"),
    (waiting(workers=1, commits=2, file_secs=4.0), "disk"),
    (waiting(workers=2, data=2.5, file_secs=9.0), "data"),
]


@pytest.mark.parametrize(("counters", "bound"), CASES, ids=range(len(CASES)))
def test_the_bound_is_what_was_waited_for_most(counters: Counters, bound: Bound) -> None:
    assert find_bound(counters, secs=10.0) == bound


def test_recent_figures_forget_and_overall_ones_do_not() -> None:
    clock = Clock()
    rates = Rates(n_expected=1000, window_secs=30, clock=clock)
    counters = Counters()
    for _ in range(10):  # 100 s at 1 sample/s, waiting for the disk
        clock.secs += 10
        counters = Counters(
            n_samples=counters.n_samples + 10,
            written_bytes=counters.written_bytes + 10**9,
            waited_secs=counters.waited_secs + 5,
            joined_secs=counters.joined_secs + 5,
            delivery_secs=counters.delivery_secs + 9,
            file_secs=counters.file_secs + 9,
        )
        rates.update(counters)
    assert rates.recent == Figures(1.0, 1e8, 900.0, "disk")
    for _ in range(10):  # 100 s at 8 samples/s, waiting for nothing
        clock.secs += 10
        counters = replace(
            counters,
            n_samples=counters.n_samples + 80,
            written_bytes=counters.written_bytes + 10**10,
            delivery_secs=110.0,
            file_secs=110.0,
        )
        rates.update(counters)
    assert rates.recent == Figures(8.0, 1e9, 100 / 8, "compute")
    assert rates.overall == Figures(4.5, 0.55e9, 100 / 4.5, "disk")
    assert rates.secs == 200


def test_passes_longer_than_the_window_still_have_a_rate() -> None:
    clock = Clock()
    rates = Rates(n_expected=None, window_secs=30, clock=clock)
    for n_done in (1, 2, 3):
        clock.secs += 100
        rates.update(Counters(n_samples=n_done))
    assert rates.recent.samples_per_sec == 0.01
    assert rates.recent.left_secs is None


def test_before_anything_happened_nothing_is_claimed() -> None:
    rates = Rates(n_expected=10, clock=Clock())
    assert rates.overall == rates.recent == Figures(0.0, 0.0, None, None)
    assert str(rates.overall) == "0.00 samples/s, 0.00 GB/s"


def test_a_run_without_samples_yet_does_not_say_how_long_it_takes() -> None:
    clock = Clock()
    rates = Rates(n_expected=10, clock=clock)
    clock.secs = 5
    rates.update(Counters())
    assert rates.recent.left_secs is None


@pytest.mark.parametrize(
    ("rate", "text"), [(0.123, "0.12"), (9.99, "9.99"), (12.34, "12.3"), (1234.5, "1234")]
)
def test_rates_have_three_digits_or_so(rate: float, text: str) -> None:
    assert str(Figures(rate, 0.0, None, None)) == f"{text} samples/s, 0.00 GB/s"


def test_times_are_written_as_on_a_clock() -> None:
    assert [clock_time(secs) for secs in (0, 59.6, 3599, 360000)] == [
        "0:00",
        "1:00",
        "59:59",
        "100:00:00",
    ]


def counters(n_samples: int) -> Counters:
    """Of a run that writes 100 MB per sample and waits for the disk all the time."""
    secs = n_samples / 12.5
    return Counters(n_samples, n_samples * 10**8, committing_secs=secs)


def drive(progress: Any, n_before: int = 0, fails: bool = False) -> None:
    """A run of 500 samples, of which some are done, at 12.5 samples per second."""
    clock = Clock()
    with open_report(progress, 500, n_before, clock) as report:
        for n_samples in range(0, 501 - n_before, 100):
            clock.secs = n_samples / 12.5
            report(counters(n_samples))
            if fails:
                raise ZeroDivisionError


def test_without_a_terminal_progress_is_a_line_now_and_then_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    drive(True)
    assert LINE_SECS == 30
    assert capsys.readouterr().err == (
        "fastcap: 400/500 samples, 12.5 samples/s, 0:08 left, 1.25 GB/s, bound by disk\n"
        "fastcap: 500 samples in 0:40: 12.5 samples/s, 1.25 GB/s, bound by disk\n"
    )


def test_a_run_that_goes_on_counts_what_was_done_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with open_report(True, 1000, 500, clock) as report:
        clock.secs = 40
        report(counters(375))
    assert capsys.readouterr().err == (
        "fastcap: 875/1000 samples, 9.38 samples/s, 0:13 left, 0.94 GB/s, bound by disk\n"
        "fastcap: 375 samples in 0:40: 9.38 samples/s, 0.94 GB/s, bound by disk\n"
    )


def test_a_run_that_did_nothing_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        drive(True, fails=True)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_progress_is_a_bar_that_begins_where_another_run_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    drive(True, n_before=300)
    drawn = terminal.getvalue()
    assert "300/500" in drawn
    assert "500/500" in drawn
    assert "1.25 GB/s, bound by disk" in drawn
    assert drawn.endswith(
        "fastcap: 200 samples in 0:16: 12.5 samples/s, 1.25 GB/s, bound by disk\n"
    )


def test_a_callable_gets_samples_done_and_expected() -> None:
    seen: list[Any] = []
    drive(lambda done, expected: seen.append((done, expected)), n_before=300)
    assert seen == [(300, 500), (400, 500), (500, 500)]


def test_without_progress_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    drive(False)
    assert capsys.readouterr() == ("", "")


def test_a_progress_of_another_kind_is_refused() -> None:
    message = message_of(ArgumentTypeError, lambda: drive("yes"))
    assert message.startswith("progress must be True, False or a callable")
