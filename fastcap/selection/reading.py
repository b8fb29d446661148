"""From what a site produced to what is kept of it: the part of a capture before any copy.

The engine does this in its hooks, and a plan does it to values that it lets go of again.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fastcap.devices.base import AnyDevice
from fastcap.selection.per_sample import Rows, RowSource
from fastcap.selection.selector import Selector
from fastcap.selection.token_count import TokenCounter
from fastcap.spec import Selection, Site


class SiteReader:
    """A selection with all that it has to know of the running pass.

    Args:
        selection: What is taken.
        rows: Where passes learn what to take of each sample.
    """

    def __init__(self, selection: Selection, rows: RowSource) -> None:
        self._rows = rows
        self._selector = Selector(selection)
        self._tokens = TokenCounter()
        self._observers: list[RowSource | TokenCounter] = [rows]
        if (
            selection.positions is not None
            and selection.seq_dim is None
            and not selection.needs_mask
        ):
            self._observers.append(self._tokens)

    def before(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Hooks that read what the root module is called with, if anything of that is needed. To be
        put on it before the sites' own: a site may be the root's input.
        """
        for each in self._observers:
            each.before(model, handles)

    def after(self, model: nn.Module, handles: list[RemovableHandle]) -> None:
        """Hooks that forget it. After the sites' own: one of them may be the root's output."""
        for each in self._observers:
            each.after(model, handles)

    def __call__(
        self, value: Tensor, site: Site, of_batch: Rows | None, device: AnyDevice
    ) -> tuple[Tensor, tuple[int, ...] | None]:
        """What is kept of a value, on its own device, and the rows of each sample if it is ragged.

        Args:
            value: What the site produced, on `device`.
            site: Named in errors.
            of_batch: What the pass's batch says of its samples.
            device: Asked for index tensors.

        Raises:
            SelectionError, PositionError, CastError: As `Selector` says.
        """
        if self._rows.shapes is not None:
            self._rows.shapes[site.name] = value.shape
        rows = lengths = None
        if self._rows.is_asked:
            rows = self._rows(of_batch, site)
            lengths = self._rows.lengths(rows)
        return self._selector(value, site, self._tokens, rows, device), lengths
