"""Who makes the values: versions and hardware, which other ones may round differently."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch


def describe_creator(device_name: str) -> dict[str, str]:
    """Who makes the values: versions and hardware. Other ones may round differently.

    Args:
        device_name: What the model runs on, such as `"NVIDIA H200"`; see `device_name`.
    """
    from fastcap import __version__

    return {
        "fastcap": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name,
    }


def device_name(device: torch.device) -> str:
    """What rounding depends on: of a CPU also its instructions, and the threads that share sums."""
    if device.type == "cpu":
        instructions = torch.backends.cpu.get_cpu_capability()
        return f"{_processor_name()} with {instructions}, threads: {torch.get_num_threads()}"
    name: str = getattr(torch.get_device_module(device), "get_device_name", str)(device)
    return name


@cache
def _processor_name() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:  # not Linux
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
