"""Host memory: how much is available, and how to allocate it with cheap first touches."""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.errors import HostMemoryError
from fastcap.formatting import format_bytes


def available_bytes(root: Path = Path("/")) -> int | None:
    """Bytes that can still be allocated without swapping or being killed; `None` where unknown.

    The smallest of what the kernel says is available and what is left of every memory limit that
    a control group (version 1 or 2) sets on this process or one of its ancestors. Page cache that
    a group can drop counts as free.

    Args:
        root: Where `proc` and `sys` are found; a test gives a directory of its own.
    """
    found = [_kernel_available(root), *_group_headrooms(root)]
    known = [n_bytes for n_bytes in found if n_bytes is not None]
    return max(0, min(known)) if known else None


def _kernel_available(root: Path) -> int | None:
    for line in _read_lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _group_headrooms(root: Path) -> list[int | None]:
    headrooms: list[int | None] = []
    for line in _read_lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mount, files = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = mount / path.lstrip("/")
        # In a container the path may be the host's and absent here: its ancestors still hold.
        for directory in (group, *group.parents):
            headrooms.append(_headroom(directory, *files))
            if directory == mount:
                break
    return headrooms


def _headroom(directory: Path, limit_file: str, usage_file: str, cache_field: str) -> int | None:
    limit, usage = _read_int(directory / limit_file), _read_int(directory / usage_file)
    if limit is None or usage is None:
        return None
    cache = 0
    for line in _read_lines(directory / "memory.stat"):
        if line.startswith(cache_field + " "):
            cache = int(line.split()[1])
    return limit - usage + cache


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not this kind of system, or hidden from this process: nothing to learn
        return []


def _read_int(path: Path) -> int | None:
    lines = _read_lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None  # "max" means no limit


def empty_bytes(n_bytes: int) -> Tensor:
    """A fresh, uninitialised uint8 tensor of `n_bytes` in ordinary host memory.

    NumPy asks the kernel for huge pages and torch does not: first touch through NumPy's memory ran
    3.6 times as fast where this was measured (docs/design/host-memory.md).

    Raises:
        HostMemoryError: The operating system refused the memory.
    """
    try:
        array = np.empty(n_bytes, dtype=np.uint8)
    except MemoryError as error:
        raise HostMemoryError(
            f"Cannot allocate {format_bytes(n_bytes)} of host memory. Select fewer positions or "
            "sites, narrow with dtype=, or lower max_samples."
        ) from error
    return bytes_tensor(array)


def bytes_tensor(array: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> Tensor:
    """A normal (never an inference-mode) tensor over an array's memory, with a storage of its own.

    The storage keeps the array alive through every view, NumPy view and saved tensor; a finalizer
    on the array therefore runs when the last of them is gone (R6).
    """
    with normal_mode():
        return torch.from_numpy(array)


_NOTHING = nullcontext()


def normal_mode() -> AbstractContextManager[Any]:
    """What is made in the block is a normal tensor (R10); free outside inference mode."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else _NOTHING


def _give_back(buffers_ref: weakref.ref[HostBuffers], memory: Tensor) -> None:
    buffers = buffers_ref()
    if buffers is not None:
        buffers.take_returned(memory)


class HostBuffers:
    """Ordinary host memory for owned results, used again when nobody holds it.

    Fresh memory costs a page fault per page on first touch, several times the copy itself, so what
    comes back is kept, up to `limit_bytes`, for later values of about its size. Safe to call from
    any thread.

    Attributes:
        limit_bytes: Most that is kept.
        keeps: Whether what comes back is kept; set it to `False` when no more is asked for.
    """

    SMALLEST_BYTES = 1 << 18  # guessed: below this an allocation is cheaper than the bookkeeping

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.keeps = True
        self._lock = threading.Lock()
        self._returned: queue.SimpleQueue[Tensor] = queue.SimpleQueue()
        self._idle: deque[Tensor] = deque()
        self._idle_bytes = 0

    def tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised, contiguous CPU tensor whose storage is exactly its own.

        Raises:
            HostMemoryError: The operating system refused the memory.
        """
        n_bytes = prod(shape) * dtype.itemsize
        with normal_mode():  # R10
            if n_bytes < self.SMALLEST_BYTES:
                return torch.empty(shape, dtype=dtype, device="cpu")
            memory = self._take(n_bytes)
            array = memory.numpy()[:n_bytes]
            weakref.finalize(array, _give_back, weakref.ref(self), memory).atexit = False
            return bytes_tensor(array).view(dtype).view(shape)

    def take_returned(self, memory: Tensor) -> None:
        """Runs in a finalizer, on any thread and at any moment: no lock. When many are dropped at
        once, most go to the system.
        """
        if self.keeps and self._returned.qsize() * memory.numel() < self.limit_bytes:
            self._returned.put(memory)

    def _take(self, n_bytes: int) -> Tensor:
        with self._lock:
            self._collect_returned()
            for memory in self._idle:
                if n_bytes <= memory.numel() <= n_bytes + n_bytes // 4:
                    rest = deque(other for other in self._idle if other is not memory)
                    self._idle, self._idle_bytes = rest, self._idle_bytes - memory.numel()
                    return memory
        return empty_bytes(n_bytes)

    def _collect_returned(self) -> None:
        while not self._returned.empty():
            self._idle.append(self._returned.get())
        self._idle_bytes = sum(memory.numel() for memory in self._idle)
        while self._idle_bytes > self.limit_bytes:
            self._idle_bytes -= self._idle.popleft().numel()

    def idle_bytes(self) -> int:
        """Memory that is kept for later."""
        with self._lock:
            self._collect_returned()
            return self._idle_bytes

    def trim(self) -> None:
        """Give all idle memory back to the system."""
        with self._lock:
            self._collect_returned()
            self._idle, self._idle_bytes = deque(), 0
