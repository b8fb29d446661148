"""Where a model's parameters are, and the device that batches have to be on."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastcap.errors import DeviceError


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Every module once, as `model.modules()`; in a fraction of its time, which each pass takes."""
    found, seen = [model], {model}
    for module in found:  # which grows meanwhile
        for child in module._modules.values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def is_meta(model: nn.Module) -> bool:
    """Whether some of the model's parameters have no data, also while it is called."""
    return any(map(_is_meta, _places(model)))


def _is_meta(place: torch.device) -> bool:
    return place.type == "meta"


def _places(model: nn.Module) -> list[torch.device]:
    """Where the model's parameters are when it is called, each place once; the root's first."""
    places: dict[torch.device, None] = {}
    in_place: set[nn.Module] = set()  # whose parameters are brought where they are needed
    for module in modules_of(model):
        for hook in _offload_hooks(module):
            if hook.offload:
                in_place.update(module.modules() if hook.place_submodules else (module,))
            places[as_device(hook.execution_device)] = None
        for tensor in module.parameters(recurse=False):
            if not (tensor.is_meta and module in in_place):
                places[tensor.device] = None
    return list(places)


def _offload_hooks(module: nn.Module) -> list[Any]:
    """What accelerate has put around a module's forward to move its weights and inputs.

    It is what `device_map="auto"` does with layers that do not fit: parameters are on the meta
    device between calls, and their values in host memory or on disk.
    """
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))  # several are a SequentialHook
    return [each for each in hooks if getattr(each, "execution_device", None) is not None]


def device_for_batches(model: nn.Module, device: torch.device | str | int | None) -> torch.device:
    """The device that was asked for, or else the one on which the model begins.

    Raises:
        DeviceError: The model has no data, or runs on none such.
    """
    found = _places(model)
    if any(map(_is_meta, found)):
        raise DeviceError(
            "The model's parameters are on the meta device, without data. Load its weights first."
        )
    if device is None:
        return found[0] if found else torch.device("cpu")
    wanted = as_device(device)
    matches = any(_is_same(wanted, place) for place in found)
    if found and not matches:
        places = ", ".join(sorted(map(str, found)))
        raise DeviceError(
            f"device={str(wanted)!r}, but the model's parameters are on {places}. Move the model "
            f"(model.to({str(wanted)!r})) or pass the device it is on."
        )
    return wanted


def as_device(device: torch.device | str | int) -> torch.device:
    """The device of a name.

    Raises:
        DeviceError: It is none of torch's.
    """
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(
            f"device={device!r} is not a valid torch device. Give one such as 'cuda' or 'cpu'."
        ) from error


def _is_same(wanted: torch.device, place: torch.device) -> bool:
    return wanted.type == place.type and wanted.index in (None, place.index)
