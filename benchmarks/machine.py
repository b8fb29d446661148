"""What a result was measured on, and which code it measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = "benchmarks/results"


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware, and the settings of it that move the figures.

    Attributes:
        cpu: The processor's name.
        n_cores: Cores this process may run on.
        memory_bytes: Host memory.
        huge_pages: The kernel's rule for transparent huge pages.
        gpu: The accelerator's name; `None` where the workload uses none.
        gpu_memory_bytes: Its memory.
    """

    cpu: str
    n_cores: int
    memory_bytes: int
    huge_pages: str
    gpu: str | None = None
    gpu_memory_bytes: int | None = None

    @property
    def tag(self) -> str:
        """A short name for files: `amd-epyc-2-cores`, `nvidia-h200`."""
        name = self.gpu or f"{self.cpu} {self.n_cores} cores"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe_machine(device: str) -> Machine:
    gpu, gpu_memory_bytes = None, None
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu, gpu_memory_bytes = properties.name, properties.total_memory
    return Machine(
        cpu=_find("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine(),
        n_cores=len(os.sched_getaffinity(0)),
        memory_bytes=int(_find("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) * 1024,
        huge_pages=_find("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]") or "unknown",
        gpu=gpu,
        gpu_memory_bytes=gpu_memory_bytes,
    )


def _find(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:  # not this kind of system: the field says so
        return None
    return match[1].strip() if match else None


@dataclass(frozen=True, slots=True)
class Checkout:
    """The code that was measured.

    Attributes:
        commit: Its full hash; `None` outside a git checkout.
        changes: Paths that differ from it, beside results.
    """

    commit: str | None
    changes: tuple[str, ...] = ()


def describe_checkout(root: Path = PROJECT) -> Checkout:
    """The commit of `root`, and what differs from it. Results may be new: they are no code."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return Checkout(None)
    status = _git(root, "status", "--porcelain", "--", ".", f":(exclude){RESULTS}") or ""
    return Checkout(commit.strip(), tuple(line[3:] for line in status.splitlines()))


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # a machine without git is outside any checkout
        return None
    return done.stdout if done.returncode == 0 else None
