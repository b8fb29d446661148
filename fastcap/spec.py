"""The request: which sites of a model to capture, and what to keep of each.

Everything here is a frozen value that knows nothing of modules, devices or hooks. The engine and
the oracle (`fastcap.reference`) share these values and no code that answers them.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor

from fastcap.errors import ArgumentError, ArgumentTypeError

Step: TypeAlias = tuple[str, int | str]
"""One step into a value: `("index", 1)`, `("key", "hidden")` or `("attribute", "logits")`."""

Side: TypeAlias = Literal["output", "input"]
"""What a module returned, or what it was called with."""

Positions: TypeAlias = int | slice | str | Iterable[int] | Iterable[Iterable[int]] | Tensor | None
"""What callers may pass as `positions`."""

Reduce: TypeAlias = Callable[[Tensor], Tensor] | Literal["mean"] | None
"""What callers may pass as `reduce`."""

LAST, UNPADDED, MEAN = "last", "unpadded", "mean"

BATCH_SIZE = 32
"""Samples per pass where nothing says."""

REGEX = "re:"
"""What a site name begins with that is a regular expression."""

PLANNED = frozenset({"grad_output", "grad_input", "attention_weights", "query", "key", "value"})
"""Parts that have a name and no code yet."""

LAST_CALL = -1
"""The index by which the last of a module's calls is asked for, as it is where none is given."""

_CALL = re.compile(r"(?P<module>.*)@(?P<call>\d+|-1)", re.DOTALL)
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
        call: Which of the module's calls in a pass, from 0; `LAST_CALL` for the last; `None` where
            the name does not say, which keeps what the run keeps.
    """

    name: str
    module: str
    steps: tuple[Step, ...] = ()
    side: Side = "output"
    call: int | None = None

    def takes(self, call_index: int) -> bool:
        """Whether a call of the module may be the one that is wanted."""
        return self.call is None or self.call in (call_index, LAST_CALL)

    @property
    def part(self) -> str:
        """What follows the module's path in the name, such as `@0:output[1]`; `""` for nothing."""
        return self.name[len(self.module) :]

    def at(self, path: str) -> Site:
        """The same part of another module."""
        return Site(path + self.part, path, self.steps, self.side)


