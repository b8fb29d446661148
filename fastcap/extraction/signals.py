"""How a long run is stopped: signals become a flag, which the run looks at between passes."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fastcap.warn import warn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; what schedulers send before they kill; what they send as an early warning."""


class Interruption:
    """While it is entered, a first signal only sets a flag; a second raises `KeyboardInterrupt`.

    The second puts the old handlers back before it raises, wherever that interrupts the run.

    Signals that the process ignores stay ignored (`nohup`, jobs in the background), and so do
    handlers that Python cannot put back. In threads other than the main one nothing is changed,
    since Python runs handlers in the main thread only.

    Attributes:
        signal: The first signal that came; `None` if none did.

    Examples:
        >>> import signal
        >>> with Interruption() as interruption:
        ...     signal.raise_signal(signal.SIGTERM)  # the run finishes its pass
        >>> interruption.is_asked
        True
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._old: dict[signal.Signals, Any] = {}

    @property
    def is_asked(self) -> bool:
        """Whether the run should commit what is complete and stop."""
        return self.signal is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                old = signal.getsignal(number)
                if old not in (None, signal.SIG_IGN):
                    self._old[number] = old
                    signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._put_back()

    def _put_back(self) -> None:
        # SIGINT last, whose handler does the same.
        for number, old in reversed(self._old.items()):
            signal.signal(number, old)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            self._put_back()
            raise KeyboardInterrupt(
                f"{signal.Signals(number).name} after {self.signal.name}: stopped at once."
            )
        self.signal = signal.Signals(number)

    def end(self, path: str | os.PathLike[str], n_saved: int, n_samples: int | None) -> None:
        """End the run that was asked to stop; does nothing if none was. Call it after the commit.

        Args:
            path: The archive.
            n_saved: Samples that are committed there, those of earlier runs included.
            n_samples: Samples of the whole run; `None` if unknown.

        Raises:
            KeyboardInterrupt: The signal was SIGINT. The text says what is saved and how to go on.
            SystemExit: It was another one; the code is 128 + signal, and the text is a warning.
        """
        if self.signal is None:
            return
        of_all = "" if n_samples is None else f" of {n_samples}"
        text = (
            f"Stopped by {self.signal.name}: {n_saved}{of_all} samples are saved in "
            f"{os.fspath(path)!r}. To go on with the rest, run the same again."
        )
        if self.signal is signal.SIGINT:
            raise KeyboardInterrupt(text)
        warn(text)
        raise SystemExit(128 + self.signal)


def leave_signals_to_parent(worker: int) -> None:
    """For `worker_init_fn` of a `DataLoader`: let the process that started the worker decide.

    A terminal and a scheduler signal every process of a group. A worker that ended at once would
    fail the pass that the run wants to finish.

    Args:
        worker: The number of the worker, which does not matter.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
