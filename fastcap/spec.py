"""The question a user asks: which places of a model, and what to take there.

Everything here is a frozen value that knows nothing of modules, devices or hooks. The engine and
the oracle (`fastcap.reference`) share these values and no code that answers them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, ArgumentTypeError

Step: TypeAlias = tuple[str, int | str]
"""One step into an output: `("index", 1)`, `("key", "hidden")` or `("attribute", "logits")`."""

Positions: TypeAlias = int | slice | Iterable[int] | None
"""What callers may pass as `positions`."""

_SITE = re.compile(r"(?P<module>[^:]*):(?P<root>[A-Za-z_]+)(?P<steps>.*)", re.DOTALL)
_STEP = re.compile(r"\.(?P<attribute>[A-Za-z_]\w*)|\[(?P<index>\d+)\]|\[(?P<key>[^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model whose value is captured.

    Attributes:
        name: What the user wrote, without a default `:output`. The key of the result.
        module: The module's path, `""` for the root.
        steps: The way from the module's output to the value; empty for the output itself.
    """

    name: str
    module: str
    steps: tuple[Step, ...] = ()


def parse_site(text: str) -> Site:
    """Read `module.path[:part]`, where the part is `:output` followed by `[1]`, `[key]` or `.name`.

    Example:
        >>> parse_site("layers.0:output[1]")
        Site(name='layers.0:output[1]', module='layers.0', steps=(('index', 1),))
        >>> parse_site("layers.0.mlp:output").name
        'layers.0.mlp'

    Raises:
        ArgumentError: The text after the colon is no part that exists.
    """
    if ":" not in text:
        return Site(text, text)
    match = _SITE.fullmatch(text)
    if match is None or match["root"] != "output":
        raise ArgumentError(
            f"Site {text!r}: what follows the colon is no part that can be captured. Parts start "
            "with ':output' and go on with '[1]', '[key]' or '.name', such as "
            "'layers.0.attention:output[1]'."
        )
    steps = _parse_steps(text, match["steps"])
    return Site(text if steps else match["module"], match["module"], steps)


def _parse_steps(text: str, rest: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    while rest:
        match = _STEP.match(rest)
        if match is None:
            raise ArgumentError(
                f"Site {text!r}: cannot read {rest!r}. After ':output' come any number of '[1]', "
                "'[key]' or '.name'."
            )
        kind = str(match.lastgroup)
        steps.append((kind, int(match[kind]) if kind == "index" else match[kind]))
        rest = rest[match.end() :]
    return tuple(steps)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is taken of a value: positions first, then `reduce`, then `dtype`.

    Attributes:
        positions: All (`None`), one (an int; the dimension goes, as in `acts[:, -1]`), a slice, or
            a tuple of ints.
        reduce: A callable on the selected tensor, run on the tensor's own device.
        dtype: The dtype to deliver; `None` keeps what the module produced.
        seq_dim: The dimension that positions count along; `None` stands for 1, checked against the
            number of token ids of the pass where there are any.
    """

    positions: int | slice | tuple[int, ...] | None = None
    reduce: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype | None = None
    seq_dim: int | None = None


def make_selection(
    positions: Positions = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
) -> Selection:
    """Check a user's arguments and freeze them.

    Raises:
        ArgumentTypeError: `reduce` is not callable, `dtype` no `torch.dtype`, a position no int.
        ArgumentError: A slice with a step below 1.
    """
    if reduce is not None and not callable(reduce):
        raise ArgumentTypeError(
            f"reduce must be a callable on the selected tensor, such as "
            f"lambda acts: acts.mean(dim=1); got {reduce!r}."
        )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(
            f"dtype must be a torch.dtype such as torch.float16; got {dtype!r}."
        )
    if seq_dim is not None:
        seq_dim = _as_int("seq_dim", seq_dim)
    return Selection(_freeze_positions(positions), reduce, dtype, seq_dim)


def _freeze_positions(positions: Positions) -> int | slice | tuple[int, ...] | None:
    if positions is None:
        return None
    if isinstance(positions, slice):
        parts = [
            None if part is None else _as_int("positions", part)
            for part in (positions.start, positions.stop, positions.step)
        ]
        if parts[2] is not None and parts[2] < 1:
            raise ArgumentError(
                f"positions={positions!r}: a slice needs a step of 1 or more; to reverse, give the "
                "positions as a list."
            )
        return slice(*parts)
    is_scalar_array = getattr(positions, "ndim", None) == 0
    if isinstance(positions, str) or is_scalar_array or not isinstance(positions, Iterable):
        return _as_int("positions", positions)
    return tuple(_as_int("positions", position) for position in positions)


def _as_int(name: str, value: object) -> int:
    is_flag = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    if not is_flag:
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    what = "None, an int, a slice or a list of ints" if name == "positions" else "an int"
    raise ArgumentTypeError(f"{name} must be {what}; got {value!r}.")


def as_keeps_all(calls: object) -> bool:
    """Whether `calls` asks for every call of a module and not for the last.

    Raises:
        ArgumentError: Neither `"last"` nor `"all"`.
    """
    if calls not in ("last", "all"):
        raise ArgumentError(
            f"calls must be 'last' (the last call of each module) or 'all'; got {calls!r}."
        )
    return calls == "all"


def as_count(name: str, value: object, at_least: int = 1) -> int:
    """Check that an argument is a whole number of at least `at_least`, and return it.

    Raises:
        ArgumentTypeError: Not an int (a bool is not one).
        ArgumentError: Below `at_least`.
    """
    count = _as_int(name, value)
    if count < at_least:
        raise ArgumentError(f"{name} must be at least {at_least}; got {count}.")
    return count
