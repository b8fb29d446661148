"""`fastcap.archive.files.Files` in memory, with one fault at any one of its operations.

A `SimulatedFiles` is one process. Several can share a `Disk`, and live on when others have died.
Every call that can fail is an operation and has a number, counted from 0.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fastcap.archive.files import Entry
from tests.support.disk import DirectoryNode, Disk, FileNode, Loss, fails

ERRORS = ("ENOSPC", "EDQUOT", "EIO", "ESTALE")
CRASHES = ("kill", "power")
KINDS = (*CRASHES, "short", *ERRORS)
_CAPACITY = ("ENOSPC", "EDQUOT")
_TAKES_SPACE = ("make_dir", "create", "write_at", "link", "rename")
_NAMING = ("add_file", "add_directory", "link", "rename", "unlink")


class Crash(BaseException):
    """The process is gone: no handler can do anything to the disk any more."""


@dataclass(frozen=True)
class Fault:
    """What happens at one operation.

    Attributes:
        operation: Its number.
        kind: One of `KINDS`.
        seed: How much of an interrupted operation is done, and what a power cut takes.
        is_lasting: Whether an error goes on until another process begins: a disk that stays full,
            a server that stays away.
    """

    operation: int
    kind: str
    seed: int = 0
    is_lasting: bool = False


@dataclass(frozen=True)
class Effect:
    """What an operation does to a disk, so that a part of it can be done to a copy."""

    verb: str
    arguments: tuple[Any, ...] = ()

    def apply(self, disk: Disk) -> Any:
        return getattr(disk, self.verb)(*self.arguments) if self.verb else None

    def interrupt(self, disk: Disk, loss: Loss) -> None:
        """As much of it as a process had done that was stopped on the way."""
        if self.verb == "write":
            number, offset, data = self.arguments
            n_done = loss.random.choice((0, len(data), loss.random.randint(0, len(data))))
            if n_done:
                disk.write(number, offset, data[:n_done])
        elif self.verb in _NAMING and loss.random.random() < 0.5:
            self.apply(disk)

    def fail(self, disk: Disk, loss: Loss) -> None:
        """What has happened all the same when the call reports an error.

        A call to a server may have been carried out though its answer was lost.
        """
        if self.verb in (
            "sync",
            "close",
            "settle",
        ):  # a server may find the disk full only at the close
            disk.fail_sync(self.arguments[0], loss)
        elif self.verb == "sync_directory":
            disk.fail_sync_directory(self.arguments[0], loss)
        else:
            self.interrupt(disk, loss)


NOTHING = Effect("")
Watch = Callable[[int, str, Effect], None]


def crash(disk: Disk, effect: Effect, kind: str, seed: int) -> Disk:
    """The disk after a crash in the middle of an operation; `disk` stays as it is."""
    after = disk.copy()
    loss = Loss(seed)
    effect.interrupt(after, loss)
    if kind == "power":
        after.cut_power(loss)
    else:
        after.drop_locks()
    return after


class SimulatedFiles:
    """One process's view of a disk; see `fastcap.archive.files.Files`.

    Args:
        disk: Shared with other processes.
        fault: What goes wrong.
        watch: Called before each operation with its number, name and effect.
        log: Where operations are noted; processes that share one are counted together.
        has_locks: Whether the file system knows locks.
        has_links: Whether a file can have two names.
    """

    def __init__(
        self,
        disk: Disk | None = None,
        fault: Fault | None = None,
        watch: Watch | None = None,
        log: list[str] | None = None,
        has_locks: bool = True,
        has_links: bool = True,
    ) -> None:
        self.disk = Disk() if disk is None else disk
        self.fault = fault
        self.log: list[str] = [] if log is None else log
        self.is_dead = False
        self.failures: list[OSError] = []
        self._watch = watch
        self._has_locks = has_locks
        self._has_links = has_links
        self._handles: set[object] = set()

    @property
    def n_operations(self) -> int:
        return len(self.log)

    def kill(self) -> None:
        """End the process: its locks go, what it wrote stays."""
        self.is_dead = True
        self.disk.drop_locks(self._handles)

    @property
    def _live_disk(self) -> Disk:
        if self.is_dead:
            raise Crash
        return self.disk

    # Names

    def make_dir(self, path: Path) -> None:
        self._live_disk.directory_at(path.parent)
        self._do("make_dir", path, Effect("add_directory", (path,)))

    def is_dir(self, path: Path) -> bool:
        self._do("is_dir", path, NOTHING)
        return self.disk.is_directory(path)

    def create(self, path: Path) -> SimulatedFile:
        number = self._do("create", path, Effect("add_file", (path,)))
        handle = SimulatedFile(self, path, number)
        self._handles.add(handle)
        return handle

    def rename(self, source: Path, target: Path) -> None:
        self._do("rename", target, Effect("rename", (source, target)))

    def publish(self, source: Path, target: Path) -> None:
        if self._has_links:
            self._do("link", target, Effect("link", (source, target)))
            self._do("remove", source, Effect("unlink", (source,)))
        elif target.name in self._live_disk.directory_at(target.parent).names:
            raise fails(errno.EEXIST, target)
        else:
            self._do("rename", target, Effect("rename", (source, target)))

    def remove(self, path: Path) -> None:
        self._do("remove", path, Effect("unlink", (path,)))

    def protect(self, path: Path) -> None:
        node = self._live_disk.file_at(path)
        self._do("protect", path, NOTHING)
        node.is_protected = True

    def sync_dir(self, path: Path) -> None:
        disk = self._live_disk
        disk.directory_at(path)
        self._do("sync_dir", path, Effect("sync_directory", (disk.find(path),)))

    def settle(self, path: Path) -> None:
        number = self._live_disk.find(path)
        self._do("settle", path, Effect("settle", (number,)))

    # Reading

    def entries(self, path: Path) -> list[Entry]:
        self._do("entries", path, NOTHING)
        names = self.disk.directory_at(path).names
        return [
            Entry(name, isinstance(node, FileNode), isinstance(node, DirectoryNode))
            for name, node in ((name, self.disk.nodes[names[name]]) for name in sorted(names))
        ]

    def size(self, path: Path) -> int:
        self._do("size", path, NOTHING)
        return len(self.disk.file_at(path).data)

    def read(self, path: Path, n_bytes: int) -> bytes:
        self._do("read", path, NOTHING)
        return bytes(self.disk.file_at(path).data[:n_bytes])

    def blocks(self, path: Path) -> Iterator[memoryview]:
        self._do("blocks", path, NOTHING)
        content = memoryview(bytes(self.disk.file_at(path).data))
        for start in range(0, len(content), 4096):
            yield content[start : start + 4096]

    def tensors(self, path: Path) -> Mapping[str, Tensor]:
        self._do("tensors", path, NOTHING)
        return safetensors.torch.load(bytes(self.disk.file_at(path).data))

    def is_locked(self, path: Path) -> bool | None:
        self._do("is_locked", path, NOTHING)
        node = self.disk.file_at(path)
        return node.holder is not None if self._has_locks else None

    def free_bytes(self, path: Path) -> int | None:
        del path
        return self.disk.n_free

    def machine(self) -> str:
        return self.disk.machine

    # Faults

    def _do(self, name: str, path: Path, effect: Effect) -> Any:
        """Carry an operation out, or the fault that is due."""
        disk = self._live_disk
        number = self.n_operations
        self.log.append(f"{name} {path}")
        if self._watch is not None:
            self._watch(number, name, effect)
            disk = self._live_disk  # whoever watches may have killed this process
        fault = self.fault
        if fault is not None and number == fault.operation and fault.kind in CRASHES:
            self._crash(effect, fault)
        if fault is not None and fault.kind in ERRORS and self._is_due(number, name):
            effect.fail(disk, Loss(fault.seed + number - fault.operation))
            error = fails(getattr(errno, fault.kind), path)
            self.failures.append(error)
            raise error
        return effect.apply(disk)

    def _is_due(self, number: int, name: str) -> bool:
        assert self.fault is not None
        if number == self.fault.operation:
            return True
        if not self.failures or not self.fault.is_lasting:
            return False
        return self.fault.kind not in _CAPACITY or name in _TAKES_SPACE

    def _crash(self, effect: Effect, fault: Fault) -> None:
        loss = Loss(fault.seed)
        effect.interrupt(self.disk, loss)
        self.kill()
        if fault.kind == "power":
            self.disk.cut_power(loss)
        raise Crash

    def _write(self, path: Path, number: int, offset: int, data: bytes) -> int:
        fault = self.fault
        if fault is not None and fault.kind == "short" and fault.operation == self.n_operations:
            data = data[: Loss(fault.seed).random.randint(1, len(data))]
        self._do("write_at", path, Effect("write", (number, offset, data)))
        return len(data)


class SimulatedFile:
    """A file that a simulated process has made; see `fastcap.archive.files.WritableFile`."""

    def __init__(self, files: SimulatedFiles, path: Path, number: int) -> None:
        self._files = files
        self._path = path
        self._number = number
        self._is_open = True

    def write_at(self, offset: int, data: memoryview) -> int:
        self._check_open()
        return self._files._write(self._path, self._number, offset, bytes(data))

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        self._check_open()
        self._files._do("read_at", self._path, NOTHING)
        return bytes(self._node.data[offset : offset + n_bytes])

    def truncate(self, n_bytes: int) -> None:
        self._check_open()
        self._files._do("truncate", self._path, Effect("truncate", (self._number, n_bytes)))

    def behind(self, offset: int) -> None:
        del offset
        self._check_open()
        self._files._do("behind", self._path, NOTHING)

    def sync(self) -> None:
        self._check_open()
        self._files._do("sync", self._path, Effect("sync", (self._number,)))

    def lock(self) -> None:
        self._check_open()
        self._files._do("lock", self._path, NOTHING)
        if not self._files._has_locks:
            return
        if self._node.holder not in (None, self):
            raise fails(errno.EAGAIN, self._path)
        self._node.holder = self

    def close(self) -> None:
        """Gives the lock and the descriptor back even where the call fails, as Linux does."""
        if not self._is_open:
            return
        if self._files.is_dead:
            raise Crash
        self._is_open = False
        if self._node.holder is self:
            self._node.holder = None
        self._files._do("close", self._path, Effect("close", (self._number,)))

    @property
    def _node(self) -> FileNode:
        return self._files.disk.file(self._number)

    def _check_open(self) -> None:
        if not self._is_open:
            raise fails(errno.EBADF, self._path)
