"""Sees the model's own reads and writes, which decide whether a pack is ordered after them."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Memory:
    """One allocation of the model's, told apart from a later one at the same address."""

    __slots__ = ("n_bytes", "name")

    def __init__(self, name: str, n_bytes: int) -> None:
        self.name = name
        self.n_bytes = n_bytes


class Allocations:
    """Knows the storages behind the model's tensors by address *and* serial number."""

    def __init__(self) -> None:
        self._by_address: dict[int, Memory] = {}
        self._freed: SimpleQueue[int] = SimpleQueue()
        self._serial = 0

    def of(self, tensor: Tensor) -> Memory:
        """The allocation a tensor lies in."""
        self._forget_freed()
        storage = tensor.untyped_storage()
        address = storage._cdata
        memory = self._by_address.get(address)
        if memory is None:
            self._serial += 1
            memory = Memory(f"model memory {self._serial}", storage.nbytes())
            self._by_address[address] = memory
            weakref.finalize(storage, self._freed.put, address).atexit = False
        return memory

    def _forget_freed(self) -> None:
        while not self._freed.empty():
            del self._by_address[self._freed.get()]


class ModelWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports every operator's reads and writes to `report(label, tensor, is_write)`."""

    def __init__(self, report: Callable[[str, Tensor, bool], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report
        self._muted = threading.local()

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """The device's own operations are not the model's."""
        before = getattr(self._muted, "on", False)
        self._muted.on = True
        try:
            yield
        finally:
            self._muted.on = before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(self._muted, "on", False):
            return func(*args, **kwargs)
        for argument, value in _pair(func, args, kwargs):
            alias = argument.alias_info
            if alias is None or alias.is_write:
                for tensor in _tensors(value):
                    self._report(str(func), tensor, alias is not None)
        result = func(*args, **kwargs)
        for returned, value in zip(func._schema.returns, _as_tuple(result), strict=False):
            if returned.alias_info is None:
                for tensor in _tensors(value):
                    self._report(str(func), tensor, True)
        return result


def _pair(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    for position, argument in enumerate(func._schema.arguments):
        if position < len(args):
            yield argument, args[position]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def _as_tuple(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, list | tuple) else (result,)