def parse_site(text: str) -> Site:
    """Read `module.path[@call][:part]`: `:output` or `:input`, then steps `[1]`, `[key]`, `.name`.

    What comes before the part is taken as it is, patterns and regular expressions included. A
    regular expression may contain colons: the part is what follows one and reads as a part up to
    the end.

    Examples:
        >>> parse_site("layers.0:output[1]").steps
        (('index', 1),)
        >>> parse_site("layers.0.mlp:output").name
        'layers.0.mlp'
        >>> parse_site("relu@0").module, parse_site("relu@0").call
        ('relu', 0)

    Raises:
        ArgumentError: The text after the colon is not a part that exists.
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
        before = text[: colon.start()]
        name = before if side == "output" and not steps else text
        return Site(name, *_read_call(before, steps, side))
    if ":" not in text or is_regex:
        return Site(text, *_read_call(text))
    raise ArgumentError(
        error
        or f"Site {text!r}: what follows the colon is not a part that can be captured. Parts start "
        "with ':output' or ':input' and go on with '[1]', '[key]' or '.name', such as "
        "'layers.0.attention:output[1]'."
    )


def _read_call(
    text: str, steps: tuple[Step, ...] = (), side: Side = "output"
) -> tuple[str, tuple[Step, ...], Side, int | None]:
    """What follows the name in a `Site`, whose module may be followed by `@` and a call."""
    match = _CALL.fullmatch(text)
    if match is None:
        return text, steps, side, None
    return match["module"], steps, side, int(match["call"])


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
    """What is taken of a value, its samples first: positions, then `reduce`, then `dtype`.

    Attributes:
        positions: All (`None`), one (an int; the dimension goes, as in `acts[:, -1]`), a slice, a
            tuple of ints, a tuple of such tuples (one per sample), `"last"`, `"unpadded"`, or the
            key of the batch that holds positions for each sample.
        reduce: A callable on the selected tensor, run on the tensor's own device, or `"mean"`.
        dtype: The dtype to deliver; `None` keeps what the module produced.
        seq_dim: The dimension that positions count along, once `batch_dim` is the first; `None`
            stands for 1, checked against the number of token ids of the pass where there are any.
        batch_dim: The dimension of the whole value that counts samples. It is moved to the front
            before anything else, and the others keep their order.
    """

    positions: int | slice | str | tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None
    reduce: Callable[[Tensor], Tensor] | Literal["mean"] | None = None
    dtype: torch.dtype | None = None
    seq_dim: int | None = None
    batch_dim: int = 0

    @property
    def needs_mask(self) -> bool:
        """Whether it asks which tokens are real: `"last"`, `"unpadded"` and `"mean"`."""
        return self.reduce == MEAN or (isinstance(self.positions, str) and self.batch_key is None)

    @property
    def argument(self) -> str:
        """The argument that selects along `seq_dim`."""
        return "reduce" if self.reduce == MEAN else "positions"

    @property
    def asked(self) -> str:
        """That argument and its value, for messages."""
        return f"{self.argument}={getattr(self, self.argument)!r}"

    @property
    def moved(self) -> str:
        """What is said after a shape whose batch dimension was moved, for messages."""
        return f" (batch_dim={self.batch_dim} moved to the front)" if self.batch_dim else ""

    @property
    def batch_key(self) -> str | None:
        """The key of the batch that holds the positions of each sample."""
        words = (LAST, UNPADDED)
        is_key = isinstance(self.positions, str) and self.positions not in words
        return str(self.positions) if is_key else None

    @property
    def by_sample(self) -> tuple[tuple[int, ...], ...] | None:
        """The positions of each sample, where they were given as one list per sample."""
        rows: Any = self.positions
        has_rows = isinstance(rows, tuple) and bool(rows) and isinstance(rows[0], tuple)
        return rows if has_rows else None


def make_selection(
    positions: Positions = None,
    reduce: Reduce = None,
    dtype: torch.dtype | None = None,
    seq_dim: int | None = None,
    batch_dim: int = 0,
) -> Selection:
    """Check a user's arguments and freeze them.

    Raises:
        ArgumentTypeError: `reduce` is neither callable nor a word it knows, `dtype` no
            `torch.dtype`, a position no int.
        ArgumentError: A slice with a step below 1, lists per sample of several lengths, or
            `reduce="mean"` with `positions`.
    """
    if reduce is not None and reduce != MEAN and not callable(reduce):
        raise ArgumentTypeError(
            f"reduce must be 'mean', or a callable on the selected tensor, such as "
            f"lambda acts: acts.mean(dim=1); got {reduce!r}."
        )
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ArgumentTypeError(
            f"dtype must be a torch.dtype such as torch.float16; got {dtype!r}."
        )
    if seq_dim is not None:
        seq_dim = _as_int("seq_dim", seq_dim)
    if reduce == MEAN and positions is not None:
        raise ArgumentError(
            f"reduce='mean' is the mean over all real tokens and takes no positions=; got "
            f"positions={positions!r}. For the mean of some positions give a callable, such as "
            "reduce=lambda acts: acts.mean(dim=1)."
        )
    batch_dim = _as_int("batch_dim", batch_dim)
    return Selection(_freeze_positions(positions), reduce, dtype, seq_dim, batch_dim)


def _freeze_positions(
    positions: Positions,
) -> int | slice | str | tuple[int, ...] | tuple[tuple[int, ...], ...] | None:
    if positions is None or isinstance(positions, str):
        return positions
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
    if not _is_list(positions):
        return _as_int("positions", positions)
    items: list[Any] = list(cast(Iterable[Any], positions))
    if any(map(_is_list, items)):
        return _freeze_rows(items)
    return tuple(_as_int("positions", position) for position in items)


def _is_list(positions: object) -> bool:
    is_scalar_array = getattr(positions, "ndim", None) == 0
    return (
        isinstance(positions, Iterable) and not isinstance(positions, str) and not is_scalar_array
    )


def _freeze_rows(rows: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    frozen = tuple(
        tuple(_as_int("positions", position) for position in row) if _is_list(row) else None
        for row in rows
    )
    counts = [None if row is None else len(row) for row in frozen]
    if len(set(counts)) > 1:
        raise ArgumentError(
            f"positions= has one list per sample, of lengths {str(counts)[1:-1]}: every sample "
            "needs the same number of positions, since they go into one tensor. Repeat a position "
            "to fill up, or take all real tokens with positions='unpadded'."
        )
    return tuple(row for row in frozen if row is not None)


def _as_int(name: str, value: object) -> int:
    is_flag = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    if not is_flag:
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    what = (
        "None, an int, a slice, a list of ints, a list of such lists (one per sample), 'last' or "
        "'unpadded'"
    )
    raise ArgumentTypeError(
        f"{name} must be {what if name == 'positions' else 'an int'}; got {value!r}."
    )


def as_keeps_all(calls: object) -> bool | None:
    """Whether `calls` asks for every call of a module or for the last; `None` where nothing does.

    Raises:
        ArgumentError: Neither `"last"` nor `"all"`.
    """
    if calls is None:
        return None
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


def as_path(name: str, value: object) -> Path:
    """Check that an argument is a path, and return it.

    Raises:
        ArgumentTypeError: Neither a string nor a path.
    """
    if not isinstance(value, str | os.PathLike):
        raise ArgumentTypeError(f"{name} must be a path, as a string or Path; got {value!r}.")
    return Path(value)


def as_callable(name: str, value: object, does: str) -> None:
    """Check that an argument that may be `None` can be called; `does` is what it is for.

    Raises:
        ArgumentTypeError: It cannot be called.
    """
    if value is not None and not callable(value):
        raise ArgumentTypeError(f"{name} must be a callable {does}; got {value!r}.")
