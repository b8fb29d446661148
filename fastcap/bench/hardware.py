"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from fastcap.devices.accelerator import describe


@dataclass(frozen=True, slots=True)
class Machine:
    """The hardware, and the settings of it that move the figures.

    Attributes:
        cpu: The processor's name.
        n_cores: Cores this process may run on.
        memory_bytes: Host memory.
        huge_pages: The kernel's rule for transparent huge pages.
        gpu: The accelerator's name; `None` where the workload uses none.
        gpu_memory_bytes: Its memory; `None` where torch does not say.
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


def describe_machine(device: torch.device | str) -> Machine:
    """The machine that this runs on, with the accelerator that `device` names."""
    gpu, gpu_memory_bytes = None, None
    if torch.device(device).type != "cpu":
        gpu, gpu_memory_bytes = describe(torch.device(device))
    return Machine(
        cpu=_find("/proc/cpuinfo", r"model name\s*: (.+)") or platform.machine(),
        n_cores=_count_cores(),
        memory_bytes=int(_find("/proc/meminfo", r"MemTotal:\s*(\d+)") or 0) * 1024,
        huge_pages=_find("/sys/kernel/mm/transparent_hugepage/enabled", r"\[(\w+)\]") or "unknown",
        gpu=gpu,
        gpu_memory_bytes=gpu_memory_bytes,
    )


def _count_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _find(path: str, pattern: str) -> str | None:
    try:
        match = re.search(pattern, Path(path).read_text())
    except OSError:  # not this kind of system: the field says so
        return None
    return match[1].strip() if match else None
