"""Where a pass's attention mask comes from."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.errors import SelectionError
from fastcap.model.hooks import modes_off
from fastcap.model.passes import RootCalls
from fastcap.selection.padding import Padding
from fastcap.spec import Site


class MaskReader(RootCalls[Any]):
    """Knows the mask of the running call of the root module.

    Args:
        of_call: How to make it of the arguments of the call; `None` for the `attention_mask`
            among them.
    """

    def __init__(self, of_call: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self._of_call = of_call
        self._mask_of: Callable[..., Any] = of_call or _no_mask
        self.n_reads = 0

    def before(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        self._mask_of = self._of_call or _attention_mask_of(model)
        super().before(model, handles)

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        mask = self._mask_of(*args, **kwargs)
        if mask is None and self._of_call is not None:
            raise SelectionError(
                "mask= returned None for a call of the model; it must return a (batch, sequence) "
                "tensor of zeros and ones, such as lambda ids: ids != 0."
            )
        if isinstance(mask, Tensor):
            with modes_off():
                mask = mask.detach().clone()  # the model may write to its own
        return mask

    def padding(self, site: Site, asked: str) -> Padding:
        """What the mask of the running call says, worked out once per call.

        Raises:
            SelectionError: There is no mask, or it is not one of zeros and ones.
        """
        n_calls, masks = self.n_running(), self._readings()
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
