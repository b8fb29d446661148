"""One batch of an archive that is run again: do its values come out as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcap.archive.layout import StreamSpec, dtype_name
from fastcap.archive.reader import Archive
from fastcap.consumers.base import RowConsumer, check_batch
from fastcap.consumers.batch_columns import BatchColumns, Values
from fastcap.consumers.comparison import Comparison, Difference, tolerance_of
from fastcap.engine import Pass


class ValueCheck(RowConsumer):
    """Compares what one pass gives with what an archive holds of its samples.

    Args:
        archive: The archive.
        beside: What of a batch is stored beside the sites.
        computed_in: Dtypes that the model computes in, for the tolerance.

    Attributes:
        samples: The ids that were compared.
        differences: What was different; complete once the pass is over.
        checksums: Of each site's values: two passes of the same values have the same.
    """

    def __init__(
        self, archive: Archive, beside: BatchColumns, computed_in: Sequence[torch.dtype] = ()
    ) -> None:
        super().__init__()
        self._archive = archive
        self._beside = beside
        self._computed_in = computed_in
        self._sites = {spec.name: spec for spec in archive.meta.streams if spec.kind == "site"}
        self._stored: dict[str, Any] = {}
        self._comparisons: dict[str, tuple[Comparison, float]] = {}
        self._misfitting: dict[str, str] = {}
        self.samples = range(0)
        self.differences: list[Difference] = []

    @property
    def checksums(self) -> dict[str, int]:
        return {name: comparison.crc32 for name, (comparison, _) in self._comparisons.items()}

    def expect(self, samples: range, batch: Any, n_batch: int) -> None:
        """The next pass is over `n_batch` samples, of which these ids are wanted."""
        check_batch(samples.start, batch, n_batch)
        self.samples = samples
        if not self._archive.has(samples.start, samples.stop):
            n_there = sum(self._archive.has(sample, sample + 1) for sample in samples)
            what = f"the batch has {len(samples)} samples now, and {n_there} of them are stored"
            self.differences.append(Difference("the data", what))
            return
        for name in self._archive.streams:
            self._stored[name] = self._archive[name][samples.start : samples.stop]
        self._compare_beside(self._beside.take(batch, len(samples), n_batch))

    def _compare_beside(self, values: Values) -> None:
        """Token ids, masks and labels were not computed: they are the same anywhere."""
        found = {spec.name: spec for spec in values.specs}
        for spec in self._archive.meta.streams:
            if spec.kind == "site":
                continue
            if found.pop(spec.name, None) != spec:
                self.differences.append(Difference(spec.name, "it is of another kind now"))
                continue
            tensor, lengths = values.tensors[spec.name]
            self._compare_rows(spec, tensor, lengths)
        for name in found:
            self.differences.append(Difference(name, "it is not stored"))

    def _compare_rows(self, spec: StreamSpec, rows: Tensor, lengths: Sequence[int] | None) -> None:
        stored = self._stored[spec.name]
        if spec.is_text:
            stored = [torch.tensor(list(text.encode()), dtype=torch.uint8) for text in stored]
        if (what := _other_lengths(stored, lengths)) is not None:
            self.differences.append(Difference(spec.name, what))
            return
        comparison = Comparison(spec.name, _as_list(stored), rows.shape)
        comparison.copy_(rows)
        if (difference := comparison.difference(0.0)) is not None:
            self.differences.append(difference)

    def begin(self, n_samples: int) -> None:
        """The pass is about to run."""
        self._begin_batch(n_samples)

    def place(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> tuple[Tensor, Comparison | None]:
        """In the hook: the rows that are stored, and what compares them."""
        self._comparisons.pop(site, None)
        self._misfitting.pop(site, None)
        if not self._has_row_per_sample(site, value, lengths):
            return value, None
        n_kept = len(self.samples)
        kept = None if lengths is None else lengths[:n_kept]
        value = value[: n_kept if kept is None else sum(kept)]
        what = self._misfit(site, value, dtype, kept)
        if what is not None:
            self._misfitting[site] = what
            return value, None
        comparison = Comparison(site, _as_list(self._stored[site]), value.shape)
        tolerance = tolerance_of((dtype, value.dtype, *self._computed_in))
        self._comparisons[site] = comparison, tolerance
        return value, comparison

    def _misfit(
        self, site: str, value: Tensor, dtype: torch.dtype, lengths: tuple[int, ...] | None
    ) -> str | None:
        spec = self._sites.get(site)
        if spec is None:
            return "it captured nothing then"
        shape = tuple(value.shape[1:])
        if StreamSpec(site, "site", dtype_name(dtype, site), shape, lengths is not None) != spec:
            return f"rows of shape {shape} and {dtype}, then {spec.shape} and {spec.torch_dtype}"
        return _other_lengths(self._stored[site], lengths)

    def end(self, finished: Pass) -> None:
        """The pass is over: wait for its values, and say what was different."""
        self._refuse_misfits()
        for _, capture in finished.captures.values():
            if capture.error is not None:
                raise capture.error
        finished.settle()
        for site in self._sites.keys() - finished.captures.keys():
            self._misfitting[site] = "it captures nothing now"
        self.differences += [Difference(*each) for each in self._misfitting.items()]
        for comparison, tolerance in self._comparisons.values():
            if (difference := comparison.difference(tolerance)) is not None:
                self.differences.append(difference)
        self._end_batch(len(self.samples))


def _as_list(stored: Tensor | list[Tensor]) -> list[Tensor]:
    return stored if isinstance(stored, list) else [stored]


def _other_lengths(stored: Tensor | list[Tensor], lengths: Sequence[int] | None) -> str | None:
    if lengths is None or list(map(len, stored)) == list(lengths):
        return None
    return f"its samples have {list(lengths)} rows, then {list(map(len, stored))}"
