"""The question a user asks: which places of a model, and what to take there.

Everything here is a frozen value that knows nothing of modules, devices or hooks. The engine and
the oracle (`fastcap.reference`) share these values and no code that answers them.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, ArgumentTypeError

Step: TypeAlias = tuple[str, int | str]
"""One step into a value: `("index", 1)`, `("key", "hidden")` or `("attribute", "logits")`."""

Side: TypeAlias = Literal["output", "input"]
"""What a module returned, or what it was called with."""

Positions: TypeAlias = int | slice | Iterable[int] | None
"""What callers may pass as `positions`."""

REGEX = "re:"
"""What a site name begins with that is a regular expression."""

PLANNED = frozenset({"grad_output", "grad_input", "attention_weights", "query", "key", "value"})
"""Parts that have a name and no code yet."""

_PART = re.compile(r"(?P<side>[A-Za-z_]+)(?P<steps>.*)", re.DOTALL)
_STEP = re.compile(r"\.(?P<attribute>[A-Za-z_]\w*)|\[(?P<index>\d+)\]|\[(?P<key>[^\]]+)\]")


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model whose value is captured.

    Attributes:
        name: What the user wrote, without a default `:output`. The key of the result.
        module: The module's path, `""` for the root; until sites are bound, perhaps a pattern.
        steps: The way from the module's output or input to the value; empty for the default.
        side: Whether the value is of the module's output or of its input.
    """

    name: str
    module: str
    steps: tuple[Step, ...] = ()
    side: Side = "output"

    @property
    def part(self) -> str:
        """What follows the module's path in the name, such as `:output[1]`; `""` for the output."""
        return self.name[len(self.module) :]

    def at(self, path: str) -> Site:
        """The same part of another module."""
        return Site(path + self.part, path, self.steps, self.side)


def parse_site(text: str) -> Site:
    """Read `module.path[:part]`: `:output` or `:input`, then any number of `[1]`, `[key]`, `.name`.

    What comes before the part is taken as it is, patterns and regular expressions included. A
    regular expression may contain colons: the part is what follows one and reads as a part up to
    the end.

    Example:
        >>> parse_site("layers.0:output[1]")
        Site(name='layers.0:output[1]', module='layers.0', steps=(('index', 1),), side='output')
        >>> parse_site("layers.0.mlp:output").name
        'layers.0.mlp'

    Raises:
        ArgumentError: The text after the colon is no part that exists.
    """
    is_regex = text.startswith(REGEX)
    error = ""
    for colon in re.finditer(":", text):
        match = _PART.fullmatch(text, colon.end())
        if match is None or match["side"] not in {"output", "input"} | PLANNED:
            continue
        steps, rest = _read_steps(match["steps"])
        error = error or _why_no_part(text, match["side"], rest)
        if rest:
            continue
        if match["side"] in PLANNED:
            raise ArgumentError(error)
        side: Side = "input" if match["side"] == "input" else "output"
        module = text[: colon.start()]
        name = module if side == "output" and not steps else text
        return Site(name, module, steps, side)
    if ":" not in text or is_regex:
        return Site(text, text)
    raise ArgumentError(
        error
        or f"Site {text!r}: what follows the colon is no part that can be captured. Parts start "
        "with ':output' or ':input' and go on with '[1]', '[key]' or '.name', such as "
        "'layers.0.attention:output[1]'."
    )


def _why_no_part(text: str, side: str, rest: str) -> str:
    if side in PLANNED:
        return (
            f"Site {text!r}: ':{side}' is not supported yet. What can be captured starts with "
            "':output' or ':input'."
        )
    return (
        f"Site {text!r}: cannot read {rest!r}. After ':{side}' come any number of '[1]', "
        "'[key]' or '.name'."
    )


def _read_steps(text: str) -> tuple[tuple[Step, ...], str]:
    """The steps that a text begins with, and what is left of it."""
    steps: list[Step] = []
    while match := _STEP.match(text):
        kind = str(match.lastgroup)
        steps.append((kind, int(match[kind]) if kind == "index" else match[kind]))
        text = text[match.end() :]
    return tuple(steps), text


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
