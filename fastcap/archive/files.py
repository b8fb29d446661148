"""Every call the archive makes to the operating system.

Nothing else in `fastcap.archive` opens, writes, renames or removes anything, so a simulated file
system can stand in for this one and fail, tear or lose any single call. All errors are `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from torch import Tensor

WRITEBACK_BYTES = 8 << 20
"""Dirty bytes of one file that are put on their way to the disk together."""

_BLOCK_BYTES = 1 << 20
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)
_NO_LOCKS = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
_NO_WRITEBACK = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ESPIPE, errno.EINVAL)


class WritableFile(Protocol):
    """A file that this process has made."""

    def write_at(self, offset: int, data: memoryview) -> int:
        """Write some bytes, at least one of them, and return how many (`pwrite`)."""

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """Read back up to `n_bytes`; fewer at the end of the file (`pread`)."""

    def truncate(self, n_bytes: int) -> None:
        """Make it exactly so long."""

    def behind(self, offset: int) -> None:
        """Bytes before `offset` are not likely to change: start putting them on disk. Not a sync,
        but an error of the disk may be raised here, and then only here.
        """

    def sync(self) -> None:
        """Return when every byte and the length are on disk (`fsync`)."""

    def lock(self) -> None:
        """Hold the file's lock until it is closed or the process ends, where there are locks."""

    def close(self) -> None:
        """Give the descriptor back. May be called twice."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a directory."""

    name: str
    is_file: bool
    is_dir: bool


class Files(Protocol):
    """A file system. Paths are absolute or relative to the working directory; links are not
    followed where a file is read or locked.
    """

    def make_dir(self, path: Path) -> None:
        """Make a directory; `FileExistsError` if the name is taken, `FileNotFoundError` without a
        parent.
        """

    def is_dir(self, path: Path) -> bool:
        """Whether there is a directory, perhaps through a link."""

    def create(self, path: Path) -> WritableFile:
        """Make a file; `FileExistsError` if the name is taken."""

    def rename(self, source: Path, target: Path) -> None:
        """Replaces `target` if there is one."""

    def publish(self, source: Path, target: Path) -> None:
        """Give a file its final name in one step; `FileExistsError` if the name is taken."""

    def remove(self, path: Path) -> None:
        """Remove a file."""

    def protect(self, path: Path) -> None:
        """Take write permission from a file that is complete."""

    def sync_dir(self, path: Path) -> None:
        """Return when the names in a directory are on disk."""

    def settle(self, path: Path) -> None:
        """Put a file that another process wrote on disk, and forget the copy in memory: what is
        read next is what a power cut would leave, also where an earlier sync has failed.
        """

    def entries(self, path: Path) -> list[Entry]:
        """What a directory holds, sorted by name."""

    def size(self, path: Path) -> int:
        """Bytes of a regular file; `OSError` for anything else."""

    def read(self, path: Path, n_bytes: int) -> bytes:
        """The first bytes of a regular file, at most `n_bytes`; `OSError` for anything else."""

    def blocks(self, path: Path) -> Iterator[memoryview]:
        """All bytes of a regular file, in order."""

    def tensors(self, path: Path) -> Mapping[str, Tensor]:
        """The tensors of a safetensors file, mapped where that is possible."""

    def is_locked(self, path: Path) -> bool | None:
        """Whether a live process holds the file's lock; `None` where locks tell nothing."""

    def free_bytes(self, path: Path) -> int | None:
        """Bytes that can still be written there; `None` where unknown."""

    def machine(self) -> str:
        """The machine since its start: within it, a lock that nobody holds means a dead process."""


