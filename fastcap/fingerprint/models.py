"""What a model is: its modules and their settings, and its weights, by a sample of their bytes."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.fingerprint.digests import bytes_of, kind_of, name_of, plain_parts, short_hash
from fastcap.model.sites import WRAPPERS

SAMPLED_ELEMENTS = 64
"""Elements of a tensor that are looked at. New weights change nearly every element."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_CHANGING = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}
"""What a configuration of transformers says that values do not depend on, or that weights say."""


def describe_model(model: nn.Module) -> dict[str, Any]:
    """A model as JSON: its class, modules, configuration and tensors.

    Each parameter and persistent buffer is one string, `dtype shape digest`. The digest is of up
    to 64 elements, evenly spread; a tensor subclass has one for each tensor inside it; where there
    are no plain bytes (the meta device, say) there is none. Devices do not matter, and wrappers
    such as `torch.compile` do not either.

    Examples:
        >>> described = describe_model(nn.Linear(2, 3))
        >>> described["class"], described["tensors"]["weight"][:11]
        ('torch.nn.modules.linear.Linear', 'float32 3x2')
    """
    inner = _unwrapped(model)
    return {
        "class": name_of(type(inner)),
        "modules": _hash_modules(model),
        "config": _describe_config(inner),
        "tensors": _describe_tensors(model),
    }


def _unwrapped(model: nn.Module) -> nn.Module:
    children = dict(model.named_children())
    inner = next((children[name] for name in WRAPPERS if name in children), None)
    return model if inner is None or len(children) > 1 else _unwrapped(inner)


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def named_modules(model: nn.Module) -> Iterable[tuple[str, nn.Module]]:
    """The modules by their names without wrappers; of a wrapper and what it wraps, the latter."""
    return {_plain_name(name): module for name, module in model.named_modules()}.items()


def _hash_modules(model: nn.Module) -> str:
    """Of classes and of what `print(model)` tells: activations have no weights to tell them by."""
    lines = {
        name: f"{name_of(type(module))}({module.extra_repr()})"
        for name, module in named_modules(model)
    }
    text = _ADDRESS.sub("", "\n".join(f"{name} {line}" for name, line in lines.items()))
    return short_hash(text.encode(errors="surrogatepass"))


def _describe_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    if not callable(getattr(config, "to_diff_dict", None)):
        return None
    settings = {k: v for k, v in config.to_diff_dict().items() if k not in _CHANGING}
    settings["attention"] = getattr(config, "_attn_implementation", None)
    return json.loads(json.dumps(settings, default=lambda value: name_of(type(value))))


def _describe_tensors(model: nn.Module) -> dict[str, str]:
    described, samples = {}, defaultdict(list)
    for name, tensor in _tensors(model):
        if nn.parameter.is_lazy(tensor):
            described[name] = "uninitialised"
            continue
        described[name] = kind_of(tensor)
        for part in plain_parts(tensor):
            samples[part.device].append((name, _sample(part)))
    for of_device in samples.values():
        for name, digest in _digests(of_device):
            described[name] += f" {digest}"
    return described


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers; what is not saved with a model may change as it runs."""
    for path, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield _plain_name(f"{path}.{name}" if path else name), tensor


def _sample(tensor: Tensor) -> Tensor:
    """The bytes of some elements, on the tensor's device: a strided view, whatever its layout."""
    per_dim = max(1, round(SAMPLED_ELEMENTS ** (1 / max(1, tensor.ndim))))
    steps = tuple(slice(None, None, -(-max(1, size) // per_dim)) for size in tensor.shape)
    sample = tensor.detach()[steps].resolve_conj().resolve_neg()
    return sample.contiguous().reshape(-1).view(torch.uint8)


def _digests(samples: list[tuple[str, Tensor]]) -> Iterator[tuple[str, str]]:
    """One copy to the host for all tensors of a device."""
    on_host = bytes_of(torch.cat([sample for _, sample in samples]))
    parts = torch.split(on_host, [len(sample) for _, sample in samples])
    for (name, _), part in zip(samples, parts, strict=True):
        yield name, short_hash(part.numpy().data)[:8]
