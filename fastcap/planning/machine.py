"""The rates of a machine, which a plan divides bytes by; and the device the run will be on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from fastcap.devices import open_device
from fastcap.devices.base import AnyDevice
from fastcap.errors import ArgumentError, DeviceError
from fastcap.model.placement import as_device


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The rates of a machine; `None` for what is unknown.

    `Plan.machine` of a plan with `measure=True` holds the measured rates.

    Attributes:
        link_bytes_per_sec: One large copy from the accelerator into pinned memory.
        device_bytes_per_sec: The accelerator's memory, reads and writes together.
        pack_secs: One of many consecutive small packs on the accelerator.
        fresh_bytes_per_sec: Into host memory that was never touched, by all of fastcap's workers;
            on a CPU model, by the thread that runs it.
        warm_bytes_per_sec: The same into memory that has been written before.
        disk_bytes_per_sec: Plain writes to a file, with one sync at the end.
        hook_secs: The time one captured call takes in the thread that runs the model.

    Raises:
        ArgumentError: A rate is not a positive number.

    Examples:
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
        """The rates of `other`, and these where `other` has none."""
        mine, theirs = asdict(self), asdict(other)
        return Machine(**{k: mine[k] if theirs[k] is None else theirs[k] for k in mine})


def is_positive(value: Any) -> bool:
    """Whether it is a number above 0, and not infinite."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 < value < float("inf")


def read_machine(path: Path) -> Machine:
    """Read rates from a JSON file: an object of rates, or a saved plan with a `machine`.

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


# Where the run will be

WITHOUT_LINK = ("cpu", "mps")


@dataclass(frozen=True, slots=True)
class RunDevice:
    """Where the run will be, and who can be asked how that works and how fast it is.

    Attributes:
        device: The device, if it is here; `None` for an accelerator that nobody can ask.
        assumed: What was taken for granted, in sentences.
    """

    device: AnyDevice | None
    assumed: tuple[str, ...] = ()

    @property
    def is_direct(self) -> bool:
        """Whether hooks copy by themselves."""
        return self.device is not None and self.device.direct


@contextlib.contextmanager
def opened_run_device(
    of_model: torch.device, asked: torch.device | str | int | None, measure: bool
) -> Iterator[RunDevice]:
    """The place of a model on `of_model`; of one without data, the device that was asked for.

    Raises:
        DeviceError: No device of torch, or one that is to be measured and cannot be opened.
    """
    found = _run_device(of_model, asked, measure)
    try:
        yield found
    finally:
        if found.device is not None:
            found.device.close()


def _run_device(
    of_model: torch.device, asked: torch.device | str | int | None, measure: bool
) -> RunDevice:
    if of_model.type != "meta":
        return RunDevice(open_device(of_model))
    here = "The model has no data, so its forward pass is not measured."
    if asked is None:
        return RunDevice(
            None, (f"{here} Planned for an accelerator; device= names another place.",)
        )
    wanted = as_device(asked)
    if wanted.type == "meta":
        raise DeviceError(
            "device='meta' holds no data, so no run can be there. Name the place of the run, such "
            "as 'cuda' or 'cpu'."
        )
    if not measure:
        return RunDevice(open_device(wanted) if wanted.type in WITHOUT_LINK else None, (here,))
    try:
        device = open_device(wanted)
        torch.empty(0, device=device.torch_device)
        return RunDevice(device, (here,))
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device={str(wanted)!r} cannot be measured on this machine: "
            f"{' '.join(str(error).split())[:120]}. Measure there, or leave measure= out."
        ) from error
