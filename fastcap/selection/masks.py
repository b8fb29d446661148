"""Where a pass's attention mask comes from."""

from __future__ import annotations

import inspect
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.errors import SelectionError
from fastcap.model.hooks import calls_on_stack, modes_off, untraced
from fastcap.selection.padding import Padding
from fastcap.spec import Site


class MaskReader:
    """Knows the mask of the running call of the root module.

    Args:
        of_call: How to make it of the arguments of the call; `None` for the `attention_mask`
            among them.
    """

    def __init__(self, of_call: Callable[..., Any] | None = None) -> None:
        self._of_call = of_call
        self._mask_of: Callable[..., Any] = of_call or _no_mask
        self._of_thread = threading.local()
        self._model_ref: weakref.ref[nn.Module] | None = None
        self.n_reads = 0

    def before(self, model: nn.Module) -> list[RemovableHandle]:
        """Put a hook on the root module that reads the mask of each call."""
        self._model_ref = weakref.ref(model)
        self._mask_of = self._of_call or _attention_mask_of(model)
        reader_ref = weakref.ref(self)  # R12: a user's callable may lead to the store

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            reader = reader_ref()
            if reader is not None and reader.is_for(module):
                reader.begin(module, args, kwargs)

        return [model.register_forward_pre_hook(untraced(before), with_kwargs=True)]

    def after(self, model: nn.Module) -> list[RemovableHandle]:
        """Put a hook on the root module that forgets it."""
        reader_ref = weakref.ref(self)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            reader = reader_ref()
            if reader is not None and reader.is_for(module):
                del _masks(reader._of_thread)[calls_on_stack(module) - 1 :]

        return [model.register_forward_hook(untraced(after), always_call=True)]

    def is_for(self, module: nn.Module) -> bool:
        """Whether this is the model, and not a copy that took the hooks along."""
        return self._model_ref is not None and module is self._model_ref()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the model is about to run."""
        mask = self._mask_of(*args, **kwargs)
        if mask is None and self._of_call is not None:
            raise SelectionError(
                "mask= returned None for a call of the model; it must return a (batch, sequence) "
                "tensor of zeros and ones, such as lambda ids: ids != 0."
            )
        if isinstance(mask, Tensor):
            with modes_off():
                mask = mask.detach().clone()  # the model may write to its own
        masks = _masks(self._of_thread)
        del masks[calls_on_stack(module) - 1 :]  # left over by calls that were interrupted (R8)
        masks.append(mask)

    def padding(self, site: Site, asked: str) -> Padding:
        """What the mask of the running call says, worked out once per call.

        Raises:
            SelectionError: There is no mask, or it is not one of zeros and ones.
        """
        model = self._model_ref() if self._model_ref is not None else None
        n_calls = 0 if model is None else calls_on_stack(model)
        masks = _masks(self._of_thread)
        found = masks[n_calls - 1] if 0 < n_calls <= len(masks) else None
        if found is None:
            why = (
                "its module was called on its own, outside a call of the whole model"
                if n_calls == 0
                else "the model's call has none"
            )
            raise SelectionError(
                f"Site {site.name!r}: {asked} needs an attention mask, and {why}. Pass "
                "attention_mask to the model (model_inputs=['attention_mask'] where fastcap makes "
                "the call), let the batches have that key, or give a mask with mask=."
            )
        if not isinstance(found, Padding):
            found = masks[n_calls - 1] = self.read(found)
        return found

    def read(self, mask: Any) -> Padding:
        """A pass's mask, checked; a mask on an accelerator is waited for, and counted."""
        padding = Padding(mask)
        self.n_reads += padding.n_reads
        return padding


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Before a model is known."""


def _attention_mask_of(model: nn.Module) -> Callable[..., Any]:
    """A function of the arguments of `model.forward` that picks its `attention_mask`."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled from C: names are all there is
        signature = inspect.Signature()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [name for name, found in signature.parameters.items() if found.kind in kinds]
    index = names.index("attention_mask") if "attention_mask" in names else sys.maxsize

    def attention_mask_of(*args: Any, **kwargs: Any) -> Any:
        return args[index] if index < len(args) else kwargs.get("attention_mask")

    return attention_mask_of


def _masks(of_thread: threading.local) -> list[Any]:
    """The masks of the running calls of the root module in this thread, outermost first."""
    if not hasattr(of_thread, "masks"):
        of_thread.masks = []
    masks: list[Any] = of_thread.masks
    return masks
