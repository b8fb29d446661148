"""Where the run will be: the device that is asked how it works and how fast it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fastcap.devices import open_device
from fastcap.devices.base import AnyDevice
from fastcap.errors import DeviceError
from fastcap.model.forward import as_device

WITHOUT_LINK = ("cpu", "mps")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the run will be.

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
def opened_place(
    of_model: torch.device, asked: torch.device | str | int | None, measure: bool
) -> Iterator[Place]:
    """The place of a model on `of_model`; of one without data, the device that was asked for.

    Raises:
        DeviceError: No device of torch, or one that is to be measured and cannot be opened.
    """
    place = _place(of_model, asked, measure)
    try:
        yield place
    finally:
        if place.device is not None:
            place.device.close()


def _place(of_model: torch.device, asked: torch.device | str | int | None, measure: bool) -> Place:
    if of_model.type != "meta":
        return Place(open_device(of_model))
    here = "The model has no data, so its forward pass is not measured."
    if asked is None:
        return Place(None, (f"{here} Planned for an accelerator; device= names another place.",))
    wanted = as_device(asked)
    if wanted.type == "meta":
        raise DeviceError(
            "device='meta' holds no data, so no run can be there. Name the place of the run, such "
            "as 'cuda' or 'cpu'."
        )
    if not measure:
        return Place(open_device(wanted) if wanted.type in WITHOUT_LINK else None, (here,))
    try:
        device = open_device(wanted)
        torch.empty(0, device=device.torch_device)
        return Place(device, (here,))
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(
            f"device={str(wanted)!r} cannot be measured on this machine: "
            f"{' '.join(str(error).split())[:120]}. Measure there, or leave measure= out."
        ) from error
