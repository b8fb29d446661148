"""Whether rows follow the number of samples, where shapes do not say: one pass of one sample fewer.

A value of 8 samples of 8 tokens has the same shape whichever of them is first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from fastcap.devices.cpu import SynchronousDevice
from fastcap.errors import PositionError, ResultError, SelectionError
from fastcap.model.forward import BatchCaller, unchanged, uncompiled
from fastcap.model.hooks import attach, detach, modes_off
from fastcap.model.parts import as_capturable, take_part
from fastcap.model.rows import count_rows, may_list_samples, resized
from fastcap.model.sites import BoundSite
from fastcap.selection.per_sample import Rows, RowSource
from fastcap.selection.reading import SiteReader
from fastcap.spec import Selection

Shape = tuple[int, ...]


class BatchDimension:
    """Checks the first pass of a run whose rows are samples.

    Args:
        call: How a batch becomes a pass.
        bound: The sites.
        selection: What is taken there.
        rows: Where passes learn what to take of each sample; told to note shapes.
    """

    def __init__(
        self, call: BatchCaller, bound: Sequence[BoundSite], selection: Selection, rows: RowSource
    ) -> None:
        self._call = call
        self._bound = bound
        self._selection = selection
        self._rows = rows
        rows.shapes = {}

    def is_settled(self, batch: Any, n_samples: int) -> bool:
        """A pass is over: whether nothing is left to check. One sample is the same either way.

        A batch that cannot be cut, and a model that cannot run what is left of it, are not checked.

        Raises:
            ResultError: Rows of a site do not follow the number of samples.
        """
        if n_samples < 2:
            return False
        shapes, self._rows.shapes = self._rows.shapes or {}, None
        doubtful = {
            name: tuple(shape) for name, shape in shapes.items() if list(shape).count(n_samples) > 1
        }
        if not doubtful or may_list_samples(batch, n_samples):
            return True
        fewer = resized(batch, 0, n_samples, n_samples - 1)
        if count_rows(fewer) != n_samples - 1:
            return True
        try:
            found = self._run(fewer, n_samples - 1)
        except Exception:  # noqa: BLE001 - the run's own batches are not to fail for it
            return True
        for name, shape in doubtful.items():
            if name in found:
                self._check(name, shape, n_samples, *found[name])
        return True

    def _run(self, batch: Any, n_samples: int) -> dict[str, tuple[Shape, int]]:
        """The shape that each site produces, and how many samples it is taken for."""
        selection, rows = self._rows.for_samples(n_samples)
        counts = _Counts(self._bound, selection, rows, rows.of_batch(batch))
        model, call = self._call.model, self._call
        prepared = call.prepare(batch)
        with unchanged(model, call.device), uncompiled(), torch.no_grad():
            handles: list[RemovableHandle] = []
            try:
                counts.read.before(model, handles)
                attach(self._bound, counts, handles)
                counts.read.after(model, handles)
                call(prepared)
            finally:
                detach(handles)
        return counts.found

    def _check(self, name: str, shape: Shape, n_samples: int, fewer: Shape, n_rows: int) -> None:
        if n_rows == n_samples - 1:
            return
        asked = self._selection.batch_dim
        pairs = list(zip(shape, fewer, strict=False))
        following = [dim for dim, pair in enumerate(pairs) if pair == (n_samples, n_samples - 1)]
        if asked % len(shape) in following:
            what = f"what is selected of it has {n_rows} rows for both"
            advice = "Let reduce= and positions= keep the dimension of samples, and keep it first"
        elif following:
            what = f"dimension {asked} does not count samples"
            advice = f"Pass batch_dim={following[0]}"
        else:
            what = "no dimension of it counts samples"
            advice = "Capture another module"
        raise ResultError(
            f"Site {name!r} produced shape {shape} for {n_samples} samples and {fewer} for "
            f"{n_samples - 1}: {what}, so its rows cannot be matched to samples. {advice}, or "
            "receive it batch by batch with fastcap.stream()."
        )


class _Counts:
    """Behind the hooks of one pass; see `fastcap.model.hooks.Receiver`."""

    def __init__(
        self,
        bound: Sequence[BoundSite],
        selection: Selection,
        rows: RowSource,
        of_batch: Rows | None,
    ) -> None:
        self.read = SiteReader(selection, rows)
        self.found: dict[str, tuple[Shape, int]] = {}
        self._sites = [each.site for each in bound]
        self._batch_dim = selection.batch_dim
        self._of_batch = of_batch
        self._n_turns = [0] * len(bound)

    def receive(self, index: int, output: Any) -> None:
        site = self._sites[index]
        self._n_turns[index] += 1
        value = take_part(output, site)
        if value is None or not site.takes(self._n_turns[index] - 1):
            return
        with modes_off():
            value = as_capturable(value, site)
            try:
                device = SynchronousDevice(value.device)
                selected, lengths = self.read(value, site, self._of_batch, device)
            except (SelectionError, PositionError):  # which fits the values of the first pass
                n_rows = value.shape[self._batch_dim]
            else:
                n_rows = len(selected) if lengths is None else len(lengths)
        self.found[site.name] = tuple(value.shape), n_rows
