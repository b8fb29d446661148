"""How many token ids each sample of the running pass has."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastcap.model.passes import RootCalls


class TokenCounter(RootCalls[int | None]):
    """Reads the root module's `input_ids` before each pass, for checks of a guessed `seq_dim`."""

    @property
    def n_tokens(self) -> int | None:
        """Token ids per sample, where the pass has any; perhaps of a pass that is over."""
        readings = self._readings()
        return readings[-1] if readings else None

    def read_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        return count_tokens(kwargs.get("input_ids", args[0] if args else None))

    def is_within_pass(self) -> bool:
        """Whether the root module is being called in this thread: asked before the count is held
        against anybody, since it may be left over from a pass that was interrupted (R8).
        """
        return self.n_running() > 0


def count_tokens(input_ids: Any) -> int | None:
    """The length of a `(batch, sequence)` tensor of integers; `None` for anything else."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2:
        return None
    is_integer = not (input_ids.is_floating_point() or input_ids.is_complex())
    return input_ids.shape[1] if is_integer else None
