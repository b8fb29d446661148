"""The life of one writer: a file call that fails ends it, with an error that says what is safe."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from fastcap.archive.files import Files
from fastcap.errors import ArchiveError, ArchiveWriteError
from fastcap.formatting import format_bytes


class Guard:
    """Every file call of a writer runs inside its guard, on whatever thread.

    A file system that has failed once cannot be asked again: a second `fsync` of the same file may
    report success for bytes that the first one lost. So the first error is the last call.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._failure: tuple[int | None, str] | None = None
        self.pid = os.getpid()
        self.n_saved = 0
        self.written_bytes = 0
        self.write_secs = 0.0

    def count(self, n_bytes: int, secs: float) -> None:
        """Note a write of values."""
        with self._lock:
            self.written_bytes += n_bytes
            self.write_secs += secs

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def check(self) -> None:
        """Raise unless the writer may go on.

        Raises:
            ArchiveError: It has failed, or belongs to another process.
        """
        if self._failure is not None:
            raise ArchiveWriteError(*self._failure)
        if os.getpid() != self.pid:
            raise ArchiveError(
                "This writer belongs to the process that made it, and this is a fork of that. Open "
                "the archive again here."
            )

    def fail(self, code: int | None, message: str) -> None:
        """The writer is dead from now on; the first message stays."""
        with self._lock:
            self._failure = self._failure or (code, message)

    @contextlib.contextmanager
    def __call__(
        self,
        doing: str,
        path: Path,
        offset: int | None = None,
        allow: tuple[type[OSError], ...] = (),
    ) -> Iterator[None]:
        """File calls in the block are `doing` something to `path`.

        Raises:
            ArchiveWriteError: One of them failed. Those to `allow` are raised as they are.
        """
        self.check()
        try:
            yield
        except allow:
            raise
        except OSError as error:
            message = self._describe(doing, path, offset, error)
            self.fail(error.errno, message)
            raise ArchiveWriteError(error.errno, message) from error

    def _describe(self, doing: str, path: Path, offset: int | None, error: OSError) -> str:
        where = str(path) if offset is None else f"{path} at byte {offset}"
        free = self._files.free_bytes(path.parent)
        space = "" if free is None else f", {format_bytes(free)} free there"
        return (
            f"{doing} {where} failed: {error.strerror or error}{space}. Everything committed "
            f"before is intact (samples of this run: {self.n_saved}). Once the cause is gone, run "
            "the same extraction again: it goes on from there."
        )
