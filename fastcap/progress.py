"""Progress of a long run: a tqdm bar, log lines, or the caller's callback."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from fastcap.errors import ArgumentTypeError, MissingExtraError
from fastcap.rates import Counters, Rates, clock_time

if TYPE_CHECKING:
    from tqdm import tqdm

Progress: TypeAlias = bool | Callable[[int, int | None], object]
"""`True` for a bar, or a callable given the samples done and the samples expected."""

LINE_SECS = 30.0
"""Between two lines of progress where there is no terminal to draw a bar on."""

Report: TypeAlias = Callable[[Counters], object]
"""Gets what this run has done by now."""

Show: TypeAlias = Callable[[int, Rates], object]
"""Gets the samples done, those of earlier runs included, and how fast this run is."""


@contextlib.contextmanager
def open_progress(progress: Progress, n_expected: int | None) -> Iterator[Callable[[int], object]]:
    """A function to call with the number of samples done.

    `True` is a bar on a terminal or in a notebook, and nothing where neither is there.

    Raises:
        MissingExtraError: A bar was asked for, and tqdm is not installed.
        ArgumentTypeError: Neither a bool nor a callable.
    """
    if callable(progress):
        report = progress
        yield lambda n_done: report(n_done, n_expected)
    elif progress is True:
        with _bar(n_expected, is_hidden=not _can_draw()) as bar:
            yield lambda n_done: bar.update(n_done - bar.n)
    elif progress is False or progress is None:
        yield lambda n_done: None
    else:
        raise ArgumentTypeError(
            "progress must be True, False or a callable given the samples done and expected; "
            f"got {progress!r}."
        )


def _can_draw() -> bool:
    """Whether there is a terminal or a notebook; a notebook's standard error is no terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


def _bar(n_expected: int | None, n_before: int = 0, is_hidden: bool = False) -> tqdm[Any]:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingExtraError(
            "progress=True needs tqdm: pip install 'torch-fastcap[cli]'. Or pass a callable."
        ) from error
    return tqdm(
        total=n_expected, initial=n_before, unit="sample", desc="fastcap", disable=is_hidden
    )


@contextlib.contextmanager
def open_report(
    progress: Progress,
    n_expected: int | None,
    n_before: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Report]:
    """As `open_progress`, for runs that know their rates and may go on where another stopped.

    `True` is a bar on a terminal or in a notebook, and else a line every 30 seconds; at the
    end, also after an error, it is a line with the rates of the whole run.

    Args:
        progress: What the caller passed.
        n_expected: Samples of the whole run; `None` if unknown.
        n_before: Samples that were done before this run began.
        clock: Seconds that only grow.

    Returns:
        A function to call with this run's counters.

    Raises:
        MissingExtraError: A bar was asked for, and tqdm is not installed.
        ArgumentTypeError: Neither a bool nor a callable.
    """
    if progress is not True:
        with open_progress(progress, n_expected) as advance:
            yield lambda done: advance(n_before + done.n_samples)
        return
    rates = Rates(None if n_expected is None else n_expected - n_before, clock=clock)
    show_context = _drawing(n_expected, n_before) if _can_draw() else _writing(n_expected)

    def report(done: Counters) -> None:
        rates.update(done)
        show(n_before + done.n_samples, rates)

    try:
        with show_context as show:
            yield report
    finally:
        if rates.secs > 0:
            _say(f"{rates.n_samples} samples in {clock_time(rates.secs)}: {rates.overall.rates}")


@contextlib.contextmanager
def _drawing(n_expected: int | None, n_before: int) -> Iterator[Show]:
    with _bar(n_expected, n_before) as bar:

        def draw(n_done: int, rates: Rates) -> None:
            bar.set_postfix_str(rates.recent.postfix, refresh=False)
            bar.update(n_done - bar.n)

        yield draw


@contextlib.contextmanager
def _writing(n_expected: int | None) -> Iterator[Show]:
    of_all = "" if n_expected is None else f"/{n_expected}"
    next_secs = LINE_SECS

    def write(n_done: int, rates: Rates) -> None:
        nonlocal next_secs
        if rates.secs >= next_secs:
            next_secs = rates.secs + LINE_SECS
            _say(f"{n_done}{of_all} samples, {rates.recent}")

    yield write


def _say(line: str) -> None:
    sys.stderr.write(f"fastcap: {line}\n")
    sys.stderr.flush()
