"""Models whose modules return what a script says: any shape, dtype, layout and wrapping."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
N_LEAVES = 4
LEAVES = [f"leaves.{i}" for i in range(N_LEAVES)]


DTYPES = [
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.bool,
    torch.complex64,
]
LAYOUTS = [
    "contiguous",
    "contiguous",
    "transposed",
    "sliced",
    "expanded",
    "channels last",
    "conjugate",
    "negative",
]
WRAPPINGS = [*["tensor"] * 7, "tuple", "list", "dict", "nothing"]


@dataclass(frozen=True)
class Value:
    """What a module returns: bytes from a seed, in some shape, dtype, layout and wrapping."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    wrapping: str
    seed: int

    @property
    def is_view(self) -> bool:
        return self.layout != "contiguous"

    def make(self, place: torch.device = CPU) -> Any:
        """The value, on a device."""
        return self._wrap(self._tensor(place))

    def _tensor(self, place: torch.device) -> Tensor:
        shape, layout = self.shape, self.layout
        if layout == "transposed" and len(shape) >= 2:
            return self._fresh((*shape[:-2], shape[-1], shape[-2]), place).transpose(-1, -2)
        if layout == "sliced" and shape:
            return self._fresh((*shape[:-1], shape[-1] * 2 + 1), place)[..., 1::2]
        if layout == "expanded" and shape and shape[0]:
            return self._fresh((1, *shape[1:]), place).expand(shape)
        if layout == "channels last" and len(shape) == 4:
            return self._fresh(shape, place).to(memory_format=torch.channels_last)
        if layout == "conjugate" and self.dtype.is_complex:
            return self._fresh(shape, place).conj()
        if layout == "negative" and self.dtype == torch.float32:
            real = self._fresh(shape, place)
            return torch.complex(real, real).conj().imag
        return self._fresh(shape, place)

    def _fresh(self, shape: Sequence[int], place: torch.device) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        n_elements = 1
        for size in shape:
            n_elements *= size
        if self.dtype == torch.bool:
            return _send(torch.randint(0, 2, tuple(shape), generator=generator).bool(), place)
        n_bytes = n_elements * self.dtype.itemsize
        # Any bit pattern: NaN payloads, infinities, subnormals.
        raw = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8, generator=generator)
        return _send(raw, place).view(self.dtype).view(tuple(shape))

    def _wrap(self, value: Tensor) -> Any:
        if self.wrapping == "tuple":
            return value, "aux"
        if self.wrapping == "list":
            return [value]
        if self.wrapping == "dict":
            return {"hidden": value}
        return None if self.wrapping == "nothing" else value


def _send(value: Tensor, place: torch.device) -> Tensor:
    """A value on a device. No stream is waited for: a wait would hide what comes too late."""
    if place.type == "cpu":
        return value
    return value.pin_memory().to(place, non_blocking=True)


@dataclass(frozen=True)
class Action:
    """One thing that happens inside a forward pass.

    `call` a leaf; `change` or `free` what it returned last; `reenter` the root with actions of its
    own; `get` a site; `raise` or `interrupt`; `queue` makes the rest run on another queue, after
    the one before, and `fork` in no order with it; `collect` drops some of what was returned, and
    garbage.
    """

    kind: str
    leaf: int = 0
    value: Value | None = None
    inner: tuple[Action, ...] = ()


class PlannedInterrupt(KeyboardInterrupt):
    """A Ctrl-C that a program planned."""


class PlannedError(RuntimeError):
    """An error that a program planned."""


class Leaf(nn.Module):
    """Returns what it is told to."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=place))

    def forward(self, value: Value) -> Any:
        return value.make(self.weight.device)


@dataclass
class World:
    """What actions may reach besides the model."""

    get: Callable[[str], None] = lambda site: None
    switch_queue: Callable[[], None] = lambda: None
    join_queues: Callable[[], None] = lambda: None
    collect: Callable[[], None] = lambda: None


class ScriptedModel(nn.Module):
    """A root whose forward pass is a list of actions."""

    def __init__(self, place: torch.device = CPU) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(Leaf(place) for _ in range(N_LEAVES))
        self.world = World()
        self._live: dict[int, Any] = {}

    def forward(self, actions: Sequence[Action]) -> Tensor:
        for action in actions:
            getattr(self, f"_do_{action.kind}")(action)
        return torch.zeros(1)

    def _do_call(self, action: Action) -> None:
        self._live[action.leaf] = self.leaves[action.leaf](action.value)

    def _do_change(self, action: Action) -> None:
        self.world.join_queues()
        for tensor in _tensors(self._live.get(action.leaf)):
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                continue  # torch forbids it
            if tensor.numel() and not _overlaps_itself(tensor):
                with torch.no_grad():
                    tensor.copy_(torch.zeros_like(tensor))

    def _do_free(self, action: Action) -> None:
        self._live.pop(action.leaf, None)

    def _do_reenter(self, action: Action) -> None:
        try:
            self(action.inner)
        except PlannedError:
            return

    def _do_get(self, action: Action) -> None:
        self.world.get(LEAVES[action.leaf])

    def _do_queue(self, action: Action) -> None:
        self.world.switch_queue()
        self.world.join_queues()

    def _do_fork(self, action: Action) -> None:
        self.world.switch_queue()

    def _do_collect(self, action: Action) -> None:
        self.world.collect()

    def _do_raise(self, action: Action) -> None:
        raise PlannedError("planned")

    def _do_interrupt(self, action: Action) -> None:
        raise PlannedInterrupt("planned")


class Table(nn.Module):
    """Rows by token id, `(batch, sequence, width)`, in some dtype and layout."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.width = draw.choice((1, 2, 5, 16))
        self.value = Value(
            (16, 1, self.width),
            draw.choice(DTYPES),
            draw.choice(["contiguous", "conjugate"]),
            "tensor",
            draw.randrange(1 << 20),
        )
        self.is_transposed = draw.random() < 0.3
        self.is_tuple = draw.random() < 0.3

    def forward(self, input_ids: Tensor) -> Any:
        rows = self.value.make(input_ids.device)[:, 0]
        if rows.dtype == torch.float8_e4m3fn:  # which torch 2.6 cannot index on the CPU
            rows = rows.view(torch.int8)
        out = rows.t()[:, input_ids].permute(1, 2, 0) if self.is_transposed else rows[input_ids]
        out = out.view(self.value.dtype)
        return (out, None) if self.is_tuple else out


class TableModel(nn.Module):
    """Calls its tables in some order, some twice, and changes outputs afterwards."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.leaves = nn.ModuleList(Table(draw) for _ in range(N_LEAVES))
        self.order = [*range(N_LEAVES), draw.randrange(N_LEAVES)]
        draw.shuffle(self.order)
        self.changes = draw.random() < 0.5

    def forward(self, input_ids: Tensor) -> None:
        for call, leaf in enumerate(self.order):
            output = self.leaves[leaf]((input_ids + call) % 16)
            if self.changes:
                for tensor in _tensors(output):
                    tensor.zero_()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [item for item in values if isinstance(item, Tensor)] if values else []


def _overlaps_itself(tensor: Tensor) -> bool:
    return any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
