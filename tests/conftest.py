"""Fixtures and the summaries that some tests print at the end of a run."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Callable, Iterator

import pytest
import torch

from fastcap.model.forward import forget_compiled, has_compiled

SUMMARIES = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SUMMARIES] = {}
    # Shells start jobs in the background with Ctrl-C ignored, and what is ignored stays so, also in
    # the processes that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for title, text in config.stash[SUMMARIES].items():
        terminalreporter.section(title)
        terminalreporter.write_line(text)


@pytest.fixture
def summary(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Print a titled text at the end of the run."""

    def show(title: str, text: str) -> None:
        request.config.stash[SUMMARIES][title] = text

    return show


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    """Every test starts from the same seed and on one thread, which on small models is faster."""
    torch.manual_seed(0)
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
    if has_compiled():  # what one test compiled is not the next one's affair
        forget_compiled()


@pytest.fixture
def own_timeout() -> None:
    """For a test whose subprocess has a timeout of its own, longer than what ends a stuck test."""
    faulthandler.cancel_dump_traceback_later()
