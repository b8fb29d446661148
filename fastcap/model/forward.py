"""One batch becomes one forward pass: move it, call the model, leave the model as it was."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastcap.devices import open_device
from fastcap.devices.base import AnyDevice
from fastcap.errors import (
    ArgumentTypeError,
    BatchError,
    MissingInputError,
)
from fastcap.model.arguments import describe_call
from fastcap.model.inputs import check_ids, check_no_batches_of_one, takes_ids_first
from fastcap.model.placement import device_for_batches, is_meta, modules_of
from fastcap.warn import warn

WITHOUT_LINK = ("cpu", "meta")
"""Where batches need no link to get to."""

Forward = Callable[[nn.Module, Any], Any]
"""What callers may pass as `forward`: gets the model and the batch, tensors on `device`."""


class BatchCaller:
    """How batches of one run are given to the model.

    Args:
        model: The model to call.
        device: Where batches are moved to; `None` for where the model's parameters are.
        model_inputs: Keys of dict batches that are passed to the model by name, beside `input_ids`;
            or the names of a tuple's tensors, one for each.
        forward: Replaces the call altogether.
        may_be_meta: Whether a model without data will do; batches then go to the meta device.

    Raises:
        DeviceError: The model is not on `device`, or has no data (meta).
        ArgumentTypeError: `forward` is not callable, or `model_inputs` are not strings.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device | str | int | None,
        model_inputs: Iterable[str] | None,
        forward: Forward | None,
        may_be_meta: bool = False,
    ) -> None:
        if forward is not None and not callable(forward):
            raise ArgumentTypeError(
                "forward must be a callable such as lambda model, batch: model(**batch); "
                f"got {forward!r}."
            )
        if not isinstance(model, nn.Module):
            raise ArgumentTypeError(f"model must be a torch.nn.Module; got {model!r}.")
        self.model = model
        self._names = _as_names(model_inputs)
        self._model_inputs = [name for name in self._names if name != "input_ids"]
        self._forward = forward
        is_shapes_only = may_be_meta and is_meta(model)
        self.device = torch.device("meta") if is_shapes_only else device_for_batches(model, device)
        self._takes_ids_first = takes_ids_first(model)
        self._opened: AnyDevice | None = None
        self._warned_of_mask = forward is not None or "attention_mask" in self._model_inputs

    def __call__(self, batch: Any) -> None:
        """Run the forward pass of one batch, with what `prepare` returned."""
        if self._forward is not None:
            self._forward(self.model, batch)
        elif isinstance(batch, Mapping):
            by_name = {key: batch[key] for key in self._model_inputs}
            self.model(batch["input_ids"], **by_name)
        elif isinstance(batch, Tensor):
            self.model(batch)
        elif names := self._names_of(batch):
            self.model(**dict(zip(names, batch, strict=True)))
        else:
            self.model(*batch)

    def _names_of(self, batch: Sequence[Any]) -> Sequence[str]:
        """What the tensors of a tuple are called, if they are."""
        return self._names or getattr(batch, "_fields", ())

    def prepare(self, batch: Any) -> Any:
        """The batch with what the model needs moved to the device.

        Raises:
            BatchError: The batch is of a kind the model cannot be called with.
            MissingInputError: An input that was asked for is not in it.
        """
        if self._forward is not None:
            return _to_device(batch, self.device, self._move)
        if isinstance(batch, Mapping):
            return self._prepare_mapping(batch)
        if isinstance(batch, list | tuple) and batch and _all_tensors(batch):
            self._check_names(batch)
            names = self._names_of(batch)
            if "input_ids" in names:
                check_ids(batch[names.index("input_ids")], "input_ids")
            elif not names:
                self._check_unnamed(batch[0])
            return _to_device(batch, self.device, self._move)
        if isinstance(batch, Tensor):
            self._check_unnamed(batch)
            return _to_device(batch, self.device, self._move)
        raise BatchError(
            f"Cannot call the model with a batch of type {type(batch).__name__}. Give dicts with "
            "'input_ids', tensors or tuples of tensors, or say how with "
            "forward=lambda model, batch: ..."
        )

    def _prepare_mapping(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        self._warn_of_mask(batch)
        prepared = {}
        for key in ("input_ids", *self._model_inputs):
            if key not in batch:
                raise MissingInputError(
                    f"The batch has no {key!r}; it has {sorted(map(str, batch))}. Let the dataset "
                    f"give a dict with {key!r}, or say how to call the model with "
                    "forward=lambda model, batch: ..."
                )
            value = batch[key]
            if not isinstance(value, Tensor):
                raise BatchError(
                    f"{key!r} is a {type(value).__name__} in this batch, not a tensor. Let the "
                    "dataset return tensors (dataset.set_format('torch')), or give a collate_fn= "
                    "that makes one."
                )
            prepared[key] = self._move(value)
        check_ids(prepared["input_ids"], "input_ids")
        return prepared

    def _check_unnamed(self, given: Tensor) -> None:
        if self._takes_ids_first:
            check_ids(given, None)
        else:
            check_no_batches_of_one(given)

    def _check_names(self, batch: Sequence[Any]) -> None:
        """A second tensor bound by its place could be anything: labels would become a mask."""
        names = self._names_of(batch)
        if len(names) == len(batch) or (len(batch) == 1 and not names):
            return
        named = f"model_inputs names {len(names)}: {list(names)}" if names else "nothing names them"
        raise BatchError(
            f"The batch is {len(batch)} tensors, and {named}. The model is called as "
            f"{describe_call(self.model)}. Give one name for each tensor, such as "
            "model_inputs=['input_ids', 'attention_mask'], or say which of them are inputs: "
            "forward=lambda model, batch: model(batch[0])."
        )

    def _move(self, value: Tensor) -> Tensor:
        """The tensor on the device; the host goes on, where it can, while the bytes cross."""
        is_plain = (
            type(value) is Tensor
            and value.is_cpu
            and value.layout is torch.strided
            and not (value.is_nested or value.is_quantized or value.requires_grad)
        )
        if not is_plain or self.device.type in WITHOUT_LINK:
            return value.to(self.device)
        if self._opened is None:
            self._opened = open_device(self.device)
        return self._opened.upload(value)

    def _warn_of_mask(self, batch: Mapping[str, Any]) -> None:
        mask = batch.get("attention_mask")
        if self._warned_of_mask or not isinstance(mask, Tensor) or bool(mask.all()):
            return
        self._warned_of_mask = True
        warn(
            "The batches have an attention_mask with zeros (padding), and it is not passed to the "
            "model, which will attend to the padding. Pass it with model_inputs=['attention_mask']."
        )


def _as_names(model_inputs: Iterable[str] | None) -> list[str]:
    names = [model_inputs] if isinstance(model_inputs, str) else list(model_inputs or ())
    for name in names:
        if not isinstance(name, str):
            raise ArgumentTypeError(
                f"model_inputs must be keys of the batch, as strings; got {name!r}."
            )
    return names


def _all_tensors(batch: Iterable[Any]) -> bool:
    return all(isinstance(item, Tensor) for item in batch)


def _to_device(value: Any, device: torch.device, move: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with its tensors on `device`; the caller's objects stay as they are."""
    if isinstance(value, Tensor):
        return move(value)
    if callable(getattr(value, "to", None)):
        twin = copy.copy(value)
        if isinstance(twin, UserDict):  # transformers' BatchEncoding
            twin.data = {
                key: move(item) if isinstance(item, Tensor) else item
                for key, item in twin.data.items()
            }
        return twin.to(device)  # which may move itself in place
    if isinstance(value, Mapping):
        return {key: _to_device(item, device, move) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_to_device(item, device, move) for item in value]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` for the block; every module's own flag afterwards, also on an error.

    The root's `train` is called first, so that overridden `train` methods run; then every module
    that differs gets its flag back.
    """
    modules = modules_of(model)
    flags = [module.training for module in modules]
    if not any(flags):
        yield
        return
    try:
        # A program of torch.export has the mode in which it was exported, and no other.
        with contextlib.suppress(NotImplementedError):
            model.eval()
        yield
    finally:
        try:
            _put_back(modules, flags)
        except BaseException:  # an interrupt, or an own `train` that raised
            _put_back(modules, flags)
            raise


def _put_back(modules: list[nn.Module], flags: list[bool]) -> None:
    """Give modules, the root first, their flags."""
    with contextlib.suppress(NotImplementedError):
        modules[0].train(flags[0])
    for module, flag in zip(modules, flags, strict=True):
        if module.training != flag:
            module.training = flag


@contextlib.contextmanager
def unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode for the block; flags, values of buffers and random numbers as before afterwards."""
    buffers = [buffer for buffer in model.buffers() if not buffer.is_inference()]
    before = [(buffer, buffer._version, buffer.detach().clone()) for buffer in buffers]
    generators = [device] if device.type == "cuda" else []
    try:
        with evaluation_mode(model), torch.random.fork_rng(generators):
            yield
    finally:
        for buffer, version, value in before:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


def is_compiled(model: nn.Module) -> bool:
    """Whether `torch.compile` wraps the model, one of its modules or the `forward` of one."""
    return any(
        "_orig_mod" in module._modules
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "get_compiler_config")
        for module in model.modules()
    )


_n_forgotten = 0
"""Frames that had been compiled when fastcap last cleared the compiler's caches."""


def has_compiled() -> bool:
    """Whether `torch.compile` has compiled anything in this process, functions included."""
    return _n_compiled() > _n_forgotten


def forget_compiled() -> None:
    """Clear the compiler's caches: what runs next is compiled again."""
    global _n_forgotten
    torch.compiler.reset()
    _n_forgotten = _n_compiled()


def _n_compiled() -> int:
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["frames"]["ok"]


def uncompiled() -> AbstractContextManager[Any]:
    """Run compiled parts as plain Python for the block: a compiled graph skips new hooks (R14)."""
    may_compile = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if may_compile else nullcontext()
