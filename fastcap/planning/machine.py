"""The rates of a machine: what a plan divides bytes by."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fastcap.errors import ArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a machine does per second; `None` for what is not known.

    `Plan.machine` of a plan with `measure=True` has what was measured. Rates of another machine
    can be given as they are.

    Attributes:
        link_bytes_per_sec: One large copy from the accelerator into pinned memory.
        device_bytes_per_sec: The accelerator's memory, reads and writes together.
        pack_secs: One small pack after another, on the accelerator.
        fresh_bytes_per_sec: Into host memory that was never touched, by all of fastcap's workers;
            on a CPU model by the one thread that runs it.
        warm_bytes_per_sec: The same into memory that has been written before.
        disk_bytes_per_sec: Plain writes to a file, and one sync at its end.
        hook_secs: What one captured call takes of the thread that runs the model.

    Raises:
        ArgumentError: A rate that is not a positive number.

    Example:
        >>> from fastcap.planning import Machine
        >>> Machine(link_bytes_per_sec=55e9).disk_bytes_per_sec is None
        True
    """

    link_bytes_per_sec: float | None = None
    device_bytes_per_sec: float | None = None
    pack_secs: float | None = None
    fresh_bytes_per_sec: float | None = None
    warm_bytes_per_sec: float | None = None
    disk_bytes_per_sec: float | None = None
    hook_secs: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not is_positive(value):
                raise ArgumentError(
                    f"{name} must be a positive number, or None where it is not known; got "
                    f"{value!r}."
                )

    def updated(self, other: Machine) -> Machine:
        """What `other` knows, and of the rest what is known here."""
        mine, theirs = asdict(self), asdict(other)
        return Machine(**{k: mine[k] if theirs[k] is None else theirs[k] for k in mine})


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0, and not infinite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")


def read_machine(path: Path) -> Machine:
    """Rates from a JSON file: an object of them, or a printed plan that has such a `machine`.

    Raises:
        ArgumentError: The file cannot be read, or holds something else.
    """
    names = [field.name for field in fields(Machine)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no JSON: {error}"
        raise ArgumentError(
            f"The machine's rates cannot be read from {str(path)!r} ({reason}). Write the file "
            "with: fastcap plan MODEL ... --measure --json > machine.json"
        ) from error
    if isinstance(found, dict):
        found = found.get("machine", found)
    if not isinstance(found, dict) or not found.keys() <= set(names):
        raise ArgumentError(
            f"{str(path)!r} holds no rates of a machine. Its keys are {', '.join(names)}; write "
            "the file with: fastcap plan MODEL ... --measure --json > machine.json"
        )
    return Machine(**found)
