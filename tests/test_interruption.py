"""Signals during a long run: one sets a flag, two stop it, and the old handlers come back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from fastcap import FastcapWarning
from fastcap.extraction.signals import SIGNALS, Interruption, leave_signals_to_parent


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Whatever a test does, the handlers of the test run come back."""
    old = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_one_signal_sets_the_flag_and_the_block_runs_on(number: signal.Signals) -> None:
    reached = False
    with Interruption() as interruption:
        assert not interruption.is_asked
        signal.raise_signal(number)
        reached = True
    assert reached
    assert interruption.is_asked
    assert interruption.signal is number


def test_a_second_signal_stops_at_once() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
    assert str(caught.value) == "SIGINT after SIGTERM: stopped at once."
    assert interruption.signal is signal.SIGTERM


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_old_handler_comes_back_also_after_an_error(number: signal.Signals) -> None:
    seen = []
    signal.signal(number, lambda n, frame: seen.append(n))
    old = signal.getsignal(number)
    inside = None
    with contextlib.suppress(ZeroDivisionError), Interruption():
        inside = signal.getsignal(number)
        raise ZeroDivisionError
    assert inside != old
    assert signal.getsignal(number) is old
    signal.raise_signal(number)
    assert seen == [number]


def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    assert not interruption.is_asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_in_another_thread_handlers_are_left_alone() -> None:
    old = [signal.getsignal(number) for number in SIGNALS]
    found: list[Any] = []

    def run() -> None:
        with Interruption() as interruption:
            found.extend(signal.getsignal(number) for number in SIGNALS)
            found.append(interruption.is_asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [*old, False]


def test_without_a_signal_the_end_is_no_end() -> None:
    with Interruption() as interruption:
        pass
    interruption.end("acts", 3, 10)


def test_ctrl_c_ends_with_a_keyboard_interrupt_that_says_what_is_saved() -> None:
    with Interruption() as interruption:
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        interruption.end("acts", 120, 500)
    assert str(caught.value) == (
        "Stopped by SIGINT: 120 of 500 samples are saved in 'acts'. To go on with the rest, run "
        "the same again."
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_other_signals_end_with_their_exit_code_and_a_warning(
    number: signal.Signals, code: int
) -> None:
    with Interruption() as interruption:
        signal.raise_signal(number)
    expected = f"Stopped by {number.name}: 0 samples are saved in 'acts'. To go on"
    with pytest.warns(FastcapWarning, match=expected), pytest.raises(SystemExit) as caught:
        interruption.end("acts", 0, None)
    assert caught.value.code == code


PROGRAM = """
import os, signal, sys
from fastcap.extraction.signals import Interruption
with Interruption() as interruption:
    print("ready", flush=True)
    while not interruption.is_asked:
        signal.pause()
    print("committed", flush=True)
interruption.end("acts", 5, 9)
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)],
)
def test_a_process_commits_and_says_how_to_go_on(number: signal.Signals, code: int) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert out == b"committed\n"
    assert f"Stopped by {number.name}: 5 of 9 samples are saved in 'acts'.".encode() in err
    # Python dies of SIGINT itself after a KeyboardInterrupt; shells count that as 130.
    assert process.returncode == code


class SignalsItsWorker:
    """A dataset during which its own worker receives what a terminal sends to a whole group."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        for number in SIGNALS:
            os.kill(os.getpid(), number)
        return index


def test_workers_leave_signals_to_the_process_that_started_them() -> None:
    dataset: Any = SignalsItsWorker()
    loader: DataLoader[Any] = DataLoader(
        dataset, num_workers=1, worker_init_fn=leave_signals_to_parent, timeout=60
    )
    assert [int(batch) for batch in loader] == [0, 1, 2, 3]
