"""A disk with a page cache in front of it, which forgets what nobody has synced.

What the cache holds is what processes see; what the medium holds is what a power cut leaves.
Between two syncs the medium may get any of the unsynced blocks in any order, or parts of them, and
any of the names. Three things are assumed, as SQLite assumes them or as POSIX says:

* a rename is whole: after a power cut it has happened or not;
* bytes that were synced stay when a write next to them, in the same block, is lost (powersafe
  overwrite);
* a synced name is not a synced file, and a synced file has no synced name.

A sync that fails leaves blocks that count as written though the medium may not have them, as Linux
does: the next sync of that file is silent about them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from random import Random

BLOCK_BYTES = 512
ROOT = 0
_ZEROS = bytes(BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Version:
    """A block after one write: its bytes, and which of them the write gave."""

    start: int
    stop: int
    content: bytes


@dataclass(slots=True)
class FileNode:
    """A file: `data` in the cache, `durable` on the medium.

    Attributes:
        dirty: By number of the block, what it was since the last sync, oldest first.
        sizes: The sizes since the last sync.
        lost: Blocks that a failed sync has forgotten.
        holder: Who holds the lock.
    """

    data: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    dirty: dict[int, list[Version]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    holder: object | None = None
    is_protected: bool = False

    def copy(self) -> FileNode:
        return FileNode(
            bytearray(self.data),
            self.durable,
            {number: versions.copy() for number, versions in self.dirty.items()},
            self.sizes.copy(),
            self.lost.copy(),
            self.holder,
            self.is_protected,
        )

    def write(self, offset: int, data: bytes | memoryview) -> None:
        stop = offset + len(data)
        self._resize(max(stop, len(self.data)))
        self.data[offset:stop] = data
        self._note(offset, stop)

    def truncate(self, n_bytes: int) -> None:
        before = len(self.data)
        self._resize(n_bytes)
        if n_bytes < before:
            self._note(n_bytes, before)

    def sync(self) -> None:
        if self.lost:
            self._settle({number: versions[-1].content for number, versions in self.dirty.items()})
        else:
            self.durable = bytes(self.data)
        self.dirty.clear()
        self.sizes.clear()

    def fail_sync(self, loss: Loss) -> None:
        """Some blocks arrive, the others are forgotten; all of them count as written."""
        arrived = {n: v[-1].content for n, v in self.dirty.items() if loss.keeps_name()}
        self.lost |= self.dirty.keys() - arrived.keys()
        self._settle(arrived)
        self.dirty.clear()
        self.sizes.clear()

    def evict(self) -> None:
        """Drop what the cache need not keep; what is read next comes from the medium."""
        for number in self.lost:
            start = number * BLOCK_BYTES
            stop = min(start + BLOCK_BYTES, len(self.data))
            if start < stop:
                self.data[start:stop] = _block_of(self.durable, number)[: stop - start]
        self.lost.clear()

    def after_power_cut(self, loss: Loss) -> bytes:
        """What the medium holds when the power is back."""
        size = loss.pick_size([len(self.durable), *self.sizes])
        n_blocks = -(-size // BLOCK_BYTES)
        content = bytearray(self.durable[:size])
        content.extend(bytes(size - len(content)))
        for number in sorted(self.dirty):
            if number < n_blocks:
                start = number * BLOCK_BYTES
                stop = min(start + BLOCK_BYTES, size)
                block = loss.pick_block(_block_of(self.durable, number), self.dirty[number])
                content[start:stop] = block[: stop - start]
        return bytes(content)

    def _resize(self, n_bytes: int) -> None:
        before = len(self.data)
        if n_bytes < before:
            del self.data[n_bytes:]
        else:
            self.data.extend(bytes(n_bytes - before))
        if n_bytes != before:
            self.sizes.append(n_bytes)

    def _note(self, start: int, stop: int) -> None:
        """Every block between `start` and `stop` has a new version."""
        for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)):
            first = number * BLOCK_BYTES
            inner = max(start - first, 0), min(stop - first, BLOCK_BYTES)
            version = Version(*inner, _block_of(self.data, number))
            self.dirty.setdefault(number, []).append(version)
            self.lost.discard(number)

    def _settle(self, arrived: dict[int, bytes]) -> None:
        durable = bytearray(self.durable[: len(self.data)])
        durable.extend(bytes(len(self.data) - len(durable)))
        for number, content in arrived.items():
            start = number * BLOCK_BYTES
            stop = min(start + BLOCK_BYTES, len(durable))
            if start < stop:
                durable[start:stop] = content[: stop - start]
        self.durable = bytes(durable)


def _block_of(data: bytes | bytearray, number: int) -> bytes:
    start = number * BLOCK_BYTES
    return bytes(data[start : start + BLOCK_BYTES]).ljust(BLOCK_BYTES, b"\0")


@dataclass(slots=True)
class DirectoryNode:
    """Names of a directory, in the cache and on the medium."""

    names: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)

    def copy(self) -> DirectoryNode:
        return DirectoryNode(self.names.copy(), self.durable.copy())


@dataclass(frozen=True, slots=True)
class Renaming:
    """Names that change together: of `(directory, name)`, the node or nothing."""

    changes: tuple[tuple[int, str, int | None], ...]

    def touches(self, directories: set[int]) -> bool:
        return any(directory in directories for directory, _, _ in self.changes)


class Loss:
    """What a power cut takes, from a seed. The first seeds are extremes, the others are drawn.

    0 loses all that is not synced, 1 nothing, 2 keeps names and sizes but no data, 3 data but no
    names.
    """

    ALL = 0
    N_EXTREMES = 4

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.random = Random(seed)

    def keeps_name(self) -> bool:
        if self._seed < self.N_EXTREMES:
            return self._seed in (1, 2)
        return self.random.random() < 0.5

    def pick_size(self, sizes: list[int]) -> int:
        if self._seed < self.N_EXTREMES:
            return sizes[0] if self._seed == 0 else sizes[-1]
        return self.random.choice(sizes)

    def pick_block(self, durable: bytes, versions: list[Version]) -> bytes:
        if self._seed < self.N_EXTREMES:
            return versions[-1].content if self._seed in (1, 3) else durable
        chosen = self.random.randrange(-1, len(versions))
        if chosen < 0:
            return durable
        version = versions[chosen]
        before = versions[chosen - 1].content if chosen else durable
        kind = self.random.choice(("whole", "prefix", "zeros"))
        if kind == "whole":
            return version.content
        cut = self.random.randint(version.start, version.stop)
        rest = before if kind == "prefix" else _ZEROS
        return version.content[:cut] + rest[cut : version.stop] + before[version.stop :]


class Disk:
    """The cache and the medium together; processes share one.

    Attributes:
        machine: Changes when the power is back, as a boot does.
        n_free: What `free_bytes` says.
        version: How many times something changed.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, FileNode | DirectoryNode] = {ROOT: DirectoryNode()}
        self.pending: list[Renaming] = []
        self.boot = 0
        self.n_free = 1 << 30
        self.version = 0
        self._next = 1

    @property
    def machine(self) -> str:
        return f"simulated boot-{self.boot}"

    def copy(self) -> Disk:
        disk = Disk.__new__(Disk)
        disk.nodes = {number: node.copy() for number, node in self.nodes.items()}
        disk.pending = self.pending.copy()
        disk.boot, disk.n_free, disk.version = self.boot, self.n_free, self.version
        disk._next = self._next
        return disk

    # Names

    def find(self, path: PurePath) -> int:
        """The node of a path; `FileNotFoundError`."""
        number = ROOT
        for name in path.parts:
            if name == "/":
                continue
            node = self.nodes[number]
            if not isinstance(node, DirectoryNode):
                raise fails(errno.ENOTDIR, path)
            if name not in node.names:
                raise fails(errno.ENOENT, path)
            number = node.names[name]
        return number

    def file(self, number: int) -> FileNode:
        node = self.nodes[number]
        assert isinstance(node, FileNode)
        return node

    def file_at(self, path: PurePath) -> FileNode:
        node = self.nodes[self.find(path)]
        if not isinstance(node, FileNode):
            raise fails(errno.EINVAL, path)
        return node

    def directory_at(self, path: PurePath) -> DirectoryNode:
        node = self.nodes[self.find(path)]
        if not isinstance(node, DirectoryNode):
            raise fails(errno.ENOTDIR, path)
        return node

    def is_directory(self, path: PurePath) -> bool:
        try:
            return isinstance(self.nodes[self.find(path)], DirectoryNode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def add_file(self, path: PurePath) -> int:
        """`FileExistsError` if the name is taken."""
        return self._add(path, FileNode())

    def add_directory(self, path: PurePath) -> int:
        """`FileExistsError` if the name is taken."""
        return self._add(path, DirectoryNode())

    def _add(self, path: PurePath, node: FileNode | DirectoryNode) -> int:
        self._check_free(path)
        number, self._next = self._next, self._next + 1
        self.nodes[number] = node
        self._change((path, number))
        return number

    def link(self, source: PurePath, target: PurePath) -> None:
        number = self.find(source)
        self._check_free(target)
        self._change((target, number))

    def rename(self, source: PurePath, target: PurePath) -> None:
        self._change((source, None), (target, self.find(source)))

    def unlink(self, path: PurePath) -> None:
        self.file_at(path)
        self._change((path, None))

    def _check_free(self, path: PurePath) -> None:
        if path.name in self.directory_at(path.parent).names:
            raise fails(errno.EEXIST, path)

    def _change(self, *changes: tuple[PurePath, int | None]) -> None:
        found = tuple((self.find(path.parent), path.name, number) for path, number in changes)
        self.pending.append(Renaming(found))
        for directory, name, number in found:
            _set(self._directory(directory).names, name, number)
        self.version += 1

    def _directory(self, number: int) -> DirectoryNode:
        node = self.nodes[number]
        assert isinstance(node, DirectoryNode)
        return node

    # Bytes

    def write(self, number: int, offset: int, data: bytes | memoryview) -> None:
        self.file(number).write(offset, data)
        self.version += 1

    def truncate(self, number: int, n_bytes: int) -> None:
        self.file(number).truncate(n_bytes)
        self.version += 1

    # What is safe

    def sync(self, number: int) -> None:
        self.file(number).sync()
        self.version += 1

    def fail_sync(self, number: int, loss: Loss) -> None:
        self.file(number).fail_sync(loss)
        self.version += 1

    def settle(self, number: int) -> None:
        self.file(number).sync()
        self.file(number).evict()
        self.version += 1

    def close(self, number: int) -> None:
        """Nothing on the way to the disk: closing is not a sync."""

    def sync_directory(self, number: int) -> None:
        """Its names reach the medium, and those that changed together with them."""
        safe = []
        directories = {number}
        for change in reversed(self.pending):
            if change.touches(directories):
                directories.update(directory for directory, _, _ in change.changes)
                safe.append(change)
        self.pending = [change for change in self.pending if change not in safe]
        for change in reversed(safe):
            self._make_durable(change)
        self.version += 1

    def fail_sync_directory(self, number: int, loss: Loss) -> None:
        """Some of the names arrive. The others can still be synced later."""
        mine = [change for change in self.pending if change.touches({number})]
        for change in [change for change in mine if loss.keeps_name()]:
            self.pending.remove(change)
            self._make_durable(change)
        self.version += 1

    def evict(self) -> None:
        """Under memory pressure the cache drops what it believes to be written."""
        for node in self.nodes.values():
            if isinstance(node, FileNode):
                node.evict()

    def drop_locks(self, holders: set[object] | None = None) -> None:
        """The locks of processes that died; of all, by default."""
        for node in self.nodes.values():
            if isinstance(node, FileNode) and (holders is None or node.holder in holders):
                node.holder = None

    def cut_power(self, loss: Loss) -> None:
        """Turn the power off, and on again."""
        for change in self.pending:
            if loss.keeps_name():
                self._make_durable(change)
        self.pending = []
        for number in sorted(self.nodes):
            node = self.nodes[number]
            if isinstance(node, DirectoryNode):
                node.names = node.durable.copy()
            else:
                content = node.after_power_cut(loss)
                self.nodes[number] = FileNode(
                    bytearray(content), content, is_protected=node.is_protected
                )
        self._forget_the_nameless()
        self.boot += 1
        self.version += 1

    def _make_durable(self, change: Renaming) -> None:
        for directory, name, number in change.changes:
            _set(self._directory(directory).durable, name, number)

    def _forget_the_nameless(self) -> None:
        named = {ROOT, *(number for _, number in self.walk())}
        self.nodes = {number: node for number, node in self.nodes.items() if number in named}

    # For judges

    def walk(self, number: int = ROOT, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Every path that processes see, and its node, in order."""
        for name, child in sorted(self._directory(number).names.items()):
            yield f"{prefix}/{name}", child
            if isinstance(self.nodes[child], DirectoryNode):
                yield from self.walk(child, f"{prefix}/{name}")

    def fingerprint(self) -> int:
        """Equal for disks that will answer alike, whatever is done to them."""
        files, directories = [], []
        for number, node in self.nodes.items():
            if isinstance(node, DirectoryNode):
                directories.append((number, tuple(node.names.items()), tuple(node.durable.items())))
                continue
            dirty = tuple((block, tuple(versions)) for block, versions in node.dirty.items())
            files.append(
                (
                    number,
                    bytes(node.data),
                    node.durable,
                    dirty,
                    tuple(node.sizes),
                    frozenset(node.lost),
                    node.is_protected,
                )
            )
        return hash((tuple(directories), tuple(files), tuple(self.pending), self.boot))

    def image(self) -> dict[str, bytes | None]:
        """By path, the bytes that processes see; `None` for directories."""
        image: dict[str, bytes | None] = {}
        for path, number in self.walk():
            node = self.nodes[number]
            image[path] = bytes(node.data) if isinstance(node, FileNode) else None
        return image


def _set(names: dict[str, int], name: str, number: int | None) -> None:
    if number is None:
        names.pop(name, None)
    else:
        names[name] = number


def fails(code: int, path: PurePath | str | None = None) -> OSError:
    """The error of the operating system with this number."""
    if path is None:
        return OSError(code, os.strerror(code))
    return OSError(code, os.strerror(code), str(path))
