"""What a model does beside what its modules and weights say: hooks, replaced methods, settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.fingerprint.digests import describe_tensor
from fastcap.fingerprint.functions import code_of
from fastcap.fingerprint.models import named_modules
from fastcap.fingerprint.values import describe

NOT_BEHAVIOUR = frozenset(
    {"training", "gradient_checkpointing", "name_or_path", "warnings_issued", "hf_device_map"}
    | {"is_parallelizable", "model_parallel"}
)
"""Attributes that say where a model is from, or how it is trained or spread."""

NOT_OTHERS = ("fastcap.", "torch.", "accelerate.")
"""Whose hooks capture, or move what a model is made of, and do not change values."""


def describe_behaviour(model: nn.Module) -> dict[str, Any]:
    """What else a model's values depend on, as JSON, by the names of its modules.

    Attributes that are switches, texts or fractions; numbers that count may change as a model
    runs, and are not looked at. Buffers that are not saved with it. Which adapters are active.
    `forward` where an instance has one of its own, and the hooks of others, by their code: what
    they hold may be what they collect.
    """
    found: dict[str, dict[str, Any]] = {
        "attributes": {},
        "unsaved_buffers": {},
        "adapters": {},
        "forward": {},
        "hooks": {},
    }
    for name, module in named_modules(model):
        for kind, described in (
            ("attributes", dict(_attributes(module))),
            ("unsaved_buffers", dict(_unsaved(module))),
            ("adapters", dict(_adapters(module))),
            ("forward", _forward(module)),
            ("hooks", list(_hooks(module))),
        ):
            if described:
                found[kind][name] = described
    return {**found, "autocast": _autocast(model)}


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if not name.startswith("_") and name not in NOT_BEHAVIOUR and _is_setting(value):
            yield name, describe(value)


def _is_setting(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(isinstance(k, str) and _is_setting(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_setting, value))
    return isinstance(value, bool | float | str | torch.dtype)


def _unsaved(module: nn.Module) -> Iterator[tuple[str, str]]:
    for name in sorted(module._non_persistent_buffers_set):
        buffer = module._buffers.get(name)
        if buffer is not None:
            yield name, describe_tensor(buffer)


def _adapters(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a layer with adapters (peft's, or one like it) says of those that it uses."""
    says = ("active_adapters", "disable_adapters")
    if all(isinstance(getattr(type(module), name, None), property) for name in says):
        for name in (*says, "merged_adapters"):
            yield name, describe(getattr(module, name, None))


def _forward(module: nn.Module) -> str | None:
    own = vars(module).get("forward")
    if "_hf_hook" in vars(module):
        own = vars(module).get("_old_forward")  # accelerate moves weights before and behind it
    own = getattr(own, "_torchdynamo_orig_callable", own)
    if own is None or code_of(own) == code_of(type(module).forward):
        return None
    return code_of(own)


def _hooks(module: nn.Module) -> Iterator[str]:
    for kind in (module._forward_pre_hooks, module._forward_hooks):
        for hook in kind.values():
            if not (getattr(hook, "__module__", None) or "").startswith(NOT_OTHERS):
                yield code_of(hook)


def _autocast(model: nn.Module) -> str | None:
    """The dtype of `torch.autocast`, where it is on for the device of the model."""
    first: Tensor | None = next(iter(model.parameters()), None)
    kind = "cpu" if first is None else first.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
