"""Host memory: how much may still be taken, and how to take it so that first touches are cheap."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcap.errors import HostMemoryError


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
    """What is made in the block is no inference-mode tensor (R10); free outside inference mode."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else _NOTHING


def format_bytes(n_bytes: float) -> str:
    """Bytes for people, in powers of 1000: `format_bytes(2_150_000_000) == "2.15 GB"`."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if n_bytes < 999.5 or unit == "EB":  # 999.5 would be shown as 1000
            break
        n_bytes /= 1000
    return f"{n_bytes:,.0f} {unit}" if unit == "B" or n_bytes >= 999.5 else f"{n_bytes:.3g} {unit}"
