"""What a hook costs the host: microseconds per site, above the same model without hooks.

    python -m benchmarks.hook_cost [--rounds 300] [--out benchmarks/results]

The model is a row of modules that return what they are given, so nothing but hooks takes time. All
ways alternate, a few passes each, and each is held against the hookless passes of its own round;
figures are medians of the rounds with their 95 % interval. Values are tiny: what is left of a copy
is its call.

"staged" is the lane of accelerators on a device whose packs and copies cost nothing, or whose packs
are copies in host memory: what a launch costs the host is the driver's affair and not measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_checkout, describe_machine
from benchmarks.timing import rotated
from fastcap import ActivationStore, devices
from fastcap.devices.cpu import SynchronousDevice

N_SITES = 32
N_PASSES = 4  # of one way in one round: about a millisecond
SHAPE = (1, 1, 64)  # of a step of decoding
HOOKLESS, EMPTY = "hookless", "empty hook"


class Same(nn.Module):
    """Returns what it is given."""

    def forward(self, acts: Tensor) -> Tensor:
        return acts


class Row(nn.Module):
    """Calls one module after another."""

    def __init__(self, n_modules: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Same() for _ in range(n_modules))

    def forward(self, acts: Tensor) -> Tensor:
        for layer in self.layers:
            acts = layer(acts)
        return acts


class Staging(SynchronousDevice):
    """An accelerator whose queues are the host: packs are copies in host memory."""

    direct = False


class FreeStaging(Staging):
    """One where nothing is moved at all."""

    def pack(self, *args: Any) -> None:
        pass

    def copy(self, *args: Any) -> None:
        pass


Hooks = Callable[[Row, Sequence[str]], AbstractContextManager[Any]]
"""Puts hooks on some modules of a model, for the length of a block."""


def no_hooks(model: Row, sites: Sequence[str]) -> AbstractContextManager[None]:
    return nullcontext()


def plain_hooks(read: Callable[[Tensor], Any], model: Row, sites: Sequence[str]) -> ExitStack:
    """What one writes by hand: a dict that is filled by hooks."""
    found: dict[str, Any] = {}

    def hook_for(site: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            found[site] = read(output)

        return hook

    stack = ExitStack()
    for site in sites:
        handle = model.get_submodule(site).register_forward_hook(hook_for(site))
        stack.callback(handle.remove)
    return stack


def empty_hooks(model: Row, sites: Sequence[str]) -> ExitStack:
    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        pass

    stack = ExitStack()
    for site in sites:
        stack.callback(model.get_submodule(site).register_forward_hook(hook).remove)
    return stack


def store(
    model: Row, sites: Sequence[str], device: type[SynchronousDevice] | None = None, **options: Any
) -> ActivationStore:
    found = ActivationStore(model, list(sites), **options)
    substitute = devices.substitute(lambda at: None if device is None else device(at))
    with substitute, found._engine_opened(model):
        return found


WAYS: Mapping[str, Hooks] = {
    HOOKLESS: no_hooks,
    EMPTY: empty_hooks,
    ".detach().cpu()": partial(plain_hooks, lambda acts: acts.detach().cpu()),
    ".detach().clone()": partial(plain_hooks, lambda acts: acts.detach().clone()),
}