class _LocalFile:
    def __init__(self, path: Path) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self._started = 0
        self._finished = 0

    def write_at(self, offset: int, data: memoryview) -> int:
        return os.pwrite(self._fd, data, offset)

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        return os.pread(self._fd, n_bytes, offset)

    def truncate(self, n_bytes: int) -> None:
        os.ftruncate(self._fd, n_bytes)

    def behind(self, offset: int) -> None:
        """Start writing a stretch back; wait for the one before it and drop its pages.

        So at most two stretches of each file are dirty, however fast bytes arrive.
        """
        n_bytes = offset - self._started
        if n_bytes < WRITEBACK_BYTES:
            return
        _sync_range(self._fd, self._started, n_bytes, _START)
        if self._finished < self._started:
            length = self._started - self._finished
            _sync_range(self._fd, self._finished, length, _WAIT)
            os.posix_fadvise(self._fd, self._finished, length, os.POSIX_FADV_DONTNEED)
        self._finished, self._started = self._started, offset

    def sync(self) -> None:
        os.fsync(self._fd)

    def lock(self) -> None:
        try:
            # Nobody else writes this file. Who looks whether it is locked holds it for a moment.
            fcntl.flock(self._fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


class LocalFiles:
    """The operating system's files; see `Files`."""

    def make_dir(self, path: Path) -> None:
        path.mkdir()

    def is_dir(self, path: Path) -> bool:
        return path.is_dir()

    def create(self, path: Path) -> WritableFile:
        return _LocalFile(path)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def publish(self, source: Path, target: Path) -> None:
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # Without links, two processes that start at once could both get past the check. What
            # they publish is compared afterwards.
            if target.exists():
                raise FileExistsError(
                    errno.EEXIST, os.strerror(errno.EEXIST), str(target)
                ) from None
            source.rename(target)
        else:
            source.unlink()

    def remove(self, path: Path) -> None:
        path.unlink()

    def protect(self, path: Path) -> None:
        path.chmod(0o444)

    def sync_dir(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def settle(self, path: Path) -> None:
        fd = _open_regular(path)
        try:
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)

    def entries(self, path: Path) -> list[Entry]:
        with os.scandir(path) as found:
            entries = [
                Entry(e.name, e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False))
                for e in found
            ]
        return sorted(entries, key=lambda entry: entry.name)

    def size(self, path: Path) -> int:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return found.st_size

    def read(self, path: Path, n_bytes: int) -> bytes:
        fd = _open_regular(path)
        try:
            parts = []
            while n_bytes > 0 and (part := os.read(fd, min(n_bytes, _BLOCK_BYTES))):
                parts.append(part)
                n_bytes -= len(part)
        finally:
            os.close(fd)
        return b"".join(parts)

    def blocks(self, path: Path) -> Iterator[memoryview]:
        block = bytearray(_BLOCK_BYTES)
        fd = _open_regular(path)
        try:
            while n_read := os.readv(fd, [block]):
                yield memoryview(block)[:n_read]
        finally:
            os.close(fd)

    def tensors(self, path: Path) -> Mapping[str, Tensor]:
        from safetensors import safe_open

        with safe_open(path, framework="pt", device="cpu") as shard:
            return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118

    def is_locked(self, path: Path) -> bool | None:
        fd = _open_regular(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return None
        finally:
            os.close(fd)
        return False

    def free_bytes(self, path: Path) -> int | None:
        try:
            found = os.statvfs(path)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize

    def machine(self) -> str:
        # A name that is not UTF-8 has lone surrogates, which no journal may have.
        return f"{socket.gethostname().encode(errors='replace').decode()} {_boot_id()}"


def _open_regular(path: Path) -> int:
    # Without O_NONBLOCK, opening a named pipe that somebody has put there would never return.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "it is a link, which is not followed", str(path)) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


@lru_cache(maxsize=1)
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


_START = 2  # SYNC_FILE_RANGE_WRITE
_WAIT = 1 | 2 | 4  # with WAIT_BEFORE and WAIT_AFTER


@lru_cache(maxsize=1)
def _sync_file_range() -> ctypes._NamedFuncPointer | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
    if function is not None:
        function.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return function


def _sync_range(fd: int, offset: int, n_bytes: int, flags: int) -> None:
    """Write pages back early; only `sync` makes them safe.

    A failed write that this call reports is not reported again by `fsync`, so it must be raised.
    """
    function = _sync_file_range()
    if function is not None and function(fd, offset, n_bytes, flags) != 0:
        code = ctypes.get_errno()
        if code not in _NO_WRITEBACK:
            raise OSError(code, os.strerror(code))
