"""The stand-in's counters and switches, for tests; `is_here()` says whether there are any."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

ILLEGAL_ADDRESS = 700
"""cudaErrorIllegalAddress: what a kernel that wrote outside its memory leaves behind."""

MODES = {"random": 0, "lazy": 1, "eager": 2, "free": 3}


def is_here() -> bool:
    """Whether this process runs on the stand-in."""
    return "STANDIN_CUDA_LIBRARY" in os.environ


@cache
def library() -> ctypes.CDLL:
    """The runtime, which is loaded already."""
    runtime = ctypes.CDLL(os.environ["STANDIN_CUDA_LIBRARY"])
    for name in ("count", "uses", "pending", "unknown_kernels"):
        getattr(runtime, f"standin_{name}").restype = ctypes.c_long
    runtime.standin_count.argtypes = [ctypes.c_char_p]
    return runtime


def reseed(seed: int, mode: str = "random") -> None:
    """How streams advance from here on."""
    library().standin_reseed(seed % (1 << 31), MODES[mode])


def count(name: str) -> int:
    """How often a function of the runtime was called, or one of the cases that have no function:
    `copies from pageable memory`, `copies to pageable memory`, `operators`, `kernel launch`.
    """
    return int(library().standin_count(name.encode()))


def uses(device: int) -> int:
    """How many calls were made by threads whose current device this was."""
    return int(library().standin_uses(device))


def pending() -> int:
    """Operations that no stream has come to yet."""
    return int(library().standin_pending())


def unknown_kernels() -> int:
    """How many kernels of torch were launched that the stand-in cannot run."""
    return int(library().standin_unknown_kernels())


@contextmanager
def broken(error: int = ILLEGAL_ADDRESS) -> Iterator[None]:
    """Every call fails with a sticky error in this block."""
    library().standin_break(error)
    try:
        yield
    finally:
        library().standin_break(0)
