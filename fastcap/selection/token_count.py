"""How many token ids each sample of the running pass has."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.model.hooks import calls_on_stack, untraced


class TokenCounter:
    """Reads the root module's `input_ids` before each pass, for checks of a guessed `seq_dim`."""

    def __init__(self) -> None:
        self._of_thread = threading.local()
        self._model_ref: weakref.ref[nn.Module] | None = None

    @property
    def n_tokens(self) -> int | None:
        """Token ids per sample, where the pass has any; perhaps of a pass that is over."""
        return getattr(self._of_thread, "n_tokens", None)

    def before(self, model: nn.Module) -> list[RemovableHandle]:
        """Put a hook on the root module that reads what it is called with."""
        of_thread, model_ref = self._of_thread, weakref.ref(model)
        self._model_ref = model_ref

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if module is model_ref():
                ids = kwargs.get("input_ids", args[0] if args else None)
                of_thread.n_tokens = count_tokens(ids)

        return [model.register_forward_pre_hook(untraced(before), with_kwargs=True)]

    def after(self, model: nn.Module) -> list[RemovableHandle]:
        """Put a hook on the root module that forgets it."""
        of_thread, model_ref = self._of_thread, weakref.ref(model)

        def after(module: nn.Module, args: Any, output: Any) -> None:
            if module is model_ref():
                of_thread.n_tokens = None

        return [model.register_forward_hook(untraced(after), always_call=True)]

    def is_within_pass(self) -> bool:
        """Whether the root module is being called in this thread.

        The hook after a pass does not run when a KeyboardInterrupt ends it (R8), so before the
        count is held against anybody, the stack is asked.
        """
        model = self._model_ref() if self._model_ref is not None else None
        return model is not None and calls_on_stack(model) > 0


def count_tokens(input_ids: Any) -> int | None:
    """The length of a `(batch, sequence)` tensor of integers; `None` for anything else."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        return None
    is_integer = not (input_ids.is_floating_point() or input_ids.is_complex())
    return input_ids.shape[1] if is_integer else None
