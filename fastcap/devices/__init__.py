"""Devices: everything the engine asks of an accelerator, and the implementations."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from fastcap.devices.accelerator import AcceleratorDevice
from fastcap.devices.base import AnyDevice
from fastcap.devices.cpu import SynchronousDevice

_substitutes: list[Callable[[torch.device], AnyDevice | None]] = []


def open_device(torch_device: torch.device) -> AnyDevice:
    """The device for tensors on `torch_device`, with counters of its own."""
    for substitute in reversed(_substitutes):
        device = substitute(torch_device)
        if device is not None:
            return device
    if torch_device.type in ("cpu", "mps"):
        return SynchronousDevice(torch_device)
    return AcceleratorDevice(torch_device)


@contextlib.contextmanager
def substitute(make: Callable[[torch.device], AnyDevice | None]) -> Iterator[None]:
    """Have `open_device` ask `make` first: how a simulated device takes the CPU's place."""
    _substitutes.append(make)
    try:
        yield
    finally:
        _substitutes.remove(make)
